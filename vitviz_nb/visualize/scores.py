"""Scores of feature visualizations: their activation, percentile and rank relative to reference images."""

from dataclasses import dataclass

import numpy as np
import torch

from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import activations, tokens
from ..models.sites import Site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache, validate
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from .parameterization import resized

ENOUGH = 8  # reference images, before a neuron whose activation does not vary over them is called dead
STATUS = ("alive", "weak", "dead")
WEAK_BELOW = 95.0  # a picture under this percentile of its neuron's reference activations says so in its caption


@dataclass(frozen=True)
class Scores:
    """Measured on the finished picture, without augmentation.

    Attributes:
        activation: (K,), mean over patch tokens, in the network's own units.
        percentile: (K,), percentage of reference images that activate the neuron less than its picture does.
        rank: (K,), 1 where the picture activates its own neuron more than any other unit of the layer, in standard deviations
            over the reference images.
        status: "alive", "weak" (percentile below 95) or "dead" (neither reference images nor the picture move the neuron).
        reference: what the percentiles refer to.
    """

    activation: list[float]
    percentile: list[float]
    rank: list[int]
    status: list[str]
    reference: str


def reference_set(model: VisionModel, images=None) -> ImageSet:
    """Reference images: an ``ImageSet`` as it is, or one of ``images``; by default Emoji World's validation scenes."""
    if images is None:
        return model.remember("reference set", lambda: ImageSet(model), weights=False)
    return images if isinstance(images, ImageSet) else ImageSet(model, images)


def reference_activations(model: VisionModel, site: Site, reference: ImageSet) -> torch.Tensor:
    """Activations (n, units) at a site for all reference images, mean over patch tokens.

    Measured once for all layers of a kind and state of the model, then copied from memory or read from the cache folder.
    """
    return model.remember(("references", site.kind, reference.key, reference.n),
                          lambda: _read_or_measure(model, site.kind, reference))[site.layer].clone()


def _read_or_measure(model: VisionModel, kind: str, reference: ImageSet) -> list[torch.Tensor]:
    def measure() -> dict[str, np.ndarray]:
        batches = reference.batches(f"{model.name} sees {reference.name}")
        layers = zip(*(activations(model, kind, images) for _, images in batches), strict=True)
        return {f"layer{i}": torch.cat(parts).numpy() for i, parts in enumerate(layers)}

    shapes = {f"layer{site.layer}": (reference.n, site.units) for site in find_sites(model)[kind]}
    stored = cache.made(model, {"kind": kind, "images": reference.key, "n": reference.n}, "references", measure, shapes)
    release_memory()
    return [torch.from_numpy(stored[name]) for name in shapes]


def score(model: VisionModel, site: Site, neurons: list[int], pictures: torch.Tensor, reference: ImageSet,
          directions: torch.Tensor | None = None) -> Scores:
    """Scores of pictures (K, 3, S, S) in [0, 1], picture k made for ``neurons[k]`` or ``directions[k]`` (K, units).

    Pictures larger than the network's input are measured resized to it. VitvizError where one is not finite.
    """
    pictures = resized(pictures, model.image_size)
    validate.images(f"Pictures for {model.name}", pictures, (3, model.image_size, model.image_size))
    known = reference_activations(model, site, reference)
    with torch.inference_mode():
        inputs = model.normalize(pictures.to(model.device))
        values = torch.cat([tokens(model, site, part).float().mean(1).cpu() for part in inputs.split(AT_ONCE)])
    release_memory()
    if not values.isfinite().all():
        raise VitvizError(f"The {site} of {model.name} has NaN or infinite activations for its pictures; check its weights.")
    rows, units, length = torch.arange(len(neurons)), known.shape[1], torch.ones(len(neurons))
    if directions is not None:  # as further columns, of weights of length 1, for how large a neuron's are decides what is dead
        length = directions.norm(dim=1)
        known, values = (torch.cat([part, part @ (directions / length[:, None]).T], 1) for part in (known, values))
        neurons = list(range(units, units + len(directions)))
    own = values[rows, neurons]
    percentile = 100 * (known[:, neurons] < own).float().mean(0)
    deviation = known.std(0, correction=0)  # 0, not NaN, for a reference of one image
    typical = deviation[:units].median().clamp_min(1e-12)
    z = (values - known.mean(0)) / deviation.clamp_min(0.01 * typical)
    rank = 1 + (z[:, :units] > z[rows, neurons][:, None]).sum(1)
    dead = (deviation[neurons] < 0.01 * typical) & (z[rows, neurons] < 1)
    dead &= len(known) >= ENOUGH  # a few similar images do not show that a neuron never varies
    status = ["dead" if d else "alive" if p >= WEAK_BELOW else "weak" for d, p in zip(dead, percentile, strict=True)]
    return Scores((own * length).tolist(), percentile.tolist(), rank.tolist(), status, reference.name)
