"""``python notebooks/publish.py OWNER/REPO``: badges and the Colab address in README and notebooks."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vitviz_nb.utils.errors import VitvizError

SPEC = importlib.util.spec_from_file_location("publish_command", Path(__file__).parents[3] / "notebooks" / "publish.py")
command = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(command)
publish = command.publish

MARKERS = "<!-- badges -->\n<!-- /badges -->"
SETUP = 'import sys\nREPOSITORY = ""  # written by notebooks/publish.py\nprint(REPOSITORY)'
FIRST, SECOND = "notebooks/00_start_here.ipynb", "notebooks/solutions/01_ünïcode.ipynb"


def notebook(first: str = MARKERS, setup: str = SETUP) -> str:
    cells = [
        {"cell_type": "markdown", "id": "a", "metadata": {}, "source": first.splitlines(keepends=True)},
        {"cell_type": "markdown", "id": "b", "metadata": {}, "source": ["# Größe → 1"]},
        {"cell_type": "code", "execution_count": None, "id": "c", "metadata": {}, "outputs": [], "source": setup},
    ]
    return json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "README.md").write_text(f"# Kit\n{MARKERS}\ntext\n")
    for name in (FIRST, SECOND):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(notebook())
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_every_file_gets_badges_that_open_it(root):
    assert {p.relative_to(root).as_posix() for p in publish("ada/vit-viz.2", root)} == {"README.md", FIRST, SECOND}
    second_in_url = "notebooks/solutions/01_%C3%BCn%C3%AFcode.ipynb"
    for name, opened in (("README.md", FIRST), (FIRST, FIRST), (SECOND, second_in_url)):
        text = (root / name).read_text("utf-8")
        text = text if name.endswith(".md") else "".join(json.loads(text)["cells"][0]["source"])
        links = re.findall(r"\[!\[([^\]]+)\]\((https://\S+)\)\]\((https://\S+)\)", text)
        assert [address for _, _, address in links] == [
            f"https://colab.research.google.com/github/ada/vit-viz.2/blob/main/{opened}",
            f"https://mybinder.org/v2/gh/ada/vit-viz.2/main?labpath={opened.replace('/', '%2F')}",
            f"https://nbviewer.org/github/ada/vit-viz.2/blob/main/{opened}",
        ]
        # Markdown on the line of an HTML comment would be shown as it is written.
        assert re.search(r"^<!-- badges -->\n\[!.*\)\n<!-- /badges -->$", text, re.MULTILINE)


def test_set_up_cell_runs_before_and_after(root):
    def printed() -> str:
        source = "".join(json.loads((root / FIRST).read_text("utf-8"))["cells"][2]["source"])
        return subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout.strip()

    assert printed() == ""
    publish("ada/kit", root)
    assert printed() == "ada/kit"


def test_second_run_changes_nothing_and_another_target_replaces_the_first(root):
    publish("ada/kit", root)
    before = contents(root)
    assert publish("ada/kit", root) == []
    assert contents(root) == before
    assert len(publish("grace/other", root)) == 3
    assert not any(b"ada/kit" in content for content in contents(root).values())
    publish("ada/kit", root)
    assert contents(root) == before


def test_notebook_keeps_the_form_that_jupyter_writes(root):
    publish("ada/kit", root)
    text = (root / FIRST).read_text("utf-8")
    assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert "Größe → 1" in text


@pytest.mark.parametrize("target", ["foo", "a/b/c", "a b/c", " a/b", "a/b\n", "/b", "a/", "a/..", "", "-a/b", "a/b?c", "a/ü"])
def test_bad_target(root, target):
    before = contents(root)
    with pytest.raises(VitvizError, match="OWNER/REPO"):
        publish(target, root)
    assert contents(root) == before


@pytest.mark.parametrize("text", [
    "not json", "[]", '{"worksheets": []}', notebook(first="no markers"), notebook(first=MARKERS * 2),
    notebook(first="<!-- /badges -->\n<!-- badges -->"), json.dumps({"cells": []}),
])  # fmt: skip
def test_one_bad_notebook_leaves_all_files_as_they_were(root, text):
    (root / SECOND).write_text(text)
    before = contents(root)
    with pytest.raises(VitvizError, match="01_ünïcode"):
        publish("ada/kit", root)
    assert contents(root) == before


def test_failed_write_leaves_the_file_whole(root, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    before = contents(root)
    with pytest.raises(VitvizError, match="No space left on device"):
        publish("ada/kit", root)
    assert contents(root) == before


def test_jupyters_own_copies_are_left_alone(root):
    copy = root / "notebooks/.ipynb_checkpoints/00_start_here-checkpoint.ipynb"
    copy.parent.mkdir()
    copy.write_text("half written")
    assert copy not in publish("ada/kit", root)


def test_a_folder_without_notebooks_and_a_readme_that_is_no_text_are_named(root):
    with pytest.raises(VitvizError, match="has no notebooks"):
        publish("ada/kit", root / "notebooks")
    (root / "README.md").write_bytes(b"\xff\xfe badges")
    with pytest.raises(VitvizError, match="README.md cannot be published .*utf-8"):
        publish("ada/kit", root)
