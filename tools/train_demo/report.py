"""Measures the demo model: compression, accuracy, continuations, attention heads.

Owns: every number of the model card. It reads the finished folder as anyone would, through
`transformers`, weights widened from f16 to f32. Read next: `card.py`, which writes the card from it.

    python report.py [--work target/train_demo] [--model models/demo]

Needs `WORK/texts/` (from `texts.py`) and `xz`. Prints the report; writes `WORK/report.json`.

Units. Bits per byte: -log2 of the probability of every token of the held-out documents, their
closing <|endoftext|> included, over their UTF-8 bytes, one byte more for each document's end. Each
document starts after <|endoftext|>; windows of n_positions tokens, every token but a document's first
ones predicted from at least half a window. `xz -9e` gets the same documents in one file, a newline
after each. Accuracy: how often the next token is the model's first choice, or among its first five.
"""

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np
import torch
import transformer_lens.head_detector as detector
from tokenizers import Tokenizer
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2LMHeadModel

import heads
from texts import DEFAULT_WORK, SOURCES, read_documents
from tokenizer import END_OF_TEXT_ID

PROMPTS = [
    "The cat sat on the mat.",
    "The president said that",
    "She went to the",
    "He opened the door and",
    "My fellow Americans,",
    "And the LORD said unto",
    "dog:",
    # A made-up name twice: what follows its second half can only come from its first.
    "Mr. Zolber Quint came to dinner. We all liked Mr. Zolber",
]
CONTINUE = 40  # tokens
TOP_K = 40
TEMPERATURE = 0.8

HEAD_LENGTHS = [25, 50, 100]  # tokens of the stretch that appears twice
HEAD_LENGTH = 50  # the one whose scores the card leads with
HEAD_ROWS = 32
ROWS = 16  # windows at a time


def windows(ids: np.ndarray, size: int):
    """Yields (inputs, targets) of `size` or fewer tokens so that each of `ids` is a target once, with
    -100 for those that an earlier window had; `ids` starts with the <|endoftext|> before it."""
    start = 0
    while True:
        inputs = ids[start : start + size]
        targets = ids[start + 1 : start + size + 1].copy()
        inputs = inputs[: len(targets)]
        if start:
            targets[: size // 2] = -100
        yield inputs, targets
        if start + size + 1 >= len(ids):
            return
        start += size // 2


def measure(model: GPT2LMHeadModel, tokenizer: Tokenizer, documents: list[str]) -> dict:
    """Bits, tokens, and first and first-five hits over the documents."""
    size = model.config.n_positions
    pairs = []
    for encoding in tokenizer.encode_batch(documents, add_special_tokens=False):
        ids = np.array([END_OF_TEXT_ID, *encoding.ids, END_OF_TEXT_ID])
        pairs.extend(windows(ids, size))
    pairs.sort(key=lambda pair: len(pair[0]))
    sums = {"tokens": 0, "bits": 0.0, "top1": 0, "top5": 0}
    for i in range(0, len(pairs), ROWS):
        part = pairs[i : i + ROWS]
        longest = max(len(inputs) for inputs, _ in part)
        inputs = np.zeros((len(part), longest), np.int64)
        targets = np.full((len(part), longest), -100, np.int64)
        for row, (a, b) in enumerate(part):  # padded on the right, where attention never looks
            inputs[row, : len(a)] = a
            targets[row, : len(b)] = b
        with torch.no_grad():
            logits = model(torch.from_numpy(inputs)).logits
        counted = torch.from_numpy(targets != -100)
        logits, wanted = logits[counted], torch.from_numpy(targets)[counted]
        nats = torch.nn.functional.cross_entropy(logits, wanted, reduction="none")
        best = logits.topk(5).indices == wanted[:, None]
        sums["tokens"] += len(wanted)
        sums["bits"] += nats.double().sum().item() / np.log(2)
        sums["top1"] += best[:, 0].sum().item()
        sums["top5"] += best.sum().item()
    return sums


def xz_bytes(text: str) -> int:
    """Bytes of `xz -9e`'s output."""
    done = subprocess.run(["xz", "-9e", "-c"], input=text.encode(), capture_output=True, check=True)
    return len(done.stdout)


def compression(model, tokenizer, work: Path) -> list[dict]:
    """One row a source, and last the whole."""
    rows, whole, whole_text = [], None, ""
    for source in SOURCES:
        documents = read_documents(work, source.name, "heldout")
        text = "".join(d + "\n" for d in documents)
        sums = measure(model, tokenizer, documents)
        sums["bytes"] = len(text.encode())
        rows.append({"name": source.name, **sums, "xz_bytes": xz_bytes(text)})
        whole = {k: v + (whole[k] if whole else 0) for k, v in sums.items()}
        whole_text += text
    rows.append({"name": "all", **whole, "xz_bytes": xz_bytes(whole_text)})
    return rows


def continuations(model, tokenizer) -> list[dict]:
    """Each prompt with its likeliest continuation (greedy) and one drawn with a fixed seed."""
    out = []
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt, add_special_tokens=False).ids
        texts = {}
        for way in ["greedy", "drawn"]:
            row = [END_OF_TEXT_ID, *ids]
            generator = torch.Generator().manual_seed(0)
            for _ in range(CONTINUE):
                with torch.no_grad():
                    logits = model(torch.tensor([row])).logits[0, -1]
                if way == "greedy":
                    row.append(int(logits.argmax()))
                else:
                    top, which = logits.topk(TOP_K)
                    chance = (top / TEMPERATURE).softmax(0)
                    row.append(int(which[chance.multinomial(1, generator=generator)]))
                if row[-1] == END_OF_TEXT_ID:
                    break
            texts[way] = tokenizer.decode(row[1 + len(ids) :])
        out.append({"prompt": prompt, **texts})
    return out


def detector_scores(bridge, ids: torch.Tensor, exclude_bos: bool) -> np.ndarray:
    """transformer_lens.head_detector.detect_head, mean over rows; [kind, layer, head]."""
    names = ["previous_token_head", "duplicate_token_head", "induction_head"]
    return np.array([
        np.mean([
            detector.detect_head(bridge, row[None], name, exclude_bos=exclude_bos).numpy()
            for row in ids
        ], axis=0)
        for name in names
    ])  # fmt: skip


def head_scores(model, folder: Path) -> list[dict]:
    """Every head's scores for each length, with and without <|endoftext|> in front, and how well the
    model copies there."""
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    # detect_head turns text into tokens; random tokens do not survive the way to text and back.
    bridge.to_tokens = lambda tokens, **_: tokens
    out = []
    for length in HEAD_LENGTHS:
        for bos in [True, False]:
            ids = heads.repeated(length, HEAD_ROWS, bos)
            scores = heads.diagonal_scores(heads.patterns(model, ids), length)
            with torch.no_grad():
                logits = model(ids).logits[:, -length - 1 : -1]  # predict the second copy
            second = ids[:, -length:]
            # Its first token is a guess; from the second on the past decides.
            hits = (logits.argmax(-1) == second)[:, 1:].double().mean().item()
            out.append({
                "length": length, "bos": bos, "copied": hits,
                "diagonal": scores.tolist(),
                "detector": detector_scores(bridge, ids, False).tolist(),
                "detector_exclude_bos": detector_scores(bridge, ids, True).tolist(),
            })  # fmt: skip
    return out


def print_report(report: dict):
    """The report, for reading."""
    print(f"{'held out':18} {'bytes':>10} {'tokens':>8} {'model':>6} {'xz -9e':>6}   bits per byte")
    for r in report["compression"]:
        print(f"{r['name']:18} {r['bytes']:10,} {r['tokens']:8,} {r['bits'] / r['bytes']:6.3f}"
              f" {8 * r['xz_bytes'] / r['bytes']:6.3f}"
              f"   top-1 {r['top1'] / r['tokens']:.3f}  top-5 {r['top5'] / r['tokens']:.3f}")  # fmt: skip
    for c in report["continuations"]:
        print(f"\n{c['prompt']!r}\n  greedy: {c['greedy']!r}\n  drawn:  {c['drawn']!r}")
    for h in report["heads"]:
        print(f"\nrandom repeated tokens, 2 x {h['length']}, <|endoftext|> first: {h['bos']};"
              f" second copy predicted: {h['copied']:.3f}")  # fmt: skip
        for name in ["diagonal", "detector", "detector_exclude_bos"]:
            scores = np.array(h[name])
            for kind, score in zip(heads.KINDS, scores):
                words = []
                for index in np.argsort(-score.ravel())[:3]:
                    layer, head = np.unravel_index(index, score.shape)
                    words.append(f"{layer}.{head} {score[layer, head]:.3f}")
                print(f"  {name:21} {kind:16} {'   '.join(words)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--model", type=Path, default=Path("models/demo"))
    args = parser.parse_args()
    model = GPT2LMHeadModel.from_pretrained(
        args.model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokenizer = Tokenizer.from_file(str(args.model / "tokenizer.json"))
    report = {
        "compression": compression(model, tokenizer, args.work),
        "continuations": continuations(model, tokenizer),
        "heads": head_scores(model, args.model),
    }
    print_report(report)
    (args.work / "report.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
