"""The tiny checkpoints: between them every row of "What a GPT-2 checkpoint may look like", each as random as can be.

A spec says how config.json is worded, how the weights are drawn and how the files are laid out. Weights come from one
numpy generator a spec, tensor after tensor in a fixed order, so adding a spec changes no other.
"""

import dataclasses
import json
import zlib
from typing import Callable

import numpy as np
import torch
from safetensors.torch import save_file

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclasses.dataclass
class Spec:
    name: str
    config: dict  # config.json, word for word, less model_type and architectures
    lengths: tuple  # tokens in each row
    dtype: str = "F32"
    norm_dtype: str | None = None  # of the LayerNorms, where it differs
    prefix: str = "transformer."
    head: str | None = None  # lm_head.weight in the file: None, "copy" of wte, or "own"
    buffers: str | None = None  # attn.bias and attn.masked_bias in the file: None, or the dtype of the former
    shards: int = 1
    std: float = 0.2  # of the matrices
    shape_values: Callable | None = None  # last word on the weights, before they are rounded to their dtype


def draw(spec):
    """{name without prefix: float64 array}, lively everywhere: no zero, no one, no bias that could be forgotten."""
    rng = np.random.default_rng(zlib.crc32(spec.name.encode()))
    c = spec.config
    D, V, P = c["n_embd"], c["vocab_size"], c.get("n_positions", c.get("n_ctx"))
    M = c.get("n_inner") or 4 * D
    # Small embeddings, as GPT-2's are: a wrong epsilon shows in the first LayerNorm.
    weights = {"wte.weight": rng.normal(0, 0.1, (V, D)), "wpe.weight": rng.normal(0, 0.04, (P, D))}

    def norm(name):
        weights[f"{name}.weight"] = rng.uniform(0.4, 1.6, D) * rng.choice([-1, 1], D, p=[0.1, 0.9])
        weights[f"{name}.bias"] = rng.normal(0, 0.3, D)

    def matrix(name, rows, columns):
        weights[f"{name}.weight"] = rng.normal(0, spec.std, (rows, columns))
        weights[f"{name}.bias"] = rng.normal(0, 0.3, columns)

    for i in range(c["n_layer"]):
        norm(f"h.{i}.ln_1")
        matrix(f"h.{i}.attn.c_attn", D, 3 * D)
        matrix(f"h.{i}.attn.c_proj", D, D)
        norm(f"h.{i}.ln_2")
        matrix(f"h.{i}.mlp.c_fc", D, M)
        matrix(f"h.{i}.mlp.c_proj", M, D)
    norm("ln_f")
    if spec.head == "own":
        weights["lm_head.weight"] = rng.normal(0, 0.5, (V, D))
    if spec.shape_values:
        spec.shape_values(weights)
    return weights, [rng.integers(0, V, n).tolist() for n in spec.lengths]


def write(spec, folder):
    """Writes config.json and the weights into `folder`; gives the rows of token ids."""
    weights, rows = draw(spec)
    tensors = {}
    for name, value in weights.items():
        norm = ".ln_" in f".{name}"
        dtype = DTYPES[spec.norm_dtype if norm and spec.norm_dtype else spec.dtype]
        prefix = "" if name.startswith("lm_head") else spec.prefix
        tensors[prefix + name] = torch.from_numpy(value).to(dtype)
    if spec.head == "copy":
        tensors["lm_head.weight"] = tensors[f"{spec.prefix}wte.weight"].clone()
    if spec.buffers:
        n = weights["wpe.weight"].shape[0]
        kind = {"F32": torch.float32, "BOOL": torch.bool, "U8": torch.uint8}[spec.buffers]
        for i in range(spec.config["n_layer"]):
            tensors[f"{spec.prefix}h.{i}.attn.bias"] = torch.ones(n, n).tril().view(1, 1, n, n).to(kind)
            tensors[f"{spec.prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **spec.config}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    if spec.shards == 1:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return rows
    names, where = sorted(tensors), {}
    for i in range(spec.shards):
        file = f"model-{i + 1:05}-of-{spec.shards:05}.safetensors"
        part = names[i :: spec.shards]  # neighbours apart, so that no block lies in one file
        save_file({name: tensors[name] for name in part}, folder / file, {"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    return rows


def no_layer_norm(weights):
    """As gpt2_noLN: epsilon 1e12 makes every scale 1e6, which the gains undo; only the centring is left."""
    for name in weights:
        if ".ln_" in f".{name}" and name.endswith(".weight"):
            weights[name] *= 1e6


def large_values(weights):
    """As gpt2: the first MLP lifts a few dimensions of the stream into the thousands, where they stay."""
    lifted = [3, 8]
    weights["h.0.mlp.c_proj.bias"][lifted] = [2900.0, -2300.0]
    weights["h.0.mlp.c_proj.weight"][:, lifted] *= 300
    for name in weights:  # later LayerNorms turn those dimensions down and the others up
        if ".ln_" in f".{name}" and name.endswith(".weight") and not name.startswith("h.0."):
            weights[name] *= 60
            weights[name][lifted] *= 0.002


# The sizes as config.json gives them, without any field that has a default.
sizes = lambda embd, head, layer, vocab, **positions: {
    "vocab_size": vocab, **positions, "n_embd": embd, "n_layer": layer, "n_head": head}

SPECS = [
    Spec("classic", lengths=(1, 5, 9), head="copy", buffers="F32", config=dict(  # as the file of gpt2 itself
        activation_function="gelu_new", attn_pdrop=0.1, bos_token_id=100, embd_pdrop=0.1, eos_token_id=100,
        initializer_range=0.02, layer_norm_epsilon=1e-5, n_ctx=16, n_embd=32, n_head=4, n_inner=None, n_layer=3,
        n_positions=16, resid_pdrop=0.1, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False,
        reorder_and_upcast_attn=False, tie_word_embeddings=True, use_cache=True, vocab_size=101)),
    Spec("untied_erf", lengths=(8, 3), prefix="", head="own", config=sizes(24, 3, 2, 53, n_positions=12) | dict(
        tie_word_embeddings=False, activation_function="gelu", n_inner=70, layer_norm_epsilon=1e-3)),
    Spec("odd_bf16_sharded", lengths=(2, 11, 5), dtype="BF16", shards=2, config=sizes(
        33, 3, 1, 3, n_positions=11) | dict(activation_function="quick_gelu")),
    Spec("inverse_f16", lengths=(6, 4), dtype="F16", config=sizes(24, 2, 4, 37, n_ctx=10) | dict(
        activation_function="relu", scale_attn_by_inverse_layer_idx=True)),
    Spec("unscaled_silu", lengths=(7, 10), std=0.12, config=sizes(36, 1, 2, 29, n_positions=32) | dict(
        activation_function="silu", scale_attn_weights=False, reorder_and_upcast_attn=True)),
    Spec("no_ln", lengths=(9, 6), shape_values=no_layer_norm, config=sizes(28, 2, 2, 41, n_positions=20) | dict(
        activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e12)),
    Spec("large_values", lengths=(70,), shape_values=large_values, config=sizes(12, 2, 2, 31, n_positions=80) | dict(
        activation_function="gelu_fast")),
    # F16 matrices, F32 LayerNorms, and a head that says "tied" yet differs: transformers 5 then keeps the file's.
    Spec("mixed_dtypes", lengths=(5, 1), dtype="F16", norm_dtype="F32", head="own", buffers="BOOL", shards=3,
         config=sizes(20, 5, 2, 23, n_positions=8) | dict(activation_function="swish", tie_word_embeddings=True)),
    # Sizes only: everything else by default. Rows on both sides of 64 and 128.
    Spec("head_64", lengths=(130,), dtype="F16", config=sizes(64, 1, 1, 5, n_positions=130) | dict(n_inner=64)),
]
