"""Notebooks executed from a clean kernel by nbmake, with cells added that check what a hand would see."""

from pathlib import Path

import nbformat
from nbmake.nb_run import NotebookRun

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
_MOST_S = 240


def run_notebook(name: str, folder: Path, *checks: str) -> None:
    """Execute a copy of the notebook in the folder, and the checks as cells after it."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(check) for check in checks]
    copy = folder / f"{name}.ipynb"
    nbformat.write(notebook, copy)
    error = NotebookRun(copy, _MOST_S).execute().error
    assert error is None, f"cell {error.failing_cell_index}: {error.summary}\n{error.trace}"


def outputs_in_git(name: str) -> list[int]:
    """The places of cells that were saved with outputs or counts."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [(place, cell) for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [place for place, cell in code if cell.outputs or cell.execution_count is not None]
