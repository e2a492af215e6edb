"""Checks of notebook 02, Obstacle: where to look."""

import torch

from ...experiments.units import axis_alignment, covariance_rank, layer_activations
from ...utils import validate
from ...utils.errors import VitvizError
from ...utils.statistics import class_selectivity
from . import close, verdict


def exercise_1(answer, model):
    """Standard deviations by which MLP units are more selective than random directions of their space, within 0.2."""
    number = validate.real("A number of standard deviations", answer, -1e3, 1e3)
    means = axis_alignment(model)[0].where(kind="mlp").table.set_index("of")["value"]
    units, directions = means["units"], means["random directions"]
    return close(number, units - directions, 0.2,
                 f"units {units:.2f}, random directions {directions:.2f}: {units - directions:.2f} more",
                 "Subtract random directions from units, both of the kind mlp")


def exercise_2(answer, model):
    """The rank of the covariance of MLP units before their activation function, within 1."""
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
