"""Activations of many texts on many machines, by Ray Data. Owns `Activations`. Ray decides where workers run, what GPUs each has, and
what is done again where one dies; this file does one batch.

```python
import ray, actscope.ray

ray.data.read_text("texts/").map_batches(
    actscope.ray.Activations,
    fn_constructor_kwargs={"model": "gpt2", "hooks": ["resid_post.6"], "pos": -1},
    concurrency=4, num_gpus=1, batch_size=64,
).write_parquet("shards/")
```

Without GPUs give `num_cpus=0`, as examples/ray_shards.py does: workers that count for all CPUs leave none to read and write, and Ray then
waits for ever. This module imports no Ray: a callable class is all that `map_batches` asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from actscope._model import load


class Activations:
    """A callable class for `Dataset.map_batches`: each worker loads the model once.

    Rows in have a column of texts. Rows out have their columns, `input_ids` (int64 [pos]), and for each hook an array of that row's
    own tokens without padding: float32 [pos, n_embd] for a residual stream. With an index as `pos` all rows have one shape
    ([1, n_embd]); else they differ, which Ray keeps as tensors of variable shape.

    Args:
        model, device, weights, process: As `actscope.load` takes them. `auto` takes the GPU that Ray gives the worker.
        hooks: As `Model.run` takes them; the output after the final LayerNorm by default.
        column: The texts' column.
        pos, edits, prepend_bos: As `Model.run` takes them.
    """

    def __init__(
        self,
        model: str = "gpt2",
        hooks: Any = "ln_final.hook_out",
        *,
        column: str = "text",
        device: str = "auto",
        weights: str | None = None,
        process: str | None = None,
        pos: Any = None,
        edits: Any = None,
        prepend_bos: bool = False,
    ) -> None:
        self._model = load(model, device=device, weights=weights, process=process)
        self._hooks = hooks
        self._column = column
        self._options = {"pos": pos, "edits": edits, "prepend_bos": prepend_bos}

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """One batch of rows, as columns."""
        if self._column not in batch:
            raise KeyError(f"there is no column {self._column!r}; the rows have {', '.join(batch)}")
        texts = [str(text) for text in batch[self._column]]
        out: dict[str, Any] = dict(batch)
        if not texts:
            return out
        cache = self._model.run(texts, self._hooks, **self._options)
        lengths = cache.attention_mask.sum(axis=1)
        assert cache.input_ids is not None
        out["input_ids"] = _column([row[:n] for row, n in zip(cache.input_ids, lengths, strict=True)])
        for hook, values in cache.items():
            rows = []
            for text, n in enumerate(lengths):
                kept = int(n) if cache.positions is None else len(cache.positions[text])
                axes = self._model._session.axes(hook)
                own = {"pos": kept, "key": int(n)}
                rows.append(values[(text, *(slice(own.get(axis)) for axis in axes))])
            out[hook] = _column(rows)
        return out


def _column(rows: list[NDArray[Any]]) -> NDArray[Any]:
    """One array where all rows have one shape, else an array of arrays."""
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    column = np.empty(len(rows), dtype=object)
    for i, row in enumerate(rows):
        column[i] = np.ascontiguousarray(row)
    return column
