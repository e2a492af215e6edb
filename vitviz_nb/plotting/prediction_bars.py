"""What several models predict for the same image, drawn so that one to ten of them can be read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..utils import validate
from ..utils.errors import VitvizError, nearest
from .image_grid import Tile, contact_sheet, to_image

if TYPE_CHECKING:  # models import this subpackage
    from ..models.vision_model import VisionModel


@dataclass(frozen=True)
class Prediction:
    """What ``model`` (its name) predicts: its top-1 ``label``, and the ``rank`` of the true class, 1 if that is the label."""

    model: str
    label: str
    rank: int


def predict(model: "VisionModel", images: torch.Tensor, truth: str) -> list[Prediction]:
    """The predictions of ``model`` for images (N, 3, S, S) in [0, 1] that all show the class ``truth``."""
    known = isinstance(truth, str) and model.class_names or []
    if not known or truth not in known:
        raise VitvizError(f"{model.name} knows no class {validate.shown(truth)}.{nearest(truth, known) if known else ''}")
    with torch.inference_mode():
        logits = model(images).float().cpu()
    ranks = 1 + (logits > logits[:, [model.class_names.index(truth)]]).sum(1)
    return [Prediction(model.name, model.class_names[best], rank)
            for best, rank in zip(logits.argmax(1).tolist(), ranks.tolist(), strict=True)]


def prediction_bars(models: list["VisionModel"], image: torch.Tensor, truth: str, title: str = "") -> Figure:
    """One image (3, S, S) and, for each model, its label and the rank of the class ``truth``: the further left, the better."""
    rows = [predict(model, image[None], truth)[0] for model in models]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 1.6 + 0.32 * max(4, len(rows))), layout="constrained",
                                         width_ratios=(1, 1.5))
    left.imshow(to_image(image))
    left.set(xticks=[], yticks=[])
    left.set_title(title, fontsize="medium", wrap=True)
    correct, wrong = ({"marker": marker, "color": color, "markersize": 10}
                      for marker, color in zip("oX", sns.color_palette("colorblind"), strict=False))
    for y, row in enumerate(rows):
        right.plot(row.rank, y, **(correct if row.rank == 1 else wrong))
    right.set_xscale("log", base=2)
    classes = len(models[0].class_names)
    ticks = [1, *(2**i for i in range(1, 20) if 2**i < classes), classes]
    right.set_xticks(ticks, ticks)
    right.minorticks_off()
    right.set(xlim=(0.8, 1.25 * classes), ylim=(len(rows) - 0.5, -0.5), xlabel=f"rank of {truth!r} among {classes} classes")
    right.set_yticks(range(len(rows)), [f"{row.model}: {row.label}" for row in rows])
    right.grid(alpha=0.3)
    return figure


def prediction_sheet(models: list["VisionModel"], images: torch.Tensor, captions: list[str], truth: str,
                     title: str = "") -> Image.Image:
    """Images (N, 3, S, S) of the class ``truth`` in a row, under each its caption and every model's top-1 label."""
    lines = [[f"{p.model.removeprefix('emoji-')}: {p.label}{' (correct)' if p.rank == 1 else ''}"
              for p in predict(model, images, truth)] for model in models]
    tiles = [Tile(image, [caption, *below]) for image, caption, *below in zip(images, captions, *lines, strict=True)]
    return contact_sheet(tiles, title, side=192, columns=6)
