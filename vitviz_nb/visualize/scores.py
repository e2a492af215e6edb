"""How good a picture is, measured against reference images."""

from dataclasses import dataclass

import torch

from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import activations, tokens
from ..models.sites import Site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.memory import release_memory

ENOUGH = 8  # reference images, before a neuron that none of them moves is called dead
STATUS = ("alive", "weak", "dead")
WEAK_BELOW = 95.0  # a picture under this percentile of its neuron's reference activations says so in its caption


@dataclass(frozen=True)
class Scores:
    """Measured on the finished picture, without augmentation.

    Attributes:
        activation: (K,), mean over patch tokens, in the network's own units.
        percentile: (K,), share of reference images, in percent, that raise the neuron less than its picture does.
        rank: (K,), 1 where the picture raises its own neuron most of all units of the layer, counted in standard
            deviations over the reference images.
        status: "alive", "weak" (percentile below 95) or "dead" (the neuron does not vary over the reference images, and
            its picture does not wake it).
        reference: what the percentiles refer to.
    """

    activation: list[float]
    percentile: list[float]
    rank: list[int]
    status: list[str]
    reference: str


def _activations(model: VisionModel, kind: str, reference: ImageSet) -> list[torch.Tensor]:
    """Per layer of a kind (n, units): from memory, else from the cache folder, else from the network."""
    known = model.memo.setdefault("references", {})
    key = kind, reference.key, reference.n
    if key not in known:
        known[key] = _read_or_measure(model, kind, reference)
    return known[key]


def _read_or_measure(model: VisionModel, kind: str, reference: ImageSet) -> list[torch.Tensor]:
    path = cache.path_of({"weights": model.weights_hash, "kind": kind, "images": reference.key, "n": reference.n}, "references")
    wanted = {f"layer{p.layer}": (reference.n, p.units) for p in find_sites(model)[kind]}
    stored = cache.read(path)
    if stored and {name: values.shape for name, values in stored.items()} == wanted:
        return [torch.from_numpy(stored[name]) for name in wanted]
    parts = [activations(model, kind, images) for _, images in reference.batches(f"{model.name} sees {reference.name}")]
    layers = [torch.cat(layer) for layer in zip(*parts, strict=True)]
    cache.write(path, {f"layer{i}": layer.numpy() for i, layer in enumerate(layers)})
    del parts
    release_memory()
    return layers


def default_reference(model: VisionModel) -> ImageSet:
    """Emoji World's validation scenes at the model's size; made once a model."""
    if "reference" not in model.memo:
        model.memo["reference"] = ImageSet(model)
    return model.memo["reference"]


def reference_activations(model: VisionModel, site: Site, reference: ImageSet) -> torch.Tensor:
    """Activations (n, units) of one site over the reference images; computed once for all layers of a kind, then cached."""
    return _activations(model, site.kind, reference)[site.layer]


def score(model: VisionModel, site: Site, neurons: list[int], pictures: torch.Tensor, reference: ImageSet) -> Scores:
    """Scores of pictures (K, 3, S, S) in [0, 1], picture k made for ``neurons[k]``."""
    known = reference_activations(model, site, reference)
    with torch.inference_mode():
        inputs = model.normalize(pictures.to(model.device))
        found = torch.cat([tokens(model, site, part).float().mean(1).cpu() for part in inputs.split(AT_ONCE)])
    release_memory()
    own = found[torch.arange(len(neurons)), neurons]
    percentile = 100 * (known[:, neurons] < own).float().mean(0)
    spread = known.std(0, correction=0)  # 0, not NaN, for a reference of one image
    typical = spread.median().clamp_min(1e-12)
    raised = (found - known.mean(0)) / spread.clamp_min(0.01 * typical)
    rank = 1 + (raised > raised[torch.arange(len(neurons)), neurons][:, None]).sum(1)
    still = (spread[neurons] < 0.01 * typical) & (raised[torch.arange(len(neurons)), neurons] < 1)
    still &= len(known) >= ENOUGH  # a few images that are alike do not show that a neuron never moves
    status = ["dead" if s else "alive" if p >= WEAK_BELOW else "weak" for s, p in zip(still, percentile, strict=True)]
    return Scores(own.tolist(), percentile.tolist(), rank.tolist(), status, reference.name)
