"""What TransformerLens's processed weights give: tests/fixtures/processed.safetensors.

The values come from plain numpy in float64: weights in TransformerLens's shapes, head by head, processed in its order,
then `plain.py`. They are held against TransformerLens itself, whose processing is float32 (4.3's bridge in its compatibility
mode; and HookedTransformer, where a TransformerLens 3 is installed in a second environment, see README.md).
"""

import argparse
import json
import pathlib

import numpy as np

import compare
import plain

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
ROWS = {"classic": [5, 17, 5, 99, 0], "untied_erf": [3, 1, 4]}
STEPS = ("fold-ln", "center-writing", "center-unembed", "fold-value")
# TransformerLens processes in float32 and runs in float32.
TOLERANCE = 2e-5


def process(config, weights, steps=STEPS):
    """(weights, b_U) after the steps."""
    w = {name: value.copy() for name, value in weights.items()}
    D, H = config["n_embd"], config["n_head"]
    d = D // H
    W_U = w.get("lm_head.weight", w["wte.weight"]).T.copy()  # [D, V]
    b_U = np.zeros(W_U.shape[1])
    for i in range(config["n_layer"]):
        at = f"h.{i}"
        qkv, b_qkv = w[f"{at}.attn.c_attn.weight"], w[f"{at}.attn.c_attn.bias"]
        heads = [qkv[:, part * D :][:, h * d : (h + 1) * d] for part in range(3) for h in range(H)]  # views, [D, d]
        biases = [b_qkv[part * D :][h * d : (h + 1) * d] for part in range(3) for h in range(H)]
        if "fold-ln" in steps:
            for norm, reads in (("ln_1", list(zip(heads, biases))),
                                ("ln_2", [(w[f"{at}.mlp.c_fc.weight"], w[f"{at}.mlp.c_fc.bias"])])):
                for W, b in reads:
                    b += w[f"{at}.{norm}.bias"] @ W
                    W *= w[f"{at}.{norm}.weight"][:, None]
                    W -= W.mean(0)
                w[f"{at}.{norm}.weight"][:], w[f"{at}.{norm}.bias"][:] = 1, 0
        O, b_O = w[f"{at}.attn.c_proj.weight"], w[f"{at}.attn.c_proj.bias"]
        if "center-writing" in steps:
            for name in ("attn.c_proj", "mlp.c_proj"):
                w[f"{at}.{name}.weight"] -= w[f"{at}.{name}.weight"].mean(1, keepdims=True)
                w[f"{at}.{name}.bias"] -= w[f"{at}.{name}.bias"].mean()
        if "fold-value" in steps:
            for h in range(H):
                b_O += biases[2 * H + h] @ O[h * d : (h + 1) * d]
                biases[2 * H + h][:] = 0
            if "center-writing" in steps:
                b_O -= b_O.mean()
    if "fold-ln" in steps:
        b_U += w["ln_f.bias"] @ W_U
        W_U *= w["ln_f.weight"][:, None]
        W_U -= W_U.mean(0)
        w["ln_f.weight"][:], w["ln_f.bias"][:] = 1, 0
    if "center-writing" in steps:
        for name in ("wte.weight", "wpe.weight"):
            w[name] -= w[name].mean(1, keepdims=True)
    if "center-unembed" in steps:
        W_U -= W_U.mean(1, keepdims=True)
        b_U -= b_U.mean()
    w["lm_head.weight"] = W_U.T
    return w, b_U


def activations(folder, ids, steps=STEPS):
    config, weights = plain.load(folder)
    weights, b_U = process(config, weights, steps)
    values = plain.activations(config, weights, ids)
    values["unembed.hook_out"] = values["unembed.hook_out"] + b_U
    return values


def by_bridge(folder, ids):
    import torch
    import lens

    bridge, larger = lens.bridge(folder)
    assert larger == 1.0
    bridge = bridge.to(torch.float32)
    bridge.enable_compatibility_mode(disable_warnings=True)
    _, cache = bridge.run_with_cache(torch.tensor([ids]))
    return {name: cache[name].detach().numpy().astype(np.float64) for name in cache.keys()}


def by_hooked_transformer(folder, ids):
    import torch
    from transformer_lens import HookedTransformer, HookedTransformerConfig
    from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
    from transformers import GPT2LMHeadModel

    hf = GPT2LMHeadModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head, n_heads=c.n_head,
        d_vocab=c.vocab_size, d_mlp=c.n_inner or 4 * c.n_embd, eps=c.layer_norm_epsilon, act_fn=c.activation_function,
        normalization_type="LN", original_architecture="GPT2LMHeadModel", use_attn_result=True, dtype=torch.float32)
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(convert_gpt2_weights(hf, cfg))
    logits, cache = model.run_with_cache(torch.tensor([ids]))
    values = {name: cache[name].detach().numpy().astype(np.float64) for name in cache.keys()}
    return values | {"unembed.hook_out": logits.detach().numpy().astype(np.float64)}


def check(name, lens):
    """The worst error of any hook that both have."""
    ids = ROWS[name]
    true, got = activations(FIXTURES / name, ids), lens(FIXTURES / name, ids)
    errors = {}
    for hook, want in true.items():
        # Under processed weights TransformerLens calls LayerNorm's output hook_normalized; masked scores are a large number.
        if hook in got:
            value = np.where(np.isneginf(want), -np.inf, got[hook]) if "scores" in hook else got[hook]
            errors[hook] = compare.worst_token_error(value.reshape(want.shape), want, hook)
    worst = max(errors, key=errors.get)
    print(f"{name}: {len(errors)} of {len(true)} hooks, worst {errors[worst]:.1e} at {worst}")
    if errors[worst] > TOLERANCE:
        raise compare.Refused(f"{name}: {worst} is off by {errors[worst]:.1e}")


def write():
    from make import save

    tensors = {f"{name}/{hook}": np.ascontiguousarray(value)
               for name, ids in ROWS.items() for hook, value in activations(FIXTURES / name, ids).items()}
    save(tensors, FIXTURES / "processed.safetensors", {"rows": json.dumps(ROWS), "steps": ",".join(STEPS)})


if __name__ == "__main__":
    args = argparse.ArgumentParser()
    args.add_argument("--check", choices=["bridge", "hooked"], help="only compare with this form of TransformerLens")
    which = args.parse_args().check
    try:
        for fixture in ROWS:
            check(fixture, by_hooked_transformer if which == "hooked" else by_bridge)
        if which is None:
            write()
    except compare.Refused as refusal:
        raise SystemExit(f"refused: {refusal}")
