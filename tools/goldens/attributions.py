"""What gradients must attribute: transformers' GPT2LMHeadModel in float64 on raw weights, differentiated by PyTorch's autograd.

    python tools/goldens/attributions.py      writes tests/fixtures/attributions.json (20 s)

Four things, each by its definition in docs/attribution.md and docs/patching.md: sweeps estimated from one gradient, a logit divided by
gradients and by integrated gradients, scores of edges, and runs with some edges only. What a reader's LayerNorm does is left to
autograd, and runs with some edges only are written out with the model's modules. Values are rounded to 12 digits.
"""

import json

import numpy as np
import torch

import edits
import expected
from edits import FIXTURES, NAMES, Visitor, place, rounded, run
from gradients import number

ANSWER, WRONG = 1, 2


class Keeper(Visitor):
    """Keeps every value as it flows on, and its gradient; `embed`, if given, stands for the token embeddings."""

    def __init__(self, embed=None):
        super().__init__()
        self.embed = embed

    def __call__(self, kind, layer, x):
        if kind == "embed" and self.embed is not None:
            x = self.embed
        x = super().__call__(kind, layer, x)
        if not x.requires_grad:
            x = x.detach().requires_grad_()
            self.seen[kind, layer] = x
        x.retain_grad()
        return x


def differentiated(model, ids, metric, unchanged=None, embed=None):
    """The metric's value, the values, and the gradient by each."""
    keeper = Keeper(embed)
    with torch.enable_grad():
        value = number(metric, run(model, ids, keeper), ids, ANSWER, WRONG, unchanged)
        value.backward()
    by = {key: torch.zeros_like(x) if x.grad is None else x.grad for key, x in keeper.seen.items()}
    return value.item(), {key: x.detach() for key, x in keeper.seen.items()}, by


def fast(model, clean, corrupt):
    """Sweeps, every cell estimated."""
    L, H, P = model.config.n_layer, model.config.n_head, len(clean)
    grid = {"layer": L, "pos": P, "head": H, "key": P, "dim": 3}
    of_clean = run(model, clean, Visitor())

    def sweep(at, by, metric, noise=False):
        text, other = (clean, corrupt) if noise else (corrupt, clean)
        base, here, gradient = differentiated(model, text, metric, of_clean)
        source, there, _ = differentiated(model, other, metric, of_clean)
        values = []
        for index in np.ndindex(*(grid[axis] for axis in by)):
            cell = dict(zip(by, index))
            layers = [cell.pop("layer")] if "layer" in cell else range(L)
            change = 0.0
            for key in ((at, layer) for layer in layers):
                mask = place(at, here[key], **{axis: [i] for axis, i in cell.items()})
                change += (gradient[key] * (there[key] - here[key]))[mask].sum().item()
            values.append(base + change)
        return {"at": at, "by": by, "metric": metric, "noise": noise, "clean": base if noise else source,
                "corrupt": source if noise else base, "values": values}

    return [sweep("resid_pre", ["layer", "pos"], "logit-diff"), sweep("z", ["layer", "head"], "logit-diff"),
            sweep("z", ["layer", "pos", "head"], "prob", noise=True), sweep("pattern", ["layer", "head"], "logprob"),
            sweep("scores", ["layer", "head", "pos", "key"], "logit"), sweep("mlp_out", ["pos"], "loss"),
            sweep("resid_mid", ["layer"], "kl")]


def divided(model, ids, other, steps):
    """A logit difference by gradients at the run, and along lines from zero and from another text's embeddings."""
    L, H = model.config.n_layer, model.config.n_head
    total, x, by = differentiated(model, ids, "logit-diff")
    share = lambda key: (x[key] * by[key]).sum().item()
    blocks = model.transformer.h
    component = {"hook_embed": share(("embed", None)), "hook_pos_embed": share(("pos_embed", None))}
    last_bias = (model.transformer.ln_f.bias * by["ln_final", None]).sum().item()
    head, layer, neuron, position = dict(component), dict(component), {}, {f"pos.{j}": 0.0 for j in range(len(ids))}
    other_share = sum(component.values()) + last_bias
    for l in range(L):
        of_block = {f"blocks.{l}.hook_attn_out": share(("attn_out", l)), f"blocks.{l}.hook_mlp_out": share(("mlp_out", l))}
        component |= of_block
        layer[f"blocks.{l}"] = sum(of_block.values())
        of_heads = (x["result", l] * by["result", l]).sum((0, 2))
        head |= {f"blocks.{l}.attn.hook_result[{h}]": of_heads[h].item() for h in range(H)}
        b_o = (blocks[l].attn.c_proj.bias * by["attn_out", l]).sum().item()
        head |= {f"blocks.{l}.attn.b_O": b_o, f"blocks.{l}.hook_mlp_out": of_block[f"blocks.{l}.hook_mlp_out"]}
        other_share += b_o + of_block[f"blocks.{l}.hook_mlp_out"]
        of_neurons = (x["mlp_post", l] * by["mlp_post", l]).sum(0)
        neuron |= {f"blocks.{l}.mlp.hook_post[{n}]": value.item() for n, value in enumerate(of_neurons)}
        for j, value in enumerate((x["v", l] * by["v", l]).sum((1, 2))):
            position[f"pos.{j}"] += value.item()
    for parts in (component, layer, head):
        parts["ln_final.b"] = last_bias
    position["other"] = other_share

    def line(start):
        end = x["embed", None]
        first = torch.zeros_like(end) if start is None else model.transformer.wte(torch.tensor(start)).detach()
        mean = torch.zeros_like(end)
        of_sites = {}
        begun, from_there, _ = differentiated(model, ids, "logit-diff", embed=first.clone())
        for k in range(steps):
            point = first + (k + 0.5) / steps * (end - first)
            _, _, here = differentiated(model, ids, "logit-diff", embed=point)
            mean += here["embed", None] / steps
            for l in range(L):
                of_sites[l] = of_sites.get(l, 0) + here["result", l] / steps
        parts = {f"pos.{j}": value.item() for j, value in enumerate(((end - first) * mean).sum(1))}
        heads = {f"blocks.{l}.attn.hook_result[{h}]": (of_sites[l] * (x["result", l] - from_there["result", l]))[:, h].sum().item()
                 for l in range(L) for h in range(H)}
        return {"baseline": start, "total": total - begun, "position": parts | {"other": 0.0}, "head": heads}

    return {"ids": ids, "total": total, "gradient": {"component": component, "layer": layer, "head": head, "neuron": neuron,
                                                    "position": position},
            "steps": steps, "integrated": [line(None), line(other)]}


def written(model, seen):
    """What every writer adds to the stream."""
    out = {"embed": seen["embed", None]}
    for l in range(model.config.n_layer):
        out |= {f"head.{l}.{h}": seen["result", l][:, h] for h in range(model.config.n_head)}
        out[f"mlp.{l}"] = seen["mlp_out", l]
    return out


def reads(model, seen, by):
    """The gradient by the stream that every reader reads, the reader's LayerNorm and weights left to autograd."""
    out = {}
    H = model.config.n_head
    for l, block in enumerate(model.transformer.h):
        with torch.enable_grad():
            stream = seen["resid_pre", l].clone().requires_grad_()
            for letter, part in zip("qkv", block.attn.c_attn(block.ln_1(stream[None]))[0].chunk(3, -1)):
                for h, of_head in enumerate(part.unflatten(-1, (H, -1)).unbind(1)):
                    out[f"{letter}.{l}.{h}"], = torch.autograd.grad(of_head, stream, by[letter, l][:, h], retain_graph=True)
            stream = seen["resid_mid", l].clone().requires_grad_()
            out[f"mlp.{l}"], = torch.autograd.grad(block.mlp(block.ln_2(stream[None]))[0], stream, by["mlp_out", l])
    out["logits"] = by["resid_post", model.config.n_layer - 1]
    return out


def reaches(writer, reader):
    """Whether what is written is in the stream that is read."""
    order = lambda name, reads: {"embed": (-1, 0), "logits": (10**6, 0)}.get(name) or (
        int(name.split(".")[1]), (1 if reads else 2) if name.startswith("mlp") else (0 if reads else 0.5))
    return order(writer, False) < order(reader, True)


def edge_scores(model, clean, corrupt, metric, steps):
    of_clean = run(model, clean, Visitor())
    clean_value, there, _ = differentiated(model, clean, metric, of_clean)
    corrupt_value, here, _ = differentiated(model, corrupt, metric, of_clean)
    change = {name: value - written(model, here)[name] for name, value in written(model, there).items()}
    mean = {}
    for k in range(steps):
        point = here["embed", None] + k / steps * (there["embed", None] - here["embed", None])
        _, seen, by = differentiated(model, corrupt, metric, of_clean, embed=point)
        for name, gradient in reads(model, seen, by).items():
            mean[name] = mean.get(name, 0) + gradient / steps
    scores = {f"{w}...{r}": (change[w] * mean[r]).sum().item() for w in change for r in mean if reaches(w, r)}
    return {"metric": metric, "steps": steps, "clean": clean_value, "corrupt": corrupt_value, "scores": scores}


def circuit(model, clean, corrupt, kept, metric):
    """The metric of the corrupt run in which only some edges carry changes."""
    H, trunk = model.config.n_head, model.transformer
    seen = Visitor()
    run(model, corrupt, seen)
    here = written(model, seen.seen)
    change = {"embed": trunk.wte(torch.tensor(clean)) - here["embed"]}
    added = lambda reader: sum((change[w] for w, r in kept if r == reader and w in change), torch.zeros_like(here["embed"]))
    future = torch.ones(len(corrupt), len(corrupt), dtype=torch.bool).triu(1)
    for l, block in enumerate(trunk.h):
        for h in range(H):
            own = []
            for n, letter in enumerate("qkv"):
                stream = seen.seen["resid_pre", l] + added(f"{letter}.{l}.{h}")
                own.append(block.attn.c_attn(block.ln_1(stream[None]))[0].chunk(3, -1)[n].unflatten(-1, (H, -1))[:, h])
            q, k, v = own
            pattern = (q @ k.T * block.attn.scaling).masked_fill(future, -torch.inf).softmax(-1)
            change[f"head.{l}.{h}"] = pattern @ v @ block.attn.c_proj.weight.unflatten(0, (H, -1))[h] - here[f"head.{l}.{h}"]
        stream = seen.seen["resid_mid", l] + added(f"mlp.{l}")
        change[f"mlp.{l}"] = block.mlp(block.ln_2(stream[None]))[0] - here[f"mlp.{l}"]
    stream = seen.seen["resid_post", model.config.n_layer - 1] + added("logits")
    logits = model.lm_head(trunk.ln_f(stream[None]))[0]
    return number(metric, logits, corrupt, ANSWER, WRONG, run(model, clean, Visitor())).item()


def edges(model, clean, corrupt, rng):
    scores = [edge_scores(model, clean, corrupt, "logit-diff", 1), edge_scores(model, clean, corrupt, "logit-diff", 3),
              edge_scores(model, clean, corrupt, "kl", 1)]
    names = list(scores[0]["scores"])
    circuits = []
    for metric, n in (("logit-diff", len(names)), ("logit-diff", 0), ("logit-diff", len(names) // 2), ("kl", len(names) // 3)):
        kept = sorted(rng.permutation(len(names))[:n].tolist())
        words = [names[i].split("...") for i in kept]
        circuits.append({"metric": metric, "edges": [names[i] for i in kept], "value": circuit(model, clean, corrupt, words, metric)})
    # All edges give the clean run, none the corrupt one.
    for found, name in zip(circuits, ("clean", "corrupt")):
        assert abs(found["value"] - scores[0][name]) < 1e-10, (found["value"], scores[0][name])
    return {"scores": scores, "circuits": circuits}


def main():
    out = {}
    for name in NAMES:
        model = expected.load(FIXTURES / name, torch.float64)
        with torch.no_grad():
            rng = np.random.default_rng(20)
            clean, corrupt, other = (rng.integers(0, model.config.vocab_size, 6).tolist() for _ in range(3))
            out[name] = rounded({"clean": clean, "corrupt": corrupt, "answer": ANSWER, "wrong": WRONG,
                                 "fast": fast(model, clean, corrupt), "divided": divided(model, clean, other, 4),
                                 "edges": edges(model, clean, corrupt, rng)})
        print(name)
    (FIXTURES / "attributions.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
