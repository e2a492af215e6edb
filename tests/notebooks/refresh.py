"""Run notebooks from fresh kernels and store the outputs of their figures, as readers on GitHub see them.

    python tests/notebooks/refresh.py [NOTEBOOK ...]
    python tests/notebooks/refresh.py --links
    python tests/notebooks/refresh.py --alt

All of notebooks/ by default. Cells tagged "figure" keep their pictures, as HTML with the alt text of the cell's metadata; every
other output and all widget state go. With --links nothing is run: the line below the title and the last line of every notebook
of the course are written anew, after one came or went. With --alt stored pictures take the alt text of their cells, after one
was changed.
"""

import json
import re
import sys
from base64 import b64decode
from io import BytesIO
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

from vitviz_nb.plotting.alt_text import img

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
            cell.outputs = [stored(o, cell.metadata.get("alt", ""))
                            for o in cell.outputs if figure and "image/png" in o.get("data", {})]
    write(path, notebook)


def stored(output: nbformat.NotebookNode, alt: str) -> nbformat.NotebookNode:
    """An output's PNG as HTML, as JPEG where that halves it, as it does for walls of pictures: history keeps every version."""
    raw, packed = b64decode(output.data["image/png"]), BytesIO()
    Image.open(BytesIO(raw)).convert("RGB").save(packed, "JPEG", quality=88, subsampling=0, optimize=True)
    smaller = len(packed.getvalue()) < len(raw) / 2
    shown = img(packed.getvalue(), alt, "jpeg") if smaller else img(raw, alt)
    output.data, output.metadata = nbformat.from_dict({"text/html": shown, "text/plain": output.data["text/plain"]}), {}
    return output


def describe(notebook: nbformat.NotebookNode) -> None:
    """Give each stored picture its cell's alt text."""
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            kind, content = re.search(r'src="data:image/(\w+);base64,([^"]+)"', output.data["text/html"]).groups()
            output.data["text/html"] = img(b64decode(content), cell.metadata.get("alt", ""), kind)


def write(path: Path, notebook: nbformat.NotebookNode) -> None:
    text = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    path.write_text(text, encoding="utf-8")


def course(root: Path) -> list[Path]:
    """The notebooks that a learner goes through, in order; solutions are none of them."""
    return sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def neighbors(path: Path, notebooks: list[Path]) -> str:
    """Links from a notebook of the course to the one before, to the contents, and to the next."""
    i = notebooks.index(path)
    links = [("Previous", notebooks[i - 1])] if i else []
    links += [("Contents", path.parent / "README.md")]
    links += [("Next", notebooks[i + 1])] if i + 1 < len(notebooks) else []
    return " · ".join(f"{said}: [{to.stem}]({to.name})" for said, to in links)


def link(path: Path, notebooks: list[Path]) -> None:
    """Write them below its title and as its last line, in the place of those it has."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"^(Previous: .*|Contents: \[.*)$", neighbors(path, notebooks), cell.source, flags=re.MULTILINE)
    write(path, notebook)


if __name__ == "__main__":
    if sys.argv[1:] == ["--links"]:
        for path in course(ROOT):
            link(path, course(ROOT))
        sys.exit()
    if sys.argv[1:] == ["--alt"]:
        for path in sorted((ROOT / "notebooks").rglob("*.ipynb")):
            described = nbformat.read(path, as_version=4)
            describe(described)
            write(path, described)
        sys.exit()
    for name in sys.argv[1:] or sorted((ROOT / "notebooks").rglob("*.ipynb")):
        refresh(Path(name))
        print(f"refreshed {name}")
