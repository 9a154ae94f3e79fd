"""What gradients must be: PyTorch's autograd through transformers' GPT2LMHeadModel in float64 on raw weights.

    python tools/goldens/gradients.py      writes tests/fixtures/*/gradients.safetensors and tests/fixtures/gradients.json (10 s)

`gradients.safetensors` has the gradient of a logit difference at each text's last token by every hook, under the hook's name,
padded as the golden is, and in its metadata the tokens and PyTorch's own float32 error. `gradients.json` has other metrics, and
runs with edits, for some hooks. What a query cannot see has no gradient: the upper triangle of scores and patterns is 0.
"""

import json

import numpy as np
import torch
from safetensors.numpy import save

import compare
import edits
import expected
from checkpoints import SPECS

NAMES = ["untied_erf", "odd_bf16_sharded", "inverse_f16", "unscaled_silu", "no_ln", "mixed_dtypes"]

HOOKS = {"embed": "hook_embed", "pos_embed": "hook_pos_embed", "logits": "unembed.hook_out", "scores": "attn.hook_attn_scores",
         "pattern": "attn.hook_pattern", "q": "attn.hook_q", "k": "attn.hook_k", "v": "attn.hook_v", "z": "attn.hook_z",
         "result": "attn.hook_result", "attn_out": "hook_attn_out", "mlp_pre": "mlp.hook_pre", "mlp_post": "mlp.hook_post",
         "mlp_out": "hook_mlp_out", "resid_pre": "hook_resid_pre", "resid_mid": "hook_resid_mid",
         "resid_post": "hook_resid_post"}
for norm in ("ln1", "ln2", "ln_final"):
    HOOKS |= {f"{norm}_scale": f"{norm}.hook_scale", f"{norm}_normalized": f"{norm}.hook_normalized", norm: f"{norm}.hook_out"}


def hook(kind, layer):
    return HOOKS[kind] if layer is None else f"blocks.{layer}.{HOOKS[kind]}"


class Keeper(edits.Visitor):
    """Keeps every value as it flows on, and its gradient."""

    def __call__(self, kind, layer, x):
        x = super().__call__(kind, layer, x)
        if not x.requires_grad:  # an edit has replaced all of it
            x = x.requires_grad_()
        x.retain_grad()
        self.seen[kind, layer] = x
        return x


def rounded(x):
    return float(f"{x:.9g}") if isinstance(x, float) else [rounded(value) for value in x]


def number(metric, logits, ids, answer, wrong, unchanged=None):
    last, log = logits[-1], logits.log_softmax(-1)
    if metric == "logit-diff":
        return last[answer] - last[wrong]
    if metric == "logit":
        return last[answer]
    if metric == "logprob":
        return log[-1][answer]
    if metric == "prob":
        return log[-1][answer].exp()
    if metric == "loss":
        return -log[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).mean()
    p = unchanged[-1].log_softmax(-1)
    return (p.exp() * (p - log[-1])).sum()


def gradients(model, ids, of, change=None):
    """The number of one text and {hook: its gradient, batch axis first}."""
    keeper = Keeper(change)
    with torch.enable_grad():
        logits = edits.run(model, ids, keeper)
        value = of(logits, keeper.seen)
        value.backward()
    out = {}
    for (kind, layer), x in keeper.seen.items():
        by = torch.zeros_like(x) if x.grad is None else x.grad
        if kind in ("scores", "pattern"):
            by = by.tril()
        out[hook(kind, layer)] = by[None].numpy().copy()
    return value.item(), {name: out[name] for name in compare.hook_names(model.config.n_layer)}


def tokens(vocab, n):
    """The answer and the wrong one of text n."""
    return (3 * n + 1) % vocab, (5 * n + 2) % vocab


def torch_error(f32, true):
    """{hook: worst error over the tokens}; of a hook with one number a token, which may be a small difference of large terms and
    then has no size of its own, the error of all numbers."""
    errors = compare.worst_hook(f32, true)
    for name in errors:
        if name.endswith("hook_scale"):
            got, want = (np.concatenate([by[name].ravel() for by in rows]).astype(np.float64) for rows in (f32, true))
            errors[name] = float(np.linalg.norm(got - want) / max(np.linalg.norm(want), np.finfo(float).tiny))
    return errors


def padded(rows):
    return {name: np.ascontiguousarray(compare.pad(rows, name)) for name in rows[0]}


def every_hook(folder, rows):
    wide, single = expected.load(folder, torch.float64), expected.load(folder, torch.float32)
    asked = [tokens(wide.config.vocab_size, n) for n in range(len(rows))]
    run = lambda model: [gradients(model, ids, lambda logits, _: number("logit-diff", logits, ids, *pair))
                         for ids, pair in zip(rows, asked)]
    true, f32 = run(wide), run(single)
    error = torch_error(*([by for _, by in runs] for runs in (f32, true)))
    metadata = {"answer": json.dumps([a for a, _ in asked]), "wrong": json.dumps([w for _, w in asked]),
                "target": json.dumps([value for value, _ in true]), "torch_f32_error": json.dumps(error)}
    (folder / "gradients.safetensors").write_bytes(save(padded([by for _, by in true]), metadata))


def some_hooks(name, rows):
    """Metrics, edits and a linear function of a tap, each with the gradients by a few hooks."""
    model, single = (expected.load(edits.FIXTURES / name, dtype) for dtype in (torch.float64, torch.float32))
    last, heads = model.config.n_layer - 1, model.config.n_head
    hooks = ["hook_embed", "blocks.0.attn.hook_k", "blocks.0.ln2.hook_scale", f"blocks.{last}.attn.hook_attn_scores"]
    asked = [tokens(model.config.vocab_size, n) for n in range(len(rows))]

    def differentiated(model, metric, done, of):
        plain = [edits.run(model, ids, edits.Visitor()).detach() for ids in rows]
        for n, ids in enumerate(rows):
            def change(kind, layer, x, n=n):
                for at, at_layer, op, where, amount in done:
                    if (kind, layer) == (at, at_layer):
                        mask = edits.place(kind, x, **where(n))
                        new = {"zero": lambda: x * 0, "scale": lambda: x * amount, "add": lambda: x + amount,
                               "set": lambda: torch.full_like(x, amount)}[op]()
                        x = torch.where(mask, new, x)
                return x
            f = of or (lambda logits, _: number(metric, logits, ids, *asked[n], plain[n]))
            yield gradients(model, ids, f, change)

    def case(metric, written=(), done=(), of=None, more=(), dot=None):
        true, f32 = (list(differentiated(which, metric, done, of)) for which in (model, single))
        wanted = [*hooks, *more]
        only = lambda runs: [{hook: by[hook] for hook in wanted} for _, by in runs]
        return {"metric": metric, "edits": list(written), "dot": dot, "target": [value for value, _ in true],
                "torch_f32_error": torch_error(only(f32), only(true)),
                "gradients": {hook: rounded([by[hook][0].tolist() for _, by in true]) for hook in wanted}}

    every = edits.EVERY
    yield from (case(metric) for metric in ("logit", "logprob", "prob", "loss"))
    yield case("kl", ["z.0@head=0:zero"], [("z", 0, "zero", lambda n: {"head": [0]}, None)], more=["blocks.0.attn.hook_z"])
    yield case("logit-diff", [f"z.{last}@head={heads - 1}:scale=-1.5"],
               [("z", last, "scale", lambda n: {"head": [heads - 1]}, -1.5)], more=[f"blocks.{last}.attn.hook_z"])
    yield case("logit-diff", ["scores.0@head=0:scale=2"], [("scores", 0, "scale", lambda n: {"head": [0]}, 2.0)],
               more=["blocks.0.attn.hook_attn_scores"])
    yield case("logprob", ["resid_mid.0:add=0.5", "ln1.0:scale=2"],
               [("resid_mid", 0, "add", every, 0.5), ("ln1", 0, "scale", every, 2.0)])
    yield case("logit-diff", [f"pattern.{last}@key=0:zero", "mlp_post.0@dim=1..4:set=0.25"],
               [("pattern", last, "zero", lambda n: {"key": [0]}, None),
                ("mlp_post", 0, "set", lambda n: {"dim": [1, 2, 3]}, 0.25)], more=[f"blocks.{last}.attn.hook_pattern"])
    yield case("logit-diff", ["result.0@head=1:scale=3", "logits@dim=1:scale=0.5"],
               [("result", 0, "scale", lambda n: {"head": [1]}, 3.0), ("logits", None, "scale", lambda n: {"dim": [1]}, 0.5)],
               more=["blocks.0.attn.hook_result"])
    # What pushes one neuron of the second block, at every position from the second on?
    dot = lambda _, seen: (seen["mlp_pre", 1][1:, 2] * (1 + torch.arange(len(seen["mlp_pre", 1]) - 1))).sum()
    yield case(None, of=dot, dot={"site": "blocks.1.mlp.hook_pre", "dim": 2, "from": 1})


def main():
    specs = {spec.name: spec for spec in SPECS}
    from checkpoints import draw
    for name in NAMES:
        every_hook(edits.FIXTURES / name, draw(specs[name])[1])
        print(name)
    rows = draw(specs["classic"])[1][1:]
    cases = list(some_hooks("classic", rows))
    text = json.dumps({"fixture": "classic", "rows": rows, "tokens": [tokens(101, n) for n in range(len(rows))],
                       "cases": cases}, separators=(",", ":"))
    (edits.FIXTURES / "gradients.json").write_text(text + "\n")
    print("gradients.json")


if __name__ == "__main__":
    main()
