"""Makes transformer_lens.npz: weights, decompositions and logit attributions of a fixture as TransformerLens has them.

Needs torch, transformers and transformer-lens 3 (whose HookedTransformer loads any checkpoint): `python make_transformer_lens.py`.
The fixture is run twice: on its raw weights, and for `logit_attrs` with LayerNorms folded in, since TransformerLens leaves the final
LayerNorm's gain out on raw ones.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import convert_gpt2_weights
from transformers import GPT2LMHeadModel

FIXTURE = "classic"
FOLDER = Path(__file__).parents[2] / "tests" / "fixtures" / FIXTURE
CALLS = [
    ("decompose_resid", {}),
    ("decompose_resid", {"layer": 1, "mlp_input": True, "apply_ln": True}),
    ("decompose_resid", {"mode": "attn", "apply_ln": True}),
    ("accumulated_resid", {"incl_mid": True}),
    ("accumulated_resid", {"apply_ln": True}),
    ("accumulated_resid", {"layer": 1, "apply_ln": True}),
    ("stack_head_results", {"incl_remainder": True}),
    ("stack_head_results", {"layer": 1, "apply_ln": True}),
]
WEIGHTS = ["embed.W_E", "blocks.1.attn.W_Q", "blocks.1.attn.b_K", "blocks.0.attn.W_O", "blocks.1.mlp.W_in", "unembed.W_U"]


def load(fold: bool) -> HookedTransformer:
    hf = GPT2LMHeadModel.from_pretrained(FOLDER, attn_implementation="eager")
    c = hf.config
    cfg = HookedTransformerConfig(
        n_layers=c.n_layer, d_model=c.n_embd, n_ctx=c.n_positions, d_head=c.n_embd // c.n_head, n_heads=c.n_head,
        d_mlp=c.n_inner or 4 * c.n_embd, d_vocab=c.vocab_size, act_fn="gelu_new", eps=c.layer_norm_epsilon,
        normalization_type="LN", default_prepend_bos=False,
    )
    model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert_gpt2_weights(hf, cfg), fold_ln=fold, center_writing_weights=False, center_unembed=False, fold_value_biases=False
    )
    return model.eval()


def main() -> None:
    with safe_open(FOLDER / "golden.safetensors", "np") as golden:
        ids, mask = golden.get_tensor("input_ids"), golden.get_tensor("attention_mask")
    # Its longest text: TransformerLens has no ragged batches of ids.
    row = ids[int(mask.sum(axis=1).argmax())][None]
    raw, folded = load(False), load(True)
    arrays: dict[str, np.ndarray] = {}
    labels: dict[str, list[str]] = {}
    with torch.no_grad():
        _, cache = raw.run_with_cache(torch.tensor(row))
        for method, options in CALLS:
            key = json.dumps([method, options])
            stack, labels[key] = getattr(cache, method)(**{"layer": -1, **options}, return_labels=True)
            arrays[f"call:{key}"] = stack.numpy()
        for name in WEIGHTS:
            arrays[f"weight:{name}"] = raw.state_dict()[name].numpy()
        _, cache = folded.run_with_cache(torch.tensor(row))
        stack = cache.decompose_resid(-1)
        for options in ({"tokens": 3}, {"tokens": 3, "incorrect_tokens": 5}):
            attrs = cache.logit_attrs(stack, **options)
            arrays[f"attrs:{json.dumps(options)}"] = attrs.numpy()
    about = {"fixture": FIXTURE, "ids": row.tolist(), "labels": labels}
    np.savez_compressed(Path(__file__).parent / "transformer_lens.npz", about=json.dumps(about), **arrays)


if __name__ == "__main__":
    main()
