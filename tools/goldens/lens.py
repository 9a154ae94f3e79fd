"""The same values from TransformerLens 4's TransformerBridge, in float64: where the hook names come from.

The bridge runs its own attention and LayerNorm over the raw weights. Its one known fault that these checkpoints meet:
it ignores `scale_attn_weights: false` and always divides by sqrt(head_dim). There the bridge is given queries that
are sqrt(head_dim) larger, so that its scores, and with them every later hook, are those of the checkpoint; only
hook_q is divided back. make.py checks that the fault is still there, so that this cannot outlive it.
"""

import math

import numpy as np
import torch
from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

import compare
import expected


def bridge(folder, mend=True):
    """(bridge, factor its queries were made larger by)."""
    model = expected.load(folder, torch.float64)
    larger = 1.0
    if mend and not model.config.scale_attn_weights:
        larger = math.sqrt(model.config.n_embd // model.config.n_head)
        with torch.no_grad():
            for block in model.transformer.h:
                block.attn.c_attn.weight[:, : model.config.n_embd] *= larger
                block.attn.c_attn.bias[: model.config.n_embd] *= larger
    bridge = build_bridge_from_module(model, "GPT2LMHeadModel", hf_config=model.config)
    bridge.set_use_attn_result(True)
    return bridge, larger


@torch.no_grad()
def activations(bridge, larger, ids):
    """{hook: array} of one row, as expected.activations gives it."""
    _, cache = bridge.run_with_cache(torch.tensor([ids]))
    values = {}
    for name in compare.hook_names(bridge.cfg.n_layers):
        value = cache[name].numpy().copy()
        if value.dtype != np.float64:
            raise compare.Refused(f"TransformerLens gave {name} as {value.dtype}")
        if name.endswith("hook_q"):
            value /= larger
        if name.endswith("hook_attn_scores"):
            value[value < -1e300] = -np.inf  # it masks with the lowest finite number
        values[name] = value
    return values
