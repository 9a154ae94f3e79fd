"""What path patching must give: transformers' GPT2LMHeadModel in float64 on raw weights, changed by hooks on its modules.

    python tools/goldens/paths.py      writes tests/fixtures/paths.json (15 s)

The definitions are those of docs/patching.md, carried out one cell at a time, each in whole runs. Nothing is shared with the Rust side
but the words of a path. Values are rounded to 12 digits.
"""

import json

import numpy as np
import torch

import expected
from edits import FIXTURES, NAMES, Visitor, number, rounded, run

ANSWER, WRONG = 1, 2


def seen(model, ids):
    visit = Visitor()
    logits = run(model, ids, visit)
    return visit.seen, logits


def written(sender, values):
    """What a sender adds to the stream: a head's (layer, head) or an MLP's (layer,)."""
    return values["result", sender[0]][:, sender[1]] if len(sender) == 2 else values["mlp_out", sender[0]]


def lined_up(source, here, positions, n):
    """The source's values in place of the last `n` of ours, or of one of them."""
    new = here.clone()
    for back in range(1, n + 1):
        if positions is None or n - back in positions:
            new[-back] = source[-back]
    return new


READS = {"q": "resid_pre", "k": "resid_pre", "v": "resid_pre", "mlp": "resid_mid"}


def patched(model, ids, here, source, sender, receivers, frozen, positions=None, aligned=None):
    """The logits when a sender's value comes from the source run and reaches what the receivers make of it only.

    Receivers are (kind, layer, head), (`mlp`, layer), or (`logits`,).
    """
    layers = model.config.n_layer
    n = len(ids) if aligned is None else aligned
    new = lined_up(written(sender, source), written(sender, here), positions, n)
    difference = new - written(sender, here)

    def still(kind, layer, x):
        """Every head as it was but the sender, which is the source's."""
        if kind == "z":
            x = here["z", layer].clone()
            if sender[:-1] == (layer,):
                x[:, sender[1]] = lined_up(source["z", layer], here["z", layer], positions, n)[:, sender[1]]
        if (kind, layer) == ("mlp_out", sender[0]) and len(sender) == 1:
            x = new
        return x

    def joined(at, at_layer):
        return lambda kind, layer, x: x + difference if (kind, layer) == (at, at_layer) else x

    if receivers == [("logits",)]:
        return run(model, ids, Visitor(still if frozen else joined("resid_post", layers - 1)))
    put = {}
    for kind, layer, *head in receivers:
        if sender[0] > layer or sender[0] == layer and not (kind == "mlp" and len(sender) == 2):
            continue
        visit = Visitor(still if frozen else joined(READS[kind], layer))
        run(model, ids, visit)
        site = ("mlp_out" if kind == "mlp" else kind, layer)
        old = put.get(site, here[site]).clone()
        if head:
            old[:, head[0]] = visit.seen[site][:, head[0]]
        else:
            old = visit.seen[site]
        put[site] = old

    def changed(kind, layer, x):
        site = (kind, layer)
        if site not in put:
            return x
        if kind == "mlp_out":
            return put[site]
        x = x.clone()
        for of, at, *head in receivers:
            if (of, at) == site:
                x[:, head[0]] = put[site][:, head[0]]
        return x

    return run(model, ids, Visitor(changed))


def receiver(words):
    name, *numbers = words.split(".")
    return (name, *map(int, numbers))


def cells(model, ids, source_ids, path, frozen, metric, pos=False):
    """A sweep over what FROM leaves open, in the order layer, head, pos."""
    config = model.config
    layers, heads = config.n_layer, config.n_head
    here, unchanged = seen(model, ids)
    source, of_source = seen(model, source_ids)
    begin, end = path.split("...")
    name, *given = begin.split(".")
    given = list(map(int, given))
    receivers = [receiver(words) for words in end.split("+")]
    # How many layers come before what receives.
    before = lambda r: layers if r == ("logits",) else r[1] + (r[0] == "mlp" and name == "head")
    reach = max(map(before, receivers))
    aligned = min(len(ids), len(source_ids))
    grid = [range(reach) if not given else given[:1]]
    if name == "head":
        grid.append(range(heads) if len(given) < 2 else given[1:])
    open_axes = [len(g) for g, fixed in zip(grid, [given[:1], given[1:2]]) if not fixed]
    if pos:
        grid.append(range(aligned))
        open_axes.append(aligned)
    flat = []
    for index in np.ndindex(*map(len, grid)):
        place = [g[i] for g, i in zip(grid, index)]
        positions = [place.pop()] if pos else None
        logits = patched(model, ids, here, source, tuple(place), receivers, frozen, positions, aligned)
        flat.append(number(metric, logits, ids, ANSWER, WRONG, of_source))
    return {
        "path": path, "frozen": frozen, "metric": metric, "pos": pos, "ids": ids, "source": source_ids,
        "here": number(metric, unchanged, ids, ANSWER, WRONG, of_source), "shape": open_axes, "values": flat,
    }


@torch.no_grad()
def main():
    golden = {}
    for fixture in NAMES:
        model = expected.load(FIXTURES / fixture, torch.float64)
        rng = np.random.default_rng(23)
        L, H, V = model.config.n_layer, model.config.n_head, model.config.vocab_size
        ids, other, longer = (rng.integers(0, V, n).tolist() for n in (6, 6, 8))
        last, head = L - 1, H - 1
        found = []
        for frozen in (False, True):
            of = lambda path, metric="logit-diff", source=other, **more: found.append(
                cells(model, ids, source, path, frozen, metric, **more))
            of("head...logits")
            of("mlp...logits", "logprob")
            of(f"head...q.{last}.{head}")
            of(f"head...k.{last}.0", "loss")
            of(f"mlp...v.{last}.{head}", "prob")
            of(f"head...mlp.{last}")
            of(f"head.0...mlp.0+q.{last}.0+v.{last}.{head}", "kl")
            of(f"mlp.0...k.{last}.0+mlp.{last}", pos=True)
            of(f"head.0.{head}...v.{last}.0", pos=True)
            of(f"head...v.{last}.0", source=longer)
        golden[fixture] = {"answer": ANSWER, "wrong": WRONG, "paths": found}
        print(f"{fixture}: {len(found)} paths, {sum(len(one['values']) for one in found)} cells")
    (FIXTURES / "paths.json").write_text(json.dumps(rounded(golden)) + "\n")


if __name__ == "__main__":
    main()
