"""Weights processed as TransformerLens does (`process`): what the command line gives, TransformerLens's values, and the algebra."""

import json
import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FIXTURES, ROOT, TEXT, assert_near, golden, read_safetensors, worst_token_error
from test_values import ROUNDING, TIMES_TORCH

import actscope

STEPS = ["fold-ln", "center-writing", "center-unembed", "fold-value", "tl", "fold-value, fold-ln"]


def command(*arguments: object) -> None:
    """Runs the program that tools/check-python.sh builds beside the module."""
    program = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug" / "actscope"
    assert program.exists(), "cargo build makes the program that this test compares with"
    subprocess.run([program, *map(str, arguments), "--quiet"], check=True)


@pytest.mark.parametrize("steps", STEPS)
def test_weights_and_values_are_the_command_lines(steps: str, tmp_path: Path) -> None:
    """Seen red with the steps left out of `load`."""
    model = actscope.load("demo", device="cpu", process=steps)
    command("weights", "*", "--process", steps, "-m", "demo", "-o", tmp_path / "weights.npz")
    with np.load(tmp_path / "weights.npz") as theirs:
        assert {name for name in theirs.files if "." in name} == set(model.weights)
        for name, values in model.weights.items():
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)
    command("extract", TEXT, "-k", "*", "--process", steps, "--device", "cpu", "-o", tmp_path / "values.npz")
    cache = model.run(TEXT, "*")
    with np.load(tmp_path / "values.npz") as theirs:
        for hook, values in cache.items():
            np.testing.assert_array_equal(values, theirs[hook], err_msg=hook)
    cache.save(tmp_path / "ours.safetensors")
    command("extract", TEXT, "-k", "resid_post.0", "--process", steps, "--device", "cpu", "-o", tmp_path / "theirs.safetensors")
    ours, theirs_about = (read_safetensors(tmp_path / f"{who}.safetensors")[1] for who in ("ours", "theirs"))
    assert ours["process"] == theirs_about["process"] == model.process


def test_values_are_transformer_lenss() -> None:
    """The bounds are those of tests/attribution.rs. Seen red with fold-value left out."""
    arrays, metadata = read_safetensors(FIXTURES / "processed.safetensors")
    rows = json.loads(metadata["rows"])
    assert rows
    for name, ids in rows.items():
        torch_error = golden(name).torch_error
        cache = actscope.load(str(FIXTURES / name), device="cpu", process="tl").run([ids], "*")
        for hook, values in cache.items():
            want = arrays[f"{name}/{hook}"]
            allowed = max(TIMES_TORCH * torch_error[hook], ROUNDING)
            assert worst_token_error(hook, values, want) <= allowed, (name, hook)


@pytest.mark.parametrize("steps", STEPS)
def test_the_algebra_holds(model: actscope.Model, steps: str) -> None:
    """Seen red with the unembedding's bias left out of `logit_attrs`."""
    processed = actscope.load("demo", device="cpu", process=steps)
    cache = processed.run(TEXT)
    parts = cache.decompose_resid()
    assert_near(parts.astype(np.float64).sum(axis=0), cache["resid_post", -1])
    answer, wrong = processed.token_id(" dog"), processed.token_id(" cat")
    logits = cache["logits"].astype(np.float64)
    of_one = cache.logit_attrs(parts, answer, incl_bias=True).astype(np.float64).sum(axis=0)
    assert_near(of_one, logits[..., answer], 2e-5)
    difference = cache.logit_attrs(parts, answer, wrong, incl_bias=True).astype(np.float64).sum(axis=0)
    assert_near(difference, logits[..., answer] - logits[..., wrong], 2e-5)
    # The model computes the same; only a shift of all logits is free.
    raw = model.run(TEXT, "logits")["logits"].astype(np.float64)
    assert_near(logits - logits.mean(-1, keepdims=True), raw - raw.mean(-1, keepdims=True), 2e-5)
    heads, names = cache.stack_head_results(incl_remainder=True, return_labels=True)
    assert len(names) == len(heads) and np.isfinite(heads).all()


def test_raw_and_processed_weights(model: actscope.Model) -> None:
    processed = actscope.load("demo", device="cpu", process="tl")
    assert model.process is None and processed.process == "fold-ln,center-writing,center-unembed,fold-value"
    assert "weights processed (fold-ln," in repr(processed) and "processed" not in repr(model)
    raw, folded = (of.weights["blocks.3.attn.W_O"] for of in (model, processed))
    assert raw.shape == folded.shape and not np.array_equal(raw, folded)
    np.testing.assert_array_equal(raw.reshape(-1, raw.shape[-1]), model.weights["h.3.attn.c_proj.weight"])
    assert_near(folded, raw - raw.mean(axis=-1, keepdims=True, dtype=np.float64))
    assert (processed.weights["ln_final.w"] == 1).all() and (processed.weights["ln_final.b"] == 0).all()
    assert not model.weights["b_U"].any() and processed.weights["b_U"].any()
    np.testing.assert_array_equal(processed.weights["lm_head.weight"].T, processed.weights["W_U"])


def test_it_is_kept_where_a_model_goes(tmp_path: Path) -> None:
    model = actscope.load("demo", device="cpu", process="fold-ln")
    again = pickle.loads(pickle.dumps(model))
    assert again.process == "fold-ln"
    np.testing.assert_array_equal(again.run(TEXT, "ln1.normalized.1")["ln1.normalized.1"], model.run(TEXT, "ln1.normalized.1")["ln1.normalized.1"])
    assert "--model demo --process fold-ln --ids" in model.report(TEXT).html
    from actscope.ray import Activations

    rows: dict[str, Any] = Activations("demo", "resid_post.1", device="cpu", process="tl")({"text": np.array([TEXT])})
    want = actscope.load("demo", device="cpu", process="tl").run(TEXT, "resid_post.1")["resid_post.1"]
    np.testing.assert_array_equal(rows["blocks.1.hook_resid_post"], want)
