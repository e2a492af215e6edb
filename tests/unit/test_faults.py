"""The table of faults in this folder's README: every fault has a test, and the test is there."""

import ast
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
ROWS = re.findall(r"^\| (\d+)\. [^|]+ \| .+ \| `([^`]+\.py)::(\w+)` \|$", (FOLDER / "README.md").read_text("utf-8"), re.MULTILINE)


def test_each_of_the_nineteen_kinds_has_faults_and_there_are_sixty_at_least():
    assert {int(kind) for kind, _, _ in ROWS} == set(range(1, 20)) and len(ROWS) >= 60
    assert len(ROWS) == (FOLDER / "README.md").read_text("utf-8").count("\n| ") - 1  # the heading; every other row is read


@pytest.mark.parametrize("file", sorted({file for _, file, _ in ROWS}))
def test_the_tests_that_hold_them_are_there(file: str):
    tests = {node.name for node in ast.walk(ast.parse((FOLDER / file).read_text("utf-8"))) if isinstance(node, ast.FunctionDef)}
    assert {test for _, there, test in ROWS if there == file} <= tests
