"""Writes the golden files under tests/fixtures/, or refuses. See README.md.

    python tools/goldens/make.py [NAME]...   the tiny fixtures, all or those named
    python tools/goldens/make.py demo        models/demo on three texts, and the tokenizer's odd strings
    python tools/goldens/make.py verify      PyTorch's own float32 error on the texts of `actscope verify`
    python tools/goldens/make.py generation  what transformers' generate writes from the fixtures' texts
    python tools/goldens/make.py faults      injects each likely mistake and shows that it is detected
"""

import hashlib
import json
import pathlib
import shutil
import sys
import tempfile
from importlib.metadata import version

import numpy as np
import torch
from safetensors.numpy import save as serialize
from transformers import GPT2TokenizerFast

import compare
import faults
import generation
import lens
import plain
import tokenizer_strings
import expected
from checkpoints import SPECS, write

ROOT = pathlib.Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
PACKAGES = ("torch", "transformers", "transformer_lens", "numpy", "safetensors", "tokenizers")

# float64 against float64: the largest seen is 2e-14. The smallest injected fault shows at 2e-4 (README.md).
TOLERANCE = 1e-12
# float32 against float64: PyTorch's own error, which is only recorded. Above this a checkpoint is too wild to use.
F32_AT_MOST = 1e-4

DEMO = ROOT / "models" / "demo"
# Those of `actscope verify`: rows on both sides of what the kernels for few rows take, and of their tiles of 64.
VERIFY_TEXTS = [
    "Call me Ishmael. Some years ago, never mind how long precisely, having little or no money in my purse, and nothing"
    " particular to interest me on shore, I thought I would sail about a little and see the watery part of the world. It"
    " is a way I have of driving off the spleen and regulating the circulation.",  # Melville 1851
    "Yes",
    "Ça? 🙂",
    "The cat sat on the mat.",
]
TEXTS = ["The cat sat on the mat.", "Yes", "Ça? 🙂"]  # of different length, one far from ASCII
DEMO_AT_MOST = 5e6  # bytes of its golden file


def check(folder, rows, true):
    """Compares the expected values, one {hook: array} a row, with both other sources; returns their worst (error, hook)."""
    bridge, larger = lens.bridge(folder)
    if larger != 1:  # the mend in lens.py must still be needed
        unmended, _ = lens.bridge(folder, mend=False)
        errors = compare.worst_hook([lens.activations(unmended, 1.0, ids) for ids in rows], true)
        if errors["blocks.0.attn.hook_attn_scores"] < 0.1:
            raise compare.Refused("TransformerLens now reads scale_attn_weights: take the mend out of lens.py")
    by_lens = [lens.activations(bridge, larger, ids) for ids in rows]
    worst_lens = compare.refuse_above(TOLERANCE, compare.worst_hook(by_lens, true), "TransformerLens")
    by_plain = [plain.activations(*plain.load(folder), ids) for ids in rows]
    worst_plain = compare.refuse_above(TOLERANCE, compare.worst_hook(by_plain, true), "plain numpy")
    return worst_lens, worst_plain


def golden(folder, rows, path, metadata):
    """Computes, checks and writes `path` for the checkpoint in `folder` and these rows of ids."""
    model = expected.load(folder, torch.float64)
    true = [expected.activations(model, ids) for ids in rows]
    worst_lens, worst_plain = check(folder, rows, true)
    single = expected.load(folder, torch.float32)
    f32 = compare.worst_hook([expected.activations(single, ids) for ids in rows], true)
    worst_f32 = compare.refuse_above(F32_AT_MOST, f32, "PyTorch in float32")

    tensors = {name: compare.pad(true, name) for name in true[0]}
    length = max(map(len, rows))
    padded = lambda rows: np.array([row + [0] * (length - len(row)) for row in rows], np.int64)
    tensors["input_ids"], tensors["attention_mask"] = padded(rows), padded([[1] * len(row) for row in rows])
    recipe = {name: version(name).split("+")[0] for name in PACKAGES}
    save(tensors, path, {"recipe": json.dumps(recipe), "torch_f32_error": json.dumps(f32), **metadata})
    size, tokens = path.stat().st_size / 1e3, "/".join(str(len(row)) for row in rows)
    print(f"{path.parent.name:17} {size:6.0f} kB  tokens {tokens:7}  lens {worst_lens[0]:.0e}"
          f"  plain {worst_plain[0]:.0e}  torch f32 {worst_f32[0]:.1e} at {worst_f32[1]}")


def save(tensors, path, metadata):
    """A safetensors file with the same bytes every time: the package alone leaves the metadata in any order."""
    data = serialize(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def put(folder, place):
    """Moves a finished folder into its place, over what was there."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place, copy_function=shutil.copyfile)


def tiny(spec, parent=FIXTURES):
    """One tiny checkpoint with its golden file, in its place only when both are there and right."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / spec.name
        folder.mkdir()
        golden(folder, write(spec, folder), folder / "golden.safetensors", {})
        put(folder, parent / spec.name)


def demo():
    """models/demo: the golden file (the checkpoint stays where it is) and the tokenizer's odd strings."""
    tokenizer = GPT2TokenizerFast.from_pretrained(DEMO)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in TEXTS]
    weights = hashlib.sha256((DEMO / "model.safetensors").read_bytes()).hexdigest()
    metadata = {"model": "models/demo", "model_sha256": weights, "texts": json.dumps(TEXTS, ensure_ascii=False)}
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "demo"
        folder.mkdir()
        golden(DEMO, rows, folder / "golden.safetensors", metadata)
        if (folder / "golden.safetensors").stat().st_size > DEMO_AT_MOST:
            print("WARNING: larger than it should be; shorten TEXTS", file=sys.stderr)
        put(folder, FIXTURES / "demo")
    tokenizer_strings.write(DEMO, FIXTURES)


def verify():
    """src/verify/demo.json: the texts of `actscope verify`, and PyTorch's float32 error per hook of models/demo on them."""
    tokenizer = GPT2TokenizerFast.from_pretrained(DEMO)
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in VERIFY_TEXTS]
    true = [expected.activations(expected.load(DEMO, torch.float64), ids) for ids in rows]
    check(DEMO, rows, true)
    f32 = compare.worst_hook([expected.activations(expected.load(DEMO, torch.float32), ids) for ids in rows], true)
    compare.refuse_above(F32_AT_MOST, f32, "PyTorch in float32")
    table = {
        "recipe": {name: version(name).split("+")[0] for name in PACKAGES},
        "model_sha256": hashlib.sha256((DEMO / "model.safetensors").read_bytes()).hexdigest(),
        "texts": VERIFY_TEXTS,
        "torch_f32_error": {name: float(f"{error:.3g}") for name, error in f32.items()},
    }
    path = ROOT / "src" / "verify" / "demo.json"
    path.write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n")
    print(f"{path.name}: tokens {[len(row) for row in rows]}, torch f32 at worst {max(f32.values()):.1e}")


def main(names):
    by_name = {spec.name: spec for spec in SPECS}
    unknown = [name for name in names if name not in by_name and name not in ("demo", "verify", "generation", "faults")]
    if unknown:
        raise SystemExit(f"no such fixture: {' '.join(unknown)}; there are: {' '.join(by_name)}, demo, verify, generation, faults")
    FIXTURES.mkdir(parents=True, exist_ok=True)
    for name in names or by_name:
        if name == "faults":
            faults.show(TOLERANCE, F32_AT_MOST)
        elif name == "demo":
            demo()
        elif name == "verify":
            verify()
        elif name == "generation":
            generation.write(ROOT, FIXTURES)
        else:
            tiny(by_name[name])


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except compare.Refused as refusal:
        raise SystemExit(f"refused: {refusal}")
