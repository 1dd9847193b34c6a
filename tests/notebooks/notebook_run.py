"""Notebooks executed from a clean kernel by nbmake, with cells added that check what a hand would see."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import nbformat
from nbmake.nb_result import NotebookError
from nbmake.nb_run import NotebookRun

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
_MOST_S = 240
_WITHOUT = """
import importlib.util, sys

MISSING = {missing!r}

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

assert not MISSING & set(sys.modules)
sys.meta_path.insert(0, Missing())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in MISSING else real(name, package)
"""


def run_notebook(name: str, folder: Path, *checks: str, missing: Sequence[str] = ()) -> None:
    """Execute a copy of the notebook in the folder, and the checks as cells after it; some packages may be missing."""
    error = error_of(name, folder, checks, missing=missing)
    assert error is None, f"cell {error.failing_cell_index}: {error.summary}\n{error.trace}"


def refusal_of(
    name: str, folder: Path, *, replaced: Mapping[str, str] | None = None, missing: Sequence[str] = ()
) -> str:
    """What the cell shows that fails once words of the notebook were replaced, or packages are missing."""
    error = error_of(name, folder, replaced=replaced or {}, missing=missing)
    assert error is not None, "nothing failed"
    return str(error.trace)


def error_of(
    name: str,
    folder: Path,
    checks: Sequence[str] = (),
    *,
    replaced: Mapping[str, str] | None = None,
    missing: Sequence[str] = (),
) -> NotebookError | None:
    """How an execution ended."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for old, new in (replaced or {}).items():
        assert any(old in cell.source for cell in notebook.cells), old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    without = [_WITHOUT.format(missing=set(missing))] if missing else []
    cells = [nbformat.v4.new_code_cell(source) for source in (*without, *checks)]
    notebook.cells = [*cells[: len(without)], *notebook.cells, *cells[len(without) :]]
    copy = folder / f"{name}.ipynb"
    nbformat.write(notebook, copy)
    return NotebookRun(copy, _MOST_S).execute().error


def outputs_in_git(name: str) -> list[int]:
    """The places of cells that were saved with outputs or counts."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [(place, cell) for place, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    return [place for place, cell in code if cell.outputs or cell.execution_count is not None]
