"""Checks of notebook 11, Your own."""

import torch
from torch.nn import functional

from ...datasets.image_folder import ImageFolder, image_folder
from ...experiments.localization import token_similarity
from ...experiments.result import Result
from ...models.vision_model import VisionModel
from ...utils import validate
from ...utils.errors import VitvizError
from ...utils.paths import data_dir
from ...visualize.rendering import Rendering
from ..report import Report
from . import close, implementation


def exercise_1(answer, model=None):
    """A function from features (n, d), labels (n,), classes and a penalty to the weights (d + 1, classes) of a ridge probe."""
    draw = torch.Generator().manual_seed(11)
    inputs = [(torch.randn(n, d, generator=draw), torch.arange(n) % classes, classes, strength)
              for n, d, classes, strength in ((40, 5, 3, 2.0), (24, 8, 4, 0.5))]

    def ridge(x, labels, classes, strength, ones_first=False, spared=False):
        ones = torch.ones(len(x), 1)
        x = torch.cat([ones, x] if ones_first else [x, ones], 1)
        penalty = strength * torch.eye(x.shape[1])
        penalty[-1, -1] *= not spared
        return torch.linalg.solve(x.T @ x + penalty, x.T @ functional.one_hot(labels, classes).float())

    return implementation(answer, ridge, inputs, {
        "the penalty is missing: add strength times the identity": lambda x, y, c, s: ridge(x, y, c, 0.0),
        "the ones are the first column; the bias belongs into the last row": lambda *given: ridge(*given, ones_first=True),
        "the penalty counts the bias, too": lambda *given: ridge(*given, spared=True)}, 1e-3)


def exercise_2(answer, model):
    """Mean cosine similarity of the patch tokens of a photograph in the last layer, within 0.03."""
    number = validate.real("A mean cosine similarity", answer, -1, 1)
    last = token_similarity(model, photographs(model)).where(tokens="patches").table.iloc[-1]
    return close(number, last["value"], 0.03, f"{last['value']:.2f} in layer {last['layer']:.0f} (95 % interval "
                 f"{last['low']:.2f} to {last['high']:.2f}, {last['n']:.0f} photographs)",
                 "Take the last layer, patches, and only the photographs")


def exercise_3(answer, model):
    """A report of four items or more, with words on each; a rendering, a result, and one of words only."""
    if not isinstance(answer, Report):
        raise VitvizError(f"The answer is a report, made by vv.Report(folder, title); got {validate.shown(answer)}.")
    kinds = [type(item.shown) for item in answer.items]
    lacks = [f"four items (it has {len(kinds)})"] * (len(kinds) < 4)
    lacks += ["pictures (a Rendering)"] * (Rendering not in kinds) + ["a measurement (a Result)"] * (Result not in kinds)
    lacks += ["an item of words only, on what you could not show"] * (type(None) not in kinds)
    lacks += [f"words on {item.heading!r}" for item in answer.items if not item.text.strip()]
    return not lacks, (f"the report lacks {'; '.join(lacks)}." if lacks else
                       f"{len(kinds)} items with words on each, in {answer.page.name}. Whether they convince, others must say.")


def photographs(model: VisionModel) -> ImageFolder:
    """The eight photographs of the kit, at a model's size."""
    return image_folder(data_dir() / "photos", model)
