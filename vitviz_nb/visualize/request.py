"""What one call asks the visualizer for, and how far it is: images, each of a neuron or direction from a seed of its own."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import torch

from ..models.sites import KINDS, Site, check_neurons
from ..models.vision_model import VisionModel
from ..utils import random_streams, validate
from ..utils.errors import VitvizError
from .optimize import Adam

Image = tuple[int, int]  # number of a neuron or direction, and seed
_DIRECTIONS = 2**47  # numbers from here on are hashes of directions; no layer has so many neurons


@dataclass(frozen=True, eq=False)
class Progress:
    """The optimization of K images and their activations (K,) at the steps at which they were read. Never changed in place."""

    adam: Adam
    curve: dict[int, torch.Tensor]


@dataclass(frozen=True, eq=False)
class Request:
    """Images of one layer; ``state`` is the model's when the call began, ``labels`` are what captions call their neurons."""

    site: Site
    images: list[Image]
    directions: torch.Tensor | None
    labels: list[str] | None
    state: dict | None
    unfinished: dict[tuple, Progress]  # of this and earlier calls with the same state
    progress: dict[Image, Progress] = field(default_factory=dict)

    def random_key(self, image: Image) -> np.ndarray:
        return random_streams.keys(image[1], list(KINDS).index(self.site.kind), self.site.layer, image[0])

    def weights(self, images: list[Image]) -> torch.Tensor | None:
        """The directions (K, units) of some of the images; None where they are of neurons."""
        return None if self.directions is None else self.directions[[self.images.index(image) for image in images]]


def images_of(model: VisionModel, site: Site, neurons, seed: int,
              variants: int) -> tuple[list[Image], torch.Tensor | None, list[str] | None]:
    """The images, the directions (K, units) of each if they are of directions, and labels of others than numbered neurons.

    Args:
        neurons: as ``Visualizer.render`` takes them.
        variants: images of each, from seeds that follow each other.
    """
    seed = validate.whole("A seed", seed)
    variants, names = validate.whole("variants", variants, 1, 1024), model.class_names if site.kind == "logit" else None
    floats = torch.from_numpy(neurons) if isinstance(neurons, np.ndarray) and neurons.dtype.kind == "f" else neurons
    weights = _checked(site, floats) if isinstance(floats, torch.Tensor) and floats.is_floating_point() and floats.dim() else None
    if weights is not None:
        numbers = [_DIRECTIONS + int(hashlib.sha256(row.numpy().tobytes()).hexdigest()[:11], 16) for row in weights]
        labels = [f"direction {number - _DIRECTIONS:011x}" for number in numbers]
    else:
        if names and isinstance(neurons, (str, list, tuple)):
            listed = [neurons] if isinstance(neurons, str) else neurons
            neurons = [names.index(validate.choice("A class", n, names)) if isinstance(n, str) else n for n in listed]
        numbers = check_neurons(site, neurons)
        labels = names and [names[number] for number in numbers]
    if len(set(numbers)) < len(numbers):
        raise VitvizError("The same direction is named twice.")
    rows = [(k, variant) for k in range(len(numbers)) for variant in range(variants)]
    if labels or variants > 1:
        labels = labels or [f"neuron {number}" for number in numbers]
        labels = [f"{labels[k]}, variant {variant + 1}" if variants > 1 else labels[k] for k, variant in rows]
    return ([(numbers[k], seed + variant) for k, variant in rows], weights if weights is None else weights[[k for k, _ in rows]],
            labels)


def _checked(site: Site, weights: torch.Tensor) -> torch.Tensor:
    weights = weights.detach().float().cpu().contiguous()
    if weights.dim() != 2 or weights.shape[1] != site.units or not len(weights):
        raise VitvizError(f"Directions are floats of shape (K, {site.units}), a weight for each neuron of the {site}, got "
                          f"{validate.shown(weights)}.")
    if not weights.isfinite().all() or not weights.any(1).all():
        raise VitvizError("The weights of a direction are finite, and at least one of them is not 0.")
    return weights
