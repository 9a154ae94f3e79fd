"""compare.py PART...: asks our worker and the peers' in turn, and writes what came of it to benches/results/. compare.sh makes everything ready
and says where it is; parts are cpu, gpu, matmul and scaling.

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


def say(*words):
    print(*words, file=sys.stderr, flush=True)


HZ = os.sysconf("SC_CLK_TCK")


def busy():
    """Seconds that all cores together have worked since the machine began."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / HZ


class Worker:
    def __init__(self, who):
        self.who = who
        command = [str(word) for word in COMMANDS[who]]
        log = open(DIR / f"{who.replace(' ', '-')}.log", "w")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
        self.about = self.answer()
        say(f"{who}: {self.about['version']}, {self.about['device']}")

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            log = DIR / f"{self.who.replace(' ', '-')}.log"
            raise EOFError(f"{self.who} ended with {self.process.wait()}; see {log}")
        return json.loads(line)

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

    def know(self, workers):
        self.about.update({who: [w.about["version"], w.about["device"]] for who, w in workers.items()})
        self.about_path.write_text(json.dumps(self.about, indent=1) + "\n")


def cpu_name():
    match = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.machine()


def measure(results, part, workers, asked, tokens, batch=1, wanted=None):
    """One group of rows in turn: every (who, taps) of `asked`."""
    if all(results.find(part, who, taps, tokens, batch) for who, taps in asked):
        return
    wanted = wanted or CLEAN.get(tokens, 5)
    run = "matmul" if part == "matmul" else "forward"
    question = {"run": run, "tokens": tokens, "batch": batch, "seconds": BATCH_SECONDS}
    clean, every, peak = ({key: [] for key in asked} for _ in range(3))
    for who, taps in asked:  # twice: compiles, packs, tunes
        for _ in range(2):
            workers[who].ask(question | {"taps": taps, "seconds": 0})
    for _ in range(wanted * TRIES):
        for who, taps in asked:
            if len(clean[who, taps]) == wanted:
                continue
            workers[who].forget_peak()
            ms, foreign = workers[who].ask(question | {"taps": taps})
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
    results.know(workers)
    asked = [(who, taps) for who, taps in asked if who in workers]
    for t in tokens:
        measure(results, name, workers, asked, t)
    for worker in workers.values():
        worker.end()


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
    lines += [f"- {who}: {version}; {device}" for who, (version, device) in results.about.items()]
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
    parts = sys.argv[1:] or ["cpu", "gpu", "matmul", "scaling"]
    results = Results()
    say(f"rows go to {results.path}")
    # On a software adapter, 1,024 tokens take the peer most of a minute.
    of_gpu = [int(t) for t in os.environ.get("GPU_TOKENS", "8 64 256").split()]
    for name in parts:
        if name == "scaling":
            scaling(results)
        elif name == "cpu":
            part(results, name, [8, 64, 256, 1024], asked_of(name))
        elif name == "gpu":
            part(results, name, of_gpu, asked_of(name))
        else:
            part(results, name, [64, 256], asked_of(name))
    report(results)
    if any(row["part"] == "scaling" for row in results.rows):
        import plot

        plot.draw(results.rows, results.path.with_suffix(".png"))


main()
