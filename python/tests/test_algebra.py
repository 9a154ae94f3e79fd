"""Weights and the cache's algebra: against plain numpy, and against TransformerLens's own results on the same checkpoint
(transformer_lens.npz, made by make_transformer_lens.py)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, assert_near

import actscope

TEXTS = ["The cat sat on the mat.", "A dog"]
HOOKS = ["*resid*", "*out", "*embed", "z.*", "pattern.*", "*scale"]


def test_weights_compute_the_model(model: actscope.Model) -> None:
    """The whole of block 0 and the unembedding in numpy, from the weights under TransformerLens's names."""
    w, c = model.weights, model.run("The cat sat on the mat.")
    ids, eps = model.encode("The cat sat on the mat.")[0], model.config["layer_norm_epsilon"]

    def norm(x: Any, name: str) -> Any:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * w[f"{name}.w"] + w[f"{name}.b"]

    x = (w["embed.W_E"][ids] + w["pos_embed.W_pos"][: len(ids)]).astype(np.float64)
    assert_near(c["resid_pre.0"][0], x)
    n = norm(x, "blocks.0.ln1")
    at = "blocks.0.attn."
    q, k, v = (np.einsum("pd,hde->phe", n, w[f"{at}W_{one}"]) + w[f"{at}b_{one}"] for one in "QKV")
    for name, want in zip("qkv", (q, k, v), strict=True):
        assert_near(c[f"{name}.0"][0], want)
    z = np.einsum("hqk,khe->qhe", c["pattern.0"][0].astype(np.float64), v)
    assert_near(c["z.0"][0], z)
    out = np.einsum("phe,hed->pd", z, w[f"{at}W_O"]) + w[f"{at}b_O"]
    assert_near(c["attn_out.0"][0], out)
    m = norm(x + out, "blocks.0.ln2")
    assert_near(c["mlp_pre.0"][0], m @ w["blocks.0.mlp.W_in"] + w["blocks.0.mlp.b_in"])
    assert_near(c["mlp_out.0"][0], c["mlp_post.0"][0] @ w["blocks.0.mlp.W_out"].astype(np.float64) + w["blocks.0.mlp.b_out"])
    assert_near(c["logits"][0], c["ln_f"][0] @ w["unembed.W_U"].astype(np.float64) + w["unembed.b_U"])


def test_weights_are_a_mapping(model: actscope.Model) -> None:
    names = list(model.weights)
    assert len(names) == len(model.weights) == len(set(names)) == 2 + 16 * model.n_layer + 4
    assert all(model.weights[name].dtype == np.float32 and model.weights[name].flags.c_contiguous for name in names)
    assert "blocks.0.attn.W_O" in model.weights and "blocks.99.attn.W_O" not in model.weights
    np.testing.assert_array_equal(model.weights["transformer.wte.weight"], model.weights["embed.W_E"])
    np.testing.assert_array_equal(model.weights["lm_head.weight"].T, model.weights["unembed.W_U"])
    assert model.weights["h.0.ln_1.bias"].ndim == model.weights["transformer.h.0.attn.c_attn.bias"].ndim == 1
    with pytest.raises(KeyError, match="no such weight"):
        model.weights["blocks.99.attn.W_O"]
    untied = actscope.load(str(FIXTURES / "untied_erf"), device="cpu").weights
    assert not np.array_equal(untied["unembed.W_U"], untied["embed.W_E"].T)
    np.testing.assert_array_equal(untied["unembed.W_U"], untied["lm_head.weight"].T)


@pytest.mark.parametrize("layer", [None, -1, 0, 2])
def test_parts_add_up_to_the_stream(model: actscope.Model, layer: int | None) -> None:
    cache = model.run(TEXTS, HOOKS)
    stream = cache["resid_post", -1] if layer in (None, -1) else cache["resid_pre", layer]
    parts, labels = cache.decompose_resid(layer, return_labels=True)
    assert parts.shape[0] == len(labels) and labels[:2] == ["embed", "pos_embed"]
    assert_near(parts.astype(np.float64).sum(axis=0), stream)
    heads, names = cache.stack_head_results(layer, incl_remainder=True, return_labels=True)
    assert len(names) == len(heads) == (model.n_layer if layer in (None, -1) else layer) * model.n_head + 1
    assert_near(heads.astype(np.float64).sum(axis=0), stream)


def test_options_of_the_decompositions(model: actscope.Model) -> None:
    cache = model.run(TEXTS, HOOKS)
    both = cache.decompose_resid(1, mlp_input=True)
    assert_near(both.astype(np.float64).sum(axis=0), cache["resid_mid.1"])
    attn, labels = cache.decompose_resid(2, mode="attn", incl_embeds=False, return_labels=True)
    assert labels == ["0_attn_out", "1_attn_out"] and len(attn) == 2
    streams, labels = cache.accumulated_resid(1, incl_mid=True, mlp_input=True, return_labels=True)
    assert labels == ["0_pre", "0_mid", "1_pre", "1_mid"]
    np.testing.assert_array_equal(streams[3], cache["resid_mid.1"])
    final, labels = cache.accumulated_resid(apply_ln=True, return_labels=True)
    assert labels[-1] == "final_post"
    mask = cache.attention_mask.astype(bool)
    assert_near(final[-1][mask], model.run(TEXTS, "ln_f")["ln_f"][mask])
    last = cache.decompose_resid(pos_slice=-1)
    np.testing.assert_array_equal(last, cache.decompose_resid()[:, :, -1])
    normalized = cache.decompose_resid(1, apply_ln=True, pos_slice=slice(0, 2))
    want = model.run(TEXTS, "ln1.normalized.1")["ln1.normalized.1"][:, :2]
    assert_near(normalized.astype(np.float64).sum(axis=0), want, 2e-5)
    # The scale is made from the stream where it was not recorded; results are used where they were.
    less = model.run(TEXTS, ["*resid*", "*out", "*embed", "result.*"])
    assert_near(less.decompose_resid(apply_ln=True), cache.decompose_resid(apply_ln=True), 2e-6)
    assert_near(less.stack_head_results(), cache.stack_head_results())


def test_logit_attributions_add_up_on_raw_weights(model: actscope.Model) -> None:
    """Gain and bias of the final LayerNorm count: without them the sum is far off."""
    cache = model.run(TEXTS, [*HOOKS, "logits"])
    mask = cache.attention_mask.astype(bool)
    a, b = model.token_id(" dog"), model.token_id(" cat")
    want = (cache["logits"][..., a].astype(np.float64) - cache["logits"][..., b])[mask]
    parts = cache.decompose_resid()
    attrs = cache.logit_attrs(parts, " dog", " cat", incl_bias=True)
    assert attrs.shape == (len(parts) + 1, *cache.attention_mask.shape)
    assert_near(attrs.astype(np.float64).sum(axis=0)[mask], want, 2e-5)
    without = cache.logit_attrs(parts, " dog", " cat").astype(np.float64).sum(axis=0)[mask]
    assert np.abs(without - want).max() > 1e-3
    # One token, per text, per position, and at one position.
    one = cache.logit_attrs(parts, a, incl_bias=True).astype(np.float64).sum(axis=0)
    assert_near(one[mask], cache["logits"][..., a][mask], 2e-5)
    np.testing.assert_array_equal(cache.logit_attrs(parts, [a, a], [b, b]), cache.logit_attrs(parts, a, b))
    everywhere = np.full(cache.attention_mask.shape, a)
    np.testing.assert_array_equal(cache.logit_attrs(parts, everywhere, b), cache.logit_attrs(parts, a, b))
    at = cache.logit_attrs(cache.decompose_resid(pos_slice=1), ["A", " dog"], pos_slice=1)
    np.testing.assert_array_equal(at[:, 1], cache.logit_attrs(parts, a)[:, 1, 1])


def test_what_was_not_recorded_is_named(model: actscope.Model) -> None:
    cache = model.run(TEXTS, "resid_post.0")
    with pytest.raises(KeyError, match="hook_embed was not recorded"):
        cache.decompose_resid()
    with pytest.raises(KeyError, match="ln_final.hook_scale nor"):
        cache.apply_ln_to_stack(np.zeros((1, 2, 7, model.config["n_embd"]), np.float32))
    with pytest.raises(actscope.Error, match="layer 99 does not exist"):
        cache.decompose_resid(99)
    full = model.run(TEXTS, HOOKS)
    with pytest.raises(actscope.Error, match="pos_slice is the one that it was made with"):
        full.apply_ln_to_stack(full.decompose_resid(pos_slice=0))


RESULTS = Path(__file__).parent / "transformer_lens.npz"


def test_it_is_transformer_lenss() -> None:
    with np.load(RESULTS) as want:
        about = json.loads(str(want["about"]))
        cache = actscope.load(str(FIXTURES / about["fixture"]), device="cpu").run(about["ids"])
        weights = cache._model.weights
        seen = set()
        for name in want.files:
            kind, _, rest = name.partition(":")
            if kind == "weight":
                np.testing.assert_array_equal(weights[rest], want[name])
            elif kind == "call":
                method, options = json.loads(rest)
                got, labels = getattr(cache, method)(**options, return_labels=True)
                assert_near(got, want[name], 1e-5)
                assert labels == about["labels"][rest]
            elif kind == "attrs":
                # Theirs on weights with LayerNorms folded in, which is what ours are on raw ones.
                assert_near(cache.logit_attrs(cache.decompose_resid(), **json.loads(rest)), want[name], 1e-5)
            seen.add(kind)
        assert seen == {"weight", "call", "attrs", "about"}
