"""Patching and ablation: which places matter for what the model says. Owns `Sweep`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actscope import _native
from actscope._show import _Drawn

Numbers = NDArray[np.float64]


class Sweep(_Drawn):
    """The metric of one changed run for each cell; a notebook shows it as a heat map.

    Attributes:
        axes: What the axes are: `layer`, `pos`, `head`, `dim`, `key`, with `site` in front where there are several.
        labels: For each axis a label for each place along it.
        metric: Which number it is.
        edits: The edits of all runs with a sha256 of their values.
        values: float64, the metric of the changed run (not its effect), the mean over pairs or texts.
        each: The same of every pair or text, [n, ...].
        clean, corrupt: Of `patch`: the metric of the unchanged runs.
        base: Of `ablate`: the metric of the unchanged run.
        normalized: Of `patch`: (values - corrupt) / (clean - corrupt), with `noise` (values - clean) / (clean - corrupt).
        standard_error, ci: Of several pairs or texts: the standard error of the mean of `values`, and its 95 % interval [..., 2].
        effect_standard_error, p: Of several pairs or texts: the standard error of the mean effect, which is that of the differences
            between each changed run and its own unchanged one, and how often chance alone gives an effect at least as large.
    """

    def __init__(
        self,
        found: dict[str, Any],
        edits: list[dict[str, str]],
        *,
        title: str,
        metric: str,
        noise: bool,
        text: tuple[list[tuple[int, bytes | None]], list[tuple[int, bytes | None]]] | None,
        pos_labels: list[str] | None,
    ) -> None:
        shape = tuple(found["shape"])
        self.metric = metric
        self.edits = edits
        self.axes: list[str] = (["site"] if len(found["sites"]) > 1 else []) + found["axes"]
        self.labels: list[list[str]] = []
        for axis, n in zip(self.axes, shape, strict=True):
            if axis == "site":
                self.labels.append(found["sites"])
            elif axis in ("pos", "key") and pos_labels is not None:
                self.labels.append(pos_labels)
            else:
                self.labels.append([str(i) for i in range(n)])
        self.each: Numbers = np.asarray(found["values"], dtype=np.float64).reshape(-1, *shape)
        self.values: Numbers = np.asarray(self.each.mean(axis=0))
        unchanged = float(np.mean(found["unchanged"]))
        source = float(np.mean(found["source"])) if found["source"] else None
        self.base = unchanged if source is None else None
        self.clean, self.corrupt = (unchanged, source) if noise else (source, unchanged if source is not None else None)
        span = 0.0 if self.clean is None or self.corrupt is None else self.clean - self.corrupt
        self.normalized: Numbers | None = (self.values - unchanged) / span if span else None
        several = len(self.each) > 1
        self.standard_error: Numbers | None = np.asarray(found["standard_error"]).reshape(shape) if several else None
        self.effect_standard_error: Numbers | None = (
            np.asarray(found["effect_standard_error"]).reshape(shape) if several else None
        )
        self.ci: Numbers | None = np.asarray(found["ci"]).reshape(*shape, 2) if several else None
        self.p: Numbers | None = np.asarray(found["p"]).reshape(shape) if several else None
        shown, name = self.values - unchanged, f"Change of {metric}"
        if self.normalized is not None:
            shown = self.normalized
            name = f"Normalized ({'0: as clean, -1: as corrupt' if noise else '0: as corrupt, 1: as clean'})"
        # Of what is shown.
        errors, p = self.effect_standard_error, self.p
        if errors is not None and self.normalized is not None:
            errors = errors / abs(span)
        picture = _native.sweep_picture(
            title,
            name,
            self.axes,
            self.labels,
            text,
            shown.ravel().tolist(),
            self.values.ravel().tolist(),
            None if errors is None else errors.ravel().tolist(),
            None if p is None else p.ravel().tolist(),
        )
        super().__init__(picture)

    def __repr__(self) -> str:
        sizes = ", ".join(f"{axis} {n}" for axis, n in zip(self.axes, self.values.shape, strict=True))
        return f"Sweep({self.metric} by {sizes}; n {len(self.each)})"
