"""sweeps.py FOLDER: patching sweeps of gpt2-small's shape at 15 tokens, ours (the Python module) beside TransformerLens 4.3: resid_pre by
layer and position, z by layer and head. FOLDER is make_model.py's; the interpreter has actscope and transformer-lens.

Each is a process that stays; they are asked in turn, so that a machine that slows down slows both. The figure is the median, of wall
time and of CPU time; the ratio is of medians. What they find is compared first. Goal: at most 1/12 of TransformerLens's time. Linux."""
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", ACTSCOPE_TUNING="off")
# Progress bars of TransformerLens are no part of its work.
os.environ["TQDM_DISABLE"] = "1"

SWEEPS = ["resid_pre", "z"]
GOAL, ROUNDS, ALLOWED = 1 / 12, 3, 1e-4


def ids():
    corrupt = [(i * 7919 + 13) % 50257 for i in range(15)]
    clean = corrupt.copy()
    clean[4] = 1234
    return clean, corrupt, 262, 287


def ours(folder):
    import actscope

    model = actscope.load(str(folder / "gpt2-random"), device="cpu")
    clean, corrupt, answer, wrong = ids()
    return f"actscope {actscope.__version__}", lambda at: model.patch([clean], [corrupt], answer, wrong, at=at).values


def theirs(folder):
    import logging
    import warnings

    import torch
    from transformer_lens import patching
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer, GPT2LMHeadModel

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_grad_enabled(False)
    hf = GPT2LMHeadModel.from_pretrained(folder / "gpt2-random", attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    model = TransformerBridge.boot_transformers("gpt2", hf_model=hf, tokenizer=tokenizer, device="cpu")
    clean, corrupt, answer, wrong = ids()
    corrupt = torch.tensor([corrupt])
    metric = lambda logits: logits[0, -1, answer] - logits[0, -1, wrong]
    run = {"resid_pre": patching.get_act_patch_resid_pre, "z": patching.get_act_patch_attn_head_out_all_pos}

    def sweep(at):
        _, cache = model.run_with_cache(torch.tensor([clean]), names_filter=lambda name: name.endswith(f"hook_{at}"))
        return run[at](model, corrupt, cache, metric)

    return f"transformer-lens {version('transformer-lens')}, torch {torch.__version__}, {torch.get_num_threads()} threads", sweep


def work(which, folder):
    """Answers each sweep's name with its numbers and seconds."""
    import numpy as np

    about, sweep = {"ours": ours, "theirs": theirs}[which](folder)
    print(json.dumps({"version": about}), flush=True)
    for line in sys.stdin:
        before, begin = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        values = sweep(line.strip())
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(json.dumps({"wall": wall, "cpu": cpu, "values": np.asarray(values, dtype=float).tolist()}), flush=True)


class Worker:
    def __init__(self, which, folder):
        command = [sys.executable, __file__, str(folder), which]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.version = self.answer()["version"]

    def answer(self):
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"a worker ended with {self.process.wait()}")

    def ask(self, at):
        self.process.stdin.write(at + "\n")
        self.process.stdin.flush()
        return self.answer()


def main(folder):
    import numpy as np

    workers = [Worker("ours", folder), Worker("theirs", folder)]
    print("; ".join(worker.version for worker in workers))
    late = False
    for at in SWEEPS:
        first = [worker.ask(at) for worker in workers]
        a, b = (np.array(one["values"]) for one in first)
        off = abs(a - b).max() / abs(b).max()
        if not off < ALLOWED:
            sys.exit(f"{at}: they find other numbers, off by {off:.1e}")
        runs = [[worker.ask(at) for worker in workers] for _ in range(ROUNDS)]
        for clock in ("wall", "cpu"):
            mine, other = (statistics.median(run[i][clock] for run in runs) for i in range(2))
            ratio = mine / other
            print(f"{at} {a.shape}: {clock} {mine:.3f} s, TransformerLens {other:.3f} s, ratio 1/{1 / ratio:.1f}")
            late |= ratio > GOAL
    sys.exit("slower than 1/12" if late else 0)


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    main(where) if len(sys.argv) == 2 else work(sys.argv[2], where)
