"""Trains the demo model and writes its weights.

Owns: the optimiser, the schedule and the checkpoints. Read before: `model.py`, `batches.py`.

    python train.py [--work target/train_demo] [--out models/demo]

Reads `WORK/train.u16`, `WORK/heldout.*.u16` and `WORK/tokenizer.json`; writes
`WORK/checkpoint.pt` as it goes (start it again and it goes on from there), `WORK/train.log`, and at
the end `OUT/config.json`, `OUT/model.safetensors`, `OUT/tokenizer.json`.

Two optimisers: Muon for the matrices inside the blocks, AdamW for the embeddings, biases and
LayerNorms. The learning rate is warmed up, held, and brought to zero in a straight line.
"""

import argparse
import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import torch

import heads
from batches import POSITIONS, ROWS, SCHOOL_STEPS, SCHOOL_VOCABULARY, SEED, batch, tokens_until
from model import GPT2, Config, save_as_gpt2
from tokenizer import END_OF_TEXT_ID
from texts import DEFAULT_WORK, SOURCES

CONFIG = Config(n_embd=160, n_head=5)

WARMUP_STEPS = 100
DECAY_FROM = 10**9  # step at which the learning rate starts to fall
LAST_STEP = 10**9  # step at which it reaches zero

SCHOOL_RATE = 5e-3  # Muon while in school (at 2e-3 the heads come late, at 1e-2 not at all)
MATRIX_RATE = 2.5e-3  # Muon after it; both scaled to AdamW's step size ("match_rms_adamw")
OTHER_RATE = 3e-3  # AdamW
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1  # on matrices and embeddings
CLIP = 1.0  # largest norm of the gradient

CHECKPOINT_EVERY = 200  # steps
CHECK_ROWS = 64  # held-out rows for the loss in the log


def rate(step: int) -> float:
    """The share of the peak learning rate at this step."""
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    if step < DECAY_FROM:
        return warm
    return warm * max(0.0, (LAST_STEP - step) / (LAST_STEP - DECAY_FROM))


def set_rates(opts: list[torch.optim.Optimizer], step: int):
    """Sets this step's learning rates; `opts` as from `optimisers`."""
    matrix = SCHOOL_RATE if step < SCHOOL_STEPS else MATRIX_RATE
    for opt, peak in zip(opts, [matrix, OTHER_RATE]):
        for group in opt.param_groups:
            group["lr"] = peak * rate(step)


def optimisers(model: GPT2) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the rest."""
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.dim() == 2 and n.startswith("h.")]
    tables = [p for n, p in named if p.dim() == 2 and not n.startswith("h.")]
    vectors = [p for n, p in named if p.dim() == 1]
    groups = [
        {"params": tables, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    muon = torch.optim.Muon(
        matrices, lr=MATRIX_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(groups, lr=OTHER_RATE, betas=BETAS, fused=True)]


def heldout_rows(work: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """CHECK_ROWS windows spread evenly over the held-out tokens: ids and targets."""
    files = [work / f"heldout.{s.name}.u16" for s in SOURCES]
    ids = np.concatenate([np.fromfile(f, "<u2") for f in files]).astype(np.int64)
    starts = np.linspace(0, len(ids) - POSITIONS - 1, CHECK_ROWS).astype(int)
    rows = torch.from_numpy(np.stack([ids[s : s + POSITIONS + 1] for s in starts]))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def head_line(model: GPT2, vocabulary: int, length: int = 25) -> str:
    """The best head of each kind, on sequences with and without <|endoftext|> in front."""
    words = []
    looked_at = heads.as_hugging_face(model)
    for bos in [True, False]:
        ids = heads.repeated(length, 16, bos, vocabulary)
        scores = heads.diagonal_scores(heads.patterns(looked_at, ids), length)
        for kind, score in zip(heads.KINDS, scores):
            best = int(score.argmax())
            layer, head = divmod(best, score.shape[1])
            words.append(f"{kind.split()[0]} {layer}.{head} {score.max():.3f}")
        words.append("|")
    return "  ".join(words[:-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=DEFAULT_WORK)
    parser.add_argument("--out", type=Path, default=Path("models/demo"))
    args = parser.parse_args()
    work = args.work

    torch.manual_seed(SEED)
    text = np.fromfile(work / "train.u16", "<u2")
    check_ids, check_targets = heldout_rows(work)
    model = GPT2(CONFIG)
    opts = optimisers(model)
    step, seconds = 0, 0.0
    checkpoint = work / "checkpoint.pt"
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        for opt, state in zip(opts, saved["optimisers"]):
            opt.load_state_dict(state)
        step, seconds = saved["step"], saved["seconds"]
    compiled = torch.compile(model, dynamic=False)

    def loss_of(ids, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compiled(ids, targets)

    def save():
        state = {
            "model": model.state_dict(),
            "optimisers": [opt.state_dict() for opt in opts],
            "step": step,
            "seconds": seconds,
        }
        torch.save(state, checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)

    stop = []
    signal.signal(signal.SIGTERM, lambda *_: stop.append(True))
    log = open(work / "train.log", "a", buffering=1)
    losses, since = [], time.monotonic()
    while step < LAST_STEP and not stop:
        set_rates(opts, step)
        ids, targets = batch(text, step)
        loss = loss_of(torch.from_numpy(ids), torch.from_numpy(targets))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for opt in opts:
            opt.step()
            opt.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % CHECKPOINT_EVERY == 0 or step == LAST_STEP or stop:
            seconds += time.monotonic() - since
            with torch.no_grad():
                check = np.mean([
                    loss_of(check_ids[i : i + ROWS], check_targets[i : i + ROWS]).item()
                    for i in range(0, CHECK_ROWS, ROWS)
                ])  # fmt: skip
            line = f"step {step:6}  {seconds:6.0f} s  train {np.mean(losses):.3f}  held out {check:.3f}"
            print(line, head_line(model, SCHOOL_VOCABULARY if step <= SCHOOL_STEPS else END_OF_TEXT_ID), sep="  ", file=log)
            save()
            losses, since = [], time.monotonic()
    if step == LAST_STEP:
        save_as_gpt2(model, args.out)
        shutil.copy(work / "tokenizer.json", args.out / "tokenizer.json")
        facts = {"steps": step, "tokens": tokens_until(step), "seconds": round(seconds)}
        (work / "trained.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
