"""The expected values: transformers' GPT2LMHeadModel on raw weights, read out by forward hooks on its modules.

In float64 with eager attention it is what the golden files hold; in float32 it is PyTorch's own error. What no module
exposes (LayerNorm's scale and normalized, attention scores, result) is computed from what a module did expose.
"""

import json
import pathlib

import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import logging

import compare

logging.disable_progress_bar()
logging.set_verbosity_error()  # loading_info below says what the log would, and is looked at
torch.set_num_threads(1)


def load(folder, dtype):
    """The checkpoint in `folder`, every parameter taken from its files."""
    config = GPT2Config.from_pretrained(folder, attn_implementation="eager")
    written = json.loads((pathlib.Path(folder) / "config.json").read_text())
    if "n_positions" not in written and "n_ctx" in written:
        config.n_positions = written["n_ctx"]  # transformers does not read n_ctx and would take 1024
    if dtype == torch.float64:
        config.reorder_and_upcast_attn = False  # no effect on the maths, but that path casts to float32
    model, info = GPT2LMHeadModel.from_pretrained(folder, config=config, dtype=dtype, output_loading_info=True)
    strange = [key for key in info["unexpected_keys"] if not key.endswith((".attn.bias", ".attn.masked_bias"))]
    if info["missing_keys"] or info["mismatched_keys"] or strange:
        raise compare.Refused(f"transformers did not load {folder} as it is: {info}")
    return model.eval()


@torch.no_grad()
def activations(model, ids):
    """{hook: array} of one row of token ids, batch axis first, in the model's dtype."""
    seen, handles = {}, []

    def after(module, read):
        handles.append(module.register_forward_hook(lambda mod, args, output: read(mod, args[0], output)))

    def output_of(module, name):
        after(module, lambda mod, x, out: seen.update({name: out}))

    def norm(module, prefix):
        def read(mod, x, out):
            scale = (x.var(-1, keepdim=True, unbiased=False) + mod.eps).sqrt()
            seen[f"{prefix}.hook_scale"] = scale
            seen[f"{prefix}.hook_normalized"] = (x - x.mean(-1, keepdim=True)) / scale
            seen[f"{prefix}.hook_out"] = out
        after(module, read)

    def block(module, at):
        heads = lambda x: x.unflatten(-1, (module.attn.num_heads, module.attn.head_dim))

        def qkv(mod, x, out):
            q, k, v = (heads(part) for part in out.split(module.attn.embed_dim, dim=-1))
            scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * module.attn.scaling
            future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            seen.update({f"{at}.attn.hook_q": q, f"{at}.attn.hook_k": k, f"{at}.attn.hook_v": v,
                         f"{at}.attn.hook_attn_scores": scores.masked_fill(future, -torch.inf)})

        def attn_proj(mod, x, out):
            z = heads(x)
            rows = mod.weight.unflatten(0, z.shape[-2:])  # [H, d, D]
            seen.update({f"{at}.attn.hook_z": z, f"{at}.attn.hook_result": torch.einsum("bphd,hde->bphe", z, rows)})

        def attn(mod, x, out):
            seen.update({f"{at}.hook_attn_out": out[0], f"{at}.attn.hook_pattern": out[1]})

        norm(module.ln_1, f"{at}.ln1")
        norm(module.ln_2, f"{at}.ln2")
        after(module.attn.c_attn, qkv)
        after(module.attn.c_proj, attn_proj)
        after(module.attn, attn)
        after(module.ln_2, lambda mod, x, out: seen.update({f"{at}.hook_resid_mid": x}))
        output_of(module.mlp.c_fc, f"{at}.mlp.hook_pre")
        after(module.mlp.c_proj, lambda mod, x, out: seen.update({f"{at}.mlp.hook_post": x}))
        output_of(module.mlp, f"{at}.hook_mlp_out")
        after(module, lambda mod, x, out: seen.update({f"{at}.hook_resid_pre": x, f"{at}.hook_resid_post": out}))

    output_of(model.transformer.wte, "hook_embed")
    output_of(model.transformer.wpe, "hook_pos_embed")
    for i, module in enumerate(model.transformer.h):
        block(module, f"blocks.{i}")
    norm(model.transformer.ln_f, "ln_final")
    output_of(model.lm_head, "unembed.hook_out")
    try:
        model(torch.tensor([ids]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    wrong = [name for name, value in seen.items() if value.dtype != model.dtype]
    if wrong:
        raise compare.Refused(f"not in {model.dtype}: {wrong}")
    return {name: seen[name].numpy().copy() for name in compare.hook_names(model.config.n_layer)}
