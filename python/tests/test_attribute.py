"""Attribution, gradients and edges against sums and runs by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import read_safetensors
from test_process import command

import actscope

TEXT = "The king and the queen went out, and the king spoke to the"
CLEAN, CORRUPT = "The cat sat on the mat.", "The dog sat on the mat."


def test_direct_is_what_the_cache_says(model: actscope.Model) -> None:
    found = model.attribute(TEXT, " queen", " king")
    cache = model.run(TEXT)
    rows, labels = cache.decompose_resid(return_labels=True)
    by_hand = cache.logit_attrs(rows, [" queen"], [" king"])[:, 0, -1]
    assert found.labels[:2] == ["hook_embed", "hook_pos_embed"] and len(labels) == len(found.labels) - 1
    np.testing.assert_allclose(found.values[:-1], by_hand, atol=1e-4)
    logits = cache["logits"][0, -1].astype(np.float64)
    assert found.total == pytest.approx(logits[model.token_id(" queen")] - logits[model.token_id(" king")], abs=1e-4)
    assert found.total == pytest.approx(found.values.sum() + found.remainder)
    heads = model.attribute(TEXT, " queen", by="head")
    assert heads.heads((model.n_layer, model.n_head)).shape == (model.n_layer, model.n_head)
    few = model.attribute(TEXT, " queen", by="neuron", top=3)
    assert len(few.values) == 3 and few.total == pytest.approx(few.values.sum() + few.remainder)
    for one in (found, heads, few):
        assert one._repr_svg_().startswith("<svg") and "edited:" not in one._repr_svg_()
    assert "Adds to the logit" in heads._repr_svg_()
    for by in ("component", "head"):
        edited = model.attribute(TEXT, " queen", by=by, edits="z.2@head=4:zero")
        assert edited.edits == [{"edit": "blocks.2.attn.hook_z@head=4:zero"}] and "edited:" in edited._repr_svg_()


def test_gradients_and_integrated_gradients(model: actscope.Model) -> None:
    run = model.grad(TEXT, ["embed", "mlp_out.*"], answer=" queen", wrong=" king")
    found = model.attribute(TEXT, " queen", " king", method="gradient")
    assert run.target[0] == pytest.approx(found.total)
    by_hand = (run.values["mlp_out", 1].astype(np.float64) * run.gradients["mlp_out", 1]).sum()
    assert found.values[found.labels.index("blocks.1.hook_mlp_out")] == pytest.approx(by_hand, rel=1e-6)
    of_heads = model.attribute(TEXT, " queen", method="gradient", by="head")._repr_svg_()
    assert "Gradient times value" in of_heads and "Adds to the logit" not in of_heads
    line = model.attribute(TEXT, " queen", " king", method="integrated", steps=100)
    assert line.labels[0] == "pos.0" and abs(line.remainder) < 1e-2
    other = model.attribute(TEXT, " queen", method="integrated", baseline=TEXT.replace(" queen", " horse"))
    # Only the embedding at position 4 differs.
    assert other.values[4] != 0 and not np.delete(other.values, 4).any()
    for wrong in ({"method": "magic"}, {"baseline": TEXT}, {"method": "integrated", "baseline": "The"}, {"by": "word"}):
        with pytest.raises(actscope.Error):
            model.attribute(TEXT, " queen", **wrong)  # type: ignore[arg-type]


def test_a_gradient_is_a_slope(model: actscope.Model) -> None:
    texts = [TEXT, CLEAN]
    run = model.grad(texts, "resid_pre.2", metric="loss")
    assert run.values["resid_pre", 2].shape == run.gradients["resid_pre", 2].shape and run.target.shape == (2,)
    again = model.grad(texts, "resid_pre.2", metric="loss", checkpoint=True)
    np.testing.assert_allclose(again.gradients["resid_pre", 2], run.gradients["resid_pre", 2], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(again.values["resid_pre", 2], run.values["resid_pre", 2])
    # Padded places have gradient 0, and a step along the gradient changes the loss by its slope.
    assert not run.gradients["resid_pre", 2][1, len(model.encode(CLEAN)[0]) :].any()
    by = run.gradients["resid_pre", 2][0]
    step = (1e-3 * by / np.linalg.norm(by)).astype(np.float32)
    up, down = (
        model.grad(TEXT, "resid_pre.2", metric="loss", edits={"resid_pre.2": lambda x, s=sign: x + s * step}).target[0]
        for sign in (1, -1)
    )
    assert (up - down) / 2e-3 == pytest.approx(float(np.linalg.norm(by)), rel=0.02)
    dot = model.grad(TEXT, "resid_pre.1", metric="dot:resid_pre.2@pos=-1,dim=7=1")
    assert dot.target[0] == pytest.approx(float(model.run(TEXT, "resid_pre.2")["resid_pre", 2][0, -1, 7]), rel=1e-5)


def test_files_say_what_gradients_are_of(model: actscope.Model, tmp_path: Path) -> None:
    texts = [TEXT, CLEAN]
    run = model.grad(texts, "resid_pre.2", answer=" queen", wrong=" king")
    run.gradients.save(tmp_path / "ours.safetensors")
    run.values.save(tmp_path / "values.safetensors")
    asked = ["--grad", "logit-diff", "--answer", " queen", "--wrong", " king"]
    command("extract", *texts, "-k", "resid_pre.2", *asked, "--device", "cpu", "-o", tmp_path / "theirs.safetensors")
    (ours, about), (theirs, of_theirs), (values, of_values) = (
        read_safetensors(tmp_path / f"{who}.safetensors") for who in ("ours", "theirs", "values")
    )
    name = "blocks.2.hook_resid_pre"
    assert [one for one in ours if "hook_" in one] == [f"{name}_grad"] and [one for one in values if "hook_" in one] == [name]
    np.testing.assert_array_equal(ours[f"{name}_grad"], run.gradients["resid_pre", 2])
    np.testing.assert_array_equal(ours[f"{name}_grad"], theirs[f"{name}_grad"])
    assert json.loads(about["gradient"]) == json.loads(of_theirs["gradient"]) == run.gradients.gradient
    assert "gradient" not in of_values and run.values.gradient is None
    run.gradients.save(tmp_path / "ours.csv")
    assert f"{name}_grad" in (tmp_path / "ours.csv").read_text(encoding="utf-8")
    # A token for each text; a metric that reads no token; a metric that reads no logits.
    cat, queen = (model.token_id(token) for token in (" cat", " queen"))
    several = model.grad(texts, "resid_pre.2", answer=[" queen", " cat"], at=1, values=False).gradients
    assert several.gradient == {"metric": "logit", "position": [1, 1], "answer": [queen, cat]}
    assert model.grad(texts, "resid_pre.2").gradients.gradient == {"metric": "loss"}
    dot = model.grad(TEXT, "resid_pre.1", metric="dot:resid_pre.2@pos=-1,dim=7=1").gradients
    assert dot.gradient == {"metric": "dot:resid_pre.2@pos=-1,dim=7=1"}


def test_fast_patching_and_edges(model: actscope.Model) -> None:
    fast = model.patch(CLEAN, CORRUPT, " cat", " dog", at="z", fast=True)
    exact = model.patch(CLEAN, CORRUPT, " cat", " dog", at="z")
    assert np.corrcoef(fast.values.ravel(), exact.values.ravel())[0, 1] > 0.8
    assert fast.clean == pytest.approx(exact.clean, abs=1e-4)
    edges = model.edges(CLEAN, CORRUPT, " cat", " dog")
    assert edges.scores.shape == (len(edges.writers), len(edges.readers))
    assert len(edges) == np.isfinite(edges.scores).sum()
    # All edges of an MLP together are what patching it fast gives.
    mlp = model.patch(CLEAN, CORRUPT, " cat", " dog", at="mlp_out", by="layer", fast=True)
    row = edges.scores[edges.writers.index("mlp.1")]
    assert np.nansum(row) == pytest.approx(mlp.values[1] - mlp.corrupt, rel=1e-3, abs=1e-5)
    assert edges.faithfulness(len(edges)) == pytest.approx(1, abs=1e-3) and edges.faithfulness(0) == pytest.approx(0, abs=1e-3)
    strongest = edges.strongest(2)
    assert abs(strongest[0].score) >= abs(strongest[1].score) and "..." in strongest[0].path
    assert edges._repr_html_().count("<tr>") == 21 and strongest[0].writer in edges._repr_html_()
    earlier = model.edges(CLEAN, CORRUPT, " on", metric="logprob", metric_pos=2)
    assert earlier.clean == pytest.approx(float(model.score(CLEAN)[0].logprobs[2]), abs=1e-4)
    averaged = model.edges(CLEAN, CORRUPT, " cat", " dog", steps=5)
    assert averaged.scores.shape == edges.scores.shape and not np.allclose(averaged.scores, edges.scores, equal_nan=True)
    # Texts that are equal have no change to divide by.
    assert np.isnan(model.edges(CLEAN, CLEAN, " cat", " dog").faithfulness(3))
