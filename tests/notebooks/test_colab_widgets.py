"""The first notebook works on Colab's versions of the widget packages, where a thread's updates do not reach the page."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
# Colab's, by googlecolab/backend-info, and what they need that newer ones do not.
VERSIONS = ("ipywidgets==7.7.1", "ipykernel==6.17.1", "ipython==7.34.0", "ipython_genutils", "backcall", "pickleshare",
            "decorator", "pexpect", "ptyprocess", "setuptools<81")

SETTLE = """
import asyncio

async def settled(explorer, text):
    for _ in range(600):
        if text in side._status.value:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(side._status.value)

[side] = explorer._sides
"""
CHECKS = [
    "import ipywidgets; assert ipywidgets.__version__ == '7.7.1'; assert explorer._worker is None" + SETTLE,
    "await settled(explorer, ': finished')\nfirst = explorer.result.neurons\nassert 'number 1 of 512' in side._status.value",
    "side._next.click()\nawait settled(explorer, 'number 2 of 512')\nassert explorer.result.neurons != first",
    # Changes that follow each other faster than the debounce: the last one wins.
    "for n in (1, 2, 3):\n    side._neuron.value = n\n"
    "await settled(explorer, 'neuron 3: finished')\nassert explorer.result.neurons == [3]",
    "side._recipe.value = 'paper'\nawait settled(explorer, 'neuron 3: step 20')\nside._stop.click()\n"
    "await settled(explorer, 'neuron 3: stopped at step')\nassert 20 <= explorer.result.steps[0] < 400",
]


@pytest.fixture(scope="module")
def colab(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colab")
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder, *VERSIONS], check=True)
    return folder


def test_the_explorer_works_on_colabs_widgets(colab, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(colab), str(ROOT)]))
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path))
    notebook = nbformat.read(ROOT / "notebooks" / "00_start_here.ipynb", as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(source) for source in CHECKS]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "notebooks")}},
                   store_widget_state=False).execute()
