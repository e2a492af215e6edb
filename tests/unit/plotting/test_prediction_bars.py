"""Predictions of several models: top-1 label and rank of the true class, worked out by hand; drawn for one model and for ten."""

import matplotlib.pyplot as plt
import pytest
import torch
from torch import nn

from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.plotting.prediction_bars import Prediction, predict, prediction_bars, prediction_sheet
from vitviz_nb.utils.errors import VitvizError


class Color(nn.Module):
    """Logits of the color channels; gray comes third at best."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        means = x.mean((2, 3))
        return torch.cat([means, means.topk(2).values[:, 1:] - 1e-3], 1)


CLASSES = ["red", "green", "blue", "gray"]
IMAGES = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.7, 0.4], [0.3, 0.4, 0.8]])[:, :, None, None].expand(-1, -1, 8, 8)


def colors(name: str = "colors") -> VisionModel:
    return VisionModel(Color(), name, 8, class_names=CLASSES)


def test_labels_and_ranks_are_worked_out_by_hand():
    assert predict(colors(), IMAGES, "green") == [
        Prediction("colors", "red", 2), Prediction("colors", "green", 1), Prediction("colors", "blue", 2)]
    assert [prediction.rank for prediction in predict(colors(), IMAGES, "gray")] == [3, 3, 3]


@pytest.mark.parametrize("truth", ["gren", 3, None])
def test_a_class_that_the_model_does_not_know_is_refused_with_the_nearest(truth):
    with pytest.raises(VitvizError, match="knows no class 'gren'. Did you mean green" if truth == "gren" else "knows no class"):
        predict(colors(), IMAGES, truth)


@pytest.mark.parametrize("count", [1, 2, 10])
def test_the_figure_has_a_row_for_each_model(count):
    models = [colors(f"model {i}") for i in range(count)]
    figure = prediction_bars(models, IMAGES[0], "green", "a scene")
    right = figure.axes[1]
    assert [label.get_text() for label in right.get_yticklabels()] == [f"model {i}: red" for i in range(count)]
    assert [line.get_xdata()[0] for line in right.lines] == [2] * count
    assert right.get_xlabel() == "rank of 'green' among 4 classes" and figure.axes[0].get_title() == "a scene"
    plt.close(figure)


def test_the_sheet_says_which_predictions_are_correct(monkeypatch):
    shown = []
    monkeypatch.setattr("vitviz_nb.plotting.prediction_bars.contact_sheet", lambda tiles, *_, **__: shown.extend(tiles))
    prediction_sheet([colors("emoji-one"), colors("two")], IMAGES, ["first", "second", "third"], "green", "title")
    assert [tile.lines for tile in shown] == [["first", "one: red", "two: red"],
                                              ["second", "one: green (correct)", "two: green (correct)"],
                                              ["third", "one: blue", "two: blue"]]
