"""Right and wrong answers of a model on labeled images, as they are or changed."""

from collections.abc import Callable

import numpy as np
import torch

from ..datasets.image_set import ImageSet
from ..models.vision_model import VisionModel
from ..utils import cache
from .result import share

MEASURES = ("top-1", "top-5")


def correct_predictions(model: VisionModel, stimuli: ImageSet, what: str,
                  change: Callable[[range, torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """bool (n, 2): whether each image's class is the model's first answer, and whether it is among its first five.

    Arguments as in ``best_answers``.
    """
    labels = stimuli.labels(range(stimuli.n))  # asked first, so that images without labels are told of before any work
    right = top5_predictions(model, stimuli, what, change) == labels[:, None]
    return torch.stack([right[:, 0], right.any(1)], 1)


def top5_predictions(model: VisionModel, stimuli: ImageSet, what: str,
                 change: Callable[[range, torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
    """The model's five likeliest classes for each image, likeliest first: (n, 5).

    Answers are kept in the cache, so that a second run is instant.

    Args:
        what: names the change, for the progress bar and the cache: the same words must mean the same change.
        change: from an images' numbers and the images (N, 3, S, S) in [0, 1] to those that are shown instead.
    """
    path = cache.path_of({"weights": model.weights_hash, "images": stimuli.key, "n": stimuli.n, "what": what,
                          "changes": model.memo.get("changes", [])}, "answers")
    stored = cache.read(path)
    if stored and stored.keys() == {"best"} and len(stored["best"]) == stimuli.n:
        return torch.from_numpy(stored["best"])
    with torch.inference_mode():
        best = torch.cat([top5(model(change(numbers, batch) if change else batch))
                          for numbers, batch in stimuli.batches(f"{model.name}: {what}")])
    cache.write(path, {"best": best.numpy().astype(np.int32)})
    return best


def top5(logits: torch.Tensor) -> torch.Tensor:
    """The classes of the five largest logits (..., classes), largest first: (..., 5), on the CPU."""
    return logits.topk(min(5, logits.shape[-1]), -1).indices.cpu()


def are_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """bool (N, m, 2): whether each of m answers (N, m, classes) has the label first, and among the first five."""
    right = top5(logits) == labels.cpu()[:, None, None]
    return torch.stack([right[..., 0], right.any(-1)], -1)


def accuracy_rows(of: dict, hits: torch.Tensor) -> list[dict]:
    """Two rows of a table, top-1 and top-5 in percent, from ``hits`` (n, 2); ``of`` says what they are of."""
    return [{**of, "measure": name, **share(hits[:, j].sum(), len(hits))} for j, name in enumerate(MEASURES)]
