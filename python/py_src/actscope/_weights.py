"""The model's weights under TransformerLens's names and shapes. Owns `Weights`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actscope._native import Error

if TYPE_CHECKING:
    from actscope import _native


class Weights(Mapping[str, NDArray[np.float32]]):
    """Weights by name, float32: as the checkpoint has them, or processed where the model was loaded with `process`.

    Names and shapes are TransformerLens's, with H heads, D = n_embd, d = D / H, M = n_inner, V the vocabulary:
    `embed.W_E` [V, D], `pos_embed.W_pos` [n_positions, D], `blocks.i.ln1.w` [D], `blocks.i.attn.W_Q` `W_K` `W_V` [H, D, d],
    `b_Q` `b_K` `b_V` [H, d], `W_O` [H, d, D], `b_O` [D], `blocks.i.mlp.W_in` [D, M], `W_out` [M, D], `ln_final.w`,
    `unembed.W_U` [D, V], `unembed.b_U` [V] (zeros unless processing made it: GPT-2 has none). `W_E`, `W_pos`, `W_U` and `b_U` are known
    without their module. Hugging Face's names give the matrices as they are stored. Each access reads anew and gives an array of its own.
    """

    def __init__(self, session: _native.Session) -> None:
        self._session = session

    def __iter__(self) -> Iterator[str]:
        return iter(self._session.weight_names())

    def __len__(self) -> int:
        return len(self._session.weight_names())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._session.has_weight(name)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self:
            raise KeyError(f"{name}: no such weight; list(model.weights) has the names")
        return self._session.weight(name)

    def __repr__(self) -> str:
        return f"Weights({len(self)} arrays)"
