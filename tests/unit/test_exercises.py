"""Exercises take every right answer and reject near misses, and say which number decides."""

from types import SimpleNamespace

import pytest
import torch

import vitviz_nb as vv
from vitviz_nb import exercises
from vitviz_nb.errors import VitvizError
from vitviz_nb.faithfulness import Selectivity


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch, tiny_vit) -> None:
    """Layers of mean selectivity 2, 2.9 and 3; neuron 0 of the last likes bee best, then cat, ant, dog, eel."""
    strengths = [2.0, 2.9, 3.0]
    each = torch.tensor([[1.0, 0], [3.0, 0], [2.0, 0], [1.0, 9], [0.5, 0.5], [0.1, 0.1], [0.0, -1.0]])
    monkeypatch.setattr(exercises, "sites", lambda model: {"mlp": [SimpleNamespace(units=2, n=i) for i in range(3)]})
    monkeypatch.setattr(exercises, "selectivity", lambda model, place: Selectivity(
        torch.tensor([1, 3]), torch.full((2,), strengths[place.n]), each))
    tiny_vit.class_names = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"]
    # Layer 0 answers to the pixels of every third column: a shift by 3, 6, 9 or 12 px leaves it as it was.
    stripes = torch.arange(36).remainder(3).float()
    monkeypatch.setattr(exercises, "default_reference", lambda model: SimpleNamespace(
        batch=lambda numbers: (torch.rand(8, 1, 1, 1) * stripes + 0.1 * torch.rand(8, 1, 1, 1)).expand(-1, 3, 36, 36)))
    monkeypatch.setattr(exercises, "activations", lambda model, kind, images: [images[:, 0, 0, :3]])


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


@pytest.mark.parametrize(("exercise", "right", "wrong"), [
    ("03.1", [2], [1, 0]),  # 2.9 is less than half again as much as 2
    ("03.2", [(0, "bee"), (0, "CAT"), (0, "ant"), (1, "dog")], [(0, "gnu"), (1, "gnu")]),  # eel is the fifth of neuron 0
    ("03.3", [3], [2, 4, 1, 5]),
])
def test_right_answers_to_notebook_03_pass_and_near_misses_do_not(exercise, right, wrong, layers, tiny_vit, capsys):
    for answer in right + wrong:
        vv.check(exercise, answer, tiny_vit)
        assert capsys.readouterr().out.startswith("Right" if answer in right else "Not yet"), answer


@pytest.mark.parametrize(("exercise", "answer", "wanted"), [
    ("03.1", 3, "a layer, 0 to 2"), ("03.2", "bee", "a neuron and a name"), ("03.2", (2, "bee"), "a neuron, 0 to 1"),
    ("03.2", (0, 5), "a neuron and a name"), ("03.3", 13, "a shift in pixels, 0 to 12"), ("03.3", 2.5, "a shift"),
])
def test_an_answer_of_the_wrong_kind_to_notebook_03_is_told_what_is_wanted(exercise, answer, wanted, layers, tiny_vit):
    with pytest.raises(VitvizError, match=f"Exercise {exercise} wants .*{wanted}"):
        vv.check(exercise, answer, tiny_vit)


def test_a_name_that_is_no_concept_is_told_the_nearest(layers, tiny_vit):
    with pytest.raises(VitvizError, match="No concept is called 'beee'. Did you mean bee"):
        vv.check("03.2", (0, "beee"), tiny_vit)


@pytest.mark.parametrize(("exercise", "answer", "wanted"), [
    ("05.1", 7, "a number of blocks, 0 to 6"), ("05.1", 4.0, "a number of blocks"), ("05.2", "15", "percentage points"),
    ("05.2", True, "percentage points"), ("05.3", 5, "a patch, 0 to 4"), ("05.3", -1, "a patch"), ("05.3", None, "a patch"),
])
def test_an_answer_of_the_wrong_kind_is_told_what_is_wanted(exercise, answer, wanted, depths, tiny_vit):
    with pytest.raises(VitvizError, match=f"Exercise {exercise} wants .*{wanted}"):
        vv.check(exercise, answer, tiny_vit)
