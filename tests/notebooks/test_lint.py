"""Every notebook keeps the rules that make it open well on GitHub, Colab, Binder and JupyterLab, and for everyone."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from vitviz_nb.publish import END, REPOSITORY_LINE, START, find_notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = find_notebooks(ROOT)
LOCAL_PATH = re.compile(r"(?<![\w.:/-])/(?:work|home|root|Users)\b|\bC:\\")
WIDGET = "application/vnd.jupyter.widget-view+json"


def problems(path: Path, root: Path) -> list[str]:
    """What a notebook of the checkout ``root`` does wrong, one sentence each."""
    text = path.read_text("utf-8")
    content = json.loads(text)
    if content.get("nbformat") != 4:
        return ["not nbformat 4"]
    if not all(cell.get("id") for cell in content["cells"]):
        return ["a cell has no id"]  # asked first, as nbformat makes up missing ones
    notebook = nbformat.reads(text, as_version=4)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not valid: {error.message}"]
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    prose = [re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL) for text in markdown]

    if "widgets" in notebook.metadata:
        found.append("metadata.widgets is stored: GitHub may refuse the whole notebook")
    if sum(len(re.findall(r"^# ", text, re.MULTILINE)) for text in prose) != 1:
        found.append("not exactly one H1")
    if sum(len(REPOSITORY_LINE.findall(cell.source)) for cell in code) != 1:
        found.append("not exactly one REPOSITORY line for vitviz publish")
    if any(cell.outputs for cell in code) and [c.execution_count for c in code] != [*range(1, len(code) + 1)]:
        found.append("outputs are stored, but not of one run from top to bottom: counts are not 1, 2, 3 ...")
    found += badge_problems(notebook.cells[0] if notebook.cells else None, path.relative_to(root).as_posix())
    for text in prose:
        found += picture_problems(text) + link_problems(text, path.parent)
    for cell in code:
        found += output_problems(cell)
    texts = [cell.source for cell in notebook.cells]
    texts += [text for cell in code for output in cell.outputs for text in output_texts(output)]
    found += [f"a path of one machine: {m[0]}" for text in texts for m in [LOCAL_PATH.search(text)] if m]
    return found


def badge_problems(cell: dict | None, name: str) -> list[str]:
    """``cell`` is the first one: it has the markers, with nothing or the badges of the notebook ``name`` between."""
    if cell is None or cell.cell_type != "markdown" or not re.search(f"{START}.*{END}", cell.source, re.DOTALL):
        return ["the first cell does not have the badge markers"]
    between = cell.source.partition(START)[2].partition(END)[0].strip()
    if between and (between.count("[![") != 3 or unquote(between).count(name) != 3):
        return ["the badges do not open this notebook: run vitviz publish"]
    return []


def picture_problems(text: str) -> list[str]:
    """Markdown and HTML pictures need an alternative text."""
    tags = re.findall(r"<img\b[^>]*>", text)
    bare = [tag for tag in tags if not re.search(r"""alt=(["'])\s*[^"'\s]""", tag)]
    bare += re.findall(r"!\[\s*\]\([^)]*\)", text)
    return [f"a picture without alt text: {picture[:60]}" for picture in bare]


def link_problems(text: str, folder: Path) -> list[str]:
    """Relative links lead to files that exist."""
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    local = [t for t in targets if not re.match(r"[a-z]+:|#|//", t)]
    return [f"a link to a missing file: {t}" for t in local if not (folder / unquote(t.split("#")[0])).exists()]


def output_problems(cell: dict) -> list[str]:
    """Stored outputs: no errors, no widgets; a picture only on purpose, and described."""
    data = [output.get("data", {}) for output in cell.outputs]
    found = [p for d in data for p in picture_problems("".join(d.get("text/html", "")))]
    if any(output.output_type == "error" for output in cell.outputs):
        found.append("an error is stored")
    if any(WIDGET in d for d in data):
        found.append("a widget's output is stored: readers would see 'Error displaying widget'")
    if any(kind.startswith("image/") for d in data for kind in d):
        if "figure" not in cell.metadata.get("tags", []):
            found.append("a picture is stored in a cell without the tag 'figure'")
        if len(cell.metadata.get("alt", "").strip()) < 20:
            found.append("a cell with a stored picture has no metadata.alt of 20 characters or more")
    return found


def output_texts(output: dict) -> list[str]:
    """The texts that an output shows, without the pictures inside, whose base64 may spell anything."""
    data = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    texts = ["".join(text) for text in [output.get("text", ""), *data.values()]]
    return [re.sub(r"data:image/[^\"')]*", "", text) for text in texts]


def test_there_is_a_first_notebook():
    assert (ROOT / "notebooks/00_start_here.ipynb") in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert problems(path, ROOT) == []


# The rules themselves: a good notebook passes, and each way to spoil it is noticed.

PROSE = """# One
See [it](x.md#part), `# not one`, ![a drawing](x.md) and https://x.org/home
```
# nor this
```"""
FIGURE = {"tags": ["figure"], "alt": "A grid of sixteen pictures, most show stripes."}
PICTURE = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "aGk/work", "text/plain": "<Figure>"}}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}


def cell(kind: str, source: str | list[str], **more) -> dict:
    return {"cell_type": kind, "id": f"cell-{len(source)}", "metadata": {}, "source": source, **more}


GOOD = json.dumps({
    "cells": [
        cell("markdown", f"{START}\n{END}"),
        cell("markdown", PROSE.splitlines(keepends=True)),  # Jupyter saves lines
        cell("code", 'REPOSITORY = ""  # written by vitviz publish', execution_count=1, outputs=[]),
        cell("code", "draw()", execution_count=2, outputs=[PICTURE], metadata=FIGURE),
    ],
    "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
})  # fmt: skip


def check(notebook: str, root: Path) -> list[str]:
    path = root / "notebooks/one.ipynb"
    path.parent.mkdir()
    (path.parent / "x.md").touch()
    path.write_text(notebook)
    return problems(path, root)


def test_good_notebook_has_no_problems(tmp_path):
    assert check(GOOD, tmp_path) == []


@pytest.mark.parametrize(("problem", "good", "bad"), [
    ("not nbformat 4", '"nbformat": 4', '"nbformat": 3'),
    ("not valid", '"metadata": {}, "nbformat"', '"extra": 1, "metadata": {}, "nbformat"'),
    ("no id", '"id": "cell-6", ', ""),
    ("metadata.widgets", '"metadata": {}, "nbformat"', '"metadata": {"widgets": {}}, "nbformat"'),
    ("H1", "# One", "## One"),
    ("H1", "See ", "\\n# Two\\n"),
    ("REPOSITORY", "REPOSITORY", "repository"),
    ("REPOSITORY", "draw()", 'REPOSITORY = \\"a/b\\"  # written by vitviz publish'),
    ("1, 2, 3", '"execution_count": 1', '"execution_count": 3'),
    ("1, 2, 3", '"execution_count": 1', '"execution_count": null'),
    ("markers", "<!-- badges -->", ""),
    ("badges do not open", "\\n<!-- /b", "\\n[![a](https://x.org/a)](https://x.org/two.ipynb)\\n<!-- /b"),
    ("alt text", "![a drawing]", "![]"),
    ("alt text", "See ", "<img src='x.md'>"),
    ("alt text", "See ", "<img alt='' src='x.md'>"),
    ("alt text", '"text/plain"', '"text/html": "<img src=\'data:image/png;base64,/work\'>", "text/plain"'),
    ("missing file", "(x.md#part)", "(gone.md#part)"),
    ("missing file", "See ", "<a href='../gone.md'>"),
    ("one machine: /work", "See ", "in /work/main"),
    ("one machine: C:", "draw()", "open('C:\\\\x')"),
    ("one machine: /root", "<Figure>", "saved to /root/x"),
    ("error is stored", '"outputs": [{', '"outputs": [' + json.dumps(ERROR) + ", {"),
    ("widget's output", '"text/plain"', f'"{WIDGET}": {{}}, "text/plain"'),
    ("'figure'", '["figure"]', "[]"),
    ("metadata.alt", "of sixteen pictures, most show stripes.", ""),
])  # fmt: skip
def test_spoilt_notebook_is_noticed(problem, good, bad, tmp_path):
    assert good in GOOD
    found = check(GOOD.replace(good, bad, 1), tmp_path)
    assert len(found) == 1
    assert problem in found[0]
