"""compare.py PART...: asks our worker and the peers' in turn, and writes what came of it to benches/results/. compare.sh makes everything ready
and says where it is; parts are cpu, gpu, generate, matmul and scaling.

A worker is a process that stays. Each question is a batch of runs of at least a quarter of a second; the workers of a row are asked in
turn, so that a machine that slows down slows all of them. A batch during which anybody else used more than 0.12 of a core is dropped.
A row's figure is the median of its clean batches. Rows that are in the day's file already are not measured again."""
import csv
import datetime
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results"
DIR = Path(os.environ["PEERS_DIR"])
WORKER, BURN = os.environ["OUR_WORKER"], os.environ.get("BURN_WORKER", "")
PYTHON, PYTHON_WEBGPU = os.environ["PEERS_PYTHON"], os.environ["PEERS_PYTHON_WEBGPU"]
MODEL = DIR / "gpt2-random"

BATCH_SECONDS = 0.25
CLEAN = {8: 9, 64: 9, 256: 7}  # batches wanted, else 5
TRIES = 5  # times as many batches at most
FOREIGN = 0.12  # of a core
LONGEST = 12.0  # seconds of one run, beyond which a point of `scaling` is left out

COMMANDS = {
    "actscope cpu": [WORKER, "cpu", MODEL],
    "actscope gpu": [WORKER, "gpu", MODEL],
    "ONNX Runtime cpu": [PYTHON, HERE / "worker.py", "ort", DIR],
    "transformers cpu": [PYTHON, HERE / "worker.py", "hf", DIR],
    "TransformerLens cpu": [PYTHON, HERE / "worker.py", "tlens", DIR],
    "ONNX Runtime webgpu": [PYTHON_WEBGPU, HERE / "worker.py", "ort_webgpu", DIR],
    "transformers generate": [PYTHON, HERE / "worker.py", "hf_generate", DIR],
    "CTranslate2": [PYTHON, HERE / "worker.py", "ctranslate2", DIR],
    "llama.cpp": [PYTHON, HERE / "worker.py", "llama_cpp", DIR],
    "burn wgpu": [BURN],
}
FIELDS = ["part", "who", "taps", "tokens", "batch", "ms", "clean", "batches", "peak_mb", "time"]

# Who, what they are asked for, beside whom, and at most what share of their time, by tokens (0: any).
GOALS = {
    "cpu": [
        (("actscope cpu", "hidden"), ("ONNX Runtime cpu", "hidden"), {8: 0.8, 64: 0.9, 256: 0.9, 1024: 0.85}),
        (("actscope cpu", "hidden"), ("transformers cpu", "hidden"), {8: 0.3, 64: 0.5, 256: 0.7, 1024: 0.75}),
        (("actscope cpu", "full"), ("TransformerLens cpu", "full"), {0: 0.35}),
        (("actscope cpu", "hidden"), ("actscope cpu", "none"), {64: 1.05, 256: 1.05, 1024: 1.05}),
    ],
    "gpu": [
        (("actscope gpu", "hidden"), ("ONNX Runtime webgpu", "hidden"), {0: 0.333}),
        (("actscope gpu", "hidden"), ("actscope gpu", "none"), {64: 1.15, 256: 1.15, 1024: 1.15}),
    ],
    "matmul": [(("actscope gpu", "matmul"), ("burn wgpu", "matmul"), {0: 0.5})],
}


PROMPT, NEW = 16, 64  # tokens of generation
# Who, at what precision, for how many texts.
GENERATION = [
    ("actscope cpu", "f32", 1),
    ("actscope cpu", "f16", 1),
    ("actscope cpu", "bf16", 1),
    ("actscope cpu", "f32", 8),
    ("transformers generate", "f32", 1),
    ("CTranslate2", "f32", 1),
    ("llama.cpp", "f32", 1),
]
# By the threads that both sides may use: what the share of each peer's time may be, and of our own with half the bytes or 8 texts.
GENERATION_GOALS = {
    "all": {("transformers generate", "f32", 1): 0.55, ("CTranslate2", "f32", 1): 1, ("llama.cpp", "f32", 1): 1},
    "1": {("transformers generate", "f32", 1): 0.8, ("CTranslate2", "f32", 1): 1, ("llama.cpp", "f32", 1): 1},
}
EIGHT_TEXTS = 1.5  # times one text, at most
OF_LIMIT = {8: 1.4, 64: 1.4, 256: 1.35, 1024: 1.35}  # times the limit, at most: hidden states on cpu
TOKEN_OF_LIMIT = 1.18  # the same for a token of generation

# gpt2-small: elements of the blocks' matrices, of the unembedding, and what else its sizes give.
IN_BLOCKS, IN_UNEMBEDDING, N_EMBD, N_LAYER, N_HEAD, N_VOCAB = 84_934_656, 38_597_376, 768, 12, 12, 50_257


def say(*words):
    print(*words, file=sys.stderr, flush=True)


HZ = os.sysconf("SC_CLK_TCK")
ALL_PROCESSORS = os.sched_getaffinity(0)
PROCESSORS = ALL_PROCESSORS  # those of a worker that is started now


def busy():
    """Seconds that all cores together have worked since the machine began."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / HZ


class Worker:
    def __init__(self, who):
        self.who = who
        command = [str(word) for word in COMMANDS[who]]
        log = open(DIR / f"{who.replace(' ', '-')}.log", "w")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=lambda: os.sched_setaffinity(0, PROCESSORS)
        )
        self.about = self.answer()
        say(f"{who}: {self.about['version']}, {self.about['device']}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            log = DIR / f"{self.who.replace(' ', '-')}.log"
            raise EOFError(f"{self.who} ended with {self.process.wait()}; see {log}")
        return json.loads(line)

    def limits(self):
        """GFLOP/s and GB/s of the device of our worker."""
        self.process.stdin.write(json.dumps({"run": "limits", "seconds": 0}) + "\n")
        self.process.stdin.flush()
        return self.answer()

    def ask(self, question):
        """Milliseconds of one run, and how much of a core others used meanwhile."""
        foreign, begin = busy() - self.worked(), time.perf_counter()
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        ms = self.answer()["ms"]
        elapsed = time.perf_counter() - begin
        return ms, max(0.0, busy() - self.worked() - foreign) / elapsed

    def worked(self):
        """Seconds that this process has worked."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / HZ

    def forget_peak(self):
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def peak_mb(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024 / 1e6

    def end(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()


class Results:
    """One file for each day and machine, written whenever a row has been measured."""

    def __init__(self):
        RESULTS.mkdir(exist_ok=True)
        machine = re.sub(r"\W+", "-", os.environ.get("MACHINE") or cpu_name()).strip("-").lower()
        self.path = RESULTS / f"{datetime.date.today()}-{machine}.csv"
        self.rows = list(csv.DictReader(open(self.path, newline=""))) if self.path.exists() else []
        self.about_path = self.path.with_suffix(".json")
        self.about = json.loads(self.about_path.read_text()) if self.about_path.exists() else {}

    def find(self, part, who, taps, tokens, batch=1):
        key = {"part": part, "who": who, "taps": taps, "tokens": str(tokens), "batch": str(batch)}
        return next((row for row in self.rows if all(row[field] == key[field] for field in key)), None)

    def add(self, row):
        """In place of an older one: a group of which one row is missing is measured again as a whole."""
        row = {field: str(value) for field, value in row.items()}
        older = self.find(*(row[field] for field in FIELDS[:5]))
        self.rows = [other for other in self.rows if other is not older] + [row]
        unfinished = self.path.with_suffix(".unfinished")
        with open(unfinished, "w", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            writer.writeheader()
            writer.writerows(self.rows)
        unfinished.rename(self.path)

    def know(self, workers, limits=None, part=None):
        """Who takes part. Limits are the highest that were measured for a part, before it and after it."""
        self.about.update({who: [w.about["version"], w.about["device"]] for who, w in workers.items()})
        if limits:
            known = self.about.setdefault("limits", {}).setdefault(part, limits)
            known.update({what: max(value, known[what]) for what, value in limits.items()})
        self.about_path.write_text(json.dumps(self.about, indent=1) + "\n")


def cpu_name():
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def measure(results, part, workers, asked, tokens, batch=1, wanted=None, run=None):
    """One group of rows in turn: every (who, taps) of `asked`, or (who, weights) where the run is a generation."""
    if all(results.find(part, who, taps, tokens, batch) for who, taps in asked):
        return
    wanted = wanted or CLEAN.get(tokens, 5)
    run = run or ("matmul" if part == "matmul" else "forward")
    question = {"run": run, "tokens": tokens, "batch": batch, "prompt": PROMPT, "seconds": BATCH_SECONDS}
    what = "weights" if run == "generate" else "taps"
    clean, every, peak = ({key: [] for key in asked} for _ in range(3))
    for who, taps in asked:  # twice: compiles, packs, tunes
        for _ in range(2):
            workers[who].ask(question | {what: taps, "seconds": 0})
    for _ in range(wanted * TRIES):
        for who, taps in asked:
            if len(clean[who, taps]) == wanted:
                continue
            workers[who].forget_peak()
            ms, foreign = workers[who].ask(question | {what: taps})
            peak[who, taps].append(workers[who].peak_mb())
            every[who, taps].append(ms)
            if foreign <= FOREIGN:
                clean[who, taps].append(ms)
        if all(len(clean[key]) == wanted for key in asked):
            break
    for who, taps in asked:
        n = len(clean[who, taps])
        ms = statistics.median(clean[who, taps] or every[who, taps])
        now = datetime.datetime.now().isoformat(timespec="seconds")
        row = dict(zip(FIELDS, [part, who, taps, tokens, batch, f"{ms:.3f}", n, len(every[who, taps]), f"{max(peak[who, taps]):.0f}", now]))
        results.add(row)
        say(f"  {who:20} {taps:6} tokens {tokens:5} batch {batch:3} {ms:10.2f} ms  {n}/{len(every[who, taps])} clean")


def start(names):
    """The workers that can be had; the others are named with what they said."""
    workers = {}
    for who in names:
        try:
            workers[who] = Worker(who)
        except (EOFError, OSError) as e:
            say(f"left out: {e}")
    return workers


def part(results, name, tokens, asked):
    say(f"part {name}")
    names = list(dict.fromkeys(who for who, _ in asked))
    if all(results.find(name, who, taps, t) for who, taps in asked for t in tokens):
        return say("  all of it is there already")
    workers = start(names)
    ours = workers.get("actscope cpu") if name == "cpu" else None
    results.know(workers, ours and ours.limits(), name)
    asked = [(who, taps) for who, taps in asked if who in workers]
    for t in tokens:
        measure(results, name, workers, asked, t)
    results.know(workers, ours and ours.limits(), name)
    for worker in workers.values():
        worker.end()


def generation(results):
    """A prompt and its first new token, and NEW new tokens, on all processors and on one: everybody in turn."""
    global PROCESSORS
    say("part generate")
    for threads in os.environ.get("GENERATE_THREADS", "all 1").split():
        name = f"generate on {threads}"
        rows = [(who, weights, batch, new) for who, weights, batch in GENERATION for new in (1, NEW)]
        if all(results.find(name, who, weights, new, batch) for who, weights, batch, new in rows):
            continue
        PROCESSORS = ALL_PROCESSORS if threads == "all" else {min(ALL_PROCESSORS)}
        workers = start(list(dict.fromkeys(who for who, _, _ in GENERATION)))
        PROCESSORS = ALL_PROCESSORS
        results.know(workers, workers["actscope cpu"].limits(), name)
        for new in (1, NEW):
            for batch in (1, 8):
                asked = [(who, weights) for who, weights, texts in GENERATION if texts == batch and who in workers]
                measure(results, name, workers, asked, new, batch, wanted=5, run="generate")
        results.know(workers, workers["actscope cpu"].limits(), name)
        for worker in workers.values():
            worker.end()


def limit_of_run(limits, taps, tokens):
    """Milliseconds that a run takes at the device's limits, and which of them it is. Bytes: weights read once, values that come to the
    host written once."""
    flops = 2 * tokens * IN_BLOCKS + N_LAYER * 2 * tokens * (tokens + 1) * N_EMBD
    to_host = 13 * tokens * N_EMBD if taps == "hidden" else 0
    elements = IN_BLOCKS + to_host
    if taps == "full":
        flops += 2 * tokens * IN_UNEMBEDDING
        # 13 hooks of n_embd columns and two of 4 n_embd a block, two scales, scores and pattern; embeddings, the end, the logits.
        of_block = 13 * N_EMBD + 2 * 4 * N_EMBD + 2 + 2 * N_HEAD * tokens
        elements += IN_UNEMBEDDING + tokens * (N_LAYER * of_block + 4 * N_EMBD + 1 + N_VOCAB)
    by = {"FLOP": 1e-6 * flops / limits["gflops"], "bytes": 4e-6 * elements / limits["gbytes"]}
    which = max(by, key=by.get)
    return by[which], which


def token_of(results, name, who, weights, batch):
    """Milliseconds of a token after the first, and of prompt and first token; None where they were not measured."""
    first, all_new = (results.find(name, who, weights, new, batch) for new in (1, NEW))
    if not (first and all_new):
        return None
    return (float(all_new["ms"]) - float(first["ms"])) / (NEW - 1), float(first["ms"])


def limit_of_token(limits, weights):
    size = 4 if weights == "f32" else 2
    return 1e-6 * size * (IN_BLOCKS + IN_UNEMBEDDING) / limits["gbytes"]


def generation_lines(results):
    lines = []
    for threads, goals in GENERATION_GOALS.items():
        name = f"generate on {threads}"
        ours = token_of(results, name, "actscope cpu", "f32", 1)
        if not ours:
            continue
        limits = results.about["limits"][name]
        lines += ["", f"## generation, {PROMPT} tokens of a prompt and {NEW} new ones, {'all threads' if threads == 'all' else 'one thread'}", "",
                  f"Limits, measured: {limits['gflops']:.0f} GFLOP/s, {limits['gbytes']:.1f} GB/s.", "",
                  "| | prompt and first token, ms | ms per token | tokens/s | limit, ms | of the memory's speed | ours / theirs, all tokens (goal) |", "|---" * 7 + "|"]
        for who, weights, batch in GENERATION:
            found = token_of(results, name, who, weights, batch)
            if not found:
                continue
            (token, first), limit = found, limit_of_token(limits, weights)
            ratio, goal = token / limit, None
            cells = [f"{limit:.2f}", f"{limit / token:.0%}"]
            if who == "actscope cpu" and batch == 1:
                cells.append(f"{ratio:.2f} x the limit ({'at most' if ratio <= TOKEN_OF_LIMIT else '**missed**,'} {TOKEN_OF_LIMIT})")
            elif who == "actscope cpu":
                of_one = token / ours[0]
                cells.append(f"{of_one:.2f} x one text ({'at most' if of_one <= EIGHT_TEXTS else '**missed**,'} {EIGHT_TEXTS})")
            else:
                goal = goals[who, weights, batch]
                a, b = (float(results.find(name, whose, weights, NEW, batch)["ms"]) for whose in ("actscope cpu", who))
                cells.append(f"{a / b:.2f} ({'at most' if a / b <= goal else '**missed**,'} {goal:g})")
            label = f"{who}, {weights}" + (f", {batch} texts" if batch > 1 else "")
            lines.append(f"| {label} | {first:.2f} | {token:.2f} | {1e3 * batch / token:.0f} | " + " | ".join(cells) + " |")
    return lines


def asked_of(name):
    return list(dict.fromkeys(side for ours, theirs, _ in GOALS[name] for side in (ours, theirs)))


def scaling(results):
    """Time and memory against tokens, one text, and against texts of 64 tokens. Every peer by itself: what is compared here is how
    it grows."""
    say("part scaling")
    points = [(t, 1) for t in (1, 4, 16, 64, 256, 1024)] + [(64, n) for n in (2, 4, 8, 16, 32)]
    taps = {who: "hidden" for who in COMMANDS if who != "burn wgpu"}
    for who in taps:
        if all(results.find("scaling", who, "hidden", *point) for point in points):
            continue
        workers = start([who])
        results.know(workers)
        cost = 0.0
        for tokens, batch in points if workers else []:
            if tokens * batch > 64 and cost * tokens * batch > LONGEST:
                say(f"  left out: {who} at {batch} x {tokens} tokens, about {cost * tokens * batch:.0f} s a run")
                continue
            measure(results, "scaling", workers, [(who, "hidden")], tokens, batch, wanted=3)
            cost = float(results.find("scaling", who, "hidden", tokens, batch)["ms"]) / 1e3 / (tokens * batch)
        for worker in workers.values():
            worker.end()


def goal_of(goals, tokens):
    return goals.get(tokens, goals.get(0))


def report(results):
    """What was found, as Markdown, on stdout and beside the rows."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE).stdout.strip()
    lines = [f"# Ours and others', {datetime.date.today()}", ""]
    lines += [f"- {cpu_name()}, {os.cpu_count()} threads, {platform.platform()}", f"- commit {commit} when the last row was measured, the csv has each row's time; `benches/compare.sh`"]
    lines += [f"- {who}: {about[0]}; {about[1]}" for who, about in results.about.items() if who != "limits"]
    lines += ["", "gpt2-small's shape, random weights, f32, one text. Milliseconds of one run with its values on the host: medians of clean batches, the",
              "two sides of a ratio asked in turn. hidden: 13 hidden states; full: everything TransformerLens caches; none: the last token's last hidden",
              "state. A dagger marks figures of fewer than five clean batches."]
    mark = lambda row: f"{float(row['ms']):.2f}" + ("†" if int(row["clean"]) < 5 else "")
    for name in GOALS:
        rows = [row for row in results.rows if row["part"] == name]
        if not rows:
            continue
        tokens = sorted({int(row["tokens"]) for row in rows})
        what = "[T, 768] x [768, 3072]" if name == "matmul" else "whole runs"
        lines += ["", f"## {name}: {what}", "", "| ms | " + " | ".join(f"T={t}" for t in tokens) + " |", "|---" * (1 + len(tokens)) + "|"]
        for who, taps in asked_of(name):
            cells = [results.find(name, who, taps, t) for t in tokens]
            lines.append(f"| {who}, {taps} | " + " | ".join(mark(row) if row else "-" for row in cells) + " |")
        limits = results.about.get("limits", {}).get(name)
        if limits:
            for taps in ("hidden", "full"):
                cells = [f"{ms:.2f} ({which})" for ms, which in (limit_of_run(limits, taps, t) for t in tokens)]
                lines.append(f"| limit, {taps} | " + " | ".join(cells) + " |")
            lines += ["", f"Limits of the device, measured before and after these rows by loops of `actscope bench`: {limits['gflops']:.0f} GFLOP/s, "
                      f"{limits['gbytes']:.1f} GB/s.", "", "| time / limit (goal) | " + " | ".join(f"T={t}" for t in tokens) + " |", "|---" * (1 + len(tokens)) + "|"]
            for who, taps in [row for row in asked_of(name) if row[1] != "none"]:
                cells = []
                for t in tokens:
                    row = results.find(name, who, taps, t)
                    ratio = float(row["ms"]) / limit_of_run(limits, taps, t)[0] if row else None
                    goal = OF_LIMIT[t] if (who, taps) == ("actscope cpu", "hidden") else None
                    said = f" ({'at most' if ratio <= goal else '**missed**,'} {goal:g})" if goal and row else ""
                    cells.append(f"{ratio:.2f}{said}" if row else "-")
                lines.append(f"| {who}, {taps} | " + " | ".join(cells) + " |")
            lines += ["", f"![how far from the limit]({results.path.stem}-limits.png)"]
        lines += ["", "| ratio (goal) | " + " | ".join(f"T={t}" for t in tokens) + " |", "|---" * (1 + len(tokens)) + "|"]
        for ours, theirs, goals in GOALS[name]:
            cells = []
            for t in tokens:
                a, b = results.find(name, *ours, t), results.find(name, *theirs, t)
                goal = goal_of(goals, t)
                if not (a and b):
                    cells.append("-")
                    continue
                ratio = float(a["ms"]) / float(b["ms"])
                said = f" ({'at most' if ratio <= goal else '**missed**,'} {goal:g})" if goal else ""
                cells.append(f"{ratio:.2f}{said}")
            lines.append(f"| {ours[0]} {ours[1]} / {theirs[0]} {theirs[1]} | " + " | ".join(cells) + " |")
    lines += generation_lines(results)
    rows = [row for row in results.rows if row["part"] == "scaling"]
    if rows:
        lines += ["", "## scaling: hidden states, each by itself", "", f"![time and memory]({results.path.stem}.png)", "",
                  "| ms (peak MB) | " + " | ".join(f"{b} x {t}" for t, b in scaling_points(rows)) + " |", "|---" * (1 + len(scaling_points(rows))) + "|"]
        for who in dict.fromkeys(row["who"] for row in rows):
            cells = [results.find("scaling", who, "hidden", *point) for point in scaling_points(rows)]
            lines.append(f"| {who} | " + " | ".join(f"{float(row['ms']):.1f} ({row['peak_mb']})" if row else "-" for row in cells) + " |")
    text = "\n".join(lines) + "\n"
    results.path.with_suffix(".md").write_text(text)
    print(text)


def scaling_points(rows):
    return sorted({(int(row["tokens"]), int(row["batch"])) for row in rows}, key=lambda point: (point[1], point[0]))


def main():
    parts = sys.argv[1:] or ["cpu", "gpu", "generate", "matmul", "scaling"]
    results = Results()
    say(f"rows go to {results.path}")
    # On a software adapter, 1,024 tokens take the peer most of a minute.
    of_gpu = [int(t) for t in os.environ.get("GPU_TOKENS", "8 64 256").split()]
    for name in parts:
        if name == "scaling":
            scaling(results)
        elif name == "generate":
            generation(results)
        elif name == "cpu":
            part(results, name, [int(t) for t in os.environ.get("CPU_TOKENS", "8 64 256 1024").split()], asked_of(name))
        elif name == "gpu":
            part(results, name, of_gpu, asked_of(name))
        else:
            part(results, name, [64, 256], asked_of(name))
    report(results)
    import plot

    if any(row["part"] == "scaling" for row in results.rows):
        plot.draw(results.rows, results.path.with_suffix(".png"))
    limits = results.about.get("limits", {})
    if "cpu" in limits:
        far = {
            (row["who"], row["taps"], int(row["tokens"])): float(row["ms"]) / limit_of_run(limits["cpu"], row["taps"], int(row["tokens"]))[0]
            for row in results.rows
            if row["part"] == "cpu" and row["taps"] != "none"
        }
        tokens = {}
        if "generate on all" in limits:
            for who, weights, batch in GENERATION:
                found = token_of(results, "generate on all", who, weights, batch)
                if found:
                    label = f"{who}, {weights}" + (f", {batch} texts" if batch > 1 else "")
                    tokens[label] = found[0] / limit_of_token(limits["generate on all"], weights)
        plot.draw_limits(far, tokens, results.path.with_name(f"{results.path.stem}-limits.png"))


main()
