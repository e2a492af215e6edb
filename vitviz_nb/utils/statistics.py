"""Statistics of measured numbers: intervals, correlations, and how activations depend on the class of an image."""

import math

import torch

from .errors import VitvizError

FEWEST = 4  # images of a class, below which its mean would often be far out by chance


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % confidence interval of a proportion (Wilson 1927), both ends in [0, 1]."""
    if not n:
        return 0.0, 1.0
    z, proportion = 1.959964, hits / n
    center, half = proportion + z * z / (2 * n), z * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))


def pearson(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Pearson's r of each column of (n, units) with the same column of the other: (units,); 0 where one is constant."""
    first, second = first - first.mean(0), second - second.mean(0)
    return (first * second).mean(0) / (first.square().mean(0) * second.square().mean(0)).sqrt().clamp_min(1e-20)


class ClassSums:
    """Sums of activations by class, in float64, for statistics of more images than fit into memory: ``sums`` (classes, units),
    ``squares`` (units,) over all images, ``count`` (classes,) of images. A label beyond ``classes`` makes room for itself.
    """

    def __init__(self, classes: int, units: int):
        self.sums = torch.zeros(classes, units, dtype=torch.float64)
        self.squares, self.count = torch.zeros(units, dtype=torch.float64), torch.zeros(classes, dtype=torch.float64)

    def add(self, activations: torch.Tensor, labels: torch.Tensor) -> "ClassSums":
        """Count more images: activations (n, units) and int64 labels (n,); returns itself."""
        more = max(0, int(labels.max()) + 1 - len(self.count))
        self.sums, self.count = (torch.cat([x, x.new_zeros(more, *x.shape[1:])]) for x in (self.sums, self.count))
        self.sums.index_add_(0, labels, activations.double())
        self.squares += activations.double().square().sum(0)
        self.count += torch.bincount(labels, minlength=len(self.count))
        return self

    def _mean_and_variance(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Over all images, (units,) each; a variance no larger than rounding is exactly 0."""
        mean, mean_square = self.sums.sum(0) / self.count.sum(), self.squares / self.count.sum()
        variance = mean_square - mean.square()
        return mean, torch.where(variance > 1e-12 * mean_square, variance, 0.0)

    def selectivity(self) -> torch.Tensor:
        """See ``class_selectivity``."""
        mean, variance = self._mean_and_variance()
        deviation = self.sums / self.count.clamp_min(1)[:, None] - mean
        scores = torch.where(variance > 0, deviation / variance.clamp_min(1e-300).sqrt(), 0.0)
        return scores.masked_fill(self.count[:, None] < FEWEST, -math.inf).float()

    def variance_explained(self) -> torch.Tensor:
        """See ``variance_explained``."""
        n, classes = int(self.count.sum()), int((self.count > 0).sum())
        if n <= classes:
            raise VitvizError(f"Each of the {n} images has a label of its own, so what labels explain cannot be measured; give "
                              f"several images of each.")
        within = (self.squares - (self.sums.square() / self.count.clamp_min(1)[:, None]).sum(0)) / (n - classes)
        _, variance = self._mean_and_variance()
        share = 1 - within / (variance * n / (n - 1)).clamp_min(1e-300)
        return torch.where(variance > 0, share, 0.0).float()


def class_selectivity(activations: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """Class selectivity (classes, units), float32: the mean activation on a class minus that on all images, in standard
    deviations over all images. A unit that does not vary has 0; a class of fewer than four images has minus infinity.
    """
    return ClassSums(classes, activations.shape[1]).add(activations, labels).selectivity()


def variance_explained(activations: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Fraction of each unit's variance that labels explain, as ε² (epsilon squared, Kelley 1935): (units,), float32.

    One minus the mean square within labels over the total mean square: unlike R², 0 on average where labels have nothing to do
    with the activations; 1 where they fix them; 0 for a unit that does not vary.
    """
    return ClassSums(0, activations.shape[1]).add(activations, labels).variance_explained()
