"""What notebooks show: tokens, heatmaps, attention, the lens, the report."""

from typing import Any

import numpy as np
import pytest
from conftest import TEXT

import actscope


def test_tokens(model: actscope.Model) -> None:
    tokens = model.tokens("A <b>cat</b>\n")
    assert list(tokens) == model.run("A <b>cat</b>\n", "ln_f").tokens[0]
    assert tokens.ids.tolist() == model.encode("A <b>cat</b>\n")[0]
    assert len(model.encode("<|endoftext|>")[0]) == 1 < len(model.encode("<|endoftext|>", special=False)[0])
    page = tokens._repr_html_()
    assert "<b>" not in page and "&lt;" in page and f"{len(tokens)} tokens" in page


def test_a_heatmap_shows_the_runs_values(model: actscope.Model, tmp_path: Any) -> None:
    heatmap = model.heatmap(TEXT, dims="all")
    np.testing.assert_array_equal(heatmap.panels[0].values, model.run(TEXT, "ln_f")["ln_f"][0])
    assert heatmap._repr_svg_().startswith("<svg")
    several = model.heatmap(TEXT, hooks=["resid_post.*"], dims="top:5", scale="per-layer")
    assert len(several.panels) == model.n_layer and several.panels[0].values.shape[1] == 5
    several.save(tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")
    for wrong in ({"dims": "none"}, {"scale": "log"}, {"hooks": "pattern.0"}, {"layer": 77}):
        with pytest.raises(actscope.Error):
            model.heatmap(TEXT, **wrong)


def test_what_is_shown_is_edited_as_a_run_is(model: actscope.Model) -> None:
    options = {"edits": ["resid_pre.1@pos=-1:patch", "mlp_out.2:mean"], "source": "A dog sat on the mat.", "mean_from": "The king"}
    for bos in (False, True):
        want = model.run(TEXT, ["ln_f", "pattern.3"], prepend_bos=bos, **options)
        heatmap = model.heatmap(TEXT, dims="all", prepend_bos=bos, **options)
        np.testing.assert_array_equal(heatmap.panels[0].values, want["ln_f"][0])
        attention = model.attention(TEXT, 3, prepend_bos=bos, **options)
        np.testing.assert_array_equal(attention.values[0], want["pattern", 3][0])
        top = model.lens(TEXT, prepend_bos=bos, **options)[-1][0][-1].top[0][0]
        logits = model.run(TEXT, "logits", prepend_bos=bos, **options)["logits"][0, -1]
        assert top == model._session.written([int(logits.argmax())])[0]


def test_attention_shows_the_runs_values(model: actscope.Model) -> None:
    attention = model.attention(TEXT, layer=[0, -1], head=[1, -1])
    assert attention.layers == [0, model.n_layer - 1] and attention.heads == [1, model.n_head - 1]
    want = model.run(TEXT, ["pattern.0", ("pattern", -1)])
    np.testing.assert_array_equal(attention.values[0], want["pattern", 0][0, [1, -1]])
    np.testing.assert_array_equal(attention.values[1], want["pattern", -1][0, [1, -1]])
    assert attention._repr_svg_().startswith("<svg")
    assert np.isneginf(model.attention(TEXT, 0, 0, kind="scores").values[0, 0, 0, 1])


def test_the_lens_ends_with_the_models_output(model: actscope.Model, tmp_path: Any) -> None:
    lens = model.lens([TEXT, "A dog"], top=3)
    assert len(lens) == len(lens.hooks) == model.n_layer + 1
    logits = model.run(TEXT, "logits")["logits"][0].astype(np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    for position, prediction in enumerate(lens[-1][0]):
        best = int(p[position].argmax())
        assert prediction.top[0][0] == model._session.written([best])[0]
        assert len(prediction.top) == 3 and abs(prediction.top[0][1] - p[position, best]) < 1e-5
    assert lens[-1][0][0].next[0] == model.tokens(TEXT)[1] and lens[-1][0][-1].next is None
    assert lens._repr_html_().count("<svg") == 2
    with pytest.raises(actscope.Error, match="shows one text"):
        lens.save(tmp_path / "l.svg")
    model.lens(TEXT).save(tmp_path / "l.svg")
    assert (tmp_path / "l.svg").read_text().startswith("<svg")


def test_the_lens_of_components_is_what_each_adds(model: actscope.Model) -> None:
    lens = model.lens(TEXT, of="component")
    cache = model.run(TEXT)
    rows, labels = cache.decompose_resid(return_labels=True)
    assert len(lens) == len(labels) and lens.hooks[:2] == ["hook_embed", "hook_pos_embed"] and len(lens[:2]) == 2
    normed = cache.apply_ln_to_stack(rows)[:, 0].astype(np.float64) * model.weights["ln_final.w"]
    logits = normed @ model.weights["W_U"].astype(np.float64)
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    for row, hook in enumerate(lens.hooks):
        assert hook.endswith(labels[row].split("_", 1)[1] if labels[row][0].isdigit() else labels[row])
        got = [prediction.top[0][1] for prediction in lens[row][0]]
        np.testing.assert_allclose(got, p[row].max(axis=-1), rtol=1e-4)
    assert "attn 2" in lens._repr_html_() and "of each component" in lens._repr_html_()
    with pytest.raises(actscope.Error, match="accumulated, component"):
        model.lens(TEXT, of="head")


def test_the_report_is_a_page(model: actscope.Model, tmp_path: Any) -> None:
    report = model.report(TEXT, tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    assert page == report.html and page.lower().startswith("<!doctype html>")
    assert "<iframe srcdoc=" in report._repr_html_() and "<script" not in report._repr_html_()
    # A page has commands only where they print the numbers that it shows.
    edited = model.report(TEXT, edits=["z.2@head=4:zero"]).html
    assert '"arguments":"--model demo --ids' in report.html and "--edit z.2@head=4:zero" in edited
    both = model.report(TEXT, edits=["z.2@head=4:zero", actscope.Edit("z.2", "zero", head=3)]).html
    assert '"arguments":null' in both and "--edit z.2" not in both
    with pytest.raises(actscope.Error, match=r"\.html"):
        report.save(tmp_path / "r.txt")


def test_devices_are_named() -> None:
    assert any(name.startswith("cpu: ") for name in actscope.devices())
