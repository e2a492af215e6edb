"""The cells of the notebooks run on a real ViT in place of the kit's model, or say in a sentence why they do not apply.

Everything is small here (small.py): a step for a picture, at most 24 images for an experiment. What the numbers are on a real
network is for those who have it and an hour.
"""

import ast
import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from real_vit import NAME

HERE = Path(__file__).resolve().parent
NOTEBOOKS = HERE.parents[1] / "notebooks"
SECONDS = 600  # to end what hangs, not a measure of speed
# Cells of a notebook that need what this network, which predicts no classes, or its images lack. All others run.
REFUSED: dict[str, set[str]] = {
    "00_start_here": set(),
}


def with_model(source: str, expression: str) -> str:
    """A cell's source that loads another model wherever it loaded the kit's standard or robust ViT to look at it."""
    source = re.sub(r'vv\.load\("emoji-vit(-standard)?"\)', expression, source)
    return re.sub(r'vv\.load\(name\) for name in \("emoji-vit-standard", "emoji-resnet", "emoji-vit"\)',
                  f'{expression}, vv.load("emoji-resnet"), {expression}', source)


def assigned(source: str) -> set[str]:
    """The names that a cell gives a value."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%")))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("name", REFUSED)
def test_notebook_runs_on_a_real_vit(name, hub, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.source = with_model(cell.source, f'vv.load("{NAME}", image_size=98)')
    cells[0].source = f"import small\n{cells[0].source}"
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}},
                   store_widget_state=False, allow_errors=True).execute()
    refused, missing, wrong = set(), set(), []
    for cell in cells:
        for error in [output for output in cell.outputs if output.output_type == "error"]:
            unknown = re.search(r"name '(\w+)' is not defined", error.evalue)
            if error.ename in ("VitvizError", "NotApplicable"):
                refused.add(cell.id)
                print(f"{name} {cell.id}: {error.evalue}")
            elif not (error.ename == "NameError" and unknown and unknown[1] in missing):
                wrong.append(f"{cell.id}: {error.ename}: {error.evalue}")
            missing |= assigned(cell.source)
    assert not wrong
    assert refused == REFUSED[name]
