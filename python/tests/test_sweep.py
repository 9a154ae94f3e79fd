"""Sweeps against one run for each cell by hand."""

from pathlib import Path

import numpy as np
import pytest

import actscope
from actscope import Edit

CLEAN, CORRUPT = "The cat sat on the mat.", "The dog sat on the mat."


def metric(model: actscope.Model, text: str, **options: object) -> float:
    logits = model.run(text, "logits", **options)["logits"][0, -1].astype(np.float64)
    return float(logits[model.token_id(" cat")] - logits[model.token_id(" dog")])


def test_patching_is_a_run_for_each_place(model: actscope.Model) -> None:
    swept = model.patch(CLEAN, CORRUPT, " cat", " dog")
    n = len(model.encode(CLEAN)[0])
    assert swept.axes == ["layer", "pos"] and swept.values.shape == (model.n_layer, n) and swept.metric == "logit-diff"
    assert swept.labels[1] == list(model.tokens(CLEAN)) and swept.ci is None and swept.base is None
    assert swept.clean == pytest.approx(metric(model, CLEAN), abs=1e-4)
    assert swept.corrupt == pytest.approx(metric(model, CORRUPT), abs=1e-4)
    for layer, pos in [(0, 1), (2, 1), (3, n - 1)]:
        by_hand = metric(model, CORRUPT, edits=f"resid_pre.{layer}@pos={pos}:patch", source=CLEAN)
        assert swept.values[layer, pos] == pytest.approx(by_hand, abs=1e-4)
    # The texts differ in one token: with it the clean run is whole again.
    assert swept.normalized[0, 1] == pytest.approx(1.0, abs=1e-3)
    assert swept._repr_svg_().startswith("<svg")
    noised = model.patch(CLEAN, CORRUPT, " cat", " dog", at="z", noise=True)
    assert noised.axes == ["layer", "head"]
    by_hand = metric(model, CLEAN, edits="z.1@head=2:patch", source=CORRUPT)
    assert noised.values[1, 2] == pytest.approx(by_hand, abs=1e-4)
    assert noised.normalized[1, 2] == pytest.approx((by_hand - noised.clean) / (noised.clean - noised.corrupt), abs=1e-3)


def test_several_pairs_and_sites(model: actscope.Model) -> None:
    pairs = [CLEAN, "The cat ran to the mat."], [CORRUPT, "The dog ran to the mat."]
    swept = model.patch(*pairs, answer=[" cat", " cat"], wrong=" dog", at=["attn_out", "mlp_out"], by=["layer"])
    assert swept.axes == ["site", "layer"] and swept.labels[0] == ["attn_out", "mlp_out"]
    assert swept.each.shape == (2, 2, model.n_layer)
    for i in range(2):
        alone = model.patch(pairs[0][i], pairs[1][i], " cat", " dog", at=["attn_out", "mlp_out"], by="layer")
        np.testing.assert_allclose(alone.values, swept.each[i], atol=1e-4)
    np.testing.assert_allclose(swept.values, swept.each.mean(axis=0))
    np.testing.assert_allclose(swept.standard_error, swept.each.std(axis=0, ddof=1) / np.sqrt(2), rtol=1e-6)
    corrupt = [model.patch(pairs[0][i], pairs[1][i], " cat", " dog", at="attn_out", by="layer").corrupt for i in range(2)]
    effects = swept.each - np.array(corrupt)[:, None, None]
    np.testing.assert_allclose(swept.effect_standard_error, effects.std(axis=0, ddof=1) / np.sqrt(2), rtol=1e-3, atol=2e-4)
    assert swept.ci.shape == (2, model.n_layer, 2) and (swept.ci[..., 0] <= swept.values).all()
    assert ((swept.p > 0) & (swept.p <= 1)).all()


def test_sites_by_axes_of_their_own_from_one_gradient(model: actscope.Model) -> None:
    by = {"z": "layer,pos,head", "mlp_out": ["layer", "pos"]}
    each = model.patch_fast(CLEAN, CORRUPT, " cat", " dog", by=by)
    assert list(each) == list(by)
    for site, axes in by.items():
        alone = model.patch(CLEAN, CORRUPT, " cat", " dog", at=site, by=axes, fast=True)
        assert each[site].axes == alone.axes and each[site].corrupt == alone.corrupt
        np.testing.assert_allclose(each[site].values, alone.values, rtol=1e-12)
    for options, message in [
        ({"by": {"mlp_out": "layer,head"}}, "no axis head"),
        ({"by": {"z": "pos,pos"}}, "twice"),
        ({"by": by, "metric": "kl", "noise": True}, "gradient 0"),
    ]:
        with pytest.raises(actscope.Error, match=message):
            model.patch_fast(CLEAN, CORRUPT, " cat", " dog", **options)


def test_ablation_is_a_run_for_each_place(model: actscope.Model) -> None:
    swept = model.ablate(CLEAN, at="z", by="layer,head")
    assert swept.metric == "loss" and swept.values.shape == (model.n_layer, model.n_head) and swept.clean is None

    def loss(**options: object) -> float:
        logits = model.run(CLEAN, "logits", **options)["logits"][0].astype(np.float64)
        log = logits - logits.max(-1, keepdims=True)
        log -= np.log(np.exp(log).sum(-1, keepdims=True))
        return float(-np.mean([log[i, id] for i, id in enumerate(model.encode(CLEAN)[0][1:])]))

    assert swept.base == pytest.approx(loss(), abs=1e-5)
    assert swept.values[2, 4] == pytest.approx(loss(edits=[Edit("z.2", "zero", head=4)]), abs=1e-5)
    mean = model.ablate(CLEAN, at="z", by="layer,head", to="mean")
    assert mean.values[2, 4] == pytest.approx(loss(edits="z.2@head=4:mean"), abs=1e-5)
    with pytest.raises(actscope.Error, match="at least one site") as e:
        model.ablate(CLEAN, at=[])
    assert e.value.kind == "hook"


def test_a_sweep_of_an_edited_model(model: actscope.Model, tmp_path: Path) -> None:
    edits = ["z.0@head=1:zero", Edit("resid_pre.1", "scale", 0.9, pos=[0, -1])]
    swept = model.patch(CLEAN, CORRUPT, " cat", " dog", edits=edits)
    assert swept.clean == pytest.approx(metric(model, CLEAN, edits=edits), abs=1e-4)
    assert swept.corrupt == pytest.approx(metric(model, CORRUPT, edits=edits), abs=1e-4)
    # The source run is edited too, and the cell's own change comes after the edits.
    of_clean = model.run(CLEAN, "resid_pre.2", edits=edits)["resid_pre", 2][0, 1]
    by_hand = metric(model, CORRUPT, edits=[*edits, Edit("resid_pre.2", "set", of_clean, pos=1)])
    assert swept.values[2, 1] == pytest.approx(by_hand, abs=1e-4)
    assert swept.edits[0] == {"edit": "blocks.0.attn.hook_z@head=1:zero"} and len(swept.edits) == 2
    assert "edited" in swept._repr_svg_() and "edited" not in model.patch(CLEAN, CORRUPT, " cat", " dog")._repr_svg_()
    fast = model.patch_fast(CLEAN, CORRUPT, " cat", " dog", by={"resid_pre": "layer,pos"}, edits=edits)["resid_pre"]
    assert fast.corrupt == pytest.approx(swept.corrupt, abs=1e-4) and fast.edits == swept.edits
    ablated = model.ablate(CLEAN, at="z", by="layer,head", answer=" cat", wrong=" dog", edits=edits)
    assert ablated.base == pytest.approx(swept.clean, abs=1e-4)
    by_hand = metric(model, CLEAN, edits=[*edits, Edit("z.2", "zero", head=3)])
    assert ablated.values[2, 3] == pytest.approx(by_hand, abs=1e-4)
    # Values of another text, from a file.
    other = model.run("A king spoke to the men", "z.*", pos=-1)
    other.save(tmp_path / "other.npz")
    put = model.ablate(CLEAN, to=f"{tmp_path}/other.npz", at="z", by="layer,head", answer=" cat", wrong=" dog")
    by_hand = metric(model, CLEAN, edits=[Edit("z.2", "set", other["z", 2][0, 0, 3], head=3)])
    assert put.values[2, 3] == pytest.approx(by_hand, abs=1e-4)
    with pytest.raises(actscope.Error, match="nowhere.npz"):
        model.ablate(CLEAN, to="nowhere.npz")

    def fails(values: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here"):
        model.patch(CLEAN, CORRUPT, " cat", " dog", edits={"resid_pre.0": fails})


def test_the_metric_is_read_where_it_is_asked_for(model: actscope.Model) -> None:
    # Position 2 is " sat", and " on" comes after it.
    for pos in (2, 2 - len(model.encode(CLEAN)[0])):
        swept = model.patch(CLEAN, CORRUPT, " on", metric="logprob", metric_pos=pos)
        assert swept.clean == pytest.approx(float(model.score(CLEAN)[0].logprobs[2]), abs=1e-4)
        assert swept.corrupt == pytest.approx(float(model.score(CORRUPT)[0].logprobs[2]), abs=1e-4)
        assert model.ablate(CLEAN, answer=" on", metric="logprob", metric_pos=pos).base == pytest.approx(swept.clean, abs=1e-6)
    with pytest.raises(actscope.Error, match="metric_pos"):
        model.patch(CLEAN, CORRUPT, " on", metric_pos=77)


def test_texts_of_different_length_line_up_by_their_ends(model: actscope.Model) -> None:
    longer = "And then " + CLEAN
    n = len(model.encode(CORRUPT)[0])
    first = len(model.encode(longer)[0]) - n
    swept = model.patch(longer, CORRUPT, " cat", " dog", align="end")
    assert swept.values.shape == (model.n_layer, n) and swept.labels[1] == list(model.tokens(longer))[first:]
    value = model.run(longer, "resid_pre.1")["resid_pre", 1][0, first + 1]
    by_hand = metric(model, CORRUPT, edits=[Edit("resid_pre.1", "set", value, pos=1)])
    assert swept.values[1, 1] == pytest.approx(by_hand, abs=1e-4)
    # The picture has both texts' last tokens too. Spaces are not part of its fonts' base64.
    svg = swept._repr_svg_()
    assert "*1 ␣cat/␣dog" in svg and " then" not in svg and "␣then" not in svg
    # Several pairs have the places that the shortest text has.
    short = "A dog sat."
    both = model.patch([longer, "The little cat sat."], [CORRUPT, short], " cat", " dog", align="end")
    assert both.values.shape == (model.n_layer, len(model.encode(short)[0]))
    np.testing.assert_allclose(both.each[0], swept.values[:, -both.values.shape[1] :], atol=1e-6)
    with pytest.raises(actscope.Error, match="align"):
        model.patch(longer, CORRUPT, " cat", " dog", align="middle")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrupt": "A dog"}, "do not line up"),
        ({"corrupt": ["a", "b"]}, "1 clean texts and 2 corrupt"),
        ({"metric": "logit-diff", "wrong": None}, "give wrong"),
        ({"answer": None, "wrong": None}, "give answer"),
        ({"metric": "guess"}, "none of logit-diff"),
        ({"by": "layer,layer"}, "twice"),
        ({"by": "layer,head"}, "no axis head"),
        ({"at": "nonsense"}, "nearest.*`model.hooks` lists them"),
        ({"at": []}, "at least one site"),
        ({"at": [], "fast": True}, "at least one site"),
        ({"at": ["z", "z"]}, "twice"),
        ({"answer": 10**6}, "does not exist"),
    ],
)
def test_what_does_not_fit_is_refused(model: actscope.Model, options: dict, message: str) -> None:
    given = {"clean": CLEAN, "corrupt": CORRUPT, "answer": " cat", "wrong": " dog", **options}
    with pytest.raises(actscope.Error, match=message):
        model.patch(**given)


def test_a_path_is_the_edge_from_a_sender_to_a_receiver(model: actscope.Model) -> None:
    swept = model.patch(CLEAN, CORRUPT, " cat", " dog", path="head...logits")
    assert swept.axes == ["layer", "head"] and swept.values.shape == (model.n_layer, model.n_head)
    hooks = ["result.1", "resid_post.3"]
    clean, corrupt = model.run(CLEAN, hooks), model.run(CORRUPT, hooks)
    more = clean["result.1"][0, :, 2] - corrupt["result.1"][0, :, 2]
    by_hand = metric(model, CORRUPT, edits=[Edit("resid_post.3", "add", more)])
    assert swept.values[1, 2] == pytest.approx(by_hand, abs=1e-4)
    sent = model.patch(CLEAN, CORRUPT, " cat", " dog", path="mlp.0...v.2.4", by="pos", frozen=True)
    assert sent.axes == ["pos"] and sent.values.shape == clean["resid_post.3"].shape[1:2]
    for options, message in [
        ({"path": "head...q.0.0"}, "no layer comes before"),
        ({"path": "z.0"}, "FROM...TO"),
        ({"frozen": True}, "give path"),
    ]:
        with pytest.raises(actscope.Error, match=message) as e:
            model.patch(CLEAN, CORRUPT, " cat", " dog", **options)
        assert e.value.kind == "hook"
