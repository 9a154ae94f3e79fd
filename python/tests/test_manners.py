"""Errors, Ctrl-C, threads, pickling, memory, import, progress."""

import gc
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, TEXT

import actscope


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda m: actscope.load("no/such/folder"), "hub", "no/such/folder"),
        (lambda m: actscope.load("demo", device="tpu"), "device", "there is no device \"tpu\".*this machine has"),
        (lambda m: actscope.load("demo", weights="int4"), "weights", "none of"),
        (lambda m: actscope.load("demo", process="fold"), "weights", 'process: "fold" is none of fold-ln, center-writing'),
        (lambda m: m.run(TEXT, "resid_prey.1"), "hook", "nearest.*; `model.hooks` lists them"),
        (lambda m: m.run(TEXT, "resid_pre.1@pos=0"), "hook", "give the hook's name alone"),
        (lambda m: m.run(TEXT, "resid_pre.99"), "hook", "resid_pre.99"),
        (lambda m: m.run([[10**6]], "ln_f"), "batch", "1000000"),
        (lambda m: m.run([[-1]], "ln_f"), "batch", "token id -1"),
        (lambda m: m.run([[]], "ln_f"), "batch", "no tokens"),
        (lambda m: m.run("", "ln_f"), "batch", "prepend_bos=True"),
        (lambda m: m.run([[1] * 5000], "ln_f"), "batch", "5000 tokens"),
        (lambda m: m.heatmap(["a", "b"]), "batch", "shows one text, and 2"),
        (lambda m: m.token_id(" Jerusalem artichoke"), "tokenizer", "tokens: .*; give one token, with a space in front"),
        (lambda m: m.token_id("queen"), "tokenizer", "tokens: .*; ' queen', with a space in front, is one"),
        (lambda m: actscope.load("demo", device="reference").verify(), "device", "held against"),
    ],
)
def test_errors_have_kinds_and_the_librarys_words(model: actscope.Model, make: Any, kind: str, message: str) -> None:
    with pytest.raises(actscope.Error, match=message) as e:
        make(model)
    assert e.value.kind == kind
    assert "--" not in str(e.value)
    again = pickle.loads(pickle.dumps(e.value))
    assert (str(again), again.kind) == (str(e.value), kind)


def test_a_folder_without_a_tokenizer_takes_ids(tmp_path: Any) -> None:
    folder = Path(__file__).parents[2] / "tests" / "fixtures" / "classic"
    model = actscope.load(str(folder), device="cpu")
    with pytest.raises(actscope.Error, match="no tokenizer.*; give token ids") as e:
        model.run("text", "ln_f")
    assert e.value.kind == "tokenizer"
    cache = model.run([[1, 2]], "ln_f")
    assert cache.tokens == [["#1", "#2"]]


def test_a_token_is_one_where_the_tokenizer_begins_every_text(model: actscope.Model, tmp_path: Path) -> None:
    demo = ROOT / "models" / "demo"
    for file in ("config.json", "model.safetensors"):
        shutil.copy(demo / file, tmp_path)
    tokenizer = json.loads((demo / "tokenizer.json").read_text(encoding="utf-8"))
    bos, id = "<|endoftext|>", model.config["bos_token_id"]
    single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {bos: {"id": bos, "ids": [id], "tokens": [bos]}},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    begun = actscope.load(str(tmp_path), device="cpu")
    assert begun.encode(" queen") == [[id, *model.encode(" queen")[0]]]
    assert begun.token_id(" queen") == model.token_id(" queen")
    with pytest.raises(actscope.Error, match="' queen', with a space in front, is one"):
        begun.token_id("queen")


def test_a_model_that_may_not_be_fetched(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(actscope.Error, match="forbids downloads.*; give that folder to `actscope.load`") as e:
        actscope.load("someone/gpt2-of-theirs")
    assert e.value.kind == "hub"


def test_ctrl_c_stops_a_run_and_the_next_one_goes_on(model: actscope.Model) -> None:
    ids = [[1 + i % 50 for i in range(model.config["n_positions"])]] * 400
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            model.run(ids, "ln_f", pos=-1)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert np.isfinite(model.run(TEXT, "ln_f")["ln_f"]).all()


def test_the_gil_is_released_while_computing(model: actscope.Model) -> None:
    ids = [[1 + i % 50 for i in range(model.config["n_positions"])]] * 100
    done, counted = threading.Event(), 0

    def run() -> None:
        model.run(ids, "ln_f", pos=-1)
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    while not done.wait(0.001):
        counted += 1
    thread.join()
    assert counted > 20


def test_threads_share_a_model(model: actscope.Model) -> None:
    texts = [f"The cat sat on {i} mats and" for i in range(8)]
    want = [model.run(text, "ln_f")["ln_f"] for text in texts]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda text: model.run(text, "ln_f")["ln_f"], texts * 5))
        # A function of an edit needs the GIL while other threads run the same model.
        edited = list(pool.map(lambda text: model.run(text, "ln_f", edits={"resid_pre.1": lambda x: x})["ln_f"], texts * 2))
    for i, values in enumerate([*got, *edited]):
        np.testing.assert_array_equal(values, want[i % 8])


def test_a_model_is_pickled_by_name_and_options() -> None:
    model = actscope.load("demo", device="cpu", weights="bf16")
    data = pickle.dumps(model)
    assert len(data) < 200
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.run(TEXT, "ln_f")["ln_f"], model.run(TEXT, "ln_f")["ln_f"])
    assert not np.array_equal(actscope.load("demo", device="cpu").run(TEXT, "ln_f")["ln_f"], model.run(TEXT, "ln_f")["ln_f"])


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")
def test_memory_does_not_grow(model: actscope.Model) -> None:
    def thousand() -> None:
        for i in range(1000):
            model.run(TEXT, ["resid_post.*", "pattern.*"], edits={"resid_pre.0": lambda x: x} if i % 10 == 0 else None)
        gc.collect()

    thousand()
    before = resident()
    thousand()
    # One cache of these is 50 kB: 1,000 that stay would be 50 MB.
    assert resident() - before < 8 << 20


def test_importing_says_nothing_and_brings_little() -> None:
    code = (
        "import sys, numpy; before = set(sys.modules); import actscope; new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(sorted(new & {'matplotlib', 'tqdm', 'IPython', 'torch', 'pandas', 'ray', 'asyncio', 'importlib.metadata'}))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


def test_progress_goes_to_tqdm_after_a_second(model: actscope.Model, monkeypatch: Any) -> None:
    import actscope._progress as progress

    made: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.total, self.n, self.closed = options["total"], 0, False
            made.append(self)

        def update(self, n: int) -> None:
            self.n += n

        def close(self) -> None:
            self.closed = True

    monkeypatch.setattr(progress, "_tqdm", lambda **options: Bar(**options))
    model.run(TEXT, "ln_f")
    assert not made
    # Slow by an edit that sleeps: longer than a second on every machine.
    import time

    model.run(TEXT, "ln_f", edits={"resid_pre.*": lambda x: time.sleep(2.5 / model.n_layer)})
    (bar,) = made
    assert bar.closed and 0 < bar.n <= bar.total == model.n_layer
    with progress.Progress("by hand") as told:
        for done in (1, 3, 4):
            told(done, 5)
    assert (made[1].n, made[1].total, made[1].closed) == (4, 5, True)


def test_verify_says_that_the_numbers_are_right(model: actscope.Model) -> None:
    found = model.verify()
    assert found.ok and bool(found) and "right" in repr(found)
    assert len(found.hooks) == len(model.hooks) and all(row[5] for row in found.hooks) and found.kernels
    assert found._repr_html_().count("<tr>") == len(found.hooks) + len(found.kernels) + 2


def test_numbers_that_are_none_are_warned_of(model: actscope.Model) -> None:
    with pytest.warns(RuntimeWarning, match="blocks.1.hook_resid_pre holds NaN in dimension 0 at text 0, position 0"):
        model.run(TEXT, "resid_pre.1", edits=[actscope.Edit("resid_pre.1", "set", float("nan"), pos=0, dim=0)])
    with pytest.warns(RuntimeWarning, match="blocks.1.hook_resid_pre holds NaN in dimension 7 at text 0, position 3"):
        model.run(TEXT, "resid_pre.1", pos=[2, 3], edits=[actscope.Edit("resid_pre.1", "set", float("nan"), pos=3, dim=7)])
