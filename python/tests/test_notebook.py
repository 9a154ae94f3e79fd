"""The notebook's contract: `ActivationExtractor` and `plot_activation_heatmap`."""

import sys
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot
from conftest import TEXT, golden, worst_token_error

import actscope


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps", "gpu", "auto", "reference", None, "cuda:0"])
def test_the_extractor_gives_what_the_notebook_reads(device: str | None) -> None:
    extractor = actscope.ActivationExtractor("demo", device=device)
    got = extractor.get_activations(TEXT, layer_idx=-1)
    assert set(got) == {"activations", "tokens", "input_ids", "attention_mask", "layer_idx"}
    n = len(got["tokens"])
    assert got["activations"].shape == (1, n, extractor.model.config["n_embd"])
    assert got["activations"].dtype == np.float32
    assert got["input_ids"].shape == got["attention_mask"].shape == (1, n)
    assert got["input_ids"].dtype == got["attention_mask"].dtype == np.int64
    assert got["attention_mask"].all()
    assert got["layer_idx"] == -1
    assert got["tokens"][:3] == ["The", "Ġcat", "Ġsat"]


def test_layers_are_counted_as_hidden_states_from_the_end() -> None:
    want = golden("classic")
    extractor = actscope.ActivationExtractor(want.model, device="cpu")
    # This checkpoint has no tokenizer: ids go in through the model.
    ids = [row for row in want.ids if len(row) == max(map(len, want.ids))][:1]
    n_layer = extractor.model.n_layer
    for layer, hook in [(-1, "ln_final.hook_out"), (-2, f"blocks.{n_layer - 2}.hook_resid_post"), (0, "blocks.0.hook_resid_post")]:
        assert extractor.model._session.layer_hook(layer) == hook
        values = extractor.model.run(ids, hook)[hook]
        row = want.ids.index(ids[0])
        assert worst_token_error(hook, values, want.hooks[hook][row : row + 1]) < 1e-5


def test_layers_differ_and_do_not_exist_beyond_the_model() -> None:
    extractor = actscope.ActivationExtractor("demo", device="cpu")
    first, last = (extractor.get_activations(TEXT, layer)["activations"] for layer in (0, -1))
    assert not np.allclose(first, last)
    with pytest.raises(actscope.Error, match="layer 99 does not exist") as e:
        extractor.get_activations(TEXT, 99)
    assert e.value.kind == "hook"


def test_matplotlib_draws_where_it_is_installed() -> None:
    got = actscope.ActivationExtractor("demo", device="cpu").get_activations(TEXT)
    figure = actscope.plot_activation_heatmap(got["activations"], got["tokens"], "Layer -1")
    axes = figure.axes[0]
    assert axes.get_title() == "Layer -1"
    assert [label.get_text() for label in axes.get_yticklabels()] == got["tokens"]
    shown = axes.images[0].get_array()
    assert shown.shape[0] == len(got["tokens"])
    assert shown[0, 0] == got["activations"][0, 0, 0]
    assert shown[-1, -1] == got["activations"][0, -1, -1]
    pyplot.close(figure)


def test_our_own_picture_where_matplotlib_is_not(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    got = actscope.ActivationExtractor("demo", device="cpu").get_activations(TEXT)
    drawn = actscope.plot_activation_heatmap(got["activations"], got["tokens"], "Layer -1")
    assert isinstance(drawn, actscope.Heatmap)
    svg = drawn._repr_svg_()
    assert svg.startswith("<svg")
    assert "Layer -1" in svg
    assert drawn.panels[0].values[0, 0] == got["activations"][0, 0, 0]
    drawn.save(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_heatmap_of_something_else_is_refused() -> None:
    with pytest.raises(actscope.Error, match=r"\[3, 4\] was given with 2 tokens"):
        actscope.plot_activation_heatmap(np.zeros((3, 4)), ["a", "b"])
