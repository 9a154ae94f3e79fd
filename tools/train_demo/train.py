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
from batches import (
    POSITIONS,
    ROWS,
    SCHOOL_VOCABULARY,
    SEED,
    batch,
    in_school,
    tokens_until,
)
from model import GPT2, Config, save_as_gpt2
from texts import DEFAULT_WORK, SOURCES
from tokenizer import END_OF_TEXT_ID

CONFIG = Config(n_embd=160, n_head=5)

# The learning rate's share of its peak at these steps, straight lines between. The last two were
# placed late, by how fast the machine turned out to be; the last was 14400 until step 12211, so the
# steps from 12000 to there had a share up to 0.02 higher.
RATE_KNOTS = [(-1, 0.0), (99, 1.0), (7500, 1.0), (12000, 0.5), (13700, 0.0)]
LAST_STEP = RATE_KNOTS[-1][0]

# Peak learning rates. Muon's is scaled to AdamW's step size ("match_rms_adamw"), and high while the
# heads form: in short trials of the school alone, 5e-3 got there in 450 steps, 1e-2 not in 700, and
# AdamW in Muon's place (3e-3) not in 850. It changes at these steps; 1025 and 2519 are where the run
# was stopped to raise it again.
MATRIX_RATES = [
    (0, 5e-3),
    (800, 2.5e-3),
    (1025, 5e-3),
    (2000, 2.5e-3),
    (2519, 5e-3),
    (4000, 2.5e-3),
]
OTHER_RATE = 3e-3  # AdamW
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1  # on matrices and embeddings
CLIP = 1.0  # largest norm of the gradient

CHECKPOINT_EVERY = 200  # steps
CHECK_ROWS = 64  # held-out rows for the loss in the log


def rate(step: int) -> float:
    """The share of the peak learning rate at this step."""
    steps, shares = zip(*RATE_KNOTS)
    return float(np.interp(step, steps, shares))


def set_rates(opts: list[torch.optim.Optimizer], step: int):
    """Sets this step's learning rates; `opts` as from `optimisers`."""
    matrix = [peak for first, peak in MATRIX_RATES if step >= first][-1]
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
        matrices, lr=MATRIX_RATES[0][1], weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
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


def save(path: Path, model: GPT2, opts: list[torch.optim.Optimizer], step: int, seconds: float):
    """Writes all that going on needs; a cut in the middle leaves the old file."""
    state = {
        "model": model.state_dict(),
        "optimisers": [opt.state_dict() for opt in opts],
        "step": step,
        "seconds": seconds,
    }
    torch.save(state, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def load(path: Path, model: GPT2, opts: list[torch.optim.Optimizer]) -> tuple[int, float]:
    """Takes up what `save` wrote; returns (steps done, seconds spent), (0, 0) without a file."""
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for opt, saved in zip(opts, state["optimisers"]):
        opt.load_state_dict(saved)
    return state["step"], state["seconds"]


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
    step, seconds = load(work / "checkpoint.pt", model, opts)
    compiled = torch.compile(model, dynamic=False)

    def loss_of(ids, targets):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return compiled(ids, targets)

    stop = []  # not empty once SIGTERM came: save and leave
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
                parts = zip(check_ids.split(ROWS), check_targets.split(ROWS))
                check = np.mean([loss_of(*part).item() for part in parts])
            vocabulary = SCHOOL_VOCABULARY if in_school(step - 1) else END_OF_TEXT_ID
            print(
                f"step {step:6}  {seconds:6.0f} s  train {np.mean(losses):.3f}",
                f"held out {check:.3f}  {head_line(model, vocabulary)}",
                sep="  ",
                file=log,
            )
            save(work / "checkpoint.pt", model, opts, step, seconds)
            losses, since = [], time.monotonic()
    if step == LAST_STEP:
        save_as_gpt2(model, args.out)
        shutil.copy(work / "tokenizer.json", args.out / "tokenizer.json")
        facts = {"steps": step, "tokens": tokens_until(step), "seconds": round(seconds)}
        (work / "trained.json").write_text(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main()
