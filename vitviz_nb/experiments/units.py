"""Where to look: queries, keys, values and MLP units of a layer, beside random directions of their spaces (section 3)."""

from copy import copy, deepcopy
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import nn

from ..datasets.image_set import ImageSet
from ..models.reading import at_sites
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import cache
from ..utils.errors import VitvizError
from ..visualize.rendering import Rendering
from ..visualize.visualizer import Visualizer
from .result import Result, mean_of

KINDS = ("query", "key", "value", "mlp")
SCENES = 2048  # 8 of each of 256 concepts
_FEW = 4  # images of a concept; the mean of fewer would often be far out by chance
_BLOCKS = 16  # of images, each left out once, for the interval of a dimension


def answers(model: VisionModel, layer: int = -1, images=None, n: int = SCENES) -> tuple[ImageSet, dict[str, torch.Tensor]]:
    """What one layer's units answer to the same images, by kind of unit: float32 (n, units) each, mean over patch tokens.

    Kinds are queries, keys, values, MLP units, MLP units before their activation function ("before"), and the residual stream
    after the block, as far as the model has them. One pass over the images for all; then from the cache folder.
    """
    if not any(kind in find_sites(model) for kind in KINDS):
        raise VitvizError(f"{model.name} has neither queries, keys and values nor MLP units to compare; transformers do.")
    stimuli = ImageSet(model, images, n)
    sites = {kind: find_site(model, layer, kind) for kind in (*KINDS, "residual") if kind in find_sites(model)}
    if "mlp" in sites:
        sites["before"] = replace(sites["mlp"], path=sites["mlp"].path.removesuffix("act") + "fc1")
    path = cache.path_of({"weights": model.weights_hash, "kinds": [f"{p}" for p in sites.values()], "images": stimuli.key,
                          "n": stimuli.n}, "kinds")
    stored = cache.read(path)
    if not stored or {k: v.shape for k, v in stored.items()} != {k: (stimuli.n, p.units) for k, p in sites.items()}:
        parts = [at_sites(model, list(sites.values()), batch, lambda site, found: found.mean(1))
                 for _, batch in stimuli.batches(f"{model.name}: units of every kind")]
        stored = {kind: torch.cat([part[i] for part in parts]).numpy() for i, kind in enumerate(sites)}
        cache.write(path, stored)
    return stimuli, {kind: torch.from_numpy(np.asarray(stored[kind])) for kind in sites}


def stand_out(found: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """By how many standard deviations (over all images) each concept's mean lies above the mean of all: (classes, units).

    Args:
        found: (n, units); labels: int64 (n,). A concept of fewer than four images stands out nowhere: minus infinity.
    """
    n = torch.bincount(labels, minlength=classes)
    means = torch.zeros(classes, found.shape[1]).index_add_(0, labels, found) / n[:, None].clamp_min(1)
    each = (means - found.mean(0)) / found.std(0, correction=0).clamp_min(1e-10)
    return each.masked_fill(n[:, None] < _FEW, -torch.inf)


def explained(found: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Share of each unit's variance (units,) that lies between concepts, less what chance would put there.

    The intraclass correlation of a one-way analysis of variance: 0 on average where labels tell nothing, 1 where they tell all.
    """
    n = torch.bincount(labels)
    k, total = (n > 0).sum(), len(labels)
    means = torch.zeros(len(n), found.shape[1]).index_add_(0, labels, found) / n[:, None].clamp_min(1)
    between = (n[:, None] * (means - found.mean(0)).square()).sum(0) / (k - 1)
    within = (found - means[labels]).square().sum(0) / (total - k)
    size = (total - n.square().sum() / total) / (k - 1)  # images of a concept, n itself where all have as many
    return (between - within) / (between + (size - 1) * within).clamp_min(1e-20)


def by_axes(model: VisionModel, layer: int = -1, images=None, n: int = SCENES) -> tuple[Result, Result]:
    """Do units stand for concepts, or any direction of their space as well? By kind of unit, of one layer.

    Args:
        images: with labels, as ``Stimuli`` takes them.

    Returns:
        How far the favorite concept stands out, in standard deviations, mean over units; and the share of variance that
        concepts explain, in percent. Both also of random directions of the same space (``directions``), as many, and of units
        with the labels shuffled.
    """
    stimuli, found = answers(model, layer, images, n)
    labels, classes, selective, known = stimuli.labels(range(stimuli.n)), len(model.class_names), [], []
    mixed = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    for kind in (k for k in found if k != "before"):
        turned = found[kind] @ directions(model, find_site(model, layer, kind))
        for axes, units, by in (("units", found[kind], labels), ("random directions", turned, labels),
                                ("units, shuffled labels", found[kind], mixed)):
            of = {"kind": kind, "of": axes}
            selective.append({**of, **mean_of(stand_out(units, by, classes).amax(0).numpy())})
            known.append({**of, **mean_of(100 * explained(units, by).numpy())})
    where = _where(model, layer, stimuli.name)
    return (Result(f"{where}: how far the favorite concept stands out", "selectivity (standard deviations)",
                    pd.DataFrame(selective)),
            Result(f"{where}: what concepts explain", "variance between concepts (%)", pd.DataFrame(known)))


def readable(model: VisionModel, layer: int = -1, images=None, n: int = SCENES) -> Result:
    """Is a concept there at all? By kind: how far each concept stands out along its best unit, and along its best direction.

    Both are chosen on the first half of the images and measured on the second. The direction is Fisher's linear discriminant
    (``discriminant``). Mean over the concepts with at least four images in each half.
    """
    stimuli, found = answers(model, layer, images, n)
    labels, classes, half, rows = stimuli.labels(range(stimuli.n)), len(model.class_names), stimuli.n // 2, []
    seen, held = labels[:half], labels[half:]
    both = [c for c in range(classes) if min((seen == c).sum(), (held == c).sum()) >= _FEW]
    if not both:
        raise VitvizError(f"No class has {_FEW} of the {stimuli.name} in each half; use more images.")
    for kind in (k for k in found if k != "before"):
        first, second = found[kind][:half], found[kind][half:]
        unit = stand_out(first, seen, classes)[both].argmax(1)
        along = second @ torch.stack([discriminant(first, seen, c) for c in both], 1)
        each = {"best unit": stand_out(second, held, classes)[both, unit],
                "best direction": stand_out(along, held, classes)[both, torch.arange(len(both))]}
        rows += [{"kind": kind, "along": name, **mean_of(values.numpy())} for name, values in each.items()]
    return Result(f"{_where(model, layer, f'{stimuli.n - half:,} others')}: how far a concept stands out",
                   "standard deviations", pd.DataFrame(rows))


def discriminant(found: torch.Tensor, labels: torch.Tensor, concept: int) -> torch.Tensor:
    """The direction (units,) that tells one concept's images best from all: the inverse covariance times the way to its mean.

    The covariance (of all images) has a thousandth of its mean variance added to the diagonal.
    """
    covariance = torch.cov(found.T) + 1e-3 * found.var(0).mean() * torch.eye(found.shape[1])
    return torch.linalg.solve(covariance, found[labels == concept].mean(0) - found.mean(0))


def rank(found: torch.Tensor) -> int:
    """In how many dimensions (n, units) vary at all: eigenvalues of the covariance above a billionth of the largest."""
    values = torch.linalg.eigvalsh(torch.cov(found.double().T))
    return int((values > 1e-9 * values[-1]).sum())


def effective_dimension(model: VisionModel, layer: int = -1, images=None, n: int = SCENES) -> Result:
    """Along how many directions the units of a layer vary, by kind: units, effective dimension, and its control.

    The effective dimension is the participation ratio of the spectrum of their covariance: (sum of eigenvalues)² / sum of
    their squares, k if the variance is spread evenly over k directions. "Independent" is the same with each unit's answers
    shuffled among the images. Intervals: a jackknife over 16 blocks of images. Needs no labels.
    """
    stimuli, found = answers(model, layer, images, n)
    if stimuli.n < 2:
        raise VitvizError(f"A dimension is measured over several images, at least 2; there is {stimuli.n}.")
    rows, random = [], torch.Generator().manual_seed(0)
    for kind, units in found.items():
        mixed = torch.stack([column[torch.randperm(len(units), generator=random)] for column in units.T], 1)
        count = units.shape[1]
        rows += [{"kind": kind, "counted": "units", "value": count, "low": count, "high": count, "n": stimuli.n},
                 {"kind": kind, "counted": "effective dimension", **_jackknife(units)},
                 {"kind": kind, "counted": "the same, if units were independent", **_jackknife(mixed)}]
    return Result(f"{_where(model, layer, stimuli.name)}: dimensions by kind", "dimensions", pd.DataFrame(rows))


def _jackknife(x: torch.Tensor) -> dict[str, float]:
    """The participation ratio of (n, units), as a row: each of the blocks of images is left out once."""
    x = (x - x.mean(0)).double()
    blocks = x.tensor_split(min(_BLOCKS, len(x)))
    sums, squares = torch.stack([b.sum(0) for b in blocks]), torch.stack([b.T @ b for b in blocks])

    def ratio(total: torch.Tensor, square: torch.Tensor, n: int) -> float:
        covariance = square / n - torch.outer(total, total) / n**2
        return (covariance.trace() ** 2 / covariance.square().sum().clamp_min(1e-30)).item()

    value = ratio(sums.sum(0), squares.sum(0), len(x))
    left = [ratio(sums.sum(0) - s, squares.sum(0) - q, len(x) - len(b)) for s, q, b in zip(sums, squares, blocks, strict=True)]
    half = 1.96 * (np.var(left) * (len(left) - 1)) ** 0.5
    return {"value": value, "low": value - half, "high": value + half, "n": len(x)}


def directions(model: VisionModel, site: Site) -> torch.Tensor:
    """Random orthogonal directions (units, units), one a column, of the space at a site; always the same.

    Queries, keys and values are turned head by head, so that ``rotated`` can turn the network with them.
    """
    heads = getattr(_owner(model.module, site), "num_heads", 1) if site.kind in KINDS[:3] else 1
    random, size = torch.Generator().manual_seed(0), site.units // heads
    return torch.block_diag(*(torch.linalg.qr(torch.randn(size, size, generator=random))[0] for _ in range(heads)))


def rotated(model: VisionModel, layer: int = -1, kind: str = "mlp") -> VisionModel:
    """The same network, whose units of one kind in one layer are random directions of their space (``directions``).

    Its answers are the same: queries and keys are turned together, values together with the weights that read them, and MLP
    units are turned back for their activation function. So what a queries' unit is, the network leaves open; what an MLP unit
    is, the activation function fixes.

    Raises:
        VitvizError: units of another kind; a network whose answers would change.
    """
    site = find_site(model, layer, kind)
    if kind not in KINDS:
        raise VitvizError(f"Of {', '.join(KINDS)} random directions can be made units, not of {kind!r}.")
    if ("rotated", site) in model.memo:
        return model.memo["rotated", site]
    module, turn = deepcopy(model.module), directions(model, site).to(model.device)
    with torch.no_grad():
        if kind == "mlp":
            mlp = _owner(module, site)
            mlp.act = _Turned(mlp.act, turn)
            _turn_outputs(mlp.fc1, turn, (0, 1))
            mlp.fc2.weight.copy_(mlp.fc2.weight @ turn)
        elif kind == "value":
            _turn_outputs(module.get_submodule(site.path), turn, site.part)
            reads = _owner(module, site).proj
            reads.weight.copy_(reads.weight @ turn)
        else:
            for one in (find_site(model, site.layer, "query"), find_site(model, site.layer, "key")):
                _turn_outputs(module.get_submodule(one.path), turn, one.part)
    found = copy(model)
    found.__dict__.pop("weights_hash", None)
    found.module, found.memo, found.name = module, {}, f"{model.name} with random {kind} directions in layer {site.layer}"
    with torch.no_grad():
        images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
        before, after = model(images), found(images)
    if (after - before).abs().max() > 1e-3 * before.abs().max():
        raise VitvizError(f"{model.name} answers otherwise once its {kind} units are turned: something treats them one by one, "
                          f"such as a norm of queries and keys.")
    model.memo["rotated", site] = found
    return found


class _Turned(nn.Module):
    """An activation function that acts on turned units as if they were not turned."""

    def __init__(self, act: nn.Module, turn: torch.Tensor):
        super().__init__()
        self.act = act
        self.register_buffer("turn", turn)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(x @ self.turn.T) @ self.turn


def _turn_outputs(linear: nn.Linear, turn: torch.Tensor, part: tuple[int, int]) -> None:
    """Turn one of several equal shares of a layer's outputs: what was x is then x @ turn."""
    for tensor in (linear.weight, linear.bias):
        if tensor is not None:
            share = tensor.chunk(part[1])[part[0]]
            share.copy_(turn.T @ share)


def _where(model: VisionModel, layer: int, images: str) -> str:
    kind = next(kind for kind in KINDS if kind in find_sites(model))
    return f"{model.title}, layer {find_site(model, layer, kind).layer} ({images})"


def _owner(module: nn.Module, site: Site) -> nn.Module:
    return module.get_submodule(site.path.rpartition(".")[0])


@dataclass(frozen=True, eq=False)
class Row:
    """Pictures of units of one kind, with the concept (K,) that each unit favors and how far it stands out (K,)."""

    rendering: Rendering
    concept: torch.Tensor
    strength: torch.Tensor


def pictures(model: VisionModel, layer: int = -1, neurons: int = 12) -> dict[str, Row]:
    """Pictures of evenly spaced units of one layer, as many of each kind, and of random directions of the MLP units' space."""
    stimuli, found = answers(model, layer)
    labels, rows = stimuli.labels(range(stimuli.n)), {}
    for name in [*(kind for kind in KINDS if kind in found), *(["mlp directions"] if "mlp" in found else [])]:
        kind, shown = name.split()[0], model
        units = found[kind]
        if name != kind:
            shown, units = rotated(model, layer), units @ directions(model, find_site(model, layer))
        chosen = torch.linspace(0, units.shape[1] - 1, min(neurons, units.shape[1])).round().long().tolist()
        best = stand_out(units[:, chosen], labels, len(model.class_names)).max(0)
        rows[name] = Row(Visualizer(shown).render(layer, chosen, kind), best.indices, best.values)
    return rows


def sheet(rows: dict[str, Row], model: VisionModel) -> Image.Image:
    """All rows of ``pictures`` on one sheet, under each picture its unit's favorite concept."""
    tiles = []
    for name, row in rows.items():
        for k, picture in enumerate(row.rendering.pictures):
            lines = [f"{name} {row.rendering.neurons[k]}", f"{model.class_names[row.concept[k]][:12]} {row.strength[k]:.1f}",
                     f"above {row.rendering.scores.percentile[k]:.1f} %"]
            tiles.append(Tile(picture, lines, row.rendering.scores.status[k] == "alive"))
    title = (f"{model.title}: {', '.join(rows)}, a row each; units evenly spaced, not chosen. Below each: its favorite concept, "
             f"by how many standard deviations that stands out, and the share of scenes that excite it less than the picture")
    return contact_sheet(tiles, title, side=104, columns=max(len(row.rendering.neurons) for row in rows.values()))
