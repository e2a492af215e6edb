"""What several models say of the same image, drawn so that one to ten of them can be read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.figure import Figure
from PIL import Image

from ..utils.errors import VitvizError, nearest
from .image_grid import Tile, contact_sheet

if TYPE_CHECKING:  # models are a room above
    from ..models.vision_model import VisionModel


@dataclass(frozen=True)
class Verdict:
    """What a model says of an image.

    Attributes:
        model: its name.
        answer: the name of the class it finds likeliest.
        rank: the place of the true class among all classes, 1 if it is the answer.
    """

    model: str
    answer: str
    rank: int


def ask(model: "VisionModel", images: torch.Tensor, truth: str) -> list[Verdict]:
    """The verdicts of ``model`` on images (N, 3, S, S) in [0, 1] that all show the class ``truth``."""
    if not model.class_names or truth not in model.class_names:
        raise VitvizError(f"{model.name} knows no class {truth!r}.{nearest(truth, model.class_names or [])}")
    with torch.inference_mode():
        logits = model(images).float().cpu()
    true = model.class_names.index(truth)
    ranks = 1 + (logits > logits[:, true:true + 1]).sum(1)
    return [Verdict(model.name, model.class_names[best], rank)
            for best, rank in zip(logits.argmax(1).tolist(), ranks.tolist(), strict=True)]


def verdicts(models: list["VisionModel"], image: torch.Tensor, truth: str, title: str = "") -> Figure:
    """One image (3, S, S) and, for each model, its answer and the rank of the class ``truth``: the further left, the better."""
    said = [ask(model, image[None], truth)[0] for model in models]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 1.6 + 0.32 * max(4, len(said))), layout="constrained",
                                         width_ratios=(1, 1.5))
    left.imshow(image.detach().cpu().clamp(0, 1).permute(1, 2, 0))
    left.set(xticks=[], yticks=[])
    left.set_title(title, fontsize="medium", wrap=True)
    right_color, wrong_color = (sns.color_palette("colorblind")[i] for i in (0, 1))
    for row, verdict in enumerate(said):
        right.plot(verdict.rank, row, "o" if verdict.rank == 1 else "X", markersize=10,
                   color=right_color if verdict.rank == 1 else wrong_color)
    right.set_xscale("log", base=2)
    ticks = [1, *(2**i for i in range(1, 20) if 2**i < len(models[0].class_names)), len(models[0].class_names)]
    right.set_xticks(ticks, ticks)
    right.minorticks_off()
    right.set(xlim=(0.8, 1.25 * ticks[-1]), ylim=(len(said) - 0.5, -0.5), xlabel=f"rank of {truth!r} among {ticks[-1]} classes")
    right.set_yticks(range(len(said)), [f"{verdict.model}: {verdict.answer}" for verdict in said])
    right.grid(alpha=0.3)
    return figure


def verdict_sheet(models: list["VisionModel"], images: torch.Tensor, captions: list[str], truth: str,
                  title: str = "") -> Image.Image:
    """Images (N, 3, S, S) of the class ``truth`` in a row, under each its caption and the answer of every model."""
    said = [ask(model, images, truth) for model in models]
    tiles = []
    for i, (image, caption) in enumerate(zip(images, captions, strict=True)):
        mine = [verdicts[i] for verdicts in said]
        lines = [caption, *(f"{v.model.removeprefix('emoji-')}: {v.answer}{' (right)' if v.rank == 1 else ''}" for v in mine)]
        tiles.append(Tile(image, lines))
    return contact_sheet(tiles, title, side=192, columns=6)
