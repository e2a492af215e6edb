"""Which units to visualize: queries, keys, values and MLP neurons of a layer, beside random directions (paper, section 3)."""

from copy import deepcopy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from ..datasets.image_set import ImageSet
from ..models.reading import at_sites
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.errors import NotApplicable, VitvizError
from ..utils.statistics import FEWEST, class_selectivity, variance_explained
from ..visualize.atlas import evenly_spaced
from ..visualize.rendering import Rendering
from ..visualize.visualizer import Visualizer
from .faithfulness import check_recognizer, recognition
from .result import Result, mean_of, proportion

COMPARED = ("query", "key", "value", "mlp")
IMAGES = 2048  # scenes: 8 of each of 256 concepts
_BLOCKS = 16  # of images, each left out once, for the jackknife


def layer_activations(model: VisionModel, images=None, *, layer: int = -1,
                      n: int = IMAGES) -> tuple[ImageSet, dict[str, torch.Tensor]]:
    """Mean activations over patch tokens of one layer's units, by kind: the images, and float32 (n, units) each.

    Kinds are queries, keys, values, MLP neurons, these before their activation function ("before"), and the residual stream.
    """
    if not any(kind in find_sites(model) for kind in COMPARED):
        raise NotApplicable(f"{model.name} has neither queries, keys and values nor MLP neurons to compare; transformers do.")
    image_set = ImageSet(model, images, n)
    sites = {kind: find_site(model, layer, kind) for kind in (*COMPARED, "residual") if kind in find_sites(model)}
    if "mlp" in sites and sites["mlp"].act:
        sites["before"] = replace(sites["mlp"], path=sites["mlp"].act[0], given=False)

    def measure() -> dict[str, np.ndarray]:
        parts = [at_sites(model, list(sites.values()), batch, lambda site, tokens: tokens.mean(1))
                 for _, batch in image_set.batches(f"{model.name}: units of every kind")]
        return {kind: torch.cat(of_kind).numpy() for kind, of_kind in zip(sites, zip(*parts, strict=True), strict=True)}

    facts = {"sites": [f"{site}" for site in sites.values()], "images": image_set.key, "n": image_set.n}
    stored = cache.made(model, facts, "kinds", measure, {kind: (image_set.n, site.units) for kind, site in sites.items()})
    return image_set, {kind: torch.from_numpy(activations) for kind, activations in stored.items()}


def axis_alignment(model: VisionModel, images=None, *, layer: int = -1, n: int = IMAGES) -> tuple[Result, Result]:
    """Selectivity of one layer's units for their preferred concept, mean over units, by kind, and the fraction of variance that
    concepts explain (ε²), in percent; beside those of as many random directions, and of units with shuffled labels.
    """
    image_set, activations = layer_activations(model, images, layer=layer, n=n)
    labels, selectivity, explained = _concepts(image_set), [], []
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    for kind, units in _of_kinds(activations):
        directions = units @ random_directions(model, find_site(model, layer, kind))
        for of, values, given in (("units", units, labels), ("random directions", directions, labels),
                                  ("units, shuffled labels", units, shuffled)):
            preferred = class_selectivity(values, given, len(image_set.classes)).amax(0)
            selectivity.append({"kind": kind, "of": of, **mean_of(preferred)})
            explained.append({"kind": kind, "of": of, **mean_of(100 * variance_explained(values, given))})
    title = _title(model, layer, image_set.name)
    return (Result(f"{title}: selectivity for the preferred concept", "selectivity (standard deviations)", selectivity),
            Result(f"{title}: variance that concepts explain (ε²)", "variance explained (%)", explained))


def linear_readout(model: VisionModel, images=None, *, layer: int = -1, n: int = IMAGES) -> Result:
    """Selectivity for each concept along its best unit and its best direction (``discriminant``), by kind: mean over concepts
    with four images or more in both halves, on the first of which unit and direction are chosen, and on the second measured.
    """
    image_set, activations = layer_activations(model, images, layer=layer, n=n)
    half, rows = image_set.n // 2, []
    train, test = _concepts(image_set).split([half, image_set.n - half])
    classes = len(image_set.classes)
    concepts = [c for c in range(classes) if min((train == c).sum(), (test == c).sum()) >= FEWEST]
    if not concepts:
        raise VitvizError(f"No class has {FEWEST} of the {image_set.name} in each half; use more images.")
    for kind, units in _of_kinds(activations):
        first, second = units[:half], units[half:]
        unit = class_selectivity(first, train, classes)[concepts].argmax(1)
        projected = second @ torch.stack([discriminant(first, train, c) for c in concepts], 1)
        along = {"best unit": class_selectivity(second, test, classes)[concepts, unit],
                 "best direction": class_selectivity(projected, test, classes)[concepts, torch.arange(len(concepts))]}
        rows += [{"kind": kind, "along": name, **mean_of(values)} for name, values in along.items()]
    return Result(f"{_title(model, layer, f'{image_set.n - half:,} held-out images')}: linear readout of a concept",
                  "selectivity (standard deviations)", rows)


def _concepts(image_set: ImageSet) -> torch.Tensor:
    """The class of each image, int64 (N,); VitvizError where no class can be compared with the others."""
    labels = image_set.class_of(range(image_set.n))
    if len(labels.unique()) < 2 or labels.bincount().max() < FEWEST:
        raise VitvizError(f"Selectivity compares a class with others, and needs {FEWEST} images of it; the {image_set.name} are "
                          f"of {len(labels.unique())} {'classes' if len(labels.unique()) > 1 else 'class'}, at most "
                          f"{labels.bincount().max()} of one. Use more images (n), or others.")
    return labels


def _of_kinds(activations: dict[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
    return [(kind, units) for kind, units in activations.items() if kind != "before"]


def discriminant(activations: torch.Tensor, labels: torch.Tensor, concept: int) -> torch.Tensor:
    """Fisher's linear discriminant of one concept against all images: (units,), inverse covariance times difference of means.

    The covariance (of all images) has a thousandth of its mean variance added to the diagonal.
    """
    covariance = torch.cov(activations.T) + 1e-3 * activations.var(0).mean() * torch.eye(activations.shape[1])
    return torch.linalg.solve(covariance, activations[labels == concept].mean(0) - activations.mean(0))


def covariance_rank(activations: torch.Tensor) -> int:
    """Rank of the covariance of activations (n, units): its eigenvalues above a billionth of the largest."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(activations.double().T))
    return int((eigenvalues > 1e-9 * eigenvalues[-1]).sum())


def effective_dimension(model: VisionModel, images=None, *, layer: int = -1, n: int = IMAGES) -> Result:
    """Effective dimension of a layer's activations by kind (``participation_ratio``), beside the number of units.

    The control is the same of independent units: each unit's activations are permuted among the images. Needs no labels.
    """
    image_set, activations = layer_activations(model, images, layer=layer, n=n)
    if image_set.n < 2:
        raise VitvizError(f"A dimension is measured over several images, at least 2; there is {image_set.n}.")
    rows, random = [], torch.Generator().manual_seed(0)
    for kind, units in activations.items():
        permuted = torch.stack([column[torch.randperm(len(units), generator=random)] for column in units.T], 1)
        count = units.shape[1]
        rows += [{"kind": kind, "counted": "units", "value": count, "low": count, "high": count, "n": image_set.n},
                 {"kind": kind, "counted": "effective dimension", **participation_ratio(units)},
                 {"kind": kind, "counted": "effective dimension of independent units", **participation_ratio(permuted)}]
    return Result(f"{_title(model, layer, image_set.name)}: dimensions by kind", "dimensions", rows)


def participation_ratio(activations: torch.Tensor) -> dict[str, float]:
    """Participation ratio of the covariance of (n, units), as a row: (sum of eigenvalues)² / sum of their squares.

    It is k where the variance is spread evenly over k directions. The interval is a jackknife over 16 blocks of images.
    """
    def ratio(images: torch.Tensor) -> float:
        centered = images - images.mean(0)
        covariance = centered.T @ centered  # but for a factor, which the ratio does not depend on
        return (covariance.trace() ** 2 / covariance.square().sum().clamp_min(1e-30)).item()

    activations = activations.double()
    blocks = activations.tensor_split(min(_BLOCKS, len(activations)))
    value, without = ratio(activations), [ratio(torch.cat([*blocks[:i], *blocks[i + 1:]])) for i in range(len(blocks))]
    half = 1.96 * (np.var(without) * (len(without) - 1)) ** 0.5
    return {"value": value, "low": value - half, "high": value + half, "n": len(activations)}


def _title(model: VisionModel, layer: int, images: str) -> str:
    kind = next(kind for kind in COMPARED if kind in find_sites(model))
    return f"{model.title}, layer {find_site(model, layer, kind).layer} ({images})"


def random_directions(model: VisionModel, site: Site) -> torch.Tensor:
    """A random rotation (units, units) of the space at a site, a direction in each column; always the same.

    Queries, keys and values are rotated within their heads, so that the network can be rotated with them.
    """
    heads = getattr(_owner(model.module, site), "num_heads", 1) if site.kind in COMPARED[:3] else 1
    random, size = torch.Generator().manual_seed(0), site.units // heads
    return torch.block_diag(*(torch.linalg.qr(torch.randn(size, size, generator=random))[0] for _ in range(heads)))


def rotated(model: VisionModel, layer: int = -1) -> VisionModel:
    """The same function as a network whose MLP neurons in one layer are random directions (``random_directions``).

    They are rotated back for their activation function, which gives the MLP its preferred axes. VitvizError for a network whose
    logits would change.
    """
    site = find_site(model, layer, "mlp")
    return model.remember(("rotated", site), lambda: _rotate(model, site))


def _rotate(model: VisionModel, site: Site) -> VisionModel:
    with model.lock:
        module, rotation = deepcopy(model.module), random_directions(model, site).to(model.device)
    mlp = _owner(module, site)
    mlp.act = _Rotated(mlp.act, rotation)
    with torch.no_grad():
        for tensor in mlp.fc1.parameters():  # weight, and bias if there is one
            tensor.copy_(rotation.T @ tensor)
        mlp.fc2.weight.copy_(mlp.fc2.weight @ rotation)
        changed = model.with_module(module, f"{model.name} with random mlp directions in layer {site.layer}")
        images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
        before, after = model(images), changed(images)
    if (after - before).abs().max() > 1e-3 * before.abs().max():
        raise VitvizError(f"The logits of {model.name} change once its MLP neurons are rotated: something treats them one by "
                          f"one, such as a norm.")
    return changed


class _Rotated(nn.Module):
    """An activation function that acts on rotated units as if they were not rotated."""

    def __init__(self, act: nn.Module, rotation: torch.Tensor):
        super().__init__()
        self.act = act
        self.register_buffer("rotation", rotation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x @ self.rotation.T) @ self.rotation


def _owner(module: nn.Module, site: Site) -> nn.Module:
    return module.get_submodule(site.path.rpartition(".")[0])


class Visualized(NamedTuple):
    """Feature visualizations of K units of one kind, with each unit's preferred ``concept`` (K,) and ``selectivity`` (K,)."""

    rendering: Rendering
    concept: torch.Tensor
    selectivity: torch.Tensor


def visualize(model: VisionModel, *, layer: int = -1, neurons: int = 12) -> dict[str, Visualized]:
    """Feature visualizations of evenly spaced units of one layer by kind, and of random directions of its MLP."""
    image_set, activations = layer_activations(model, layer=layer)
    labels, visualized = _concepts(image_set), {}
    for name in [*(kind for kind in COMPARED if kind in activations), *(["mlp directions"] if "mlp" in activations else [])]:
        kind, shown = name.split()[0], model
        site, units = find_site(model, layer, kind), activations[kind]
        if name != kind:
            shown, units = rotated(model, layer), units @ random_directions(model, site)
        chosen = evenly_spaced(site.units, neurons)
        preferred = class_selectivity(units[:, chosen], labels, len(image_set.classes)).max(0)
        rendering = Visualizer(shown).render(layer, chosen, kind).require_finished()
        visualized[name] = Visualized(rendering, preferred.indices, preferred.values)
    return visualized


def recognition_by_kind(model: VisionModel, recognizer: VisionModel, *, layer: int = -1, neurons: int = 12) -> Result:
    """Cross-model recognition of ``visualize`` by kind of unit, beside the share above the 99th percentile of scenes."""
    check_recognizer(model, recognizer)
    rows = []
    for kind, row in visualize(model, layer=layer, neurons=neurons).items():
        hits = recognition(row.rendering.pictures, row.concept, recognizer)
        high = sum(p > 99 for p in row.rendering.scores.percentile)
        rows += [{"kind": kind, "pictures": f"recognized by {recognizer.name}", **proportion(hits.sum(), len(hits))},
                 {"kind": kind, "pictures": "above the 99th percentile", **proportion(high, len(hits))}]
    return Result(f"{model.title}, layer {find_site(model, layer).layer}: feature visualizations by kind of unit", "pictures (%)",
                  rows, ("chance recognition", 500 / len(recognizer.class_names)))
