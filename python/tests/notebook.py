"""Executes the example notebook anew and holds its outputs against those that it is committed with: the same text and tables to the
last character, and a picture wherever there was one. `--write` puts the new outputs in."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

PATH = Path(__file__).parents[1] / "examples" / "01_activations.ipynb"

# What differs between machines: the device's name, and the last digits of numbers.
MACHINE = re.compile(r"(cpu|gpu): [^\n]*?\)(?=,|\)|$)|[0-9]+\.[0-9]+(?:e[-+]?[0-9]+)?", re.MULTILINE)


def outputs(notebook: Any) -> list[list[tuple[str, str]]]:
    """What each cell showed: kinds, and text without what differs between machines."""
    shown = []
    for cell in notebook.cells:
        of_cell = []
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                of_cell.append((output.name, MACHINE.sub("~", output.text)))
                continue
            assert output.output_type != "error", "\n".join(output.traceback)
            for kind, data in sorted(output.data.items()):
                text = MACHINE.sub("~", data) if kind == "text/plain" else ""
                of_cell.append((kind, text))
        shown.append(of_cell)
    return shown


def main() -> None:
    committed = nbformat.read(PATH, as_version=4)
    fresh = nbformat.read(PATH, as_version=4)
    NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(PATH.parent)}}).execute()
    if "--write" in sys.argv:
        for cell in fresh.cells:
            cell.metadata.pop("execution", None)
        fresh.metadata.pop("language_info", None)
        nbformat.write(fresh, PATH)
        return
    for i, (want, got) in enumerate(zip(outputs(committed), outputs(fresh), strict=True)):
        if want != got:
            raise SystemExit(f"cell {i} of {PATH.name} shows\n{got}\nand is committed with\n{want}")
    if not any(outputs(committed)):
        raise SystemExit(f"{PATH.name} is committed without outputs")
    print(f"{PATH.name}: {len(fresh.cells)} cells, as committed")


if __name__ == "__main__":
    main()
