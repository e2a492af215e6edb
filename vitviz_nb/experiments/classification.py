"""Predictions of a model on labeled images, as they are or changed, and how often they are correct."""

from collections.abc import Callable

import numpy as np
import torch

from ..datasets.image_set import ImageSet
from ..models.vision_model import VisionModel
from ..utils import cache
from .result import proportion

MEASURES = ("top-1", "top-5")


def correct_predictions(model: VisionModel, images: ImageSet, what: str,
                        change: Callable[[range, torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """Whether each image's class is the first prediction, and among the first five: bool (n, 2).

    Arguments as in ``top5_predictions``.
    """
    labels = images.labels(range(images.n))  # first, so that images without labels are refused before any work
    correct = top5_predictions(model, images, what, change) == labels[:, None]
    return torch.stack([correct[:, 0], correct.any(1)], 1)


def top5_predictions(model: VisionModel, images: ImageSet, what: str,
                     change: Callable[[range, torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """The five most probable classes of each image, the most probable first: int64 (n, 5); kept in the cache.

    Args:
        what: names the change, for the progress bar and the cache: the same words must mean the same change.
        change: from the images' numbers and the images (N, 3, S, S) in [0, 1] to those that are shown instead.
    """
    @torch.inference_mode()
    def predict() -> dict[str, np.ndarray]:
        predictions = [top5(model(change(numbers, batch) if change else batch))
                       for numbers, batch in images.batches(f"{model.name}: {what}")]
        return {"top5": torch.cat(predictions).numpy()}

    facts = {"images": images.key, "n": images.n, "change": what}
    most = len(model.class_names) - 1 if model.class_names else 2**31
    stored = cache.made(model, facts, "predictions", predict, {"top5": (images.n, None)}, 0, most)
    return torch.from_numpy(stored["top5"]).long()


def top5(logits: torch.Tensor) -> torch.Tensor:
    """The classes of the five largest logits (..., classes), largest first: int64 (..., 5), on the CPU."""
    return logits.topk(min(5, logits.shape[-1]), -1).indices.cpu()


def are_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether each of m predictions (N, m, classes) has the label first, and among the first five: bool (N, m, 2)."""
    correct = top5(logits) == labels.cpu()[:, None, None]
    return torch.stack([correct[..., 0], correct.any(-1)], -1)


def accuracy_rows(factors: dict, correct: torch.Tensor) -> list[dict]:
    """Two rows of a table, top-1 and top-5 accuracy in percent, from ``correct`` (n, 2); they begin with ``factors``."""
    return [{**factors, "measure": name, **proportion(correct[:, j].sum(), len(correct))} for j, name in enumerate(MEASURES)]
