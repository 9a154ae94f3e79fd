"""Kinds of head against the patterns of a run, and circuits against products of the weights."""

import numpy as np
import pytest
from conftest import TEXT, assert_near

import actscope

REPEATED = "The cat sat on the mat. The cat sat on the mat."


def shares(model: actscope.Model, text: str, looks: object, first: int = 0, **options: object) -> np.ndarray:
    """For each head the share of its attention to keys from `first` on that falls where `looks(ids, query, key)`."""
    (ids,) = model.encode(text)
    expected = np.array([[key <= query and looks(ids, query, key) for key in range(len(ids))] for query in range(len(ids))])
    cache = model.run(text, "pattern.*", **options)
    patterns = np.stack([cache["pattern", layer][0].astype(np.float64) for layer in range(model.n_layer)])
    return (patterns * expected)[..., first:].sum((-1, -2)) / patterns[..., first:].sum((-1, -2))


def test_kinds_of_head_are_shares_of_attention(model: actscope.Model) -> None:
    found = model.heads(REPEATED)
    previous = shares(model, REPEATED, lambda ids, query, key: key == query - 1)
    np.testing.assert_allclose(found.previous, previous, atol=1e-6)
    induction = shares(model, REPEATED, lambda ids, query, key: key > 0 and ids[key - 1] == ids[query])
    np.testing.assert_allclose(found.induction, induction, atol=1e-6)
    without_first = shares(model, REPEATED, lambda ids, query, key: key == query - 1, first=1)
    np.testing.assert_allclose(model.heads(REPEATED, exclude_bos=True).previous, without_first, atol=1e-6)
    duplicate = shares(model, REPEATED, lambda ids, query, key: key < query and ids[key] == ids[query])
    np.testing.assert_allclose(found.duplicate, duplicate, atol=1e-6)
    layer, head, score = found.strongest("previous", 1)[0]
    assert score == found.previous.max() == found.previous[layer, head]
    assert found._repr_svg_().startswith("<svg") and found.edits == []
    # The mean over texts.
    both = model.heads([REPEATED, TEXT])
    np.testing.assert_allclose(both.previous, (found.previous + model.heads(TEXT).previous) / 2, atol=1e-12)
    edit = f"pattern.{layer}@head={head}:zero"
    with pytest.raises(actscope.Error, match="no score"):
        model.heads(REPEATED, edits=edit)
    edited = model.heads(REPEATED, edits="resid_pre.1:scale=0.5")
    at_half = shares(model, REPEATED, lambda ids, query, key: key == query - 1, edits="resid_pre.1:scale=0.5")
    np.testing.assert_allclose(edited.previous, at_half, atol=1e-6)
    assert edited.edits[0]["edit"] == "blocks.1.hook_resid_pre:scale=0.5"


def test_heads_on_random_repeats(model: actscope.Model) -> None:
    found = model.heads(repeats=2, length=20)
    # Those of the demo model; the first half of a text has no tokens to look at.
    assert {place[:2] for place in found.strongest("induction", 2)} == {(3, 3), (3, 4)}
    assert found.strongest("induction", 2)[1][2] > 0.4
    np.testing.assert_array_equal(found.previous, model.heads(repeats=2, length=20).previous)
    assert (model.heads(repeats=2, length=20, seed=1).previous != found.previous).any()
    for options in ({"repeats": 0}, {"length": 10**6}, {"texts": "a"}, {"measure": "max"}):
        with pytest.raises(actscope.Error):
            model.heads(**options)  # type: ignore[arg-type]


def test_circuits_are_products_of_weights(model: actscope.Model) -> None:
    w = {name: model.weights[name].astype(np.float64) for name in ("W_E", "W_U")}
    q, k, v, o = (model.weights[f"blocks.2.attn.W_{letter}"][-1].astype(np.float64) for letter in "QKVO")
    for kind, left, right, ends in [("ov", v, o, w["W_U"]), ("qk", q, k.T, w["W_E"].T)]:
        whole, tokens = left @ right, w["W_E"] @ left @ right @ ends
        found = model.circuit(2, -1, kind, top=3)
        assert (found.layer, found.head) == (2, model.n_head - 1)
        values = np.linalg.svd(whole, compute_uv=False)[: len(found.singular_values)]
        assert_near(found.singular_values, values, 1e-9)
        assert_near(found.left.T * found.singular_values @ found.right, whole, 1e-9)
        # A product of two factors has the eigenvalues of the factors the other way round, and zeros.
        eigenvalues = np.linalg.eigvals(right @ ends @ w["W_E"] @ left)
        assert_near(np.sort(np.abs(found.eigenvalues)), np.sort(np.abs(eigenvalues)), 1e-6)
        assert found.score == pytest.approx((eigenvalues.sum() / np.abs(eigenvalues).sum()).real, abs=1e-6)
        place = np.unravel_index(tokens.argmax(), tokens.shape)
        assert found.pairs[0][:2] == tuple(model._session.written([int(one)])[0] for one in place)
        assert [pair.value for pair in found.pairs] == pytest.approx(np.sort(tokens, axis=None)[:-4:-1].tolist())
        high, low = found.directions[0].left
        by_token = w["W_E"] @ found.left[0]
        assert high[0][1] == pytest.approx(by_token.max()) and low[0][1] == pytest.approx(by_token.min())
        assert len(found.directions) == 3 and "<table>" in found._repr_html_()
        assert {one.layer for one in found.reads} == {0, 1} and {one.layer for one in found.writes} == set(range(3, model.n_layer))
    for place, options in [((99, 0), {}), ((0, 99), {}), ((0, 0), {"kind": "vo"}), ((0, 0), {"top": 0})]:
        with pytest.raises(actscope.Error) as e:
            model.circuit(*place, **options)
        assert e.value.kind == "hook"
