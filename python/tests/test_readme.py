"""The pages' Python runs as it stands, block after block, but for the model and the device: gpt2 would be downloaded. The package's
docstring gives what it says."""

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

import actscope


@pytest.mark.parametrize(("page", "fence"), [("python/README.md", "python"), ("README.md", "text varies")])
def test_what_the_page_shows_runs(page: str, fence: str, tmp_path: Path, monkeypatch: Any) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = [block for block in re.findall(rf"```{fence}\n(.*?)```", text, re.DOTALL) if "actscope" in block or "model" in block]
    assert blocks and "import actscope" in blocks[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block.replace('"gpt2"', '"demo"').replace('"mps"', '"cpu"'), names)
    assert isinstance(names["cache"], actscope.Cache)


def test_what_the_docstring_shows_is_what_is_given() -> None:
    found = doctest.testmod(actscope)
    assert found.attempted > 0 and found.failed == 0
