"""get_activations.py FOLDER PROGRAM: 1,000 short texts one by one, `ActivationExtractor.get_activations` beside the same loop in Rust. FOLDER is
make_model.py's with the model, or `demo`; PROGRAM is examples/loop_texts built with cargo's profile `wheel`. Both are asked in turn; the
figure is the median of their ratios. Goal: at most 1.05."""
import json
import os
import statistics
import subprocess
import sys
import time

os.environ["ACTSCOPE_TUNING"] = "off"
import actscope  # noqa: E402

GOAL, ROUNDS = 1.05, 5
TEXTS = [f"The cat number {i} sat on the mat." for i in range(1000)]


def main(model, program):
    extractor = actscope.ActivationExtractor(model, device="cpu")
    rust = subprocess.Popen([program, model], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ratios = []
    for _ in range(ROUNDS + 1):
        begin = time.perf_counter()
        for text in TEXTS:
            extractor.get_activations(text)
        ours = time.perf_counter() - begin
        rust.stdin.write("\n")
        rust.stdin.flush()
        seconds = json.loads(rust.stdout.readline())
        ratios.append(ours / seconds)
        print(f"Python {ours:.3f} s, Rust {seconds:.3f} s, ratio {ours / seconds:.3f}", flush=True)
    # The first one warms up.
    ratio = statistics.median(ratios[1:])
    print(f"median ratio {ratio:.3f}")
    sys.exit("slower than 1.05" if ratio > GOAL else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
