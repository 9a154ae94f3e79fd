"""Values against the Rust fixtures' goldens, every hook, ragged batches included. (The Rust tests have all of them on
all devices.)."""

import numpy as np
import pytest
from conftest import FIXTURES, golden, worst_token_error

import actscope

# tests/golden.rs has the same bounds.
TIMES_TORCH, ROUNDING = 4.0, 4e-6
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/golden.safetensors"))


CASES = [(name, "cpu") for name in NAMES] + [("classic", "gpu"), ("classic", "reference"), ("untied_erf", "gpu")]


@pytest.mark.parametrize(("name", "device"), CASES)
def test_every_hook_is_the_goldens(name: str, device: str) -> None:
    want = golden(name)
    cache = actscope.load(want.model, device=device).run(want.ids, "*")
    assert set(cache) == set(want.hooks)
    for hook, values in cache.items():
        assert values.dtype == np.float32
        allowed = max(TIMES_TORCH * want.torch_error[hook], ROUNDING)
        assert worst_token_error(hook, values, want.hooks[hook]) <= allowed, hook


def test_there_are_fixtures() -> None:
    assert len(NAMES) > 5
