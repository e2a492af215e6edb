"""Run notebooks from fresh kernels and store the outputs of their figures, as readers on GitHub see them.

    python tests/notebooks/refresh.py [NOTEBOOK ...]

All of notebooks/ by default. Cells tagged "figure" keep their pictures; every other output and all widget state go.
"""

import json
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]


def refresh(path: Path) -> None:
    """Execute the notebook in its folder and write it back; an error in a cell raises and writes nothing."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}, store_widget_state=False).execute()
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # no version: it would change with every machine
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            figure = "figure" in cell.metadata.get("tags", [])
            cell.outputs = [o for o in cell.outputs if figure and "image/png" in o.get("data", {})]
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted((ROOT / "notebooks").rglob("*.ipynb")):
        refresh(Path(name))
        print(f"refreshed {name}")
