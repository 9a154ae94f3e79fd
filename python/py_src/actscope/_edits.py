"""Changes of activations. Owns `Edit`, and how edits become what the native side takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from actscope._errors import error
from actscope._texts import growing, indices

if TYPE_CHECKING:
    from actscope import _native

EditFunction = Callable[[Any], Any]
"""Takes a float32 array [1, ...] with one text's values, returns as many, or changes it in place and returns None."""

Edits = Any
"""A list of `Edit`s and of edits as the command line takes them (`SITE[@SELECT]:OP`), in order; or a mapping from hooks to functions,
to values that are put there, or to an OP such as `"mean"`."""

_OPS = ("zero", "scale", "add", "set")


# Values may be arrays, of which `==` gives an array.
@dataclass(slots=True, eq=False, repr=False)
class Edit:
    """A change of one hook's values, before they are recorded and before anything reads them.

    Args:
        site: A hook by any of its names; a glob edits every match.
        op: `zero`, `scale`, `add`, `set`, or a function: see `EditFunction`.
        value: A factor for `scale`; for `add` and `set` a number, one row for every row of the selection, or the whole
            selection, text by text.
        pos, head, dim, key: Which part: an index, a slice or a list of indices; negative ones count from the end.
        text: Which texts of the batch.

    Example:
        `Edit("blocks.2.attn.hook_z", "zero", head=4)`, `Edit("resid_pre.1", lambda x: x / 2, pos=-1)`
    """

    site: str
    op: str | EditFunction
    value: Any = None
    _: KW_ONLY
    pos: Any = None
    head: Any = None
    dim: Any = None
    key: Any = None
    text: Any = None

    def __post_init__(self) -> None:
        if not callable(self.op) and self.op not in _OPS:
            raise error("hook", f"there is no edit {self.op!r}; there are {', '.join(_OPS)}, and functions")
        if (self.value is None) == (self.op in _OPS[1:]):
            needs = "needs a value" if self.value is None else "takes no value"
            raise error("hook", f"{self.site}: the edit {_label(self.op)!r} {needs}")

    def __repr__(self) -> str:
        parts = [(name, getattr(self, name)) for name in ("pos", "head", "dim", "key", "text")]
        given = [f"{name}={part!r}" for name, part in parts if part is not None]
        value = [] if self.value is None else ["..."]
        return f"Edit({', '.join([repr(self.site), _label(self.op), *value, *given])})"


def _label(op: str | EditFunction) -> str:
    return op if isinstance(op, str) else getattr(op, "__qualname__", type(op).__name__)


def read(edits: Edits) -> list[Edit | str]:
    """A list of edits of what `run` takes as `edits`."""
    if edits is None:
        return []
    if isinstance(edits, (Edit, str)):
        return [edits]
    if isinstance(edits, Mapping):
        return [_of_pair(site, what) for site, what in edits.items()]
    if not isinstance(edits, Iterable):
        raise TypeError(f"edits are a mapping or a list of Edits, and {edits!r:.60} was given")
    listed = list(edits)
    for one in listed:
        if not isinstance(one, (Edit, str)):
            raise TypeError(f"an Edit or a string is needed, and {one!r:.60} was given")
    return listed


def _of_pair(site: str, what: Any) -> Edit | str:
    if callable(what):
        return Edit(site, what)
    return f"{site}:{what}" if isinstance(what, str) else Edit(site, "set", what)


def native(
    edits: list[Edit | str], session: _native.Session, lengths: list[int], prompts: list[int] | None = None
) -> list[Any]:
    """Edits as the native side takes them, for a batch of texts of these lengths. Texts that are generated have these prompts, from
    whose ends negative positions count."""
    made: list[Any] = []
    for edit in edits:
        if isinstance(edit, str):
            made.append((edit, (None, None, None, None), "written", None, ""))
            continue
        for site in session.resolve(edit.site):
            made.append((site, _select(edit, site, session, lengths, prompts or lengths), *_operation(edit, site)))
    return made


def recorded(records: list[tuple[str, str | None]]) -> list[dict[str, str]]:
    """A run's edits as files have them: each with a sha256 of its values, where these are known."""
    return [{"edit": edit, "sha256": sha} if sha else {"edit": edit} for edit, sha in records]


def _select(edit: Edit, site: str, session: _native.Session, lengths: list[int], prompts: list[int]) -> Any:
    config = session.config
    chosen = range(len(lengths)) if edit.text is None else indices(edit.text, len(lengths), "text")

    def per_text(spec: Any, what: str) -> list[list[int]] | None:
        if spec is None and edit.text is None:
            return None
        spec = slice(None) if spec is None else spec
        of = [f"{site}: text {i}: {what}" for i in range(len(lengths))]
        return [growing(spec, n, prompts[i], of[i]) if i in chosen else [] for i, n in enumerate(lengths)]

    width = {
        "d_model": config["n_embd"],
        "d_head": config["n_embd"] // config["n_head"],
        "d_mlp": config["n_inner"],
        "d_vocab": config["vocab_size"],
        "one": 1,
    }.get(session.axes(site)[-1], 0)
    if edit.dim is not None and not width:
        raise error("hook", f"{site} has no dimensions: its last axis is the keys")
    return (
        per_text(edit.pos, "position"),
        None if edit.head is None else indices(edit.head, config["n_head"], f"{site}: head"),
        None if edit.dim is None else indices(edit.dim, width, f"{site}: dim"),
        None if edit.key is None else per_text(edit.key, "key"),
    )


def _operation(edit: Edit, site: str) -> tuple[str, Any, str]:
    """The operation, its value, and a name for provenance."""
    op = edit.op
    if not isinstance(op, str):
        return "with", _checked(op, site), _label(op)
    if op == "zero":
        return op, None, op
    if op == "scale":
        return op, float(edit.value), op
    return op, np.ascontiguousarray(np.asarray(edit.value, dtype=np.float32).ravel()), op


def _checked(function: EditFunction, site: str) -> Callable[[Any], Any]:
    """A function whose results the native side can take."""

    def call(values: Any) -> Any:
        returned = function(values)
        # Changed in place, as TransformerLens's hooks may.
        changed = np.asarray(values if returned is None else returned, dtype=np.float32)
        if changed.shape == values.shape[1:]:
            changed = changed[np.newaxis]
        if changed.shape != values.shape:
            raise error(
                "hook",
                f"{site}: the edit {_label(function)!r} was given {list(values.shape)} and returned {list(changed.shape)}",
            )
        return changed

    return call
