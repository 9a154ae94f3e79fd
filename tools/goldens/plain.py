"""GPT-2 in plain numpy, float64, from the files alone: neither torch nor transformers nor the safetensors package.

The independent third opinion. It reads headers and config.json by itself, so that a default, a dtype or a name that
the other two share by way of transformers' loader is checked as well.
"""

import json
import math
import pathlib

import numpy as np

from compare import hook_names

erf = np.vectorize(math.erf, otypes=[np.float64])
sigmoid = lambda x: np.where(x < 0, np.exp(np.minimum(x, 0)), 1.0) / (1.0 + np.exp(-np.abs(x)))
gelu_tanh = lambda x, c=math.sqrt(2 / math.pi): 0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x**3)))
ACTIVATION = {
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_fast": lambda x: gelu_tanh(x, 0.7978845608),  # the constant as transformers has it, cut to ten digits
    "gelu": lambda x: 0.5 * x * (1 + erf(x / math.sqrt(2))),
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x * sigmoid(x),
    "swish": lambda x: x * sigmoid(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
}
BF16 = lambda raw: (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
READ = {"F32": lambda raw: np.frombuffer(raw, "<f4"), "F16": lambda raw: np.frombuffer(raw, "<f2"), "BF16": BF16}


def load(folder):
    """(config with defaults, {name without `transformer.`: float64 array})."""
    folder = pathlib.Path(folder)
    config = {"n_inner": None, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
              "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
    config |= json.loads((folder / "config.json").read_text())
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    weights = {}
    for file in files:
        data = (folder / file).read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:start])
        header.pop("__metadata__", None)
        for name, at in header.items():
            if not name.endswith((".attn.bias", ".attn.masked_bias")):
                begin, end = (start + offset for offset in at["data_offsets"])
                values = READ[at["dtype"]](data[begin:end]).astype(np.float64).reshape(at["shape"])
                weights[name.removeprefix("transformer.")] = values
    return config, weights


def activations(config, weights, ids):
    """{hook: array} of one row, as expected.activations gives it."""
    D, H, P = config["n_embd"], config["n_head"], len(ids)
    d, seen = D // H, {}

    def linear(x, name):
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def layer_norm(x, name, at):
        centred = x - x.mean(-1, keepdims=True)
        scale = np.sqrt((centred**2).mean(-1, keepdims=True) + config["layer_norm_epsilon"])
        seen[f"{at}.hook_scale"], seen[f"{at}.hook_normalized"] = scale, centred / scale
        seen[f"{at}.hook_out"] = centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]
        return seen[f"{at}.hook_out"]

    def attention(x, i):
        at, name = f"blocks.{i}.attn", f"h.{i}.attn"
        q, k, v = (part.reshape(P, H, d) for part in np.split(linear(x, f"{name}.c_attn"), 3, axis=-1))
        scale = 1 / math.sqrt(d) if config["scale_attn_weights"] else 1.0
        if config["scale_attn_by_inverse_layer_idx"]:
            scale /= i + 1
        scores = np.einsum("phd,khd->hpk", q, k) * scale
        scores[:, np.arange(P)[:, None] < np.arange(P)] = -np.inf
        pattern = np.exp(scores - scores.max(-1, keepdims=True))
        pattern /= pattern.sum(-1, keepdims=True)
        z = np.einsum("hpk,khd->phd", pattern, v)
        result = np.einsum("phd,hde->phe", z, weights[f"{name}.c_proj.weight"].reshape(H, d, D))
        seen.update({f"{at}.hook_q": q, f"{at}.hook_k": k, f"{at}.hook_v": v, f"{at}.hook_attn_scores": scores,
                     f"{at}.hook_pattern": pattern, f"{at}.hook_z": z, f"{at}.hook_result": result})
        return result.sum(1) + weights[f"{name}.c_proj.bias"]

    def mlp(x, i):
        seen[f"blocks.{i}.mlp.hook_pre"] = pre = linear(x, f"h.{i}.mlp.c_fc")
        seen[f"blocks.{i}.mlp.hook_post"] = post = ACTIVATION[config["activation_function"]](pre)
        return linear(post, f"h.{i}.mlp.c_proj")

    seen["hook_embed"], seen["hook_pos_embed"] = weights["wte.weight"][ids], weights["wpe.weight"][:P]
    x = seen["hook_embed"] + seen["hook_pos_embed"]
    for i in range(config["n_layer"]):
        at = f"blocks.{i}"
        seen[f"{at}.hook_resid_pre"] = x
        seen[f"{at}.hook_attn_out"] = attention(layer_norm(x, f"h.{i}.ln_1", f"{at}.ln1"), i)
        seen[f"{at}.hook_resid_mid"] = x = x + seen[f"{at}.hook_attn_out"]
        seen[f"{at}.hook_mlp_out"] = mlp(layer_norm(x, f"h.{i}.ln_2", f"{at}.ln2"), i)
        seen[f"{at}.hook_resid_post"] = x = x + seen[f"{at}.hook_mlp_out"]
    # As transformers 5: a head in the file is used even if the config calls it tied; only without one is wte the head.
    head = weights["lm_head.weight"] if "lm_head.weight" in weights else weights["wte.weight"]
    seen["unembed.hook_out"] = layer_norm(x, "ln_f", "ln_final") @ head.T
    return {name: seen[name][None] for name in hook_names(config["n_layer"])}
