"""The notebook's class and its picture. Owns `ActivationExtractor` and `plot_activation_heatmap`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from actscope import _native
from actscope._errors import error
from actscope._model import load
from actscope._show import Heatmap, Panel


class Activations(TypedDict):
    """What `get_activations` gives. P is the number of tokens, D the width of the residual stream."""

    activations: NDArray[np.float32]
    """[1, P, D]"""
    tokens: list[str]
    """As the vocabulary writes them: `Ġcat`."""
    input_ids: NDArray[np.int64]
    """[1, P]"""
    attention_mask: NDArray[np.int64]
    """[1, P]"""
    layer_idx: int


class ActivationExtractor:
    """A model whose activations are asked for layer by layer.

    Args:
        model_name: `gpt2` and every other GPT-2 on the Hugging Face hub, a checkpoint's folder, or `demo`.
        device: `auto` (None means the same), `gpu`, `cuda` or `mps` (each means the GPU), `cpu`, `reference`.
    """

    def __init__(self, model_name: str = "gpt2", device: object = None) -> None:
        self.model = load(model_name, device="auto" if device is None else device)
        self.model_name = model_name
        self.device = self.model.device

    def get_activations(self, text: str, layer_idx: int = -1) -> Activations:
        """The activations of a text after block `layer_idx`; -1 is after the last block and the final LayerNorm (transformers'
        `last_hidden_state`), -2 the last block but one, and so on.

        Raises:
            Error: of kind `hook` for a layer that does not exist, `batch` for an empty or too long text.
        """
        values, tokens, ids, mask = self.model._session.activations(text, layer_idx)
        return {
            "activations": values,
            "tokens": tokens,
            "input_ids": ids,
            "attention_mask": mask,
            "layer_idx": layer_idx,
        }

    def __repr__(self) -> str:
        return f"ActivationExtractor({self.model_name!r}, {self.device})"


_SHOWN = 100


def plot_activation_heatmap(
    activations: Any, tokens: Sequence[str], title: str = "Activation Heatmap"
) -> Any:
    """Draws tokens by hidden dimensions, 100 of them evenly spaced; with matplotlib where it is installed.

    In a notebook it is shown. Elsewhere matplotlib's Figure is returned, or without matplotlib a `Heatmap`, whose `save` writes .svg
    and .png.

    Args:
        activations: [1, P, D] or [P, D].
        tokens: P of them.
    """
    values = np.asarray(activations, dtype=np.float32)
    if values.ndim == 3 and values.shape[0] == 1:
        values = values[0]
    if values.ndim != 2 or len(values) != len(tokens):
        raise error(
            "hook", f"a heatmap shows [tokens, dimensions], and {list(values.shape)} was given with {len(tokens)} tokens"
        )
    in_notebook = _in_notebook()
    try:
        from matplotlib import pyplot
    except ImportError:
        drawn = _ours(values, list(tokens), title)
        if in_notebook:
            sys.modules["IPython"].display.display(drawn)
            return None
        return drawn
    dims = np.linspace(0, values.shape[1] - 1, min(_SHOWN, values.shape[1]), dtype=int)
    shown = values[:, dims]
    finite = np.abs(shown[np.isfinite(shown)])
    limit = float(finite.max()) if finite.size else 1.0
    # The colours end where most values do: a few dimensions of GPT-2 are a hundred times as large as the others.
    usual = float(np.percentile(finite, 98)) if finite.size else 1.0
    if limit > 2 * usual > 0:
        limit = usual
    figure, axes = pyplot.subplots(figsize=(12, max(2.5, 0.32 * len(tokens) + 1.2)), layout="constrained")
    image = axes.imshow(shown, aspect="auto", cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
    axes.set_title(title)
    axes.set_yticks(range(len(tokens)), list(tokens))
    ticks = range(0, len(dims), max(1, len(dims) // 10))
    axes.set_xticks(list(ticks), [str(dims[i]) for i in ticks])
    axes.set_xlabel(f"Hidden dimension ({len(dims)} of {values.shape[1]})")
    axes.set_ylabel("Token")
    figure.colorbar(image, label="Activation Value")
    if in_notebook:
        pyplot.show()
        return None
    return figure


def _ours(values: NDArray[np.float32], tokens: list[str], title: str) -> Heatmap:
    text: list[tuple[int, bytes | None]] = [(0, token.encode()) for token in tokens]
    panel = ("activations", "hidden dimension", np.ascontiguousarray(values))
    picture, numbers = _native.heatmap([panel], list(enumerate(text)), text, title, str(_SHOWN), "linear")
    return Heatmap(picture, [Panel("activations", dims, shown) for dims, shown, _ in numbers], tokens)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and getattr(shell, "kernel", None) is not None
