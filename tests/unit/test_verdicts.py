"""Verdicts of several models: the answer and the rank of the truth, worked out by hand; drawn for one model and for ten."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from vitviz_nb.errors import VitvizError
from vitviz_nb.models import VisionModel
from vitviz_nb.verdicts import Verdict, ask, verdict_sheet, verdicts


class Colour(nn.Module):
    """The colour that a picture has most of; grey comes third at best."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return torch.cat([means, means.topk(2).values[:, 1:] - 1e-3], 1)


CLASSES = ["red", "green", "blue", "grey"]
IMAGES = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.7, 0.4], [0.3, 0.4, 0.8]])[:, :, None, None].expand(-1, -1, 8, 8)


def colours(name: str = "colours") -> VisionModel:
    return VisionModel(Colour(), name, 8, class_names=CLASSES)


def test_answers_and_ranks_are_worked_out_by_hand():
    assert ask(colours(), IMAGES, "green") == [Verdict("colours", "red", 2), Verdict("colours", "green", 1),
                                               Verdict("colours", "blue", 2)]
    assert [verdict.rank for verdict in ask(colours(), IMAGES, "grey")] == [3, 3, 3]


def test_a_class_that_the_model_does_not_know_is_refused_with_the_nearest():
    with pytest.raises(VitvizError, match="knows no class 'gren'. Did you mean green"):
        ask(colours(), IMAGES, "gren")


@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_figure_has_a_row_for_each_model(count):
    models = [colours(f"model {i}") for i in range(count)]
    figure = verdicts(models, IMAGES[0], "green", "a scene")
    right = figure.axes[1]
    assert [label.get_text() for label in right.get_yticklabels()] == [f"model {i}: red" for i in range(count)]
    assert [line.get_xdata()[0] for line in right.lines] == [2] * count
    assert right.get_xlabel() == "rank of 'green' among 4 classes" and figure.axes[0].get_title() == "a scene"
    plt.close(figure)


def test_the_sheet_says_which_answers_are_right(monkeypatch):
    shown = []
    monkeypatch.setattr("vitviz_nb.verdicts.contact_sheet", lambda tiles, title, side, columns: shown.extend(tiles))
    verdict_sheet([colours("emoji-one"), colours("two")], IMAGES, ["first", "second", "third"], "green", "title")
    assert [tile.lines for tile in shown] == [["first", "one: red", "two: red"],
                                              ["second", "one: green (right)", "two: green (right)"],
                                              ["third", "one: blue", "two: blue"]]
