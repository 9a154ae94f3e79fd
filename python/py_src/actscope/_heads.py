"""What heads do: where they look, and what their weights do whatever the text is. Owns `Heads` and `Circuit`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from actscope import _native
from actscope._generate import named
from actscope._show import _Drawn, _table

Numbers = NDArray[np.float64]

_KINDS = ("previous", "duplicate", "induction")


class Heads(_Drawn):
    """How much each head is of each kind, the mean over texts; a notebook shows heat maps.

    Attributes:
        previous: float64 [layer, head]: of heads that look at the token before.
        duplicate: The same, at earlier tokens that are the same.
        induction: The same, at tokens after an earlier token that is the same.
        edits: The run's edits with a sha256 of their values.
    """

    def __init__(
        self,
        scores: list[list[list[float]]],
        edits: list[dict[str, str]],
        *,
        title: str,
        text: list[tuple[int, bytes | None]] | None,
    ) -> None:
        self.previous, self.duplicate, self.induction = (np.asarray(one) for one in scores)
        self.edits = edits
        n_layer, n_head = self.previous.shape
        axes = [list(_KINDS), *([str(i) for i in range(n)] for n in (n_layer, n_head))]
        shown = np.ravel(scores).tolist()
        pair = None if text is None else (text, text)
        picture = _native.sweep_picture(title, "Score", ["kind", "layer", "head"], axes, pair, shown, shown, None, None)
        super().__init__(picture)

    def strongest(self, kind: str = "induction", n: int = 5) -> list[tuple[int, int, float]]:
        """Layer, head and score of those that are most of a kind."""
        if kind not in _KINDS:
            raise ValueError(f"{kind!r} is none of: {', '.join(_KINDS)}")
        scores: Numbers = getattr(self, kind)
        order = np.argsort(-scores, axis=None, kind="stable")[:n]
        return [(int(i) // scores.shape[1], int(i) % scores.shape[1], float(scores.flat[i])) for i in order]

    def __repr__(self) -> str:
        best = "; ".join(f"{kind} {l}.{h} {score:.2f}" for kind in _KINDS for l, h, score in self.strongest(kind, 1))
        return f"Heads(strongest: {best})"


class Pair(NamedTuple):
    """An entry of a circuit between tokens, each as the vocabulary writes it."""

    source: str
    to: str
    value: float


class Direction(NamedTuple):
    """A singular direction of a circuit: for both sides the tokens with the highest and the lowest values."""

    value: float
    left: tuple[list[tuple[str, float]], list[tuple[str, float]]]
    right: tuple[list[tuple[str, float]], list[tuple[str, float]]]


class Composition(NamedTuple):
    """How much a head reads of another through its queries, keys and values: 0 nothing, 1 all that it reads."""

    layer: int
    head: int
    q: float
    k: float
    v: float


class Circuit:
    """What a head's weights do, between tokens.

    Attributes:
        pairs: The largest entries: the token that is looked at and the one that becomes likelier (OV), or a query's token and the one
            that it looks at (QK).
        directions: Singular directions, largest first, read as tokens.
        singular_values: float64 [d_head], largest first.
        left, right: float64 [d_head, n_embd], the directions of both sides, each of length 1.
        eigenvalues: complex128 [d_head] of the circuit between tokens, largest first.
        score: The sum of the eigenvalues divided by the sum of their magnitudes: near 1 for heads that copy tokens.
        reads: Earlier heads, whose output this head reads.
        writes: Later heads, which read this head's output.
    """

    def __init__(
        self, found: dict[str, Any], kind: str, place: tuple[int, int], written: Callable[[list[int]], list[str]]
    ) -> None:
        def ends(side: Any) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
            high, low = side
            return named(high, written), named(low, written)

        self.kind = kind
        self.layer, self.head = place
        self.pairs = [Pair(written([one])[0], written([other])[0], value) for one, other, value in found["pairs"]]
        self.singular_values: Numbers = found["singular_values"]
        self.left: Numbers = found["left"]
        self.right: Numbers = found["right"]
        self.directions = [
            Direction(float(value), ends(left), ends(right))
            for value, (left, right) in zip(self.singular_values, found["tokens"], strict=False)
        ]
        self.eigenvalues: NDArray[np.complex128] = np.array([complex(*one) for one in found["eigenvalues"]])
        self.score: float = found["score"]
        self.reads = [Composition(*one) for one in found["reads"]]
        self.writes = [Composition(*one) for one in found["writes"]]

    def __repr__(self) -> str:
        return f"Circuit({self.kind} of head {self.layer}.{self.head}, score {self.score:+.4f})"

    def _repr_html_(self) -> str:
        rows = [(pair.source, pair.to, f"{pair.value:.4f}") for pair in self.pairs]
        sides = ("looks at", "raises") if self.kind == "ov" else ("from", "looks at")
        return f"<div>{self!r}</div>{_table((*sides, 'entry'), rows, [False] * len(rows))}"
