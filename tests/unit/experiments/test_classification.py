"""Correct predictions are counted as worked out by hand, and found again in the cache by the same model alone."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vitviz_nb.datasets.image_folder import ImageFolder
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments.classification import accuracy_rows, are_correct, correct_predictions
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

NAMES = ["a", "b", "c", "d", "e", "f", "g"]


class Levels(nn.Module):
    """Class k for an image of gray level k / 10; then the next ones above, in order."""

    def __init__(self):
        super().__init__()
        Levels.seen = 0  # images, counted outside of the network, whose attributes are part of what it computes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Levels.seen += len(x)
        level = (10 * (x.mean((1, 2, 3)) / 2 + 0.5)).round()
        return -torch.remainder(torch.arange(7) - level[:, None], 7)


def images(*levels: int, labels: str) -> ImageFolder:
    stack = torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 10
    return ImageFolder(stack, [Path(f"{i}.png") for i in range(len(levels))], list(labels), [])


def test_first_and_first_five_answers_are_counted():
    model = VisionModel(Levels(), "levels", 8, class_names=NAMES)
    found = correct_predictions(model, ImageSet(model, images(0, 1, 1, 2, labels="abea")), "as they are")
    # Of level 2 the answers are c, d, e, f, g, a, b: a is the sixth.
    assert found.tolist() == [[True, True], [True, True], [False, True], [False, False]]
    rows = accuracy_rows({"shown": "whole"}, found)
    assert [(row["shown"], row["measure"], row["value"], row["n"]) for row in rows] == [
        ("whole", "top-1", 50, 4), ("whole", "top-5", 75, 4)]
    assert rows[0]["low"] < 50 < rows[0]["high"]


def test_a_change_is_seen_instead_and_a_second_run_asks_the_model_nothing():
    model = VisionModel(Levels(), "levels", 8, class_names=NAMES)
    image_set, calls = ImageSet(model, images(1, 1, labels="ab")), []
    model.state()  # one pass shows what a pass itself changes
    Levels.seen = 0

    def darker(numbers, batch):
        calls.append(list(numbers))
        return batch - 0.1

    correct = [correct_predictions(model, image_set, "a level darker", darker) for _ in range(2)]
    assert calls == [[0, 1]] and Levels.seen == 2
    assert correct[0].tolist() == correct[1].tolist() == [[True, True], [False, True]]  # level 0: a, b, c, d, e
    assert correct_predictions(model, image_set, "as they are").tolist() == [[False, False], [True, True]]  # another change


class Dial(nn.Module):
    """Predicts the class that its weight says, and in half precision the next one."""

    def __init__(self):
        super().__init__()
        self.dial = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.eye(7, dtype=x.dtype)[int(self.dial) + (x.dtype == torch.float16)].expand(len(x), -1)


def test_hooks_changes_in_place_and_half_precision_have_accuracies_of_their_own():
    model = VisionModel(Dial(), "dial", 8, class_names=NAMES)
    image_set = ImageSet(model, images(0, 1, 2, labels="abc"))

    def predicted() -> str:
        return NAMES[int(correct_predictions(model, image_set, "as they are")[:, 0].nonzero())]

    assert predicted() == "a"
    model.module.dial.data.fill_(1)
    assert predicted() == "b"
    model.module.half()
    assert predicted() == "c"
    model.module.float()
    assert predicted() == "b"
    handle = model.module.register_forward_hook(lambda module, arguments, output: output.roll(1, -1))
    assert predicted() == "c"
    handle.remove()
    assert predicted() == "b"


def test_other_labels_of_the_same_images_are_counted_anew():
    model = VisionModel(Levels(), "levels", 8, class_names=NAMES)
    assert correct_predictions(model, ImageSet(model, images(0, 1, labels="ab")), "as they are").all()
    assert not correct_predictions(model, ImageSet(model, images(0, 1, labels="gg")), "as they are")[:, 0].any()


def test_images_without_labels_are_told_of_before_the_model_is_asked():
    model = VisionModel(Levels(), "levels", 8, class_names=NAMES)
    with pytest.raises(VitvizError, match="images with labels"):
        correct_predictions(model, ImageSet(model, torch.zeros(2, 3, 8, 8)), "as they are")
    assert Levels.seen == 0


def test_several_answers_an_image_are_judged_apart():
    logits = torch.zeros(1, 2, 7)
    logits[0, 0, 3], logits[0, 1, 4], logits[0, 1, 3] = 1, 2, 1
    assert are_correct(logits, torch.tensor([3])).tolist() == [[[True, True], [False, True]]]
