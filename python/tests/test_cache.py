"""The cache is a mapping, its arrays are the library's own memory, and files hold what it holds."""

import json
from typing import Any

import numpy as np
import pytest
from conftest import TEXT, read_safetensors

import actscope


def test_names_tuples_aliases_and_globs(model: actscope.Model) -> None:
    cache = model.run(TEXT, ["resid_post.*", ("pattern", 2), "ln1.scale.0", "logits"])
    n = len(cache.tokens[0])
    pattern = cache["pattern", 2]
    assert pattern is cache["blocks.2.attn.hook_pattern"] is cache["attentions.2"]
    assert pattern.shape == (1, model.n_head, n, n)
    np.testing.assert_allclose(pattern.sum(axis=-1), 1.0, rtol=1e-5)
    assert cache["resid_post", -1] is cache[f"blocks.{model.n_layer - 1}.hook_resid_post"]
    assert cache["scale", 0, "ln1"].shape == (1, n, 1)
    assert cache["logits"].shape == (1, n, model.config["vocab_size"])
    streams = cache["blocks.*.hook_resid_post"]
    assert list(streams) == [f"blocks.{i}.hook_resid_post" for i in range(model.n_layer)]
    assert all(streams[name] is cache[name] for name in streams)


def test_it_is_a_mapping(model: actscope.Model) -> None:
    cache = model.run(TEXT, ["resid_pre.1", "z.0"])
    assert list(cache) == ["blocks.0.attn.hook_z", "blocks.1.hook_resid_pre"]
    assert list(cache.keys()) == list(cache) and len(cache) == 2
    assert [name for name, _ in cache.items()] == list(cache)
    assert "resid_pre.1" in cache and ("z", 0) in cache and "blocks.*.hook_z" in cache
    assert "resid_pre.0" not in cache and "nonsense" not in cache and 3 not in cache
    plain = cache.to_dict()
    assert type(plain) is dict and all(plain[name] is cache[name] for name in cache)
    with pytest.raises(KeyError, match="not recorded"):
        cache["resid_pre.0"]
    with pytest.raises(KeyError, match="nearest"):
        cache["resid_prey.0"]
    assert cache.get("resid_pre.0") is None
    assert "2 hooks" in repr(cache)


def test_everything_but_results_is_the_default(model: actscope.Model) -> None:
    cache = model.run(TEXT)
    assert set(cache) == {hook for hook in model.hooks if not hook.endswith("hook_result")}


def test_a_ragged_batch_equals_its_texts_alone(model: actscope.Model) -> None:
    texts = ["The cat sat on the mat.", "A dog", "One day, a little girl named Lily found a needle"]
    together = model.run(texts, ["resid_post.*", "pattern.*"])
    assert together.attention_mask.sum(axis=1).tolist() == [len(tokens) for tokens in together.tokens]
    assert together.input_ids.shape == together.attention_mask.shape
    for i, text in enumerate(texts):
        alone = model.run(text, ["resid_post.*", "pattern.*"])
        n = len(alone.tokens[0])
        assert together.tokens[i] == alone.tokens[0]
        for hook, values in alone.items():
            part = together[hook][i]
            part, padding = (part[:, :n, :n], part[:, n:]) if "pattern" in hook else (part[:n], part[n:])
            np.testing.assert_array_equal(part, values[0])
            assert not padding.any()


def test_ids_arrays_and_a_tokenizers_output_are_the_same_as_texts(model: actscope.Model) -> None:
    texts = ["The cat sat", "A dog"]
    ids = model.encode(texts)
    want = model.run(texts, "ln_f")["ln_f"]
    width = max(map(len, ids))
    padded = np.array([row + [0] * (width - len(row)) for row in ids])
    mask = np.array([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    for given in (ids, {"input_ids": padded, "attention_mask": mask}, [np.array(row) for row in ids]):
        np.testing.assert_array_equal(model.run(given, "ln_f")["ln_f"], want)
    one = model.run(np.array(ids[1]), "ln_f")["ln_f"]
    np.testing.assert_array_equal(one[0], want[1, : len(ids[1])])
    begun = model.run(texts, "ln_f", prepend_bos=True)
    assert begun.input_ids[:, 0].tolist() == [model.config["bos_token_id"]] * 2


def test_positions(model: actscope.Model) -> None:
    texts = ["The cat sat on the mat.", "A dog"]
    whole, last = model.run(texts, "*resid_post"), model.run(texts, "*resid_post", pos=-1)
    for hook in whole:
        assert last[hook].shape[1] == 1
        for i, tokens in enumerate(whole.tokens):
            np.testing.assert_array_equal(last[hook][i, 0], whole[hook][i, len(tokens) - 1])
    assert model.run(texts, "resid_pre.0", pos=slice(0, 2))["resid_pre.0"].shape[1] == 2
    with pytest.raises(actscope.Error, match="text 1: position 5 does not exist"):
        model.run(texts, "resid_pre.0", pos=5)


def test_arrays_are_handed_over_without_a_copy(model: actscope.Model) -> None:
    # A gigabyte: copying it would show in the addresses, and as another gigabyte.
    ids = [[1 + i % 50 for i in range(model.config["n_positions"])]]
    rows = 1
    hooks = ["resid_pre.*", "resid_mid.*", "resid_post.*", "pattern.*", "attn_scores.*", "q.*", "k.*", "v.*", "z.*", "mlp_post.*"]
    per_text = sum(values.nbytes for values in model.run(ids, hooks).values())
    rows = -(-(1 << 30) // per_text)
    cache = model.run(ids * rows, hooks)
    assert sum(values.nbytes for values in cache.values()) >= 1 << 30
    for hook, values in cache.items():
        assert values.__array_interface__["data"][0] == cache._addresses[hook]
        assert values.flags.c_contiguous and values.flags.writeable and values.dtype == np.float32


def test_files_hold_what_the_cache_holds(model: actscope.Model, tmp_path: Any) -> None:
    texts = ["The cat sat on the mat.", "A dog"]
    cache = model.run(texts, ["resid_post.0", "pattern.1"])
    size = cache.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_size == size
    arrays, metadata = read_safetensors(tmp_path / "a.safetensors")
    cache.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as npz:
        for hook, values in cache.items():
            np.testing.assert_array_equal(arrays[hook], values)
            np.testing.assert_array_equal(npz[hook], values)
        np.testing.assert_array_equal(npz["input_ids"], cache.input_ids)
    np.testing.assert_array_equal(arrays["attention_mask"], cache.attention_mask)
    assert metadata["model"] == "demo" and json.loads(metadata["text"]) == texts
    model.run(texts, "resid_post.0", pos=-1).save(tmp_path / "last.npy")
    last = np.load(tmp_path / "last.npy")
    assert last.shape[1] == 1
    with pytest.raises(actscope.Error, match="cannot tell the format") as e:
        cache.save(tmp_path / "a.txt")
    assert e.value.kind == "output"
    with pytest.raises(actscope.Error, match="can hold one array"):
        cache.save(tmp_path / "a.npy")
    with pytest.raises(actscope.Error, match="cannot write"):
        cache.save(tmp_path / "no" / "folder" / "a.npz")
    edited = model.run(texts, "resid_post.0", edits=["resid_pre.0@pos=0:zero", actscope.Edit("z.0", "scale", 2.0)])
    edited.save(tmp_path / "b.safetensors")
    _, metadata = read_safetensors(tmp_path / "b.safetensors")
    written = [one["edit"] for one in json.loads(metadata["edits"])]
    assert written == ["blocks.0.hook_resid_pre@pos=0:zero", "blocks.0.attn.hook_z:scale=2"]
