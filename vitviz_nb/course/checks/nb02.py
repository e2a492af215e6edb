"""Checks of notebook 02, Obstacle: where to look."""

import torch

from ...experiments.units import covariance_rank, layer_activations, participation_ratio
from ...utils import validate
from ...utils.errors import VitvizError
from ...utils.statistics import class_selectivity
from . import implementation, verdict


def exercise_1(answer, model=None):
    """From activations (n, units) to the participation ratio of their covariance, a number."""
    random = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(n, k, generator=random) @ torch.randn(k, units, generator=random) + 3,)
              for n, k, units in ((50, 4, 7), (90, 9, 6))]

    def spectrum(activations, centered=True):
        moved = activations.double() - (activations.double().mean(0) if centered else 0)
        return torch.linalg.eigvalsh(moved.T @ moved)

    def ratio(values):
        return values.sum() ** 2 / values.square().sum()

    return implementation(answer, lambda x: participation_ratio(x)["value"], inputs, {
        "this is the number of units": lambda x: x.shape[1],
        "this counts all directions alike, the rank": lambda x: covariance_rank(x),
        "the mean is not subtracted, so it counts as one strong direction": lambda x: ratio(spectrum(x, False)),
        "these are singular values of the activations; the eigenvalues are their squares":
            lambda x: ratio(spectrum(x).clamp_min(0).sqrt()),
        "this is the reciprocal": lambda x: 1 / ratio(spectrum(x)),
        "the covariance is between images; transpose the activations": lambda x: ratio(spectrum(x.T)),
        "the square of the sum is missing its square": lambda x: (spectrum(x) / (len(x) - 1)).sum() / (
            spectrum(x) / (len(x) - 1)).square().sum(),
    }, 1e-3)


def exercise_2(answer, model):
    """The rank of the covariance of MLP neurons before their activation function, within 1."""
    before = layer_activations(model)[1]["before"]
    number, rank = validate.whole("A number of dimensions", answer, 0, before.shape[1]), covariance_rank(before)
    right = abs(number - rank) <= 1
    return right, (f"{before.shape[1]} units, and they vary in {rank} dimensions." if right else
                   f"not {number}. What are these units computed from, and how many numbers are that?")


def exercise_3(answer, model):
    """A direction in query space with a selectivity of 4 for a concept on the second half of the scenes."""
    image_set, activations = layer_activations(model)
    queries, half = activations["query"], image_set.n // 2
    if not isinstance(answer, torch.Tensor) or answer.shape != queries.shape[1:] or not answer.isfinite().all():
        raise VitvizError(f"A direction is a tensor of {queries.shape[1]} finite numbers, got {validate.shown(answer)}.")
    along = queries[half:] @ answer.detach().cpu().float()[:, None]
    labels = image_set.labels(range(half, image_set.n))
    best, concept = class_selectivity(along, labels, len(model.class_names))[:, 0].max(0)
    return verdict(best >= 4, f"along it the selectivity for {model.class_names[concept]} is {best:.2f} standard deviations on "
                   f"the second half of scenes", "at least 4 are needed")
