"""Exercises take every right answer and reject near misses, and say which number decides."""

import pytest
import torch

import vitviz_nb as vv
from vitviz_nb import exercises
from vitviz_nb.errors import VitvizError


@pytest.fixture
def depths(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of six blocks that keeps 94, 93, 91, 85, 66, 5 and 0 % right with so many blocks apart, and loses 15 points when
    alone from the last on."""
    share = {("apart", k): v for k, v in enumerate([94.0, 93.0, 91.0, 85.0, 66.0, 5.0, 0.4])} | {("alone", 5): 79.0}
    monkeypatch.setattr(exercises, "sites", lambda model: {"residual": [None] * 6})
    monkeypatch.setattr(exercises, "isolated", lambda model, k: ("apart", k))
    monkeypatch.setattr(exercises, "alone", lambda model, k: ("alone", k))
    monkeypatch.setattr(exercises, "top1", lambda model, changed=("apart", 0): share[changed])
    monkeypatch.setattr(exercises, "patch_hits", lambda model: (torch.tensor([0, 30, 23, 22, 12]), 512))


@pytest.mark.parametrize(("exercise", "right", "wrong"), [
    ("05.1", [5], [4, 6, 0, 3]),
    ("05.2", [15.0, 12.1, 17.9, 15], [11.9, 18.1, 0, -15, 79.0]),
    ("05.3", [1, 2], [3, 0, 4]),  # 23 of 30 is more than three quarters, 22 is less
])
def test_right_answers_pass_and_near_misses_do_not(exercise, right, wrong, depths, tiny_vit, capsys):
    for answer in right + wrong:
        vv.check(exercise, answer, tiny_vit)
        assert capsys.readouterr().out.startswith("Right" if answer in right else "Not yet"), answer


@pytest.mark.parametrize(("exercise", "answer", "wanted"), [
    ("05.1", 7, "a number of blocks, 0 to 6"), ("05.1", 4.0, "a number of blocks"), ("05.2", "15", "percentage points"),
    ("05.2", True, "percentage points"), ("05.3", 5, "a patch, 0 to 4"), ("05.3", -1, "a patch"), ("05.3", None, "a patch"),
])
def test_an_answer_of_the_wrong_kind_is_told_what_is_wanted(exercise, answer, wanted, depths, tiny_vit):
    with pytest.raises(VitvizError, match=f"Exercise {exercise} wants .*{wanted}"):
        vv.check(exercise, answer, tiny_vit)
