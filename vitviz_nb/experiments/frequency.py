"""Which spatial frequencies does a model rely on? Low-pass and high-pass filtered images, and hybrids (paper, section 5)."""

import numpy as np
import torch

from ..datasets.image_set import ImageSet, default_world
from ..models.vision_model import VisionModel
from ..utils import validate
from ..utils.errors import VitvizError
from .classification import accuracy_rows, correct_predictions, top5_predictions
from .result import Result, proportion

PASSES = ("low", "high")
CUTOFF = "cutoff (cycles per image)"


def filtered(images: torch.Tensor, cutoff: float, passes: str = "low") -> torch.Tensor:
    """Images (N, 3, S, S), clamped to [0, 1], low-passed or high-passed at ``cutoff`` cycles per image.

    The mean of each channel always stays, so that a high-pass keeps an image's brightness and color cast.
    """
    return _passed(images, cutoff, passes).clamp(0, 1)


def hybrid(low: torch.Tensor, high: torch.Tensor, cutoff: float) -> torch.Tensor:
    """Hybrid images (N, 3, S, S): low frequencies, brightness and color cast of ``low``, high frequencies of ``high``.

    From afar one sees the one, from near the other (Oliva, Torralba and Schyns 2006).
    """
    details = _passed(high, cutoff, "high") - high.mean((2, 3), keepdim=True)
    return (_passed(low, cutoff, "low") + details).clamp(0, 1)


def _passed(images: torch.Tensor, cutoff: float, passes: str) -> torch.Tensor:
    """``filtered`` before it is clamped."""
    validate.images("images", images, (3, *getattr(images, "shape", ())[-2:]))
    validate.choice("passes", passes, PASSES)
    cutoff = validate.real("cutoff", cutoff, 0, 1e6)
    down, across = (torch.fft.fftfreq(side, device=images.device) * side for side in images.shape[-2:])
    frequency = (down[:, None] ** 2 + across**2).sqrt()
    keep = (frequency <= cutoff) if passes == "low" else (frequency > cutoff)
    keep[0, 0] = True
    return torch.fft.ifft2(torch.fft.fft2(images) * keep).real


def cutoffs(size: int) -> list[int]:
    """The cutoffs that curves are measured at, in cycles per image: from 1 / 32 of the side to all frequencies."""
    return sorted({max(1, round(size * part)) for part in (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 0.71)})


def accuracy_by_cutoff(model: VisionModel, images=None, *, n: int | None = None, passes: str = "low") -> Result:
    """Top-1 and top-5 accuracy against the cutoff of a low-pass or high-pass filter.

    The last cutoff of the low-pass keeps the whole image, as does cutoff 0, the first of the high-pass.
    """
    image_set = ImageSet(model, images, n)
    rows = [row for cutoff, correct in sorted(_by_cutoff(model, image_set, passes).items())
            for row in accuracy_rows({CUTOFF: cutoff}, correct)]
    return Result(f"{model.title}: {passes}-pass ({image_set.name})", "accuracy (%)", rows)


def _by_cutoff(model: VisionModel, images: ImageSet, passes: str) -> dict[int, torch.Tensor]:
    """For each cutoff whether predictions are correct, bool (n, 2); the one that keeps the whole image comes first."""
    steps = cutoffs(model.image_size)
    steps = steps[::-1] if validate.choice("passes", passes, PASSES) == "low" else [0, *steps[:-1]]
    return {cutoff: correct_predictions(model, images, f"{passes}-pass {cutoff}",
                                        lambda _, batch, cutoff=cutoff: filtered(batch, cutoff, passes)) for cutoff in steps}


def at_equal_accuracy(models: list[VisionModel], images=None, *, n: int | None = None, passes: str = "low") -> Result:
    """Top-1 accuracy of several models against the cutoff, over those images only that all of them classify correctly unfiltered:
    there every model begins at 100 %, so that none keeps more because it was more accurate from the start.
    """
    models = _models(models)
    images = default_world(models[0]) if images is None else images  # the same for all
    image_sets = [ImageSet(model, images, n) for model in models]
    if len({image_set.n for image_set in image_sets}) > 1:
        raise VitvizError("These models would see different numbers of images; give n.")
    correct = {model.title: {cutoff: hits[:, 0] for cutoff, hits in _by_cutoff(model, image_set, passes).items()}
               for model, image_set in zip(models, image_sets, strict=True)}
    all_correct = torch.stack([next(iter(curve.values())) for curve in correct.values()]).all(0)
    if not all_correct.any():
        raise VitvizError(f"There is no image that {', '.join(correct)} all classify correctly; give more images, of classes "
                          f"that all of them know.")
    rows = [{CUTOFF: cutoff, "model": name, **proportion(hits[all_correct].sum(), int(all_correct.sum()))}
            for name, curve in correct.items() for cutoff, hits in sorted(curve.items())]
    return Result(f"{passes}-pass, images that all models classify correctly unfiltered", "accuracy (%)", rows)


def cutoff_needed(models: list[VisionModel], images=None, *, n: int | None = None, passes: str = "low",
                  keep: float = 0.9) -> Result:
    """The cutoff at which a filter leaves the proportion ``keep`` of a model's top-1 accuracy: of a low-pass, the larger, the
    higher the frequencies that the model relies on. Between the cutoffs of ``accuracy_by_cutoff`` the curve is linear; the
    interval is of 1,000 bootstrap samples of the images, the same for all models.
    """
    keep, rows = validate.real("keep", keep, 0.01, 0.99), []
    for model in _models(models):
        image_set = ImageSet(model, images, n)
        correct = _by_cutoff(model, image_set, passes)
        hits = torch.stack([part[:, 0] for part in correct.values()]).double().numpy()  # (cutoffs, n)
        samples = np.random.default_rng(0).multinomial(image_set.n, np.full(image_set.n, 1 / image_set.n), 1000)
        curves = np.vstack([hits.mean(1), samples @ hits.T / image_set.n])
        value, *draws = (_crossing([*correct], curve, keep) for curve in curves)
        low, high = np.quantile(draws, (0.025, 0.975))
        rows.append({"model": model.title, "value": value, "low": low, "high": high, "n": image_set.n})
    return Result(f"{passes}-pass that leaves {100 * keep:.0f} % of the accuracy ({image_set.name})", CUTOFF, rows)


def _models(models) -> list[VisionModel]:
    models = list(models) if isinstance(models, (list, tuple)) else [models]
    if not models or not all(isinstance(model, VisionModel) for model in models):
        raise VitvizError(f"models is a list of models from vv.load(name), such as [model], got {validate.shown(models)}.")
    return models


def _crossing(steps: list[int], curve: np.ndarray, keep: float) -> float:
    """Where an accuracy first falls below a proportion of its first value, that on whole images; NaN if it never does."""
    below = np.flatnonzero(curve < keep * curve[0])
    if not len(below):
        return np.nan
    i = below[0]
    return float(np.interp(keep * curve[0], [curve[i], curve[i - 1]], [steps[i], steps[i - 1]]))


def conflict(model: VisionModel, images=None, *, n: int | None = None, steps=(4, 8, 12, 16)) -> Result:
    """Hybrids of the low frequencies of one image and the high ones of an image of another class: which class is predicted?

    Each image lends its low and its high frequencies once, to random partners. ``steps`` are cutoffs in cycles per image.
    """
    image_set = ImageSet(model, images, n)
    labels = image_set.labels(range(image_set.n))
    partner, rows = _partners(labels), []
    for cutoff in np.atleast_1d(steps).tolist():
        predictions = top5_predictions(model, image_set, f"hybrids {cutoff}", lambda numbers, batch, cutoff=cutoff: hybrid(
            batch, image_set.batch(partner[list(numbers)].tolist()), cutoff))[:, 0]
        rows += [{CUTOFF: cutoff, "predicted class": f"of the {part} frequencies",
                  **proportion((predictions == truth).sum(), image_set.n)}
                 for part, truth in (("low", labels), ("high", labels[partner]))]
    return Result(f"{model.title}: hybrids, low frequencies up to a cutoff, high beyond ({image_set.name})", "predictions (%)",
                  rows)


def _partners(labels: torch.Tensor) -> torch.Tensor:
    """For each image a random one of a different class; every one is a partner about once."""
    random = torch.Generator().manual_seed(0)
    partner = torch.randperm(len(labels), generator=random)
    for _ in range(100):
        same = (labels[partner] == labels).nonzero()[:, 0]
        if not len(same):
            return partner
        partner[same] = torch.randint(len(labels), (len(same),), generator=random)
    raise VitvizError("Hybrids need images of at least two classes, none of them nearly all; these have one.")
