"""`actscope.ray` on a local Ray with two workers, one of which is killed in the middle."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from pyarrow import parquet

import actscope
from actscope.ray import Activations

TEXTS = [f"The cat sat on {i} mats, and then it {'slept' if i % 3 else 'ran and ran'}." for i in range(200)]


class Dying(Activations):
    """Kills its own process once, in the middle of a batch: the first worker that finds the mark."""

    def __init__(self, mark: str, **options: Any) -> None:
        super().__init__(**options)
        self._mark = Path(mark)
        self._batches = 0

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        self._batches += 1
        if self._batches == 3:
            try:
                self._mark.unlink()
            except FileNotFoundError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch) | {"pid": np.full(len(batch["text"]), os.getpid())}


def test_a_batch_needs_no_ray(model: actscope.Model) -> None:
    work = Activations("demo", ["resid_post.1", "pattern.0"], device="cpu")
    out = work({"text": np.array(["The cat sat", "A dog"]), "id": np.array([7, 8])})
    assert out["id"].tolist() == [7, 8]
    for i, text in enumerate(["The cat sat", "A dog"]):
        alone = model.run(text, ["resid_post.1", "pattern.0"])
        assert out["input_ids"][i].tolist() == alone.input_ids[0].tolist()
        for hook in alone:
            np.testing.assert_array_equal(out[hook][i], alone[hook][0])
    last = Activations("demo", device="cpu", pos=-1)({"text": np.array(["The cat sat", "A dog"])})
    assert last["ln_final.hook_out"].shape == (2, 1, model.config["n_embd"])
    with pytest.raises(KeyError, match="there is no column 'text'; the rows have line"):
        work({"line": np.array(["a"])})


def test_two_workers_and_one_is_killed(model: actscope.Model, tmp_path: Path) -> None:
    # The workers import this file.
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {"env_vars": {"PYTHONPATH": paths, "ACTSCOPE_TUNING": "off"}}
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", runtime_env=environment
    )
    try:
        mark = tmp_path / "mark"
        mark.touch()
        ray.data.DataContext.get_current().enable_progress_bars = False
        rows = ray.data.from_items([{"text": text, "id": i} for i, text in enumerate(TEXTS)], override_num_blocks=20)
        options = {"mark": str(mark), "model": "demo", "hooks": ["ln_f"], "device": "cpu", "pos": -1}
        done = rows.map_batches(
            Dying, fn_constructor_kwargs=options, compute=ray.data.ActorPoolStrategy(size=2), batch_size=10
        )
        done.write_parquet(str(tmp_path / "shards"))
        assert not mark.exists(), "no worker was killed"
        read = ray.data.read_parquet(str(tmp_path / "shards")).take_all()
    finally:
        ray.shutdown()
    # Nothing is lost, nothing is there twice, and more than one process worked.
    assert sorted(row["id"] for row in read) == list(range(len(TEXTS)))
    assert len({row["pid"] for row in read}) >= 2
    want = model.run(TEXTS, "ln_f", pos=-1)["ln_f"]
    for row in read:
        np.testing.assert_array_equal(np.asarray(row["ln_final.hook_out"]), want[row["id"]])


@pytest.mark.parametrize("written", ["parquet", "npy"])
def test_the_example_reads_a_folder_and_writes_shards(model: actscope.Model, written: str, tmp_path: Path) -> None:
    texts = {f"{i}.txt": [f"The cat sat on {i} mats {'again ' * j}." for j in range(5)] for i in range(4)}
    (tmp_path / "texts").mkdir()
    for name, lines in texts.items():
        (tmp_path / "texts" / name).write_text("\n".join(lines) + "\n")
    example = Path(__file__).parents[1] / "examples" / "ray_shards.py"
    command = [sys.executable, example, tmp_path / "texts", tmp_path / "shards", "--format", written]
    # It waited for ever on two CPUs when each worker took one and none was left to read.
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ran.returncode == 0, ran.stderr
    assert "20 rows" in ran.stdout
    shards = sorted((tmp_path / "shards").glob(f"*.{written}"))
    assert shards
    if written == "npy":
        got = np.concatenate([np.load(shard) for shard in shards])
    else:
        rows = [row for shard in shards for row in parquet.read_table(shard).to_pylist()]
        got = np.asarray([row["ln_final.hook_out"] for row in rows], dtype=np.float32)
        assert sorted(row["text"] for row in rows) == sorted(line for lines in texts.values() for line in lines)
    want = model.run([line for lines in texts.values() for line in lines], "ln_f", pos=-1)["ln_f"]

    def in_order(values: np.ndarray) -> np.ndarray:
        flat = values.reshape(len(want), -1)
        return flat[np.lexsort(flat.T)]

    np.testing.assert_array_equal(in_order(got), in_order(want))
