"""The cells of the notebooks run on a real ViT in place of the kit's model, or say in a sentence why they do not apply.

Everything is small here (small.py): a step for a picture, at most 24 images for an experiment. What the numbers are on a real
network is for those who have it and an hour. notebooks.md has what four more networks did, with random weights.
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
# Cells that need what a network without classes, or of other classes than Emoji World's, does not have. All others run.
NO_CLASSES = {
    "00_start_here": {"f3edb9d1"},  # class pictures
    "01_obstacle_noise": set(),
    "02_obstacle_where_to_look": {"a9fa0975", "756e3b0b"},  # cross-model recognition, a direction of emoji-vit's width
    "03_finding_progression": {"code-24"},  # accuracy in an exercise
    "04_finding_position": set(),
    "07_finding_frequency": {"code-05", "code-09", "code-11", "code-13", "code-17", "code-18", "code-24"},  # accuracy
    "10_can_you_trust_a_picture": {"code-09", "code-30"},  # cross-model recognition, and an exercise on it
    "11_your_own": set(),
}
FEWER = {
    "range(0, 512, 4)": "range(0, 512, 256)", "range(512)": "range(16)", "[:512]": "[:16]", "(model, 16)": "(model, 6)",
    "steps=96": "steps=2", "for step in range(128)": "for step in range(2)",  # of gradient ascent written out
    "range(4096, 6144, 64)": "range(4096, 4224, 64)", "n=256).batch(range(256))": "n=64).batch(range(64))",  # scenes
    "scene=(0, 255)": "scene=(0, 63)", "sensitivity(network, world)": "sensitivity(network, world, n=2, distances=(1.0,))",
}


def with_model(source: str, expression: str) -> str:
    """A cell's source that loads another model wherever it loaded the kit's standard or robust ViT to look at it."""
    for many, few in FEWER.items():
        source = source.replace(many, few)
    source = re.sub(r'vv\.load\("emoji-vit(-standard)?"\)', expression, source)
    return re.sub(r'vv\.load\(name\) for name in \("emoji-vit-standard", "emoji-resnet", "emoji-vit"\)',
                  f'{expression}, vv.load("emoji-resnet"), {expression}', source)


def assigned(source: str) -> set[str]:
    """The names that a cell gives a value."""
    tree = ast.parse("\n".join(line for line in source.splitlines() if not line.lstrip().startswith("%")))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)} | {
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def run(name: str, expression: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Run a notebook on the model of an expression; what each cell said that refused. Fails for any other error."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.source = with_model(cell.source, expression)
    cells[0].source = f"import small\n{cells[0].source}"
    NotebookClient(notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOKS)}},
                   store_widget_state=False, allow_errors=True).execute()
    refused, missing, wrong = {}, set(), []
    for cell in cells:
        for error in [output for output in cell.outputs if output.output_type == "error"]:
            unknown = re.search(r"name '(\w+)' is not defined", error.evalue)
            if error.ename in ("VitvizError", "NotApplicable"):
                refused[cell.id] = error.evalue
            elif not (error.ename == "NameError" and unknown and unknown[1] in missing):
                wrong.append(f"{cell.id}: {error.ename}: {error.evalue}")
            missing |= assigned(cell.source)
    assert not wrong, wrong
    return refused


@pytest.mark.parametrize("name", NO_CLASSES)
def test_notebook_runs_on_a_real_vit_but_for_cells_that_say_why_not(name, hub, monkeypatch):
    refused = run(name, f'vv.load("{NAME}", image_size=56)', monkeypatch)
    assert refused.keys() == NO_CLASSES[name], refused


def test_positions_are_measured_on_a_distilled_network_of_another_grid(monkeypatch, tmp_path):
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path))
    model = 'vv.load("deit_tiny_distilled_patch16_224", image_size=112, pretrained=False)'
    assert not run("04_finding_position", model, monkeypatch)
