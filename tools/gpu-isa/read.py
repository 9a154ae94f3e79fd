#!/usr/bin/env python3
"""Reads what drivers print about our kernels and writes one row per chip and kernel as CSV.

read.py FOLDER               FOLDER holds CHIP.out and CHIP.err of compile.rs for the chips amd, apple, nvidia
read.py FOLDER THRESHOLDS    compares instead: THRESHOLDS has chip, kernel, the most spills and the least share of multiply-adds

registers    of one invocation, as the driver counts them (apple: of 16 bits)
spills       registers that did not fit
instructions of the whole kernel
loop         instructions of the loop that holds most multiply-adds; the whole kernel where it has no loop
fma          multiply-adds among them, each counted once for one number
waits        among them, for memory
share        fma / loop in percent
cycles       of one pass through the whole kernel, as the driver's own model estimates (amd: latency; apple: none)
"""
import csv
import re
import sys
from pathlib import Path


def sections(path):
    """The lines behind each marker of compile.rs."""
    found, name = {}, None
    for line in path.read_text(errors="replace").split("\n"):
        if line.startswith("=== "):
            name = line[4:].strip()
            found[name] = []
        elif name is not None:
            found[name].append(line)
    found.pop("end", None)
    return found


def best_loop(code, loops, is_fma):
    """The loop with most multiply-adds, of these the shortest; all of the code where there is none."""
    return max(loops or [code], key=lambda part: (sum(map(is_fma, part)), -len(part)))


def row(code, loops, is_fma, is_wait, registers, spills, cycles=""):
    loop = best_loop(code, loops, is_fma)
    fma = sum(map(is_fma, loop))
    return dict(
        registers=registers,
        spills=spills,
        instructions=len(code),
        loop=len(loop),
        fma=fma,
        waits=sum(map(is_wait, loop)),
        share=round(100 * fma / max(len(loop), 1)),
        cycles=cycles,
    )


def amd(out, err):
    stats = {}
    for line in err:
        m = re.match(r"(.+?): (\d+)$", line)
        if m:
            stats[m[1]] = int(m[2])
    end = max(i for i, line in enumerate(err) if "s_endpgm" in line)
    start = max(i for i in range(end) if err[i].startswith("BB0:"))
    code, labels = [], {}
    for line in err[start : end + 1]:
        label = re.match(r"(BB\d+):", line)
        instruction = re.match(r"\t(\S+)\s*([^;]*)", line)
        if label:
            labels[label[1]] = len(code)
        elif instruction and instruction[1] != "s_delay_alu":
            code.append((instruction[1], instruction[2]))
    loops = set()
    for i, (op, arguments) in enumerate(code):
        m = re.search(r"(BB\d+)", arguments) if re.match(r"s_c?branch", op) else None
        if m and labels.get(m[1], i + 1) <= i:
            loops.add((labels[m[1]], i))
    # s_delay_alu is left out above: it is a hint to the scheduler and no work.

    def is_fma(part):
        return bool(re.match(r"v_(fma|fmac|pk_fma|mad|dot)", part[0])) or "v_dual_fma" in part[0]

    def is_wait(part):
        return part[0].startswith(("s_waitcnt", "s_wait_"))

    return row(code, [code[a : b + 1] for a, b in loops], is_fma, is_wait, stats["VGPRs"], stats.get("Spilled VGPRs", 0), stats["Latency"])


def apple(out, err):
    blocks = []
    for line in out:
        m = re.match(r"^\s*([0-9a-f]+): ([0-9a-f]+)\s+(\S+)\s*(.*)$", line)
        if m:
            if int(m[1], 16) == 0:
                blocks.append([])
            if blocks:
                blocks[-1].append((int(m[1], 16), m[3], m[4]))

    def is_fma(part):
        return part[1] in ("ffma", "fmadd")

    code = max(blocks, key=lambda block: (sum(map(is_fma, block)), len(block)))
    at = {part[0]: i for i, part in enumerate(code)}
    loops = set()
    for i, (address, op, arguments) in enumerate(code):
        m = re.search(r"(-\d+)", arguments) if op.startswith("jmp") else None
        if m and address + int(m[1]) in at:
            loops.add((at[address + int(m[1])], i))
    stats = " ".join(line for line in err if "CS shader" in line and "preamble inst" in line)
    number = lambda word: max(map(int, re.findall(r"(\d+) " + word, stats)), default=0)
    return row(code, [code[a : b + 1] for a, b in loops], is_fma, lambda part: part[1] == "wait", number("gprs"), sum(map(int, re.findall(r"(\d+):\d+ spills", stats))))


def nvidia(out, err):
    blocks, block = [], None
    for line in err:
        m = re.match(r"block(?:\.u)? (\d+) .*\[(.*?)\] -> \{", line)
        end = re.match(r"\} -> \[(.*)\]", line)
        if m:
            # The kernel is printed after each pass: the last one counts.
            if m[1] == "0":
                blocks = []
            block = dict(id=int(m[1]), code=[], next=[])
            blocks.append(block)
        elif end and block:
            block["next"] = [int(n) for n in re.findall(r"\d+", end[1])]
            block = None
        elif block is not None and "// delay=" in line:
            block["code"].append(line)
    index = {block["id"]: i for i, block in enumerate(blocks)}
    after = [[index[n] for n in block["next"] if n in index] for block in blocks]
    before = [[i for i in range(len(blocks)) if n in after[i]] for n in range(len(blocks))]
    loops = []
    for i, next in enumerate(after):
        for head in (n for n in next if n <= i):
            # The blocks that reach i without passing the head; those of a jump that is no loop reach back to the kernel's start.
            inside, todo = {head, i}, [i]
            while todo:
                block = todo.pop()
                new = [] if block == head else [n for n in before[block] if n not in inside]
                inside.update(new)
                todo.extend(new)
            if 0 not in inside or head == 0:
                loops.append([line for n in sorted(inside) for line in blocks[n]["code"]])
    code = [line for block in blocks for line in block["code"]]
    stats = " ".join(err)
    number = lambda word: max(map(int, re.findall(word + r": (\d+)", stats)), default=0)
    spills = sum(map(int, re.findall(r"Spills to mem: (\d+)", stats)))
    cycles = number("Static cycle count")
    return row(code, loops, lambda l: "ffma" in l, lambda l: "wt=0b000000" not in l and "wt=" in l, number("Num GPRs"), spills, cycles)


def table(folder):
    for chip, reader in (("amd", amd), ("apple", apple), ("nvidia", nvidia)):
        out, err = sections(folder / f"{chip}.out"), sections(folder / f"{chip}.err")
        if not err:
            sys.exit(f"{chip}: the driver compiled nothing; see {folder}/{chip}.err")
        for kernel in err:
            try:
                yield dict(chip=chip, kernel=kernel, **reader(out.get(kernel, []), err[kernel]))
            except (ValueError, KeyError) as e:
                sys.exit(f"{chip}, {kernel}: the driver's text has another form ({e!r})")


def check(rows, thresholds):
    """True where every row of the thresholds is met. A kernel without a row is an error: it would be checked by nothing."""
    limits = {(limit["chip"], limit["kernel"]): limit for limit in thresholds}
    good = True
    for row in rows:
        limit = limits.pop((row["chip"], row["kernel"]), None)
        name = f"{row['chip']}, {row['kernel']}"
        if limit is None:
            print(f"{name}: thresholds.csv has no row for it")
            good = False
            continue
        if row["spills"] > int(limit["spills"]):
            print(f"{name}: {row['spills']} spilled registers, at most {limit['spills']} are allowed")
            good = False
        if row["share"] < int(limit["share"]):
            print(f"{name}: {row['share']} % of its hottest loop multiply and add, at least {limit['share']} are wanted")
            good = False
    for chip, kernel in limits:
        print(f"{chip}, {kernel}: in thresholds.csv, and no longer compiled")
        good = False
    return good


def main():
    rows = list(table(Path(sys.argv[1])))
    if len(sys.argv) > 2:
        with open(sys.argv[2], newline="") as file:
            good = check(rows, csv.DictReader(file))
        print(f"gpu-isa: {len(rows)} kernels compiled, {'all within' if good else 'not all within'} their thresholds")
        sys.exit(0 if good else 1)
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


main()
