"""Where a prediction comes from. Owns `Attribution`, `Gradients` and `Edges`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actscope import _native
from actscope._show import _Drawn, _table

if TYPE_CHECKING:
    from actscope._cache import Cache

Numbers = NDArray[np.float64]

# Bars beyond so many are not shown; the numbers are all there.
_MOST_BARS = 40


class Attribution(_Drawn):
    """A logit, or a difference of two, as a sum of parts; a notebook shows bars, and of heads a heat map.

    Attributes:
        total: The logit; of integrated gradients, less that at the line's start.
        labels: The parts, under TransformerLens's names.
        values: float64, what each part adds.
        remainder: total less the sum of the values.
        edits: The run's edits with a sha256 of their values.
    """

    def __init__(
        self,
        found: tuple[float, list[str], list[float], float],
        edits: list[dict[str, str]],
        *,
        by: str,
        method: str,
        top: int | None,
        title: str,
        text: list[tuple[int, bytes | None]],
        shape: tuple[int, int],
    ) -> None:
        total, labels, values, remainder = found
        self.total: float = total
        self.labels = labels
        self.values: Numbers = np.asarray(values)
        self.remainder: float = remainder
        self.edits = edits
        if top is not None:
            kept = np.argsort(-np.abs(self.values), kind="stable")[:top]
            self.labels = [labels[i] for i in kept]
            self.values = self.values[kept]
            self.remainder = self.total - float(self.values.sum())
        title = f"{title}: {self.total:.4f}"
        if by == "head" and top is None:
            heads = self.heads(shape)
            axes = [[str(i) for i in range(n)] for n in shape]
            shown = heads.ravel().tolist()
            name = "Adds to the logit" if method == "direct" else "Gradient times value"
            picture = _native.sweep_picture(title, name, ["layer", "head"], axes, (text, text), shown, shown, None, None)
        else:
            order = np.argsort(-np.abs(self.values), kind="stable")[:_MOST_BARS]
            bars = [(self.labels[i], float(self.values[i])) for i in sorted(order)]
            notes = [f"total {self.total:.6f}, remainder {self.remainder:.2e}"]
            if len(bars) < len(self.values):
                notes.append(f"the {len(bars)} largest of {len(self.values)}")
            picture = _native.bars(text, title, bars, notes)
        super().__init__(picture)

    def heads(self, shape: tuple[int, int]) -> Numbers:
        """The values of all heads, [layer, head]."""
        at = [label.endswith("]") and ".hook_result[" in label for label in self.labels]
        values: Numbers = self.values[np.asarray(at)].reshape(shape)
        return values

    def __repr__(self) -> str:
        return f"Attribution(total {self.total:.4f}, {len(self.labels)} parts, remainder {self.remainder:.2e})"


class Gradients(NamedTuple):
    """Values and gradients of one run. Both are a `Cache` with the same hooks.

    Attributes:
        values: The values; no hooks where they were left out.
        gradients: The derivative of the target by each value as it flows on, after edits.
        target: float64 [batch], what was differentiated, of each text.
    """

    values: Cache
    gradients: Cache
    target: Numbers


class Edge(NamedTuple):
    """What one part tells a later one. `path` is how `Model.patch` takes it, but for the embedding's edges."""

    writer: str
    reader: str
    score: float

    @property
    def path(self) -> str:
        return f"{self.writer}...{self.reader}"


class Edges:
    """The scores of all edges between the parts of a model; a notebook shows the strongest.

    Attributes:
        writers: `embed`, `head.0.0`, ..., `mlp.0`, ...
        readers: `q.0.0`, `k.0.0`, `v.0.0`, ..., `mlp.0`, ..., `logits`.
        scores: float64 [writers, readers]; NaN where a writer does not reach a reader.
        clean, corrupt: The metric of the unchanged runs, the mean over pairs.
    """

    def __init__(self, found: dict[str, Any], circuit: Callable[[list[tuple[int, int]]], list[float]]) -> None:
        self.writers: list[str] = found["writers"]
        self.readers: list[str] = found["readers"]
        self._places = list(zip(found["from"], found["to"], strict=True))
        self.scores: Numbers = np.full((len(self.writers), len(self.readers)), np.nan)
        self.scores[found["from"], found["to"]] = found["scores"]
        self._each: Numbers = np.asarray(found["scores"])
        self.clean = float(np.mean(found["clean"]))
        self.corrupt = float(np.mean(found["corrupt"]))
        self._circuit = circuit

    def _order(self, n: int) -> list[int]:
        return [int(i) for i in np.argsort(-np.abs(self._each), kind="stable")[:n]]

    def strongest(self, n: int = 20) -> list[Edge]:
        """The edges of largest magnitude, largest first."""
        places = [(self._places[i], float(self._each[i])) for i in self._order(n)]
        return [Edge(self.writers[w], self.readers[r], score) for (w, r), score in places]

    def faithfulness(self, n: int) -> float:
        """How much of the metric the `n` strongest edges carry: the model is run with these only, every other edge being the
        corrupt run's. 0 is the corrupt run, 1 the clean one. NaN if both have the same metric."""
        if self.clean == self.corrupt:
            return float("nan")
        value = float(np.mean(self._circuit([self._places[i] for i in self._order(n)])))
        return (value - self.corrupt) / (self.clean - self.corrupt)

    def __len__(self) -> int:
        return len(self._each)

    def __repr__(self) -> str:
        return f"Edges({len(self)} edges, clean {self.clean:.4f}, corrupt {self.corrupt:.4f})"

    def _repr_html_(self) -> str:
        rows = [(edge.writer, edge.reader, f"{edge.score:+.4f}") for edge in self.strongest()]
        return f"<div>{self!r}</div>{_table(('writer', 'reader', 'score'), rows, [False] * len(rows))}"
