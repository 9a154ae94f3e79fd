"""get_activations.py MODEL PROGRAM: 1,000 short texts one by one, `ActivationExtractor.get_activations` beside the same loop in Rust. MODEL is
`demo` or make_model.py's folder, whose model gets demo's tokenizer, which it lacks; PROGRAM is examples/loop_texts built with cargo's
profile `wheel`, as the module is. Both are asked in turn for 100 texts; the figure is the median of their ratios. Goal: at most 1.05."""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["ACTSCOPE_TUNING"] = "off"
import actscope  # noqa: E402

GOAL, SLICE = 1.05, 100
TEXTS = [f"The cat number {i} sat on the mat." for i in range(1000)]
DEMO = Path(__file__).resolve().parents[2] / "models" / "demo"


def main(model, program):
    with tempfile.TemporaryDirectory() as made:
        if model != "demo":
            for file in [*(Path(model).resolve() / "gpt2-random").iterdir(), DEMO / "tokenizer.json"]:
                (Path(made) / file.name).symlink_to(file)
            model = made
        extractor = actscope.ActivationExtractor(model, device="cpu")
        rust = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        ratios, sums = [], [0.0, 0.0]
        # The first slice warms up.
        for n in [0, *range(len(TEXTS) // SLICE)]:
            start = n * SLICE
            begin = time.perf_counter()
            for text in TEXTS[start : start + SLICE]:
                extractor.get_activations(text)
            ours = time.perf_counter() - begin
            rust.stdin.write(f"{start} {start + SLICE}\n")
            seconds = json.loads(rust.stdout.readline())
            ratios.append(ours / seconds)
            sums = [sums[0] + ours, sums[1] + seconds]
            print(f"texts from {start}: Python {1e3 * ours:.1f} ms, Rust {1e3 * seconds:.1f} ms, ratio {ours / seconds:.3f}", flush=True)
        rust.stdin.close()
        rust.wait()
    ratio = statistics.median(ratios[1:])
    print(f"{actscope.__version__}, {extractor.device}: Python {sums[0]:.3f} s, Rust {sums[1]:.3f} s, median ratio {ratio:.3f}")
    sys.exit("slower than 1.05" if ratio > GOAL else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
