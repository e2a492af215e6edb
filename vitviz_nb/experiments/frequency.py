"""How far do a model's answers depend on fine and on coarse structure? (Paper, section 5.)"""

import numpy as np
import pandas as pd
import torch

from ..datasets.image_set import ImageSet
from ..models.vision_model import VisionModel
from ..utils.errors import VitvizError
from .classification import accuracy_rows, correct_predictions, top5_predictions
from .result import Result, share

PASSES = ("low", "high")
RADIUS = "radius (cycles a side)"


def filtered(images: torch.Tensor, radius: float, passes: str = "low") -> torch.Tensor:
    """Images (N, 3, S, S) with only the waves up to ("low") or beyond ("high") ``radius`` cycles a side, clamped to [0, 1].

    The mean of each channel always stays, so that a high-pass keeps an image's brightness and color cast.
    """
    return _passed(images, radius, passes).clamp(0, 1)


def hybrid(coarse: torch.Tensor, fine: torch.Tensor, radius: float) -> torch.Tensor:
    """Images (N, 3, S, S) with the waves of ``coarse`` up to ``radius`` cycles a side, and those of ``fine`` beyond.

    From afar one sees the one, from near the other (Oliva, Torralba and Schyns 2006). Brightness and color cast are those of
    ``coarse``.
    """
    details = _passed(fine, radius, "high") - fine.mean((2, 3), keepdim=True)
    return (_passed(coarse, radius, "low") + details).clamp(0, 1)


def _passed(images: torch.Tensor, radius: float, passes: str) -> torch.Tensor:
    """``filtered`` before it is clamped."""
    if passes not in PASSES:
        raise VitvizError(f"A filter passes low or high frequencies, got {passes!r}.")
    if radius < 0:
        raise VitvizError(f"A radius in the spectrum is at least 0 cycles a side, got {radius}.")
    line = torch.fft.fftfreq(images.shape[-1], device=images.device) * images.shape[-1]
    distance = (line[:, None] ** 2 + line[None] ** 2).sqrt()
    keep = (distance <= radius) if passes == "low" else (distance > radius)
    keep[0, 0] = True
    return torch.fft.ifft2(torch.fft.fft2(images) * keep).real


def radii(size: int) -> list[int]:
    """The radii that curves are measured at, in cycles a side: from 1 / 32 of the side to all of it."""
    return sorted({max(1, round(size * share)) for share in (1 / 32, 1 / 16, 3 / 32, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 0.71)})


def by_frequency(model: VisionModel, images=None, n: int | None = None, passes: str = "low") -> Result:
    """Accuracy against the radius of a low-pass or high-pass in the spectrum, in cycles a side, top-1 and top-5.

    The last radius of a low-pass keeps everything; a high-pass has a first row, radius 0, that does.
    """
    stimuli = ImageSet(model, images, n)
    rows = [row for radius, hits in _by_radius(model, stimuli, passes).items() for row in accuracy_rows({RADIUS: radius}, hits)]
    return Result(f"{model.title}: {passes}-pass ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def _by_radius(model: VisionModel, stimuli: ImageSet, passes: str) -> dict[int, torch.Tensor]:
    """For each radius the right answers (n, 2)."""
    steps = radii(model.image_size)
    return {radius: correct_predictions(model, stimuli, f"{passes}-pass {radius}",
                                  lambda _, batch, radius=radius: filtered(batch, radius, passes))
            for radius in (steps if passes == "low" else [0, *steps[:-1]])}


def at_equal_accuracy(models: list[VisionModel], images=None, n: int | None = None, passes: str = "low") -> Result:
    """Curves of several models over those images alone that all of them get right when nothing is filtered (top-1).

    There every model begins at 100 %, so that none keeps more because it was better, or knew other images, from the start.
    """
    hits = {}
    for model in models:
        found = _by_radius(model, ImageSet(model, images, n), passes)
        hits[model.title] = {radius: right[:, 0] for radius, right in found.items()}
    whole = [curve[0 if 0 in curve else max(curve)] for curve in hits.values()]
    all_right = torch.stack(whole).all(0)
    if not all_right.any():
        raise VitvizError(f"There is no image that {', '.join(hits)} all get right; compare models that know these classes.")
    rows = [{RADIUS: radius, "model": name, **share(right[all_right].sum(), int(all_right.sum()))}
            for name, curve in hits.items() for radius, right in curve.items()]
    return Result(f"{passes}-pass, images that all models get right whole", "right answers (%)", pd.DataFrame(rows))


def radius_needed(models: list[VisionModel], images=None, n: int | None = None, passes: str = "low",
                  share: float = 0.9) -> Result:
    """One number a model: the radius at which a low-pass or high-pass leaves ``share`` of its right answers (top-1).

    The larger the radius of the low-pass, the finer the structure that the model needs. Between the radii of ``by_frequency``
    the curve is taken as straight. The interval is of 1,000 draws of the images with replacement, the same for every model.
    """
    if not 0 < share < 1:
        raise VitvizError(f"The share of right answers to keep lies between 0 and 1, got {share}.")
    rows = []
    for model in models:
        stimuli = ImageSet(model, images, n)
        found = _by_radius(model, stimuli, passes)
        hits = torch.stack([right[:, 0] for right in found.values()]).double().numpy()  # (radii, n)
        lots = np.random.default_rng(0).multinomial(stimuli.n, np.full(stimuli.n, 1 / stimuli.n), 1000)
        value, *draws = (_crossing(np.array([*found]), curve, share)
                         for curve in np.vstack([hits.mean(1), lots @ hits.T / stimuli.n]))
        low, high = np.quantile(draws, (0.025, 0.975))
        rows.append({"model": model.title, "value": value, "low": low, "high": high, "n": stimuli.n})
    return Result(f"{passes}-pass that leaves {100 * share:.0f} % of the right answers ({stimuli.name})", RADIUS,
                   pd.DataFrame(rows))


def _crossing(steps: np.ndarray, curve: np.ndarray, share: float) -> float:
    """Where an accuracy (radii,) falls below a share of that on whole images, coming from there; NaN if it never does."""
    if steps[0] != 0:  # a low-pass: from the whole images, its last, downwards
        steps, curve = steps[::-1], curve[::-1]
    below = np.flatnonzero(curve < share * curve[0])
    if not len(below):
        return np.nan
    i = below[0]
    return float(np.interp(share * curve[0], [curve[i], curve[i - 1]], [steps[i], steps[i - 1]]))


def conflict(model: VisionModel, images=None, n: int | None = None, steps=(4, 8, 12, 16)) -> Result:
    """Hybrids: one image's coarse waves with the fine ones of another class. Whose class does the model answer with?

    Every image lends its coarse waves once and its fine ones once, to images drawn by lot.

    Args:
        images: labeled, of at least two classes.
        steps: radii between coarse and fine, in cycles a side.
    """
    stimuli = ImageSet(model, images, n)
    labels = stimuli.labels(range(stimuli.n))
    partner = _partners(labels)
    rows = []
    for radius in steps:
        answers = top5_predictions(model, stimuli, f"hybrids {radius}", lambda numbers, batch, radius=radius: hybrid(
            batch, stimuli.batch(partner[list(numbers)].tolist()), radius))[:, 0]
        rows += [{RADIUS: radius, "answer": f"what is {name}", **share((answers == truth).sum(), stimuli.n)}
                 for name, truth in (("coarse", labels), ("fine", labels[partner]))]
    return Result(f"{model.title}: hybrids, coarse up to a radius, fine beyond ({stimuli.name})", "answers (%)",
                   pd.DataFrame(rows))


def _partners(labels: torch.Tensor) -> torch.Tensor:
    """For each image another of a different class, by lot (seed 0); every one is a partner about once."""
    lot = torch.Generator().manual_seed(0)
    partner = torch.randperm(len(labels), generator=lot)
    for _ in range(100):
        same = (labels[partner] == labels).nonzero()[:, 0]
        if not len(same):
            return partner
        partner[same] = torch.randint(len(labels), (len(same),), generator=lot)
    raise VitvizError("Hybrids need images of at least two classes, none of them nearly all; these have one.")


def kept(findings: dict[str, Result], measure: str = "top-1") -> Result:
    """Several models' curves of ``by_frequency`` in one, each as a share of its accuracy on the whole images, in percent.

    Intervals are those of the filtered images' accuracies, divided by that on whole ones, whose uncertainty is left out.

    Args:
        findings: by the name of each model, all low-pass or all high-pass.
    """
    tables = []
    for name, finding in findings.items():
        table = finding.table.query("measure == @measure").drop(columns="measure")
        whole = table["value"].iloc[0 if table.iloc[0, 0] == 0 else -1]
        if whole == 0:
            raise VitvizError(f"{name} is right on no whole image, so there is nothing to keep a share of.")
        table[["value", "low", "high"]] *= 100 / whole
        table.insert(1, "model", name)
        tables.append(table)
    return Result("Share of whole images' right answers that is kept", f"{measure}, % of that on whole images",
                   pd.concat(tables, ignore_index=True))
