"""python_table.py FOLDER: the table of python/README.md. Ten tasks with actscope, TransformerLens, nnsight and transformers: lines of code,
seconds, memory. FOLDER is make_model.py's; the interpreter has all four. Each library runs in a process of its own, and what it gives
for a task is compared with what actscope gives. A task's seconds are the median of at least three runs after one that warms up; its
memory is the most that the process holds while the task runs, its libraries and its weights included. Linux."""
import ast
import importlib
import inspect
import json
import os
import re
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", HF_HUB_DISABLE_PROGRESS_BARS="1", ACTSCOPE_TUNING="off")

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
SECONDS, LEAST = 2.0, 3
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
    """Measures one library; prints a line of JSON for each task, and keeps what it gave in a file."""
    begin = time.perf_counter()
    module = importlib.import_module(f"tasks.by_{library}")
    model = module.load(folder)
    t = tasks_input()
    module.last_layer(model, t)
    cold = time.perf_counter() - begin
    about = {"task": "cold", "seconds": cold, "lines": lines(module.load), "memory": resident_peak()}
    print(json.dumps(about), flush=True)
    import numpy as np

    results = {}
    for name in TASKS:
        task = getattr(module, name)
        given = task(model, t)
        parts = given if isinstance(given, list) else [given]
        for i, part in enumerate(parts):
            results[f"{name}.{i}"] = np.asarray(part, dtype=np.float64)
        Path("/proc/self/clear_refs").write_text("5")
        seconds = []
        while len(seconds) < LEAST or sum(seconds) < SECONDS:
            start = time.perf_counter()
            task(model, t)
            seconds.append(time.perf_counter() - start)
        about = {"task": name, "seconds": statistics.median(seconds), "lines": lines(task), "memory": resident_peak()}
        print(json.dumps(about), flush=True)
    np.savez(folder / f"tasks-{library}.npz", **results)


def main(folder):
    import numpy as np

    found = {}
    for library in LIBRARIES:
        command = [sys.executable, __file__, str(folder), library]
        ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent)
        rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith('{"task"')]
        found[library] = {row["task"]: row for row in rows}
        print(library, *(f"{row['task']} {row['seconds']:.4f}" for row in rows), sep="\n  ", file=sys.stderr, flush=True)
    ours = np.load(folder / "tasks-actscope.npz")
    for library in LIBRARIES[1:]:
        theirs = np.load(folder / f"tasks-{library}.npz")
        for name in ours.files:
            a, b = ours[name].squeeze(), theirs[name].squeeze()
            off = np.linalg.norm(a - b) / np.linalg.norm(b) if a.shape == b.shape else np.inf
            if not off < ALLOWED:
                sys.exit(f"{library} gives something else for {name}: {a.shape} and {b.shape}, off by {off:.1e}")
    names = ["torch", *LIBRARIES]
    print(", ".join(f"{name} {version(DISTRIBUTIONS.get(name, name))}" for name in names))
    print("| |", " | ".join(LIBRARIES), "|")
    print("|---|", "|".join("---" for _ in LIBRARIES), "|")
    for name, what in {"cold": "import, open, one block's output", **TASKS}.items():
        rows = [found[library][name] for library in LIBRARIES]
        cells = [f"{row['lines']}, {1e3 * row['seconds']:.4g} ms, {row['memory']:.0f} MB" for row in rows]
        print(f"| {what} |", " | ".join(cells), "|")


if __name__ == "__main__":
    where = Path(sys.argv[1]).resolve()
    main(where) if len(sys.argv) == 2 else work(sys.argv[2], where)
