"""What can be given to a run: texts, token ids, arrays, a tokenizer's output. Owns how they become lists of ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actscope._errors import error

Texts = Any
"""One text or several, or token ids: a list, a list of lists, an array [pos] or [batch, pos], or a mapping with `input_ids`
(and `attention_mask`), as tokenizers give it."""


def read(texts: Texts, encode: Callable[[list[str]], list[list[int]]]) -> tuple[list[list[int]], list[str]]:
    """Lists of ids, and the texts where texts were given."""
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Mapping) or hasattr(texts, "input_ids"):
        return _unpadded(texts), []
    if hasattr(texts, "tolist"):
        texts = texts.tolist()
    if not isinstance(texts, Sequence) or isinstance(texts, (bytes, bytearray)):
        raise TypeError(f"texts or token ids are needed, and {type(texts).__name__} was given")
    rows = [row.tolist() if hasattr(row, "tolist") else row for row in texts]
    if rows and all(isinstance(row, str) for row in rows):
        return encode(list(rows)), list(rows)
    if rows and all(_is_id(row) for row in rows):
        rows = [rows]
    return [_ids(row, i) for i, row in enumerate(rows)], []


def _unpadded(encoded: Any) -> list[list[int]]:
    """The ids that an attention mask leaves."""
    ids, _ = read(encoded["input_ids"], lambda texts: [])
    if "attention_mask" not in encoded:
        return ids
    mask, _ = read(encoded["attention_mask"], lambda texts: [])
    if [len(row) for row in mask] != [len(row) for row in ids]:
        raise error("batch", "attention_mask has another shape than input_ids")
    return [[one for one, keep in zip(row, of_row, strict=True) if keep] for row, of_row in zip(ids, mask, strict=True)]


def _is_id(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _ids(row: object, text: int) -> list[int]:
    if not isinstance(row, Sequence) or isinstance(row, (str, bytes)) or not all(_is_id(one) for one in row):
        raise TypeError(f"text {text}: a list of token ids is needed, and {row!r:.60} was given")
    ids = [int(one) for one in row]
    for one in ids:
        if not 0 <= one < 2**32:
            raise error("batch", f"text {text} holds the token id {one}, which no vocabulary has")
    return ids


def indices(spec: Any, n: int, what: str) -> list[int]:
    """An index, a slice, a range or a list of indices below `n`, negative ones counted from the end; ascending."""
    if isinstance(spec, slice):
        return list(range(n))[spec] if (spec.step or 1) > 0 else sorted(list(range(n))[spec])
    if hasattr(spec, "tolist"):
        spec = spec.tolist()
    wanted = [spec] if _is_id(spec) else list(spec)
    found = set()
    for index in wanted:
        if not _is_id(index):
            raise TypeError(f"{what}: an index is needed, and {index!r} was given")
        if not -n <= index < n:
            raise error("hook", f"{what} {index} does not exist; there are {n}, 0 to {n - 1}")
        found.add(int(index) % n)
    return sorted(found)


def growing(spec: Any, n: int, prompt: int, what: str) -> list[int]:
    """`indices` into a text that can grow to `n` tokens, of which `prompt` are its prompt: negative indices count from the prompt's
    end, and `"new"` is every token after it."""
    if isinstance(spec, str):
        if spec != "new":
            raise error("hook", f"{what} {spec!r} is none; there are indices, slices, lists of indices, and 'new'")
        if prompt == n:
            raise error("hook", f"{what} 'new' is for tokens that are generated, and this text gets none")
        return list(range(prompt, n))
    if isinstance(spec, slice):

        def bound(of: int | None) -> int | None:
            return max(0, of + prompt) if of is not None and of < 0 else of

        return indices(slice(bound(spec.start), bound(spec.stop), spec.step), n, what)
    if hasattr(spec, "tolist"):
        spec = spec.tolist()
    wanted = [spec] if _is_id(spec) else list(spec)
    for index in wanted:
        if _is_id(index) and index < -prompt:
            raise error("hook", f"{what} {index} does not exist; negative ones count from the end of the prompt's {prompt} tokens")
    return indices([index + prompt if _is_id(index) and index < 0 else index for index in wanted], n, what)


def positions(pos: Any, lengths: list[int], prompts: list[int] | None = None) -> list[list[int]] | None:
    """The positions of each text, None for all; with `prompts`, of texts that can grow to these lengths."""
    if pos is None:
        return None
    what = [f"text {i}: position" for i in range(len(lengths))]
    if prompts is None:
        return [indices(pos, n, of) for n, of in zip(lengths, what, strict=True)]
    return [growing(pos, n, prompt, of) for n, prompt, of in zip(lengths, prompts, what, strict=True)]
