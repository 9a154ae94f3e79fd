"""The model's weights under TransformerLens's names and shapes. Owns `Weights`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from actscope._native import Error

if TYPE_CHECKING:
    from actscope import _native

Array = NDArray[np.float32]

# TransformerLens's names in a block, and Hugging Face's.
_NORMS = {"ln1.w": "ln_1.weight", "ln1.b": "ln_1.bias", "ln2.w": "ln_2.weight", "ln2.b": "ln_2.bias"}
_MLP = {
    "mlp.W_in": "mlp.c_fc.weight",
    "mlp.b_in": "mlp.c_fc.bias",
    "mlp.W_out": "mlp.c_proj.weight",
    "mlp.b_out": "mlp.c_proj.bias",
}
_ATTENTION = tuple(f"attn.{name}" for name in ("W_Q", "W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"))
_OUTSIDE = {
    "embed.W_E": "wte.weight",
    "pos_embed.W_pos": "wpe.weight",
    "ln_final.w": "ln_f.weight",
    "ln_final.b": "ln_f.bias",
}


class Weights(Mapping[str, Array]):
    """Weights by name, float32, as the checkpoint has them: LayerNorms are not folded in, nothing is centred.

    Names and shapes are TransformerLens's, with H heads, D = n_embd, d = D / H, M = n_inner, V the vocabulary:
    `embed.W_E` [V, D], `pos_embed.W_pos` [n_positions, D], `blocks.i.ln1.w` [D], `blocks.i.attn.W_Q` `W_K` `W_V` [H, D, d],
    `b_Q` `b_K` `b_V` [H, d], `W_O` [H, d, D], `b_O` [D], `blocks.i.mlp.W_in` [D, M], `W_out` [M, D], `ln_final.w`,
    `unembed.W_U` [D, V], `unembed.b_U` [V] (zeros: GPT-2 has none). Hugging Face's names give the checkpoint's own matrices.
    Each access reads the checkpoint anew and gives an array of its own.
    """

    def __init__(self, session: _native.Session) -> None:
        self._session = session
        self._config = session.config

    def __iter__(self) -> Iterator[str]:
        yield from ("embed.W_E", "pos_embed.W_pos")
        for layer in range(self._config["n_layer"]):
            for name in ("ln1.w", "ln1.b", *_ATTENTION, "ln2.w", "ln2.b", *_MLP):
                yield f"blocks.{layer}.{name}"
        yield from ("ln_final.w", "ln_final.b", "unembed.W_U", "unembed.b_U")

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in list(self)

    def __getitem__(self, name: str) -> Array:
        read, config = self._session.weight, self._config
        if name in _OUTSIDE:
            matrix = read(_OUTSIDE[name])
            return matrix if name.endswith(("W_E", "W_pos")) else _vector(matrix)
        if name == "unembed.W_U":
            return np.ascontiguousarray(read("lm_head.weight" if self._session.is_untied else "wte.weight").T)
        if name == "unembed.b_U":
            return np.zeros(config["vocab_size"], dtype=np.float32)
        if name in self:
            _, layer, part = name.split(".", 2)
            return self._of_block(f"h.{layer}", part)
        plain = name.removeprefix("transformer.")
        if plain == "lm_head.weight" and not self._session.is_untied:
            plain = "wte.weight"
        try:
            matrix = read(plain)
        except Error:
            raise KeyError(f"{name}: no such weight; list(model.weights) has the names") from None
        return matrix if plain.endswith(".weight") and ".ln_" not in f".{plain}" else _vector(matrix)

    def _of_block(self, block: str, part: str) -> Array:
        read = self._session.weight
        heads, width = self._config["n_head"], self._config["n_embd"]
        if part in _NORMS:
            return _vector(read(f"{block}.{_NORMS[part]}"))
        if part in _MLP:
            matrix = read(f"{block}.{_MLP[part]}")
            return matrix if part.startswith("mlp.W") else _vector(matrix)
        if part == "attn.W_O":
            return read(f"{block}.attn.c_proj.weight").reshape(heads, -1, width)
        if part == "attn.b_O":
            return _vector(read(f"{block}.attn.c_proj.bias"))
        # c_attn's columns are q, k and v, each head by head.
        third = "QKV".index(part[-1])
        if part.startswith("attn.b_"):
            biases = _vector(read(f"{block}.attn.c_attn.bias")).reshape(3, heads, -1)
            return np.array(biases[third])
        by_head = read(f"{block}.attn.c_attn.weight").reshape(width, 3, heads, -1)[:, third]
        return np.ascontiguousarray(by_head.transpose(1, 0, 2))

    def __repr__(self) -> str:
        return f"Weights({len(self)} arrays)"


def _vector(matrix: Array) -> Array:
    """The checkpoint's reader gives a vector as a matrix of one row."""
    return matrix.reshape(-1)
