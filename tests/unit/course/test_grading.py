"""What checks printed into students' notebooks is counted, whatever else is in their files, and nothing of theirs is executed."""

import csv
import json
from pathlib import Path

import pytest

from vitviz_nb import cli
from vitviz_nb.course.checks import exercises
from vitviz_nb.course.grading import grade

ERROR = {"output_type": "error", "ename": "VitvizError", "evalue": "no", "traceback": []}


def cell(source: str, *outputs: str | list | dict, kind: str = "code") -> dict:
    """A cell; an output that is no dict was printed."""
    printed = [{"output_type": "stream", "name": "stdout", "text": out} if not isinstance(out, dict) else out for out in outputs]
    return {"cell_type": kind, "source": source, "metadata": {}, **({"outputs": printed} if kind == "code" else {})}


def hand_in(folder: Path, name: str, *cells: dict) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": cells}), "utf-8")


def results(folder: Path) -> dict[tuple[str, str], str]:
    return {(row.file, row.exercise): row.result for row in grade(folder)[0].itertuples()}


def test_each_exercise_of_a_notebook_gets_what_its_check_printed(tmp_path: Path):
    hand_in(tmp_path, "ada/03.ipynb",
            cell("# 03. Right: 1", kind="markdown"),
            cell('layer = 3\nvv.check("03.1", layer, model)', "Right: selectivity is 2.82 in layer 3, 1.70 in layer 0.\n"),
            cell(["from vitviz_nb import check\n", "check(\n", "    '03.2', (0, 'lion'))"], ["Not yet: lion ", "is not.\n"]))
    hand_in(tmp_path, "bob/03.ipynb", cell('vv.check("03.1", "x", model)', ERROR), cell('vv.check("03.2", 1, model)'))
    table, remarks = grade(tmp_path)
    assert remarks == [] and list(table["file"].unique()) == ["ada/03.ipynb", "bob/03.ipynb"]
    found = results(tmp_path)
    assert found["ada/03.ipynb", "exercise 03.1"] == "right" and found["ada/03.ipynb", "exercise 03.2"] == "not yet"
    assert found["bob/03.ipynb", "exercise 03.1"] == "error" and found["bob/03.ipynb", "exercise 03.2"] == "not run"
    of_03 = [f"exercise {e}" for e in exercises() if e.startswith("03.")]
    assert len(of_03) >= 3 and list(table["exercise"]) == 2 * of_03
    assert all(found[file, e] == "missing" for file in ("ada/03.ipynb", "bob/03.ipynb") for e in of_03[2:])


@pytest.mark.parametrize(("cells", "expected"), [
    ([cell('vv.check("00.1", 0, model)', "Not yet: 3\n"), cell('vv.check("00.1", 19, model)', "Right: 6\n"),
      cell('vv.check("00.1", 1, model)', "Not yet: 4\n")], {"exercise 00.1": "right"}),
    ([cell('for n in range(3):\n    vv.check("00.1", n, model)', "Not yet: 3\nRight: 6\nNot yet: 1\n")],
     {"exercise 00.1": "right"}),
    ([cell('vv.check("00.1", 19, model)\n1 / 0', "Right: 6\n", ERROR)], {"exercise 00.1": "right"}),
    ([cell('# vv.check("00.1", 19, model)', "Right: 6\n"), cell('vv.check("03.1", 1)', "Not yet: x\n")], {"exercise 00.1": None}),
    ([cell('x = 1  # Right: so\nvv.check("00.1", x, model)', "All Right: 6\n not Right: 6\n")], {"exercise 00.1": "not run"}),
    ([cell('vv.check("03.1", 3, model)\nvv.check("03.2", (1, "x"), model)', "Right: a\nNot yet: b\n")],
     {"exercise 03.1": "right", "exercise 03.2": "not yet"}),
    ([cell('vv.check("03.1", 3, model)\nvv.check("03.2", (1, "x"), model)', "Right: a\n", ERROR)],
     {"exercise 03.1": "right", "exercise 03.2": "error"}),
    ([cell('for n in range(2):\n    vv.check("03.1", n, model)\nvv.check("03.2", (1, "x"), model)',
           "Not yet: a\n" * 2 + "Right: b\n")],
     {"exercise 03.1": "unclear", "exercise 03.2": "unclear"}),
    ([cell('vv.check("03.1", 3, model)\nvv.check("03.2", (1, "x"), model)', "Right: a\n")],
     {"exercise 03.1": "unclear", "exercise 03.2": "unclear"}),
    ([cell('vv.check("99.9", 1)', "Right: a\n"), cell('vv.check("00.1", 1)', "Right: a\n")], {"exercise 99.9": None}),
], ids=["best of three", "a loop", "an error after it", "a comment", "words within a line", "two in a cell", "the second raises",
        "more verdicts than checks", "fewer verdicts than checks", "an exercise that does not exist"])
def test_verdicts_are_assigned_only_where_that_is_certain(cells: list, expected: dict, tmp_path: Path):
    hand_in(tmp_path, "a.ipynb", *cells)
    found = results(tmp_path)
    assert {e: found.get(("a.ipynb", e)) for e in expected} == expected


@pytest.mark.parametrize("content", ["", "no JSON", "[]", "null", '{"cells": 1}', '{"cells": [1]}', '{"worksheets": []}',
                                     "[" * 10**5, '{"cells": [{"cell_type": "code", "source": 1, "outputs": []}]}',
                                     '{"cells": [{"cell_type": "code", "source": "", "outputs": [{"name": "stdout"}]}]}',
                                     b"\xff\xfe\x00"])
def test_a_broken_file_is_named_and_the_others_are_graded(content: str | bytes, tmp_path: Path):
    (tmp_path / "b.ipynb").write_bytes(content if isinstance(content, bytes) else content.encode())
    hand_in(tmp_path, "a.ipynb", cell('vv.check("00.1", 19, model)', "Right: 6\n"))
    (remark,) = grade(tmp_path)[1]
    assert remark == "b.ipynb cannot be read as a notebook (nbformat 4); ask for it again."
    assert results(tmp_path)["a.ipynb", "exercise 00.1"] == "right"


def test_a_foreign_and_an_unexecuted_notebook_are_named(tmp_path: Path):
    hand_in(tmp_path, "foreign.ipynb", cell("print(1)", "1\n"))
    hand_in(tmp_path, "unexecuted.ipynb", cell('vv.check("00.1", 19, model)'))
    hand_in(tmp_path, ".ipynb_checkpoints/a.ipynb", cell('vv.check("00.1", 19, model)', "Right: 6\n"))
    (tmp_path / "a folder.ipynb").mkdir()
    table, remarks = grade(tmp_path)
    assert [remark.split(".ipynb")[0] for remark in remarks] == ["a folder", "foreign", "unexecuted"]
    assert set(table["file"]) == {"unexecuted.ipynb"} and set(table["result"]) <= {"not run", "missing"}


def test_the_command_writes_a_table_that_no_spreadsheet_takes_for_formulas(tmp_path: Path, capsys: pytest.CaptureFixture):
    folder, out = tmp_path / "handed_in", tmp_path / "grades.csv"
    for name in ("=cmd()|'x'!A0.ipynb", "+1/a.ipynb", "-1.ipynb", "@a.ipynb", 'é, "b".ipynb'):
        hand_in(folder, name, cell('open("executed", "w")\nvv.check("00.1", 19, model)', "Right: 6\n"))
    for _ in range(2):  # its own table is replaced
        assert cli.main(["grade", str(folder), "--out", str(out)]) == 0
    assert not Path("executed").exists()
    with open(out, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", "exercise", "result"] and len({row[0] for row in rows}) == 5
    assert all(field[0] not in "=+-@\t\r0123456789" for row in rows for field in row)
    of_00 = sum(e.startswith("00.") for e in exercises())
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"5 of {5 * of_00} exercises right, in 5 notebooks with checks; written to {out}")


def test_a_file_of_others_stays(tmp_path: Path, capsys: pytest.CaptureFixture):
    hand_in(tmp_path, "a.ipynb", cell("1"))
    out = tmp_path / "grades.csv"
    out.write_text("mine")
    assert cli.main(["grade", str(tmp_path), "--out", str(out)]) == 2 and out.read_text() == "mine"
    assert "is nothing that this command made" in capsys.readouterr().err
