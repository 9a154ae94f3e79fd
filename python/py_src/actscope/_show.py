"""What can be looked at: tokens, heatmaps, attention, the logit lens, the report, and what `verify` found. Owns how notebooks show
them; the pictures are the library's."""

from __future__ import annotations

import html
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from actscope import _native
from actscope._errors import error

Array = NDArray[np.float32]

_CELL = "padding:1px 6px;text-align:left;font-family:monospace"


def _table(head: Sequence[str], rows: Sequence[Sequence[object]], marked: Sequence[bool]) -> str:
    """An HTML table; marked rows are red."""
    top = "".join(f'<th style="{_CELL}">{html.escape(one)}</th>' for one in head)
    body = []
    for row, red in zip(rows, marked, strict=True):
        style = f"{_CELL};background:#fbb" if red else _CELL
        body.append("<tr>" + "".join(f'<td style="{style}">{html.escape(str(one))}</td>' for one in row) + "</tr>")
    return f"<table><tr>{top}</tr>{''.join(body)}</table>"


T = TypeVar("T")


class _Listed(Sequence[T]):
    """A sequence of what is in a list."""

    def __init__(self, listed: list[T]) -> None:
        self._listed = listed

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        return self._listed[index]

    def __len__(self) -> int:
        return len(self._listed)


class Tokens(_Listed[str]):
    """A text's tokens: a sequence of them as the vocabulary writes them (`Ġcat`).

    Attributes:
        ids: int64 [pos].
        labels: The tokens on one line each, with what cannot be seen escaped.
    """

    def __init__(self, ids: list[int], written: list[str], labels: list[str]) -> None:
        super().__init__(written)
        self.ids: NDArray[np.int64] = np.asarray(ids, dtype=np.int64)
        self.labels = labels

    def __eq__(self, other: object) -> bool:
        return self._listed == (other._listed if isinstance(other, Tokens) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Tokens({self._listed!r})"

    def _repr_html_(self) -> str:
        colours = ("#dcebff", "#e6f5dc")
        shown = []
        for i, (label, token) in enumerate(zip(self.labels, self.ids, strict=True)):
            label = html.escape(label).replace(" ", "␣")
            shown.append(
                f'<span title="position {i}, id {token}" style="background:{colours[i % 2]};color:#000;padding:1px 2px;'
                f'font-family:monospace;white-space:pre">{label}</span>'
            )
        return f"<div>{''.join(shown)} <small>{len(self)} tokens</small></div>"


class _Drawn:
    """A picture that notebooks show as SVG."""

    def __init__(self, picture: _native.Picture) -> None:
        self._picture = picture

    def _repr_svg_(self) -> str:
        return self._picture.svg()

    def save(self, path: str | PathLike[str]) -> int:
        """Draws into a .svg or .png file; gives back its size in bytes."""
        return self._picture.save(path)


class Panel(NamedTuple):
    """One hook's table: its dimensions, and values [pos, dim] float32."""

    hook: str
    dims: list[int]
    values: Array


class Heatmap(_Drawn):
    """Tokens by dimensions.

    Attributes:
        panels: What is shown of each hook.
        tokens: The rows.
    """

    def __init__(self, picture: _native.Picture, panels: list[Panel], tokens: list[str]) -> None:
        super().__init__(picture)
        self.panels = panels
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"Heatmap({', '.join(panel.hook for panel in self.panels)}; {len(self.tokens)} tokens)"


class Attention(_Drawn):
    """Which token looks at which.

    Attributes:
        values: float32 [layer, head, query, key].
        layers, heads: What the first two axes are.
        tokens: Queries and keys.
    """

    def __init__(
        self, picture: _native.Picture, values: Array, layers: list[int], heads: list[int], tokens: list[str]
    ) -> None:
        super().__init__(picture)
        self.values = values
        self.layers = layers
        self.heads = heads
        self.tokens = tokens

    def __repr__(self) -> str:
        return f"Attention(layers {self.layers}, heads {self.heads}, {len(self.tokens)} tokens)"


class Prediction(NamedTuple):
    """What the logits at one position say.

    Attributes:
        top: The likeliest tokens with their probabilities, likeliest first.
        entropy: Of the whole distribution, in nats.
        next: The token that comes next, its probability, and its rank (1: none is likelier); None at a text's end.
    """

    top: list[tuple[str, float]]
    entropy: float
    next: tuple[str, float, int] | None


class Lens(_Listed[list[list[Prediction]]]):
    """The logit lens: what the model would say if it stopped after each block.

    `lens[row][text][position]` is a `Prediction`; rows are those of `hooks`, the last of them the model's own output.

    Attributes:
        hooks: The streams that were read, in the order of the run.
    """

    def __init__(self, hooks: list[str], rows: list[list[list[Prediction]]], pictures: list[_native.Picture]) -> None:
        super().__init__(rows)
        self.hooks = hooks
        self._pictures = pictures

    def __repr__(self) -> str:
        return f"Lens({len(self.hooks)} streams, {len(self._pictures)} texts)"

    def _repr_html_(self) -> str:
        return "".join(f"<div>{picture.svg()}</div>" for picture in self._pictures)

    def save(self, path: str | PathLike[str]) -> int:
        """Draws the one text into a .svg or .png file; gives back its size in bytes."""
        if len(self._pictures) != 1:
            raise error("output", f"a picture shows one text, and this lens has {len(self._pictures)}")
        return self._pictures[0].save(path)


class Report:
    """One text's activations as a page that needs no other file and no network.

    Attributes:
        html: The page.
        notes: What was stored with less precision, or left out, so that the page stays small.
    """

    def __init__(self, page: str, notes: list[str], title: str) -> None:
        self.html = page
        self.notes = notes
        self._title = title

    def __repr__(self) -> str:
        return f"Report({self._title!r}, {len(self.html.encode()) / 1e6:.1f} MB)"

    def _repr_html_(self) -> str:
        page = html.escape(self.html, quote=True)
        return f'<iframe srcdoc="{page}" style="width:100%;height:800px;border:0" sandbox="allow-scripts"></iframe>'

    def save(self, path: str | PathLike[str]) -> int:
        """Writes the .html file; gives back its size in bytes."""
        place = Path(path)
        if place.suffix.lower() not in (".html", ".htm"):
            raise error("output", f"cannot tell the format of {place}: its name must end in .html")
        page = self.html.encode()
        try:
            place.write_bytes(page)
        except OSError as e:
            raise error("output", f"cannot write {place}: {e.strerror or e}") from e
        return len(page)


class Verification:
    """Whether a device's numbers are right, by comparison with plain loops in f64. True where they are.

    Attributes:
        ok: Whether nothing is off.
        device: The device in words.
        kernels: For each kernel its name, cases, failed cases, its worst case, how far that is off as a share of what is
            allowed, and whether it is near enough.
        hooks: For each hook its name, its worst relative error, what is allowed, the text and position of it, and whether it is
            near enough.
        mismatches: Operations of whole runs that are off.
        pieces: Whether runs in pieces, with keys and values kept, are the runs in one.
    """

    def __init__(self, found: dict[str, Any]) -> None:
        self.ok: bool = found["ok"]
        self.device: str = found["device"]
        self.kernels: list[tuple[str, int, int, str, float, bool]] = found["kernels"]
        self.hooks: list[tuple[str, float, float, int, int, bool]] = found["hooks"]
        self.mismatches: list[str] = found["mismatches"]
        self.pieces: bool = found["pieces"]
        self._compared: int = found["compared"]

    def __bool__(self) -> bool:
        return self.ok

    def __repr__(self) -> str:
        cases = sum(row[1] for row in self.kernels)
        said = "right" if self.ok else "NOT to be trusted"
        worst = max((row[1] / row[2] for row in self.hooks), default=0.0)
        return (
            f"Verification({self.device}: the numbers are {said}; {len(self.kernels)} kernels in {cases} cases, "
            f"{len(self.hooks)} hooks (worst at {worst:.0%} of what is allowed), {self._compared} operations)"
        )

    def _repr_html_(self) -> str:
        kernels = [(name, cases, failed, f"{share:.0%}", worst) for name, cases, failed, worst, share, _ in self.kernels]
        hooks = [(name, f"{off:.1e}", f"{allowed:.1e}") for name, off, allowed, *_ in self.hooks]
        tables = [
            _table(("kernel", "cases", "off", "of allowed", "worst"), kernels, [not row[5] for row in self.kernels]),
            _table(("hook", "error", "allowed"), hooks, [not row[5] for row in self.hooks]),
        ]
        off = [[one] for one in self.mismatches]
        if off:
            tables.append(_table(("operation that is off",), off, [True] * len(off)))
        if not self.pieces:
            tables.append("<div>runs in pieces are not the runs in one</div>")
        details = "".join(tables)
        return f"<div>{html.escape(repr(self))}<details><summary>all of it</summary>{details}</details></div>"
