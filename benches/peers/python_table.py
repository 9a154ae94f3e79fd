"""python_table.py FOLDER: the table of python/README.md. Ten tasks with actscope, TransformerLens, nnsight and transformers: lines of code,
seconds, memory. FOLDER is make_model.py's; the interpreter has requirements-table.txt and the module. Each library is a process that
stays; they are asked in turn, so that a machine that slows down slows all. What a library gives for a task is compared with what actscope
gives. A task's seconds are the median of its runs after one that warms up; its memory is the most that the process holds while the task
runs, libraries and weights included; its lines are those of the function in tasks/. Linux."""
import ast
import importlib
import inspect
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", ACTSCOPE_TUNING="off")
# Progress bars of TransformerLens are no part of its work.
os.environ["TQDM_DISABLE"] = "1"

LIBRARIES = ["actscope", "transformer_lens", "nnsight", "transformers"]
DISTRIBUTIONS = {"transformer_lens": "transformer-lens"}
TASKS = {
    "last_layer": "one block's output",
    "all_streams": "the outputs of all 12 blocks",
    "pattern": "one layer's attention pattern",
    "neurons_and_heads": "all neurons and all heads",
    "many_texts": "the last token of 16 texts of 5 to 20 tokens",
    "ablate_head": "logits with one head set to zero",
    "steer": "logits with a vector added to the stream",
    "patching": "patching, 12 layers by 15 positions",
    "generate": "32 new tokens with a block's output at each",
    "lens": "the logit lens",
}
# Rounds of a task, and of one that takes some library more than so many seconds.
ROUNDS, LONG, ROUNDS_OF_LONG = 5, 2.0, 2
ALLOWED = 1e-4


def tasks_input():
    import numpy as np

    rng = np.random.default_rng(0)
    ids = lambda n: rng.integers(0, 50257, n).tolist()
    corrupt = ids(15)
    clean = corrupt.copy()
    clean[4] = 1234
    texts = [ids(5 + i) for i in range(16)]
    vector = rng.standard_normal(768).astype(np.float32)
    return SimpleNamespace(ids=corrupt, clean=clean, texts=texts, vector=vector, answer=262, wrong=287, new=32)


def lines(function):
    """Lines of a function's body that hold code."""
    source = inspect.getsource(function)
    first = ast.parse(source).body[0].body[0].lineno
    body = source.split("\n")[first - 1 :]
    return sum(1 for line in body if line.strip() and not line.strip().startswith("#"))


def resident_peak():
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6


def work(library, folder):
    """One library: for each line on stdin runs the task that it names and prints a line of JSON. A task's first run warms up, and what it
    gives is kept in a file."""
    begin = time.perf_counter()
    module = importlib.import_module(f"tasks.by_{library}")
    model = module.load(folder)
    t = tasks_input()
    module.last_layer(model, t)
    print_row("cold", time.perf_counter() - begin, module.load)
    import numpy as np

    results = {}
    for line in sys.stdin:
        name = line.strip()
        task = getattr(module, name)
        if f"{name}.0" not in results:
            given = task(model, t)
            for i, part in enumerate(given if isinstance(given, list) else [given]):
                results[f"{name}.{i}"] = np.asarray(part, dtype=np.float64)
            np.savez(folder / f"tasks-{library}.npz", **results)
            # From here on the kernel counts the peak anew.
            Path("/proc/self/clear_refs").write_text("5")
        start = time.perf_counter()
        task(model, t)
        print_row(name, time.perf_counter() - start, task)


def print_row(name, seconds, function):
    print(json.dumps({"task": name, "seconds": seconds, "lines": lines(function), "memory": resident_peak()}), flush=True)


def answer(process):
    """A worker's next line of JSON; libraries print lines of their own."""
    for line in process.stdout:
        if line.startswith('{"task"'):
            return json.loads(line)
    sys.exit(f"{' '.join(process.args)} ended")


def main(folder):
    import numpy as np

    found, workers = {}, {}
    for library in LIBRARIES:
        command = [sys.executable, __file__, str(folder), library]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        workers[library] = subprocess.Popen(command, cwd=Path(__file__).parent, **pipes)
        found[library] = {"cold": answer(workers[library])}
    for name in TASKS:
        rows = {library: [] for library in LIBRARIES}
        while True:
            for library, process in workers.items():
                process.stdin.write(name + "\n")
                rows[library].append(answer(process))
            rounds = len(rows["actscope"])
            slowest = max(row["seconds"] for each in rows.values() for row in each)
            if rounds >= (ROUNDS_OF_LONG if slowest > LONG else ROUNDS):
                break
        for library, each in rows.items():
            median = statistics.median(row["seconds"] for row in each)
            found[library][name] = each[-1] | {"seconds": median}
            print(f"{name}, {library}: {1e3 * median:.1f} ms", file=sys.stderr, flush=True)
    for process in workers.values():
        process.stdin.close()
        process.wait()
    ours = np.load(folder / "tasks-actscope.npz")
    for library in LIBRARIES[1:]:
        theirs = np.load(folder / f"tasks-{library}.npz")
        for name in ours.files:
            a, b = ours[name].squeeze(), theirs[name].squeeze()
            off = np.linalg.norm(a - b) / np.linalg.norm(b) if a.shape == b.shape else np.inf
            if not off < ALLOWED:
                sys.exit(f"{library} gives something else for {name}: {a.shape} and {b.shape}, off by {off:.1e}")
    names = ["torch", *LIBRARIES]
    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    print(f"{processor}, {os.cpu_count()} threads, Linux, Python {platform.python_version()}, {date.today()}")
    print(", ".join(f"{name} {version(DISTRIBUTIONS.get(name, name))}" for name in names))
    print("| |", " | ".join(LIBRARIES), "|")
    print("|---|", "|".join("---" for _ in LIBRARIES), "|")
    for name, what in {"cold": "import, open, one block's output", **TASKS}.items():
        rows = [found[library][name] for library in LIBRARIES]
        cells = [f"{row['lines']}, {1e3 * row['seconds']:{'.0f' if row['seconds'] >= 1 else '.3g'}} ms, {row['memory']:.0f} MB" for row in rows]
        print(f"| {what} |", " | ".join(cells), "|")


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    main(where) if len(sys.argv) == 2 else work(sys.argv[2], where)
