"""gradients.py FOLDER: gradients on gpt2-small's shape at 16 and 64 tokens, ours (the Python module) beside torch and TransformerLens 4.3 in
turn in one process. FOLDER is make_model.py's; the interpreter has actscope, torch, transformers and transformer-lens.

First the gradient of a logit difference: ours by every hook but hook_result and the logits, with and without values, beside our own run
that records nothing and that with the same hooks; torch's by the token embeddings, no gradients of weights. Then node attribution patching: z by layer, position and head, and
mlp_out by layer and position. Figures are medians of wall time; what both find is compared first."""
import os
import statistics
import sys
import time
import warnings
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", TQDM_DISABLE="1", ACTSCOPE_TUNING="off")

import actscope
import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoTokenizer, GPT2LMHeadModel

ANSWER, WRONG, ROUNDS = 262, 287, 7


def texts(n):
    corrupt = [(i * 7919 + 13) % 50257 for i in range(n)]
    clean = corrupt.copy()
    clean[4] = 1234
    return clean, corrupt


def medians(*runs):
    """The median wall time of each, asked in turn."""
    for run in runs:
        run()
    seconds = [[] for _ in runs]
    for _ in range(ROUNDS):
        for run, list_of in zip(runs, seconds):
            begin = time.perf_counter()
            run()
            list_of.append(time.perf_counter() - begin)
    return [statistics.median(list_of) for list_of in seconds]


def same(what, ours, theirs):
    off = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not off < 1e-4:
        sys.exit(f"{what}: they find other numbers, off by {off:.1e}")


def gradients(model, hf, n):
    ids = texts(n)[1]
    hooks = [hook for hook in model.hooks if not hook.endswith("hook_result") and hook != "unembed.hook_out"]
    table = hf.lm_head.weight

    def by_torch():
        embed = hf.transformer.wte(torch.tensor([ids])).detach().requires_grad_()
        last = hf.transformer(inputs_embeds=embed).last_hidden_state[0, -1]
        (last @ table[ANSWER] - last @ table[WRONG]).backward()
        return embed.grad[0].numpy()

    def ours(values):
        return model.grad([ids], hooks, answer=ANSWER, wrong=WRONG, values=values)

    same("gradients", ours(False).gradients["embed"][0], by_torch())
    plain, values, only, grad, theirs = medians(
        lambda: model.run([ids], ["ln_final.hook_out"]), lambda: model.run([ids], hooks), lambda: ours(False), lambda: ours(True), by_torch)
    print(f"T={n}: a run {1e3 * plain:.1f} ms, with these hooks {1e3 * values:.1f} ms; gradients {1e3 * only:.1f} ms (x{only / plain:.2f} of a run), "
          f"values included {1e3 * grad:.1f} ms (x{grad / plain:.2f} of a run, x{grad / values:.2f} of one with these hooks); "
          f"torch {1e3 * theirs:.1f} ms (x{only / theirs:.2f}, x{grad / theirs:.2f})")


def nodes(model, lens, n):
    clean, corrupt = texts(n)
    z, mlp = ([f"blocks.{layer}.{name}" for layer in range(12)] for name in ("attn.hook_z", "hook_mlp_out"))
    _, all_values = lens.run_with_cache(torch.tensor([clean]))
    # Its cache has values under other names; find those of ours.
    own = {key for name in z + mlp for key, value in all_values.cache_dict.items() if value is all_values[name]}

    def by_lens():
        with torch.no_grad():
            _, cache = lens.run_with_cache(torch.tensor([clean]), names_filter=lambda name: name in own)
        seen = {}

        def keep(name):
            def hook(x, hook):
                seen[name] = x
                x.retain_grad()
                return x
            return hook

        logits = lens.run_with_hooks(torch.tensor([corrupt]), fwd_hooks=[(name, keep(name)) for name in z + mlp])
        metric = logits[0, -1, ANSWER] - logits[0, -1, WRONG]
        metric.backward()
        change = {name: ((cache[name] - x.detach()) * x.grad) for name, x in seen.items()}
        heads = torch.stack([change[name].reshape(n, 12, -1).sum(-1) for name in z])
        return metric.item() + heads.numpy()

    def ours():
        by = {"z": "layer,pos,head", "mlp_out": "layer,pos"}
        return model.patch_fast([clean], [corrupt], ANSWER, WRONG, by=by)["z"].values

    same("attribution patching", ours(), by_lens())
    mine, theirs = medians(ours, by_lens)
    print(f"T={n}: node attribution patching {1e3 * mine:.0f} ms; TransformerLens {1e3 * theirs:.0f} ms (x{mine / theirs:.2f})")


def main(folder):
    warnings.filterwarnings("ignore")
    path = folder / "gpt2-random"
    model = actscope.load(str(path), device="cpu")
    print(f"actscope {actscope.__version__}, {model.device}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    hf = GPT2LMHeadModel.from_pretrained(path, attn_implementation="eager").eval()
    hf.requires_grad_(False)
    for n in (16, 64):
        gradients(model, hf, n)
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    lens = TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")
    hf.requires_grad_(True)
    for n in (16, 64):
        nodes(model, lens, n)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
