"""Every notebook runs from top to bottom in a fresh kernel, as a reader would run it; and then its solutions.

These take over the kernel, with all names forgotten, and the cache: imports and measurements of their own would take minutes.
"""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from .refresh import course

ROOT = Path(__file__).parents[2]
SECONDS = 600  # of a cell, to end what hangs, not a measure of speed
# Bytes beyond what importing torch and timm takes here, which is 0.3 GB of Binder's 2 with a CPU build of torch and three
# times that with a CUDA build. Where all were measured last, they took 0.47e9 bytes at most, and 08 takes 0.58e9 since it
# measures more in a pass; a class has 1.5e9 for all.
MOST_MEMORY = 0.7e9
MEASURE = "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
FORGET = "%reset -f\n%cd -q solutions"


def run(path: Path, solutions: Path) -> tuple[float, list[nbformat.NotebookNode]]:
    """Run a notebook where it lies, then its solutions; the kernel's peak resident memory in bytes after the first, and the cells
    of the second. Raises at the first error."""
    notebook, solved = (nbformat.read(each, as_version=4) for each in (path, solutions))
    measured, forgotten = (nbformat.v4.new_code_cell(source) for source in (MEASURE, FORGET))
    notebook.cells += [measured, forgotten, *solved.cells]
    where = {"metadata": {"path": str(path.parent)}}
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources=where, store_widget_state=False
    ).execute()
    # An error that a raises-exception tag lets pass is an error here too: a reader would see it.
    assert not [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs if o.output_type == "error"]
    printed = "".join(o.text for o in measured.outputs)  # a line may come in two pieces
    return UNIT * float(printed), solved.cells


@pytest.fixture(scope="session")
def imports() -> float:
    """Bytes that Python takes with torch and timm, and nothing done."""
    return UNIT * float(subprocess.check_output([sys.executable, "-c", f"import torch, timm; {MEASURE}"], text=True))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


@pytest.mark.parametrize("path", course(ROOT), ids=lambda path: path.stem)
def test_a_notebook_runs_and_then_its_solutions_with_the_cache_that_it_left(path, imports):
    peak, cells = run(path, path.parent / "solutions" / f"{path.stem[:2]}_solutions.ipynb")
    print(f"{path.stem}: the kernel's peak resident memory was {peak / 1e9:.2f} GB, {imports / 1e9:.2f} of it imports")
    assert peak - imports <= MOST_MEMORY
    verdicts = ["".join(o.text for o in c.get("outputs", []) if o.get("name") == "stdout")  # beside it stand progress bars
                for c in cells if "vv.check(" in c.source]
    assert verdicts and all(text.strip().rpartition("\n")[2].startswith("Right") for text in verdicts), verdicts


def test_every_notebook_is_run():
    found = {p for p in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts}
    run = {*course(ROOT), *(p.parent / "solutions" / f"{p.stem[:2]}_solutions.ipynb" for p in course(ROOT))}
    assert found == run
