"""``python notebooks/teaching/handout.py FOLDER``: a student and a teacher version, equal up to solutions."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest

from vitviz_nb.course.grading import grade
from vitviz_nb.utils.errors import VitvizError

from .test_lint import COURSE, FOLD, ROOT, folds, link_problems

SPEC = importlib.util.spec_from_file_location("handout_command", ROOT / "notebooks" / "teaching" / "handout.py")
command = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(command)
HIDDEN = {"Hint", "Second hint", "Solution", "Answers"}


@pytest.fixture(scope="module")
def students(tmp_path_factory) -> Path:
    command.handout(tmp_path_factory.mktemp("students"))
    return tmp_path_factory.getbasetemp() / "students0"


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> Path:
    command.handout(tmp_path_factory.mktemp("teachers"), solutions=True)
    return tmp_path_factory.getbasetemp() / "teachers0"


def words(text: str) -> str:
    """``text`` in one line, and a link as the text that a handout may have left of it."""
    return " ".join(re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).split())


def hidden(path: Path) -> list[str]:
    """What students must not get of a notebook's sources: its folds, and its solutions but for cells that are its own, too."""
    cells = nbformat.read(path, as_version=4).cells
    texts = [text for cell in cells for name, text in folds(cell.source).items() if name in HIDDEN]
    solved = nbformat.read(path.parent / "solutions" / f"{path.stem[:2]}_solutions.ipynb", as_version=4).cells[3:]
    own = {cell.source for cell in cells}
    return [*texts, *(cell.source for cell in solved if cell.source not in own and not cell.source.startswith("## "))]


@pytest.mark.parametrize("source", COURSE, ids=lambda path: path.stem)
def test_the_versions_are_equal_up_to_solutions(source, students, teachers):
    student, teacher = (nbformat.read(folder / source.name, as_version=4) for folder in (students, teachers))
    for version in (student, teacher):
        nbformat.validate(version)
    kept = [cell for cell in teacher.cells if "solution" not in cell.metadata.get("tags", [])]
    for cell in kept:
        cell.source = FOLD.sub(lambda fold: "" if fold[1] in HIDDEN else fold[0], cell.source)
    assert [(c.id, c.cell_type, c.metadata, words(c.source), c.get("outputs")) for c in kept] == [
        (c.id, c.cell_type, c.metadata, words(c.source), c.get("outputs")) for c in student.cells]


@pytest.mark.parametrize("source", COURSE, ids=lambda path: path.stem)
def test_students_get_no_solution(source, students):
    given = words("\n".join(cell.source for cell in nbformat.read(students / source.name, as_version=4).cells))
    assert hidden(source) and not [text for text in hidden(source) if words(text) in given]
    assert not [m for m in re.findall(r"<summary>(.*?)</summary>", given) if m in HIDDEN]
    assert "solutions/" not in given


@pytest.mark.parametrize("source", COURSE, ids=lambda path: path.stem)
def test_teachers_get_every_solution_below_its_exercise(source, teachers):
    cells = nbformat.read(teachers / source.name, as_version=4).cells
    given = words("\n".join(cell.source for cell in cells))
    assert not [text for text in hidden(source) if words(text.split("## ")[0]) not in given]
    for i, cell in enumerate(cells):
        asked = re.search(r'^vv\.check\("(\d\d\.\d)"', cell.source, re.MULTILINE)
        if asked and "solution" not in cell.metadata.get("tags", []):
            assert cells[i + 1].source.startswith(f"**Solution of exercise {asked[1]}.**")
            assert any(asked[0] in below.source for below in cells[i + 2:i + 10])


def test_recorded_results_and_printed_text_stay_behind_and_figures_come_along(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    path = tmp_path / "notebooks" / COURSE[0].name
    notebook = json.loads(path.read_text("utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"] += [{"output_type": "stream", "name": "stdout", "text": "Right: an exercise's verdict.\n"}]
    path.write_text(json.dumps(notebook), "utf-8")
    monkeypatch.setattr(command, "NOTEBOOKS", tmp_path / "notebooks")
    for solutions in (False, True):
        command.handout(tmp_path / f"{solutions}", solutions)
        cells = nbformat.read(tmp_path / f"{solutions}" / path.name, as_version=4).cells
        outputs = [output for cell in cells for output in cell.get("outputs", [])]
        assert outputs and all("<img " in output.data["text/html"] for output in outputs)
        assert set(grade(tmp_path / f"{solutions}")[0]["result"]) == {"not run"}


def test_a_handout_is_complete(students, teachers):
    for folder in (students, teachers):
        for path in [*folder.rglob("*.md"), *folder.glob("*.ipynb")]:
            texts = [path.read_text("utf-8")] if path.suffix == ".md" else [
                cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
            assert not [problem for text in texts for problem in link_problems(text, path.parent)]
            assert not [m for text in texts for m in re.findall(r"\]\(([^)#\s]+)", text)
                        if "://" not in m and folder.resolve() not in (path.parent / m).resolve().parents]
        assert {path.name for path in folder.glob("*.ipynb")} == {path.name for path in COURSE}


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(VitvizError, match="not empty"):
        command.handout(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
