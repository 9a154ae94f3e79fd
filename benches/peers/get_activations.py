"""get_activations.py MODEL PROGRAM: 1,000 short texts one by one, `ActivationExtractor.get_activations` beside the same loop in Rust. MODEL is
`demo` or make_model.py's folder, whose model gets demo's tokenizer, which it lacks; PROGRAM is examples/loop_texts built with cargo's
profile `wheel`, as the module is. Goal: at most 1.05.

Two processes that read large weights from memory differ by 10 to 20 % where their pages happen to lie, also two of the same program. So
there are several pairs of processes, each asked in turn for slices of the texts, and the figure is the median of the pairs' ratios. What
Python adds to a text is the same for every model, so `demo`, whose weights lie in the cache and whose run is shortest, has the largest
ratio and the steadiest."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["ACTSCOPE_TUNING"] = "off"

GOAL, PAIRS, SLICE = 1.05, 5, 50
TEXTS = [f"The cat number {i} sat on the mat." for i in range(1000)]
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def work(model):
    """The Python side of examples/loop_texts."""
    import actscope

    extractor = actscope.ActivationExtractor(model, device="cpu")
    for line in sys.stdin:
        start, end = map(int, line.split())
        begin = time.perf_counter()
        for text in TEXTS[start:end]:
            extractor.get_activations(text)
        print(time.perf_counter() - begin, flush=True)


def seconds(process, start):
    process.stdin.write(f"{start} {start + SLICE}\n")
    return json.loads(process.stdout.readline())


def main(model, program):
    # A pair runs all texts where that takes a second; of a large model each pair runs its part of them.
    slices = len(TEXTS) // SLICE if model == "demo" else len(TEXTS) // SLICE // PAIRS
    each, ratios = [], []
    with tempfile.TemporaryDirectory() as made:
        if model != "demo":
            for file in [*(Path(model).resolve() / "gpt2-random").iterdir(), DEMO / "tokenizer.json"]:
                (Path(made) / file.name).symlink_to(file)
            model = made
        for _ in range(PAIRS):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            commands = [sys.executable, __file__, "--work", model], [program, model]
            pair = [subprocess.Popen(command, **pipes) for command in commands]
            # The first slice loads and warms up.
            times = [[seconds(process, n * SLICE) for process in pair] for n in (0, *range(slices))][1:]
            for process in pair:
                process.stdin.close()
                process.wait()
            medians = [1e3 * statistics.median(column) / SLICE for column in zip(*times)]
            each.append(medians)
            ratios.append(statistics.median(ours / rust for ours, rust in times))
            print(f"a text: Python {medians[0]:.4f} ms, Rust {medians[1]:.4f} ms, ratio {ratios[-1]:.3f}", flush=True)
    ours, rust = (statistics.median(column) for column in zip(*each))
    ratio = statistics.median(ratios)
    print(f"medians of {PAIRS} pairs: a text Python {ours:.4f} ms, Rust {rust:.4f} ms, ratio {ratio:.3f}")
    sys.exit(f"slower than {GOAL}" if ratio > GOAL else 0)


if __name__ == "__main__":
    work(sys.argv[2]) if sys.argv[1] == "--work" else main(*sys.argv[1:])
