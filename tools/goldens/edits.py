"""What edits and sweeps must give: transformers' GPT2LMHeadModel in float64 on raw weights, changed by hooks on its modules.

    python tools/goldens/edits.py      writes tests/fixtures/edits_*.json (1 min)

Every edit is written twice here: as the command line takes it, and as this file carries it out. Nothing is shared with the Rust
side but the words. Values are rounded to 12 digits.
"""

import json
import pathlib

import numpy as np
import torch
from transformers import AttentionInterface

import expected

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
NAMES = ["classic", "untied_erf", "inverse_f16", "no_ln"]


class Visitor:
    """Called at every site in run order with (kind, layer, values without the batch axis); returns the values that flow on."""

    def __init__(self, change=None):
        self.change, self.seen = change, {}

    def __call__(self, kind, layer, x):
        if self.change is not None:
            x = self.change(kind, layer, x)
        self.seen[kind, layer] = x
        return x


CURRENT = {}


def attention(module, query, key, value, attention_mask, **kwargs):
    """Eager attention, with the scores and the pattern shown to the visitor."""
    visit, layer = CURRENT["visit"], module.layer_idx
    scores = query @ key.transpose(-1, -2) * module.scaling
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    scores = scores.masked_fill(future, -torch.inf)
    scores = visit("scores", layer, scores[0])[None].masked_fill(future, -torch.inf)
    pattern = scores.softmax(-1)
    pattern = visit("pattern", layer, pattern[0])[None].masked_fill(future, 0)
    return (pattern @ value).transpose(1, 2), pattern


AttentionInterface.register("visited", attention)


def run(model, ids, visit):
    """One text, [P, V] logits."""
    CURRENT["visit"] = visit
    model.config._attn_implementation = "visited"
    handles = []
    after = lambda module, f: handles.append(module.register_forward_hook(f))
    before = lambda module, f: handles.append(module.register_forward_pre_hook(f))
    rows = lambda x: x[0]
    put = lambda kind, layer: lambda mod, args, out: visit(kind, layer, rows(out))[None]
    take = lambda kind, layer: lambda mod, args: (visit(kind, layer, rows(args[0]))[None], *args[1:])

    def norm(kind, layer):
        def after_norm(mod, args, out):
            x = rows(args[0])
            scale = visit(f"{kind}_scale", layer, (x.var(-1, keepdim=True, unbiased=False) + mod.eps).sqrt())
            normalized = visit(f"{kind}_normalized", layer, (x - x.mean(-1, keepdim=True)) / scale)
            return visit(kind, layer, normalized * mod.weight + mod.bias)[None]
        return after_norm

    trunk = model.transformer
    after(trunk.wte, put("embed", None))
    after(trunk.wpe, put("pos_embed", None))
    for l, block in enumerate(trunk.h):
        attn, H, d = block.attn, block.attn.num_heads, block.attn.head_dim
        streams = {}

        def enter(mod, args, l=l, streams=streams):
            streams["pre"] = visit("resid_pre", l, rows(args[0]))
            return (streams["pre"][None], *args[1:])

        def qkv(mod, args, out, l=l, H=H, d=d):
            parts = rows(out).split(H * d, dim=-1)
            done = [visit(kind, l, part.unflatten(-1, (H, d))).flatten(-2) for kind, part in zip("qkv", parts)]
            return torch.cat(done, -1)[None]

        def z(mod, args, l=l, H=H, d=d):
            return (visit("z", l, rows(args[0]).unflatten(-1, (H, d))).flatten(-2)[None],)

        def proj(mod, args, out, l=l, H=H, d=d, streams=streams):
            parts = torch.einsum("phd,hde->phe", rows(args[0]).unflatten(-1, (H, d)), mod.weight.unflatten(0, (H, d)))
            parts = visit("result", l, parts)
            out = visit("attn_out", l, parts.sum(1) + mod.bias)
            # The stream behind attention has no module: it is changed by what attention adds.
            mid = visit("resid_mid", l, streams["pre"] + out)
            return (mid - streams["pre"])[None]

        before(block, enter)
        after(block.ln_1, norm("ln1", l))
        after(attn.c_attn, qkv)
        before(attn.c_proj, z)
        after(attn.c_proj, proj)
        after(block.ln_2, norm("ln2", l))
        after(block.mlp.c_fc, put("mlp_pre", l))
        before(block.mlp.c_proj, take("mlp_post", l))
        after(block.mlp, put("mlp_out", l))
        after(block, put("resid_post", l))
    after(trunk.ln_f, norm("ln_final", None))
    after(model.lm_head, put("logits", None))
    try:
        return rows(model(torch.tensor([ids]), use_cache=False).logits)
    finally:
        for handle in handles:
            handle.remove()


def place(kind, x, pos=None, head=None, dim=None, key=None):
    """A mask of what is selected of a site's values."""
    mask = torch.ones_like(x, dtype=torch.bool)
    axes = {"pos": 1 if kind in ("scores", "pattern") else 0, "head": 0 if kind in ("scores", "pattern") else 1}
    for name, chosen in (("pos", pos), ("head", head), ("dim", dim), ("key", key)):
        if chosen is None:
            continue
        axis = axes.get(name, x.ndim - 1)
        only = torch.zeros(x.shape[axis], dtype=torch.bool)
        only[chosen] = True
        mask &= only.view([-1 if i == axis else 1 for i in range(x.ndim)])
    if kind in ("scores", "pattern"):
        mask &= torch.ones(x.shape[-2:], dtype=torch.bool).tril()
    return mask


def edited(model, texts, edits, sources=None, values=None):
    """The logits of every text under edits: (kind, layer, op, where, amount), where(n) gives the selection in text n."""
    plain = [Visitor() for _ in texts]
    for ids, visit in zip(texts, plain):
        run(model, ids, visit)
    from_source = [Visitor() for _ in sources or []]
    for ids, visit in zip(sources or [], from_source):
        run(model, ids, visit)

    def mean(kind, layer):
        if kind in ("scores", "pattern"):
            n = max(map(len, texts))
            total, count = torch.zeros(model.config.n_head, n, n, dtype=torch.float64), torch.zeros(n, n)
            for ids, visit in zip(texts, plain):
                p = len(ids)
                seen = torch.ones(p, p, dtype=torch.bool).tril()
                total[:, :p, :p] += visit.seen[kind, layer].masked_fill(~seen, 0)
                count[:p, :p] += seen
            return total / count.clamp(min=1)
        return torch.cat([visit.seen[kind, layer] for visit in plain]).mean(0)

    out = []
    for n, ids in enumerate(texts):
        def change(kind, layer, x):
            for at, at_layer, op, where, amount in edits:
                if (kind, layer) != (at, at_layer) or where(n) is None:
                    continue
                mask = place(kind, x, **where(n))
                if op == "mean":
                    new = mean(kind, layer)
                    new = new[:, : x.shape[1], : x.shape[2]] if kind in ("scores", "pattern") else new.expand_as(x)
                elif op == "patch":
                    source = from_source[n if len(from_source) > 1 else 0].seen[kind, layer]
                    new = torch.zeros_like(x)
                    cut = tuple(slice(min(a, b)) for a, b in zip(x.shape, source.shape))
                    new[cut] = source[cut]
                elif op == "freeze":
                    new = plain[n].seen[kind, layer]
                else:
                    v = values[amount].to(x) if isinstance(amount, str) else amount
                    new = {"zero": lambda: x * 0, "scale": lambda: x * v, "add": lambda: x + v, "set": lambda: x * 0 + v}[op]()
                    if kind == "scores":
                        new = torch.where(torch.isfinite(x), new.nan_to_num(0, 0, 0), x) if op in ("zero", "set") else new
                        if op in ("zero", "set"):
                            new = torch.full_like(x, 0.0 if op == "zero" else float(v))
                x = torch.where(mask, new, x)
            return x

        visit = Visitor(change)
        logits = run(model, ids, visit)
        last = model.config.n_layer - 1
        out.append({"logits": logits[-1].tolist(), "stream": visit.seen["resid_post", last][len(ids) // 2].tolist()})
    return out


EVERY = lambda n: {}


def cases(config, texts):
    """(the edits as they are written, as they are carried out, whether there is a source)."""
    L, H, D = config.n_layer, config.n_head, config.n_embd
    l, h = L - 1, H - 1
    last = lambda n: {"pos": [len(texts[n]) - 1]}
    yield [f"resid_pre.{l}@pos=-1:zero"], [("resid_pre", l, "zero", last, None)]
    yield [f"z.0@head={h}:zero"], [("z", 0, "zero", lambda n: {"head": [h]}, None)]
    yield [f"z.{l}@head=0+-1,dim=1..3:scale=-1.5"], [
        ("z", l, "scale", lambda n: {"head": sorted({0, h}), "dim": [1, 2]}, -1.5)]
    yield [f"resid_post.0@pos=1..:add=0.5*direction"], [
        ("resid_post", 0, "add", lambda n: {"pos": list(range(1, len(texts[n])))}, "half")]
    yield [f"mlp_out.0@text=1:set=direction"], [("mlp_out", 0, "set", lambda n: {} if n == 1 else None, "direction")]
    yield [f"resid_mid.0@dim=..4:set=0.25"], [("resid_mid", 0, "set", lambda n: {"dim": [0, 1, 2, 3]}, 0.25)]
    for site in ("q", "k", "v"):
        yield [f"{site}.{l}@pos=0+2,head=0:add=1.25"], [
            (site, l, "add", lambda n: {"pos": [0, 2], "head": [0]}, 1.25)]
    yield [f"mlp_post.0:mean"], [("mlp_post", 0, "mean", EVERY, None)]
    yield [f"z.0@head=0,pos=-1:mean"], [("z", 0, "mean", lambda n: {"head": [0], **last(n)}, None)]
    yield [f"pattern.{l}@head=0:mean"], [("pattern", l, "mean", lambda n: {"head": [0]}, None)]
    yield [f"pattern.0@key=0:zero"], [("pattern", 0, "zero", lambda n: {"key": [0]}, None)]
    yield [f"pattern.0:scale=0.5"], [("pattern", 0, "scale", EVERY, 0.5)]
    yield [f"pattern.{l}@pos=1..,head=0:set=0.125"], [
        ("pattern", l, "set", lambda n: {"pos": list(range(1, len(texts[n]))), "head": [0]}, 0.125)]
    yield [f"scores.{l}:zero"], [("scores", l, "zero", EVERY, None)]
    yield [f"scores.0@head=0:scale=-2"], [("scores", 0, "scale", lambda n: {"head": [0]}, -2)]
    yield [f"scores.0@key=1,pos=2..:add=3"], [
        ("scores", 0, "add", lambda n: {"key": [1], "pos": list(range(2, len(texts[n])))}, 3)]
    yield [f"resid_pre.0@pos=1:patch"], [("resid_pre", 0, "patch", lambda n: {"pos": [1]}, None)]
    yield [f"z.{l}@pos=2,head=0:patch"], [("z", l, "patch", lambda n: {"pos": [2], "head": [0]}, None)]
    yield [f"pattern.0@pos=2,head={h}:patch"], [("pattern", 0, "patch", lambda n: {"pos": [2], "head": [h]}, None)]
    yield [f"embed@pos=1:scale=3", f"pattern.{l}:freeze"], [
        ("embed", None, "scale", lambda n: {"pos": [1]}, 3), ("pattern", l, "freeze", EVERY, None)]
    yield [f"resid_pre.{l}:add=1", f"resid_pre.{l}:scale=2", f"ln_f@pos=-1:add=0.5*direction"], [
        ("resid_pre", l, "add", EVERY, 1), ("resid_pre", l, "scale", EVERY, 2), ("ln_final", None, "add", last, "half")]
    yield [f"result.0@head=0:zero"], [("result", 0, "zero", lambda n: {"head": [0]}, None)]
    yield [f"attn_out.0:freeze", "ln1.0:scale=2", f"mlp_pre.{l}@dim=0+-1:add=1"], [
        ("attn_out", 0, "freeze", EVERY, None), ("ln1", 0, "scale", EVERY, 2),
        ("mlp_pre", l, "add", lambda n: {"dim": [0, -1]}, 1)]
    yield [f"logits@dim=3:add=1.5", "pos_embed@pos=0:zero"], [
        ("logits", None, "add", lambda n: {"dim": [3 % config.vocab_size]}, 1.5),
        ("pos_embed", None, "zero", lambda n: {"pos": [0]}, None)]


def number(metric, logits, ids, answer, wrong, unchanged=None):
    last, log = logits[-1], logits.log_softmax(-1)
    if metric == "logit-diff":
        return (last[answer] - last[wrong]).item()
    if metric == "logit":
        return last[answer].item()
    if metric == "logprob":
        return log[-1][answer].item()
    if metric == "prob":
        return log[-1][answer].exp().item()
    if metric == "loss":
        return -log[:-1].gather(-1, torch.tensor(ids[1:])[:, None]).mean().item()
    p = unchanged[-1].log_softmax(-1)
    return (p.exp() * (p - log[-1])).sum().item()


def sweeps(model, config, rng):
    """Sweeps with every cell a run of its own."""
    L, H, V = config.n_layer, config.n_head, config.vocab_size
    P = 6
    clean, corrupt, other = (rng.integers(0, V, P).tolist() for _ in range(3))
    answer, wrong = 1, 2
    seen = Visitor()
    of_clean, of_corrupt = run(model, clean, seen), run(model, corrupt, Visitor())
    of_noise = Visitor()
    run(model, corrupt, of_noise)

    def patched(text, source, kind, layers, where):
        def change(k, l, x):
            if k == kind and l in layers:
                x = torch.where(place(kind, x, **where), source.seen[k, l], x)
            return x
        return run(model, text, Visitor(change))

    def ablated(text, kind, layers, where, mean):
        def change(k, l, x):
            if k == kind and l in layers:
                new = x * 0 if mean is None else mean[k, l].expand_as(x)
                x = torch.where(place(kind, x, **where), new, x)
            return x
        return run(model, text, Visitor(change))

    grid = {"layer": range(L), "pos": range(P), "head": range(H), "key": range(P), "dim": range(3 % H + 1)}

    def cells(by, f):
        shape = [len(grid[axis]) for axis in by]
        flat = []
        for index in np.ndindex(*shape):
            at = dict(zip(by, index))
            layers = [at.pop("layer")] if "layer" in at else range(L)
            flat.append(f(layers, {name: [i] for name, i in at.items()}))
        return {"shape": shape, "values": flat}

    def patch(at, by, metric, noise=False):
        text, source = (clean, of_noise) if noise else (corrupt, seen)
        f = lambda layers, where: number(metric, patched(text, source, at, layers, where), text, answer, wrong, of_clean)
        clean_value = number(metric, of_clean, clean, answer, wrong, of_clean)
        corrupt_value = number(metric, of_corrupt, corrupt, answer, wrong, of_clean)
        return {"command": "patch", "at": at, "by": by, "metric": metric, "noise": noise, "clean": clean_value,
                "corrupt": corrupt_value, **cells(by, f)}

    texts = [clean, other]
    runs = [Visitor() for _ in texts]
    for ids, visit in zip(texts, runs):
        run(model, ids, visit)
    mean_of = {key: torch.cat([visit.seen[key] for visit in runs]).mean(0)
               for key in runs[0].seen if key[0] not in ("scores", "pattern")}

    def ablate(at, by, metric, how):
        mean = mean_of if how == "mean" else None
        base = [run(model, ids, Visitor()) for ids in texts]
        f = lambda layers, where: np.mean([
            number(metric, ablated(ids, at, layers, where, mean), ids, answer, wrong, unchanged)
            for ids, unchanged in zip(texts, base)])
        return {"command": "ablate", "at": at, "by": by, "metric": metric, "with": how,
                "base": float(np.mean([number(metric, b, ids, answer, wrong, b) for ids, b in zip(texts, base)])),
                **cells(by, f)}

    yield {"clean": clean, "corrupt": corrupt, "other": other, "answer": answer, "wrong": wrong, "sweeps": [
        patch("resid_pre", ["layer", "pos"], "logit-diff"),
        patch("resid_pre", ["layer", "pos"], "kl"),
        patch("resid_mid", ["layer"], "kl", noise=True),
        patch("z", ["layer", "head"], "logit-diff"),
        patch("z", ["layer", "pos", "head"], "prob", noise=True),
        patch("pattern", ["layer", "head"], "logprob"),
        patch("pattern", ["layer", "head", "pos", "key"], "logit"),
        patch("mlp_out", ["pos"], "loss"),
        patch("q", ["layer", "head"], "logit-diff"),
        ablate("z", ["layer", "head"], "loss", "zero"),
        ablate("z", ["layer", "head"], "kl", "mean"),
        ablate("mlp_out", ["layer", "pos"], "logit", "mean"),
        ablate("pattern", ["layer", "head"], "logit-diff", "zero"),
    ]}


def rounded(x):
    if isinstance(x, float):
        return float(f"{x:.12g}")
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else x


@torch.no_grad()
def main():
    for name in NAMES:
        model = expected.load(FIXTURES / name, torch.float64)
        rng = np.random.default_rng(17)
        V = model.config.vocab_size
        texts = [rng.integers(0, V, n).tolist() for n in (6, 4)]
        sources = [rng.integers(0, V, n).tolist() for n in (5, 4)]
        direction = np.round(rng.normal(size=model.config.n_embd), 3).astype(np.float32)
        exact = torch.from_numpy(direction.astype(np.float64))
        values = {"direction": exact, "half": 0.5 * exact}
        plain = expected.activations(model, texts[0])["unembed.hook_out"][0, -1]
        ours = run(model, texts[0], Visitor())[-1].numpy()
        assert abs(plain - ours).max() < 1e-11 * abs(plain).max(), "the visited model is another one"
        found = []
        for written, edits in cases(model.config, texts):
            out = edited(model, texts, edits, sources, values)
            found.append({"edits": written, "texts": out})
        golden = {"texts": texts, "sources": sources, "direction": direction.tolist(), "edits": found,
                  **next(sweeps(model, model.config, rng))}
        (FIXTURES / f"edits_{name}.json").write_text(json.dumps(rounded(golden)) + "\n")
        print(f"{name}: {len(found)} edits, {len(golden['sweeps'])} sweeps")


if __name__ == "__main__":
    main()
