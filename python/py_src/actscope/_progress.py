"""Progress by tqdm where it is installed, in a notebook's own way there; nothing where it is not. Owns `Progress`."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any


class Progress:
    """Hears how many of how many steps are done; the first call makes the bar. A context that takes it away."""

    def __init__(self, what: str, unit: str = "step") -> None:
        self._what = what
        self._unit = unit
        self._bar: Any = None

    def __call__(self, done: int, of: int) -> None:
        if self._bar is None:
            self._bar = _tqdm(total=of, desc=self._what, unit=self._unit)
        if self._bar is not False:
            self._bar.total = of
            self._bar.update(done - self._bar.n)

    def download(self, what: str, *args: Any) -> None:
        """Hears of a download: see `_native.Session`."""
        if what == "note":
            warnings.warn(args[0], stacklevel=2)
        elif what == "start":
            self._bar = _tqdm(total=args[1], desc=args[0], unit="B", unit_scale=True)
        elif what == "bytes" and self._bar:
            self._bar.update(args[0] - self._bar.n)
        elif what == "end":
            self.close()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.close()
        self._bar = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _tqdm(**options: Any) -> Any:
    """A bar; False without tqdm."""
    try:
        with warnings.catch_warnings():
            # It warns where a notebook lacks ipywidgets, and then prints text.
            warnings.simplefilter("ignore")
            from tqdm.auto import tqdm
    except ImportError:
        return False
    return tqdm(leave=False, **options)
