"""The ten tasks of python_table.py with TransformerLens. Each gives what the others give. `stop_at_layer` ends a run before a block, so never before the
unembedding alone."""
import logging
import warnings

import torch
from transformer_lens import patching as patches
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2LMHeadModel

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_grad_enabled(False)


def load(folder):
    hf = GPT2LMHeadModel.from_pretrained(folder / "gpt2-random", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")


def last_layer(m, t):
    name = "blocks.11.hook_resid_post"
    return m.run_with_cache(torch.tensor([t.ids]), names_filter=name)[1][name][0]


def all_streams(m, t):
    _, cache = m.run_with_cache(torch.tensor([t.ids]), names_filter=lambda name: name.endswith("hook_resid_post"))
    return [cache["resid_post", layer] for layer in range(12)]


def pattern(m, t):
    name = "blocks.5.attn.hook_pattern"
    return m.run_with_cache(torch.tensor([t.ids]), names_filter=name, stop_at_layer=6)[1][name][0]


def neurons_and_heads(m, t):
    wanted = lambda name: name.endswith(("mlp.hook_post", "attn.hook_z"))
    _, cache = m.run_with_cache(torch.tensor([t.ids]), names_filter=wanted)
    return [cache["post", 11][0], cache["z", 11][0]]


def many_texts(m, t):
    longest = max(map(len, t.texts))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in t.texts])
    name = "blocks.11.hook_resid_post"
    _, cache = m.run_with_cache(padded, names_filter=name)
    return cache[name][range(len(t.texts)), [len(ids) - 1 for ids in t.texts]]


def ablate_head(m, t):
    def zero(z, hook):
        z[:, :, 3] = 0
        return z

    return m.run_with_hooks(torch.tensor([t.ids]), fwd_hooks=[("blocks.5.attn.hook_z", zero)])[0, -1]


def steer(m, t):
    vector = torch.from_numpy(t.vector)
    hooks = [("blocks.6.hook_resid_pre", lambda x, hook: x + vector)]
    return m.run_with_hooks(torch.tensor([t.ids]), fwd_hooks=hooks)[0, -1]


def patching(m, t):
    corrupt = torch.tensor([t.ids])
    _, clean = m.run_with_cache(torch.tensor([t.clean]), names_filter=lambda name: name.endswith("resid_pre"))
    metric = lambda logits: logits[0, -1, t.answer] - logits[0, -1, t.wrong]
    return patches.get_act_patch_resid_pre(m, corrupt, clean, metric)


def generate(m, t):
    name = "blocks.6.hook_resid_post"
    options = {"do_sample": False, "stop_at_eos": False, "return_type": "tokens", "verbose": False}
    _, cache = m.generate(torch.tensor([t.ids]), t.new, return_cache=True, names_filter=name, **options)
    return cache[name].reshape(-1, 768)[:-1]


def lens(m, t):
    wanted = lambda name: name.endswith(("0.hook_resid_pre", "hook_resid_post"))
    _, cache = m.run_with_cache(torch.tensor([t.ids]), names_filter=wanted)
    streams = [cache["resid_pre", 0], *(cache["resid_post", layer] for layer in range(12))]
    return torch.stack([m.unembed(m.ln_final(x))[0].softmax(-1).max(-1).values for x in streams])
