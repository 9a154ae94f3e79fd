"""What a run recorded. Owns `Cache`: a mapping from hooks to arrays, and TransformerLens's algebra on them.

Everything that a LayerNorm does to a part of the residual stream is done with the model's own weights, so on raw ones gain and bias of
the final LayerNorm are part of `logit_attrs`. Where the model was loaded with them folded into the unembedding they are 1 and 0.
"""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterator, Mapping, Sequence, ValuesView
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import numpy as np
from numpy.typing import NDArray

from actscope._edits import recorded
from actscope._errors import error
from actscope._native import Error

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from actscope._model import Model

Array = NDArray[np.float32]
Ints = NDArray[np.int64]
Stack = Array
"""Parts of the residual stream, [part, batch, pos, n_embd]."""


# For type checkers: the options of the methods whose result depends on `return_labels`.
class _OfStack(TypedDict, total=False):
    apply_ln: bool
    pos_slice: Any


class _OfDecompose(_OfStack, total=False):
    mode: Literal["all", "attn", "mlp"]
    mlp_input: bool
    incl_embeds: bool


class _OfAccumulated(_OfStack, total=False):
    incl_mid: bool
    mlp_input: bool


class _OfHeads(_OfStack, total=False):
    incl_remainder: bool


class Cache(Mapping[str, Any]):
    """Activations by hook, float32, [batch, ...]; texts shorter than the longest are padded on the right with zeros.

    `cache["blocks.3.hook_resid_post"]` and every other name of that hook, `cache["pattern", 3]`, `cache["pattern", -1]` and
    `cache["scale", 3, "ln1"]` give an array. A glob, and a name that stands for several hooks, gives a dict of those that were
    recorded. Iteration gives TransformerLens's names in the order of the run.

    Attributes:
        input_ids: int64 [batch, pos], padded with zeros; None for a run that began with a residual stream alone.
        attention_mask: int64 [batch, pos], 1 where there is a token.
        tokens: For each text its tokens as the vocabulary writes them (`Ġcat`); None as `input_ids`.
        edits: The run's edits with a sha256 of their values; empty for the model as it is.
        positions: For each text the positions that were kept; None where all were.
        gradient: Of gradients, what they are the gradients of: the metric, and the position and the tokens that it reads. None for
            values.
    """

    def __init__(
        self,
        model: Model,
        arrays: dict[str, Array],
        addresses: dict[str, int],
        *,
        ids: list[list[int]] | None,
        lengths: list[int],
        texts: list[str],
        positions: list[list[int]] | None,
        edits: list[tuple[str, str | None]],
        generation: str | None = None,
        gradient: dict[str, Any] | None = None,
    ) -> None:
        self._model = model
        self._arrays = arrays
        # Where each array lay when it left the library.
        self._addresses = addresses
        self._ids = ids
        self._texts = texts
        # How the texts came to be, as files have it.
        self._generation = generation
        self.positions = positions
        self.edits = recorded(edits)
        self.gradient = gradient
        self.attention_mask: Ints = np.zeros((len(lengths), max(lengths)), dtype=np.int64)
        for i, n in enumerate(lengths):
            self.attention_mask[i, :n] = 1
        self.input_ids: Ints | None = None
        self.tokens: list[list[str]] | None = None
        if ids is not None:
            self.input_ids = np.zeros_like(self.attention_mask)
            for i, row in enumerate(ids):
                self.input_ids[i, : len(row)] = row
            self.tokens = [model._session.written(row) for row in ids]

    # A mapping

    def _names(self, key: object) -> list[str]:
        """The hooks that a key stands for, recorded or not."""
        if isinstance(key, str):
            return [key] if key in self._arrays else self._model._session.resolve(key)
        return self._model._session.resolve(self._model._name_of(key))

    def __getitem__(self, key: str | tuple[Any, ...]) -> Any:
        try:
            names = self._names(key)
        except Error as e:
            raise KeyError(str(e)) from None
        found = {name: self._arrays[name] for name in names if name in self._arrays}
        if not found:
            recorded = ", ".join(list(self._arrays)[:4]) + (", ..." if len(self._arrays) > 4 else "")
            raise KeyError(f"{', '.join(names)}: not recorded; the run recorded {recorded or 'nothing'}")
        return next(iter(found.values())) if len(names) == 1 else found

    def __contains__(self, key: object) -> bool:
        try:
            return any(name in self._arrays for name in self._names(key))
        except (Error, TypeError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def items(self) -> ItemsView[str, Array]:
        """Names and arrays in the order of the run."""
        return self._arrays.items()

    def values(self) -> ValuesView[Array]:
        """Arrays in the order of the run."""
        return self._arrays.values()

    def to_dict(self) -> dict[str, Array]:
        """A plain dict of the same arrays."""
        return dict(self._arrays)

    def __repr__(self) -> str:
        batch, pos = self.attention_mask.shape
        edited = f", {len(self.edits)} edits" if self.edits else ""
        return f"Cache({len(self)} hooks, batch {batch}, pos {pos}, {self._model.name}{edited})"

    def save(self, path: str | PathLike[str]) -> int:
        """Writes .safetensors, .npz, .npy (one hook), .json, .jsonl or .csv, as `actscope extract` does, with the tokens and the
        model's fingerprint and the run's edits; gives back the file's size in bytes. The gradients by a hook NAME are the array
        NAME_grad.

        Raises:
            Error: of kind `output` for a file that cannot be written, and for a run that began with a residual stream alone and has
                no tokens.
        """
        if self._ids is None:
            raise error("output", "this run began with a residual stream and has no tokens, which a file needs")
        edits = [(one["edit"], one.get("sha256")) for one in self.edits]
        arrays = list(self._arrays.items())
        gradient = None if self.gradient is None else json.dumps(self.gradient)
        return self._model._session.save(
            path, self._ids, self._texts, self.positions, arrays, edits, self._generation, gradient
        )

    # TransformerLens's algebra

    def _get(self, name: str) -> Array:
        try:
            return self._arrays[name]
        except KeyError:
            raise KeyError(f"{name} was not recorded, and is needed here; add it to hooks") from None

    def _until(self, layer: int | None) -> int:
        n_layer = self._model.n_layer
        if layer is None or layer == -1:
            return n_layer
        if not 0 <= layer <= n_layer:
            raise error("hook", f"layer {layer} does not exist: the parts of the stream go from 0 to {n_layer}")
        return layer

    def _stream(self, layer: int) -> tuple[Array, str]:
        """The stream that enters block `layer`, or leaves the last."""
        if layer == self._model.n_layer:
            return self._get(f"blocks.{layer - 1}.hook_resid_post"), "final_post"
        if f"blocks.{layer}.hook_resid_pre" in self._arrays or layer == 0:
            return self._get(f"blocks.{layer}.hook_resid_pre"), f"{layer}_pre"
        return self._get(f"blocks.{layer - 1}.hook_resid_post"), f"{layer}_pre"

    @overload
    def decompose_resid(
        self, layer: int | None = None, *, return_labels: Literal[False] = False, **options: Unpack[_OfDecompose]
    ) -> Stack: ...
    @overload
    def decompose_resid(
        self, layer: int | None = None, *, return_labels: Literal[True], **options: Unpack[_OfDecompose]
    ) -> tuple[Stack, list[str]]: ...
    def decompose_resid(
        self,
        layer: int | None = None,
        *,
        mode: Literal["all", "attn", "mlp"] = "all",
        mlp_input: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """The parts that add up to the stream which enters block `layer` (None or -1: to the last block's output).

        Args:
            mode: `attn` and `mlp` leave the other kind out.
            mlp_input: With block `layer`'s own attention, so that the sum is what its MLP reads.
            apply_ln: Each part as the LayerNorm there scales it: see `apply_ln_to_stack`.
            pos_slice: Which positions; an index takes the axis away.
            incl_embeds: With the token and position embeddings.
            return_labels: Also `embed`, `pos_embed`, `0_attn_out`, `0_mlp_out`, ...

        Returns:
            [part, batch, pos, n_embd]
        """
        until = self._until(layer)
        if mode not in ("all", "attn", "mlp"):
            raise error("hook", f"mode {mode!r} is none of: all, attn, mlp")
        names = ["hook_embed", "hook_pos_embed"] if incl_embeds else []
        labels = ["embed", "pos_embed"] if incl_embeds else []
        for block in range(until + (mlp_input and until < self._model.n_layer)):
            for kind in ("attn", "mlp"):
                if mode in ("all", kind) and (block < until or kind == "attn"):
                    names.append(f"blocks.{block}.hook_{kind}_out")
                    labels.append(f"{block}_{kind}_out")
        stack = self._stack([self._get(name) for name in names], pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, until, mlp_input=mlp_input, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    @overload
    def accumulated_resid(
        self, layer: int | None = None, *, return_labels: Literal[False] = False, **options: Unpack[_OfAccumulated]
    ) -> Stack: ...
    @overload
    def accumulated_resid(
        self, layer: int | None = None, *, return_labels: Literal[True], **options: Unpack[_OfAccumulated]
    ) -> tuple[Stack, list[str]]: ...
    def accumulated_resid(
        self,
        layer: int | None = None,
        *,
        incl_mid: bool = False,
        mlp_input: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
    ) -> Any:
        """The stream as it enters each block up to `layer` (None or -1: and as it leaves the last).

        With `apply_ln` at the last, each row goes through the whole final LayerNorm by itself, so that `@ W_U` gives the logit
        lens; at a block, it is scaled as the run's LayerNorm there did. `incl_mid` adds the streams between attention and MLP. Labels are `0_pre`, `0_mid`, ..., `final_post`.

        Returns:
            [part, batch, pos, n_embd]
        """
        until = self._until(layer)
        streams, labels = [], []
        for block in range(until + 1):
            stream, label = self._stream(block)
            streams.append(stream)
            labels.append(label)
            if block < self._model.n_layer and ((incl_mid and block < until) or (mlp_input and block == until)):
                streams.append(self._get(f"blocks.{block}.hook_resid_mid"))
                labels.append(f"{block}_mid")
        stack = self._stack(streams, pos_slice)
        if apply_ln:
            own = until == self._model.n_layer
            stack = self.apply_ln_to_stack(stack, until, mlp_input=mlp_input, pos_slice=pos_slice, recompute_ln=own)
        return (stack, labels) if return_labels else stack

    @overload
    def stack_head_results(
        self, layer: int | None = None, *, return_labels: Literal[False] = False, **options: Unpack[_OfHeads]
    ) -> Stack: ...
    @overload
    def stack_head_results(
        self, layer: int | None = None, *, return_labels: Literal[True], **options: Unpack[_OfHeads]
    ) -> tuple[Stack, list[str]]: ...
    def stack_head_results(
        self,
        layer: int | None = None,
        *,
        incl_remainder: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
    ) -> Any:
        """What each head before block `layer` (None or -1: every head) adds to the stream, without `b_O`.

        Taken from `hook_result` where it was recorded, else made from `hook_z`. `incl_remainder` adds what the heads leave of the
        stream. Labels are `L0H0`, ..., `remainder`.

        Returns:
            [part, batch, pos, n_embd]
        """
        until = self._until(layer)
        parts, labels = [], []
        for block in range(until):
            whole = f"blocks.{block}.attn.hook_result"
            if whole in self._arrays:
                result = self._arrays[whole]
            else:
                z, w = self._get(f"blocks.{block}.attn.hook_z"), self._model.weights[f"blocks.{block}.attn.W_O"]
                result = np.matmul(z.transpose(2, 0, 1, 3), w[:, np.newaxis]).transpose(1, 2, 0, 3)
            for head in range(self._model.n_head):
                parts.append(result[:, :, head])
                labels.append(f"L{block}H{head}")
        if incl_remainder:
            rest = self._stream(until)[0].astype(np.float64)
            for part in parts:
                rest = rest - part
            parts.append(rest.astype(np.float32))
            labels.append("remainder")
        stack = self._stack(parts, pos_slice)
        if apply_ln:
            stack = self.apply_ln_to_stack(stack, until, pos_slice=pos_slice)
        return (stack, labels) if return_labels else stack

    def apply_ln_to_stack(
        self,
        residual_stack: Stack,
        layer: int | None = None,
        *,
        mlp_input: bool = False,
        pos_slice: Any = None,
        recompute_ln: bool = False,
    ) -> Stack:
        """Each part minus its mean, divided by the scale that the run's LayerNorm had, without gain and bias.

        The LayerNorm is the one of block `layer` (with `mlp_input`: before its MLP), the final one for None or -1. `pos_slice` is
        the one that the stack was made with. With `recompute_ln` each part goes through that LayerNorm by itself: its own scale,
        gain and bias.
        """
        if not recompute_ln:
            return self._normalized(residual_stack, layer, mlp_input, pos_slice).astype(np.float32)
        until = self._until(layer)
        final = until == self._model.n_layer
        name = "ln_final" if final else f"blocks.{until}.{'ln2' if mlp_input else 'ln1'}"
        gain, bias = (self._model.weights[f"{name}.{part}"].astype(np.float64) for part in "wb")
        wide = residual_stack.astype(np.float64)
        wide -= wide.mean(axis=-1, keepdims=True)
        wide /= np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + self._model.config["layer_norm_epsilon"])
        return (wide * gain + bias).astype(np.float32)

    apply_ln = apply_ln_to_stack

    def _normalized(self, stack: Stack, layer: int | None, mlp_input: bool, pos_slice: Any) -> NDArray[np.float64]:
        scale = _at(self._scale(self._until(layer), mlp_input), pos_slice)
        if stack.shape[1:-1] != scale.shape[:-1]:
            raise error(
                "hook",
                f"the stack is {list(stack.shape)}, and the run's scale is {list(scale.shape)}; a stack is "
                "[part, batch, pos, n_embd], and pos_slice is the one that it was made with",
            )
        wide = stack.astype(np.float64)
        wide -= wide.mean(axis=-1, keepdims=True)
        return np.asarray(wide / scale)

    def _scale(self, layer: int, mlp_input: bool) -> NDArray[np.float64]:
        """The divisor of a LayerNorm, [batch, pos, 1]: recorded, or made from the stream that it reads."""
        if layer == self._model.n_layer:
            name, stream = "ln_final.hook_scale", f"blocks.{layer - 1}.hook_resid_post"
        elif mlp_input:
            name, stream = f"blocks.{layer}.ln2.hook_scale", f"blocks.{layer}.hook_resid_mid"
        else:
            name, stream = f"blocks.{layer}.ln1.hook_scale", f"blocks.{layer}.hook_resid_pre"
        if name in self._arrays:
            scale = self._arrays[name].astype(np.float64)
            # A padded slot holds 0, and nothing divided by it.
            return np.where(scale == 0.0, np.inf, scale)
        if stream not in self._arrays:
            raise KeyError(f"neither {name} nor {stream} was recorded, and one is needed here; add it to hooks")
        x = self._arrays[stream].astype(np.float64)
        return np.asarray(np.sqrt(x.var(axis=-1, keepdims=True) + self._model.config["layer_norm_epsilon"]))

    def logit_attrs(
        self,
        residual_stack: Stack,
        tokens: Any,
        incorrect_tokens: Any = None,
        *,
        pos_slice: Any = None,
        incl_bias: bool = False,
    ) -> Array:
        """What each part of the stream adds to the logit of a token, or to the difference of two tokens' logits.

        `sum((part - mean) / scale * gain * u)` with the final LayerNorm's scale in this run and its gain, and u the tokens' columns
        of the unembedding. With `incl_bias` one part more, what the biases of the LayerNorm and (of processed weights) of the
        unembedding add: then the parts of a whole stream add up to the logit, or to the difference.

        Args:
            residual_stack: [part, batch, pos, n_embd] as `decompose_resid` and the others give it, without `apply_ln`.
            tokens: A token's text or id for all, or ids [batch] or [batch, pos].
            incorrect_tokens: Tokens whose logits are subtracted.
            pos_slice: The one that the stack was made with.

        Returns:
            [part, batch, pos]
        """
        u = self._directions(tokens)
        if incorrect_tokens is not None:
            u = u - self._directions(incorrect_tokens)
        if u.ndim == 2 and residual_stack.ndim == 4:
            u = u[:, np.newaxis]
        if u.ndim == 3 and residual_stack.ndim == 3:
            u = _at(u, pos_slice)
        normalized = self._normalized(residual_stack, None, False, pos_slice)
        gain = self._model.weights["ln_final.w"].astype(np.float64)
        u, b = u[..., :-1], u[..., -1]
        attrs = (normalized * (gain * u)).sum(axis=-1)
        if incl_bias:
            of_bias = (self._model.weights["ln_final.b"].astype(np.float64) * u).sum(axis=-1) + b
            attrs = np.concatenate([attrs, np.broadcast_to(of_bias, attrs.shape[1:])[np.newaxis]])
        return np.asarray(attrs, dtype=np.float32)

    def _directions(self, tokens: Any) -> NDArray[np.float64]:
        """The unembedding's columns for tokens, and its bias behind them: [..., n_embd + 1]."""
        if isinstance(tokens, str):
            tokens = self._model.token_id(tokens)
        elif isinstance(tokens, Sequence) and any(isinstance(one, str) for one in tokens):
            tokens = [self._model.token_id(one) if isinstance(one, str) else one for one in tokens]
        ids: Ints = np.asarray(tokens, dtype=np.int64)
        if ids.size and ids.min() < 0:
            raise error("batch", f"the token id {ids.min()} does not exist")
        rows = self._model._session.unembedding(ids.ravel().tolist())
        both = np.concatenate([rows, self._model.weights["unembed.b_U"][ids.ravel()][:, np.newaxis]], axis=1)
        return both.astype(np.float64).reshape(*ids.shape, both.shape[-1])

    def _stack(self, parts: list[Array], pos_slice: Any) -> Stack:
        if self.positions is not None and pos_slice is not None:
            raise error("hook", "this run kept some positions only; leave pos_slice out, or run without pos")
        return np.stack([_at(part, pos_slice) for part in parts])


def _at(array: Any, pos_slice: Any) -> Any:
    """Some positions of [batch, pos, ...]."""
    if pos_slice is None:
        return array
    if isinstance(pos_slice, tuple):
        pos_slice = slice(*pos_slice)
    return array[:, pos_slice]
