"""What the tests share: the demo model on the CPU, fixtures with their goldens, closeness."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Nothing of a test is kept in the user's cache.
os.environ["ACTSCOPE_TUNING"] = "off"

import actscope

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests" / "fixtures"
TEXT = "The cat sat on the mat."


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    metadata = header.pop("__metadata__", {})
    kinds = {"F64": "<f8", "F32": "<f4", "I64": "<i8", "U8": "u1"}
    arrays = {}
    for name, about in header.items():
        begin, end = (8 + size + at for at in about["data_offsets"])
        arrays[name] = np.frombuffer(data[begin:end], dtype=kinds[about["dtype"]]).reshape(about["shape"])
    return arrays, metadata


@dataclass
class Golden:
    """A fixture's f64 values, from transformers."""

    model: str
    ids: list[list[int]]
    hooks: dict[str, np.ndarray]
    torch_error: dict[str, float]


def golden(name: str) -> Golden:
    arrays, metadata = read_safetensors(FIXTURES / name / "golden.safetensors")
    ids = [row[mask == 1].tolist() for row, mask in zip(arrays["input_ids"], arrays["attention_mask"], strict=True)]
    model = ROOT / metadata["model"] if "model" in metadata else FIXTURES / name
    hooks = {hook: values for hook, values in arrays.items() if "hook_" in hook}
    return Golden(str(model), ids, hooks, json.loads(metadata["torch_f32_error"]))


def worst_token_error(hook: str, got: np.ndarray, want: np.ndarray) -> float:
    """The worst relative error over tokens: norms over all that the hook holds at a token, as `src/verify/measure.rs` has it."""
    assert got.shape == want.shape, hook
    pos = 2 if hook.endswith(("hook_pattern", "hook_attn_scores")) else 1
    got, want = np.moveaxis(got, pos, 1).astype(np.float64), np.moveaxis(want, pos, 1)
    both_masked = (got == -np.inf) & (want == -np.inf)
    apart = np.where(both_masked, 0.0, got - np.where(both_masked, 0.0, want))
    axes = tuple(range(2, got.ndim))
    size = np.sqrt(np.square(np.where(both_masked, 0.0, want)).sum(axis=axes))
    error = np.sqrt(np.square(apart).sum(axis=axes)) / np.where(size == 0.0, 1.0, size)
    return float(np.where(np.isfinite(error), error, np.inf).max())


def assert_near(got: Any, want: Any, error: float = 4e-6) -> None:
    """Norm of the difference, relative to the norm of what is wanted."""
    got, want = np.asarray(got, dtype=np.float64), np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape
    apart = np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30)
    assert apart <= error, f"off by {apart:.1e}, allowed {error:.1e}"


@pytest.fixture(scope="session")
def model() -> actscope.Model:
    return actscope.load("demo", device="cpu")
