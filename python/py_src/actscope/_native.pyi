"""The native part: see `python/src`. Arguments are plain; the rest of this package makes them."""

from collections.abc import Callable
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

__version__: str

class Error(Exception):
    """What went wrong, in words.

    `kind` says where: `hub`, `weights`, `tokenizer`, `batch`, `hook`, `device`, `run` or `output`.
    """

    kind: str

_Array = NDArray[np.float32]
_Arrays = tuple[dict[str, _Array], dict[str, int]]
_Lists = list[list[int]]
_Select = tuple[_Lists | None, list[int] | None, list[int] | None, _Lists | None]
_Edit = tuple[str, _Select, str, Any, str]
_Sources = tuple[_Lists | None, _Lists | None]
_Token = tuple[int, bytes | None]
_Progress = Callable[[int, int], object] | None
_Prediction = tuple[list[tuple[int, float]], float, tuple[int, float, int] | None]
_Case = tuple[tuple[list[int], int], tuple[list[int], int] | None, int, int]
_Asked = tuple[list[_Case], list[_Edit], list[_Edit], _Sources]
_Records = list[tuple[str, str | None]]
_Settings = tuple[
    tuple[int, int, int, int], tuple[float, int | None, float | None, float | None, float], int, list[str]
]

class Picture:
    def svg(self) -> str: ...
    def save(self, path: str | PathLike[str]) -> int: ...

class Session:
    def __init__(
        self,
        name: str,
        device: str,
        weights: str | None,
        process: str | None,
        autotune: bool,
        tell: Callable[..., object],
        /,
    ) -> None: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def device(self) -> str: ...
    @property
    def device_kind(self) -> str: ...
    @property
    def notes(self) -> list[str]: ...
    @property
    def process(self) -> str: ...
    @property
    def adds_bos(self) -> bool: ...
    def encode(self, texts: list[str], special: bool = True) -> _Lists: ...
    def encode_bare(self, text: str) -> list[int]: ...
    def token_bytes(self, ids: list[int]) -> list[bytes | None]: ...
    def token_labels(self, ids: list[int]) -> list[str]: ...
    def written(self, ids: list[int]) -> list[str]: ...
    def decode(self, ids: list[int]) -> str: ...
    def resolve(self, pattern: str) -> list[str]: ...
    def layer_hook(self, layer: int) -> str: ...
    def axes(self, hook: str) -> list[str]: ...
    def activations(
        self, text: str, layer: int
    ) -> tuple[_Array, list[str], NDArray[np.int64], NDArray[np.int64]]: ...
    def run(
        self,
        ids: _Lists,
        taps: list[tuple[str, _Select]],
        edits: list[_Edit],
        sources: _Sources,
        start: tuple[str, int, _Array] | None,
        progress: _Progress,
    ) -> tuple[dict[str, _Array], dict[str, int], _Records]: ...
    def lens(
        self,
        ids: _Lists,
        top: int,
        of_components: bool,
        edits: list[_Edit],
        sources: _Sources,
        progress: _Progress,
    ) -> tuple[list[tuple[str, list[list[_Prediction]]]], list[Picture]]: ...
    def report(
        self, ids: list[int], arguments: str | None, edits: list[_Edit], sources: _Sources, progress: _Progress
    ) -> tuple[str, list[str]]: ...
    def save(
        self,
        path: str | PathLike[str],
        ids: _Lists,
        texts: list[str],
        positions: _Lists | None,
        arrays: list[tuple[str, _Array]],
        edits: _Records,
        generation: str | None,
        gradient: str | None,
    ) -> int: ...
    def weight_names(self) -> list[str]: ...
    def has_weight(self, name: str) -> bool: ...
    def weight(self, name: str) -> _Array: ...
    def unembedding(self, ids: list[int]) -> _Array: ...
    def verify(self, tell: Callable[[str, int, int], object] | None) -> dict[str, Any]: ...

def heatmap(
    panels: list[tuple[str, str, _Array]],
    rows: list[tuple[int, _Token]],
    text: list[_Token],
    what: str,
    dims: str,
    scale: str,
) -> tuple[Picture, list[tuple[list[int], _Array, float]]]: ...
def attention(heads: list[tuple[int, int, _Array]], text: list[_Token], what: str, scores: bool) -> Picture: ...
def sweep(
    session: Session,
    asked: _Asked,
    at: list[str],
    by: list[str],
    metric: str,
    replacement: str,
    from_source: bool,
    path: tuple[str, bool] | None,
    fast: bool,
    align_end: bool,
    progress: _Progress,
) -> dict[str, Any]: ...
def sweep_fast(
    session: Session,
    asked: _Asked,
    of: list[tuple[str, list[str]]],
    metric: str,
    from_source: bool,
    progress: _Progress,
) -> list[dict[str, Any]]: ...
def attribute(
    session: Session,
    ids: list[int],
    asked: tuple[int, int, int | None],
    by: str,
    steps: int | None,
    baseline: list[int] | None,
    edits: list[_Edit],
    sources: _Sources,
    progress: _Progress,
) -> tuple[float, list[str], list[float], float, _Records]: ...
def grad(
    session: Session,
    ids: _Lists,
    taps: list[tuple[str, _Select]],
    target: tuple[str, list[tuple[int, int, int]] | None],
    edits: list[_Edit],
    sources: _Sources,
    values: bool,
    checkpoint: bool,
    progress: _Progress,
) -> tuple[_Arrays, _Arrays, list[float], _Records]: ...
def edges(
    session: Session,
    cases: list[_Case],
    metric: str,
    steps: int,
    progress: _Progress,
) -> dict[str, Any]: ...
def edge_circuit(
    session: Session,
    cases: list[_Case],
    metric: str,
    kept: list[tuple[int, int]],
    progress: _Progress,
) -> list[float]: ...
def bars(text: list[_Token], what: str, bars: list[tuple[str, float]], notes: list[str]) -> Picture: ...
def sweep_picture(
    what: str,
    name: str,
    axes: list[str],
    labels: list[list[str]],
    text: tuple[list[_Token], list[_Token]] | None,
    shown: list[float],
    values: list[float],
    errors: list[float] | None,
    p: list[float] | None,
) -> Picture: ...
def random_repeats(session: Session, texts: int, length: int, seed: int) -> _Lists: ...
def head_kinds(
    session: Session,
    ids: _Lists,
    measure: str,
    excluded: tuple[bool, bool],
    edits: list[_Edit],
    sources: _Sources,
    progress: _Progress,
) -> tuple[list[list[list[float]]], _Records]: ...
def circuit(session: Session, head: tuple[int, int], kind: str, top: int) -> dict[str, Any]: ...
def longest(session: Session, prompts: _Lists, settings: _Settings) -> list[int]: ...
def generate(
    session: Session,
    prompts: _Lists,
    settings: _Settings,
    taps: list[tuple[str, _Select]],
    edits: list[_Edit],
    sources: _Sources,
    tell: Callable[[int, int, str, float, list[tuple[int, float]], str | None], bool] | None,
    progress: _Progress,
) -> tuple[
    list[dict[str, Any]], dict[str, _Array], dict[str, int], list[int], _Records, str
]: ...
def lens_hooks(session: Session) -> list[str]: ...
def score(
    session: Session, ids: _Lists, window: tuple[int, int] | None, progress: _Progress
) -> list[NDArray[np.float64]]: ...
def adapters() -> list[tuple[str, str, str, bool]]: ...
