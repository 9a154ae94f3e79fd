"""Text that the model writes: against one run for each token, with hooks and edits, by callback and iterator; and scores."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TEXT, assert_near, read_safetensors

import actscope
from actscope import Edit

PROMPTS = ["The cat sat", "And the LORD said unto"]


def by_hand(model: actscope.Model, text: str, n: int, **options: Any) -> list[int]:
    """The likeliest token each time, by a run of the whole text."""
    (ids,) = model.encode(text)
    for _ in range(n):
        ids.append(int(model.run([ids], "logits", pos=-1, **options)["logits"][0, 0].argmax()))
    return ids


def test_greedy_text_is_the_likeliest_token_of_whole_runs(model: actscope.Model) -> None:
    written = model.generate(PROMPTS, 6)
    assert len(written) == 2 and written.cache is None
    for i, (one, prompt) in enumerate(zip(written, PROMPTS, strict=True)):
        assert one.ids == by_hand(model, prompt, 6) and one.prompt_ids == model.encode(prompt)[0]
        assert (one.prompt, one.sample, one.stop, len(one.tokens), one.logprobs.shape) == (i, 0, "length", 6, (6,))
        logits = model.run([one.ids], "logits")["logits"][0, len(one.prompt_ids) - 1 : -1].astype(np.float64)
        log = logits - logits.max(-1, keepdims=True)
        log -= np.log(np.exp(log).sum(-1, keepdims=True))
        np.testing.assert_allclose(one.logprobs, [log[j, id] for j, id in enumerate(one.ids[-6:])], atol=1e-5)
    assert written[0].text in written._repr_html_() and str(written[0]) == written[0].text


def test_draws_are_those_of_their_seed(model: actscope.Model) -> None:
    options: Any = {"temperature": 1.0, "top_k": 50, "samples": 3}
    first = model.generate(PROMPTS, 5, seed=7, **options)
    again = model.generate(PROMPTS, 5, seed=7, **options)
    other = model.generate(PROMPTS, 5, seed=8, **options)
    assert [one.ids for one in first] == [one.ids for one in again] != [one.ids for one in other]
    assert [(one.prompt, one.sample) for one in first] == [(i, j) for i in range(2) for j in range(3)]
    assert len({tuple(one.ids) for one in first}) > 2 and first.seed == 7
    made_up = model.generate(PROMPTS[0], 5, temperature=1.0)
    assert model.generate(PROMPTS[0], 5, temperature=1.0, seed=made_up.seed)[0].ids == made_up[0].ids


def test_activations_are_those_of_the_whole_text(model: actscope.Model, tmp_path: Path) -> None:
    hooks = ["resid_post.*", "pattern.2", "scores.2", "logits"]
    written = model.generate(PROMPTS, 5, hooks=hooks)
    cache = written.cache
    assert cache.tokens == [model._session.written(one.ids) for one in written]
    for i, one in enumerate(written):
        n = len(one.ids)
        whole = model.run([one.ids], hooks)
        for name, values in whole.items():
            got = cache[name][i, :n] if values.ndim == 3 else cache[name][i, :, :n, :n]
            seen = np.isfinite(values[0])
            assert (np.isfinite(got) == seen).all()
            assert_near(got[seen], values[0][seen])
    place = tmp_path / "written.safetensors"
    cache.save(place)
    arrays, about = read_safetensors(place)
    np.testing.assert_array_equal(arrays["blocks.1.hook_resid_post"], cache["resid_post.1"])
    generation = json.loads(about["generation"])
    assert generation["new_tokens"] == 5 and [text["stop"] for text in generation["texts"]] == ["length"] * 2
    assert json.loads(about["text"])[0] == PROMPTS[0] + written[0].text


def test_arrays_end_where_the_longest_text_does(model: actscope.Model, tmp_path: Path) -> None:
    whole = model.generate(PROMPTS[0], 12)
    stop = whole[0].text[: len(whole[0].text) // 2]
    written = model.generate(PROMPTS[0], 12, stop=stop, hooks=["resid_post.0", "pattern.0"])
    (one,) = written
    assert one.stop == "stop-text" and stop in one.text and len(one.ids) < len(whole[0].ids)
    n = len(one.ids)
    assert written.cache["resid_post.0"].shape[:2] == written.cache.attention_mask.shape == (1, n)
    assert written.cache["pattern.0"].shape == (1, model.n_head, n, n)
    part = model.generate(PROMPTS[0], 12, stop=stop, hooks="resid_post.0", pos=[0, n - 1, n + 1]).cache
    assert part.positions == [[0, n - 1]]
    np.testing.assert_array_equal(part["resid_post.0"][0, :2], written.cache["resid_post.0"][0, [0, n - 1]])
    new = model.generate(PROMPTS, 3, hooks="resid_post.0", pos="new").cache
    last = model.generate(PROMPTS, 3, hooks="resid_post.0", pos=-1).cache
    assert [len(of) for of in new.positions] == [3, 3]
    short = model.generate(PROMPTS[0], 12, stop=stop, hooks="resid_post.0", pos="new").cache
    short.save(tmp_path / "new.npz")
    assert short["resid_post.0"].shape[1] == n - len(one.prompt_ids)
    assert last.positions == [[len(ids) - 1] for ids in model.encode(PROMPTS)]


def test_edits_are_made_where_they_name_as_tokens_come(model: actscope.Model) -> None:
    hook, prompts = "resid_pre.2", [len(ids) for ids in model.encode(PROMPTS)]
    plain = model.generate(PROMPTS, 4, hooks=hook)
    vector = np.arange(model.config["n_embd"], dtype=np.float32) / 50
    as_object = model.generate(PROMPTS, 4, hooks=hook, edits=[Edit(hook, "add", vector, pos="new")])
    rows: list[tuple[int, ...]] = []

    def added(x: np.ndarray) -> np.ndarray:
        rows.append(x.shape)
        return x + vector

    by_function = model.generate(PROMPTS, 4, hooks=hook, edits=[Edit(hook, added, pos="new")])
    np.testing.assert_array_equal(by_function.cache[hook], as_object.cache[hook])
    assert {shape[:2] for shape in rows} == {(1, 1)} and "added" in by_function.cache.edits[0]["edit"]
    for i, n in enumerate(prompts):
        np.testing.assert_array_equal(as_object.cache[hook][i, :n], plain.cache[hook][i, :n])
        edit = Edit(hook, "add", vector, pos=slice(n, None))
        whole = model.run([as_object[i].ids], hook, edits=[edit])[hook][0]
        assert_near(as_object.cache[hook][i, : n + 4], whole)
    written = model.generate(PROMPTS, 4, edits=f"{hook}@pos=new:scale=0.5", hooks=hook)
    assert written.cache.edits == [{"edit": "blocks.2.hook_resid_pre@pos=new:scale=0.5"}]
    # Negative positions count from the prompt's end, in objects as in words.
    objects = model.generate(PROMPTS, 4, hooks=hook, edits=[Edit(hook, "zero", pos=-1)])
    words = model.generate(PROMPTS, 4, hooks=hook, edits=f"{hook}@pos=-1:zero")
    np.testing.assert_array_equal(objects.cache[hook], words.cache[hook])
    assert not objects.cache[hook][0, prompts[0] - 1].any() and objects.cache[hook][0, prompts[0]].any()
    patched = model.generate(PROMPTS[0], 4, edits="resid_pre.0@pos=1:patch", source="The dog sat")
    assert patched[0].ids[prompts[0] :] == by_hand(model, "The dog sat", 4)[prompts[0] :]


def test_tokens_are_told_as_they_come(model: actscope.Model) -> None:
    told: list[actscope.NewToken] = []
    written = model.generate(PROMPTS, 6, on_token=told.append, alternatives=3, lens=2)
    for i, one in enumerate(written):
        mine = [token for token in told if token.text == i]
        assert [token.id for token in mine] == one.ids[-6:] and [token.token for token in mine] == one.tokens
        assert "".join(token.piece for token in mine) == one.text
        assert [token.logprob for token in mine] == one.logprobs.tolist()
        assert [token.stop for token in mine] == [None] * 5 + ["length"]
        assert [token.alternatives for token in mine] == one.alternatives and len(one.alternatives[0]) == 3
        assert len(one.lens) == len(written.lens_hooks) == model.n_layer + 1
        assert all(len(row) == 6 and len(row[0].top) == 2 for row in one.lens)
        assert [prediction.next[0] for prediction in one.lens[-1]] == one.tokens
    ended = model.generate(PROMPTS, 9, on_token=lambda token: len(told) < 0, hooks="resid_post.0")
    assert [one.stop for one in ended] == ["interrupted"] * 2 and len(ended[0].tokens) == 1
    assert ended.cache["resid_post.0"].shape[1] == max(len(one.ids) for one in ended)

    class Mine(Exception):
        pass

    def fail(token: actscope.NewToken) -> None:
        raise Mine("here")

    with pytest.raises(Mine, match="here"):
        model.generate(TEXT, on_token=fail)
    with pytest.raises(actscope.Error, match="cannot run the same model"):
        model.generate(TEXT, on_token=lambda token: model.run(TEXT, "ln_f"))
    assert model.generate(PROMPTS, 6)[1].ids == written[1].ids


def test_pieces_are_whole_characters(model: actscope.Model) -> None:
    (ids,) = model.encode("é↓")
    assert len(ids) > 2
    forced = iter(ids)

    def next_one(x: np.ndarray) -> np.ndarray:
        x[..., :] = 0
        x[0, -1, next(forced)] = 50.0
        return x

    told: list[str] = []
    model.generate(TEXT, len(ids), edits={"logits": next_one}, on_token=lambda token: told.append(token.piece))
    assert "".join(told) == "é↓" and "\ufffd" not in "".join(told) and "" in told


def test_a_stream_is_the_same_run(model: actscope.Model) -> None:
    stream = model.stream(PROMPTS, 6, hooks="resid_post.0")
    told = list(stream)
    assert list(stream) == []
    want = model.generate(PROMPTS, 6, hooks="resid_post.0")
    assert [one.ids for one in stream.result] == [one.ids for one in want]
    assert [token.id for token in told if token.text == 1] == want[1].ids[-6:]
    np.testing.assert_array_equal(stream.result.cache["resid_post.0"], want.cache["resid_post.0"])
    # What reads may run the same model: it waits until the stream has ended.
    for token in model.stream(TEXT, 3):
        assert model.run([[token.id]], "ln_f")["ln_f"].shape[:2] == (1, 1)
    slow = {"resid_pre.0": lambda x: time.sleep(0.02)}
    with model.stream(TEXT, 200, edits=slow) as stream:
        next(stream)
    assert stream.result[0].stop == "interrupted" and len(stream.result[0].tokens) < 150
    with pytest.raises(actscope.Error, match="nearest"):
        next(model.stream(TEXT, hooks="resid_prey.1"))
    with pytest.raises(TypeError, match="on_token"):
        model.stream(TEXT, on_token=print)
    left = model.stream(TEXT, 200, edits=slow)
    thread = left._thread
    next(left)
    del left
    thread.join(10)
    assert not thread.is_alive()


def interrupted(after: float, work: Any) -> None:
    # A shell starts what runs in the background with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(after, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_it_and_the_next_run_goes_on(model: actscope.Model) -> None:
    want = model.generate(TEXT, 5)[0].ids
    interrupted(0.3, lambda: model.generate([TEXT] * 50, 200))
    # Within the prompts, before the first token.
    ids = [[1 + i % 50 for i in range(model.config["n_positions"] - 1)]] * 400
    begin = time.monotonic()
    interrupted(0.3, lambda: model.generate(ids, 1))
    assert time.monotonic() - begin < 10
    interrupted(0.3, lambda: list(model.stream([TEXT] * 50, 200)))
    assert model.generate(TEXT, 5)[0].ids == want


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"new_tokens": 0}, "hook", "new_tokens is 0"),
        ({"samples": 0}, "hook", "samples is 0"),
        ({"lens": -1}, "hook", "lens is -1"),
        ({"temperature": -1.0}, "hook", "temperature is -1"),
        ({"top_k": 0}, "hook", "top_k is 0"),
        ({"top_p": 1.5}, "hook", "top-p is 1.5"),
        ({"repetition_penalty": 0.0}, "hook", "repetition penalty is 0"),
        ({"seed": -1}, "hook", "seed -1"),
        ({"stop": ""}, "hook", "stop text is empty"),
        ({"hooks": "resid_prey.1"}, "hook", "nearest"),
        ({"hooks": "ln_f", "pos": "old"}, "hook", "'old' is none"),
        ({"hooks": "ln_f", "pos": 99}, "hook", "position 99 does not exist"),
        ({"hooks": "ln_f", "pos": -99}, "hook", "the prompt's 7 tokens"),
        ({"edits": [Edit("resid_pre.0", "zero", pos=50)]}, "hook", "position 50 does not exist"),
        ({"edits": "resid_pre.0@pos=new:mean"}, "hook", "pos=new"),
        ({"edits": "resid_pre.0@pos=0:patch"}, "hook", "no source"),
        ({"texts": ""}, "batch", "prepend_bos=True"),
        ({"texts": [[1] * 5000]}, "batch", "5000 tokens"),
    ],
)
def test_what_cannot_be_written_is_said(model: actscope.Model, options: Any, kind: str, message: str) -> None:
    with pytest.raises(actscope.Error, match=message) as e:
        model.generate(**{"texts": TEXT, "new_tokens": 3, **options})
    assert e.value.kind == kind and "--" not in str(e.value)


def test_new_tokens_are_for_generation(model: actscope.Model) -> None:
    with pytest.raises(actscope.Error, match="'new' is for tokens that are generated"):
        model.run(TEXT, "ln_f", edits=[Edit("resid_pre.0", "zero", pos="new")])


def test_a_full_context_ends_a_text(model: actscope.Model) -> None:
    most = model.config["n_positions"]
    (one,) = model.generate([[1] * (most - 2)], 10)
    assert one.stop in ("context", "end-of-text") and len(one.ids) <= most
    (full,) = model.generate([[1] * most], 10)
    assert (full.stop, full.ids, full.text) == ("context", [1] * most, "")


def test_scores_are_log_probabilities(model: actscope.Model) -> None:
    texts = [TEXT, "And the LORD said unto Moses", "A"]
    scores = model.score(texts)
    for score, ids in zip(scores, model.encode(texts), strict=True):
        logits = model.run([ids], "logits")["logits"][0].astype(np.float64)
        log = logits - logits.max(-1, keepdims=True)
        log -= np.log(np.exp(log).sum(-1, keepdims=True))
        want = np.array([log[i, id] for i, id in enumerate(ids[1:])])
        assert score.ids == ids and score.logprobs.dtype == np.float64
        np.testing.assert_allclose(score.logprobs, want, atol=1e-5)
        assert score.total == pytest.approx(want.sum(), abs=1e-4)
        assert score.perplexity == (pytest.approx(np.exp(-want.mean()), rel=1e-4) if len(want) else None)
    assert scores.total == pytest.approx(sum(score.total for score in scores))
    assert len(scores) == 3 and "nats" in scores._repr_html_()


def test_long_texts_are_scored_in_windows(model: actscope.Model) -> None:
    long = [1 + i % 50 for i in range(model.config["n_positions"] + 30)]
    (score,) = model.score([long])
    assert score.logprobs.shape == (len(long) - 1,) and np.isfinite(score.logprobs).all()
    (narrow,) = model.score([long[:20]], window=8, stride=4)
    first = model.score([long[:8]])[0].logprobs
    np.testing.assert_allclose(narrow.logprobs[:7], first, atol=1e-6)
    second = model.score([long[4:12]])[0].logprobs
    # The first window's last position scores the token after it; from there on the second window has most context.
    np.testing.assert_allclose(narrow.logprobs[8:11], second[4:], atol=1e-6)
    most = model.config["n_positions"]
    for options, message in [
        ({"window": most + 1}, f"at most {most} positions"),
        ({"window": 0}, "does not exist"),
        ({"stride": 3}, "give window too"),
        ({"window": 8, "stride": 9}, "stride of 1"),
    ]:
        with pytest.raises(actscope.Error, match=message) as e:
            model.score([long], **options)
        assert e.value.kind == "batch"
    with pytest.raises(actscope.Error, match="1000000"):
        model.score([[1, 10**6]])
    with pytest.raises(actscope.Error, match="text 1 has no tokens"):
        model.score([[1, 2], []])
