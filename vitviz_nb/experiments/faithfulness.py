"""Does the picture of a neuron show what the neuron detects? Emoji World knows the truth, so it can be measured."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from PIL import Image
from tqdm import tqdm

from ..datasets.emoji_world import EmojiWorld
from ..datasets.image_set import default_world, derangement
from ..models.reading import activations
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import cache
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from ..utils.statistics import wilson
from ..visualize.scores import reference_activations
from ..visualize.visualizer import Visualizer
from .result import Result, proportion

_SCENES, _AT_ONCE = 8192, 16  # 32 scenes of each of 256 concepts; few at once keep a CNN small


@dataclass(frozen=True, eq=False)
class Selectivity:
    """How far each of a layer's units tells one concept from all others.

    Attributes:
        concept: int64 (units,), the concept whose scenes raise the unit most on average.
        strength: (units,), by how many standard deviations (over all scenes) that average lies above the mean of all.
        of_each: (concepts, units), the same for every concept.
    """

    concept: torch.Tensor
    strength: torch.Tensor
    of_each: torch.Tensor


def selectivity(model: VisionModel, site: Site, world: EmojiWorld | None = None, shuffled: bool = False) -> Selectivity:
    """Concept selectivity of every unit at a site over 8,192 scenes, by default validation scenes in the styles it knows.

    By chance, where a unit knows nothing of concepts, the strength of its best of 256 is about 0.5; ``shuffled`` measures that,
    with concepts that are exchanged among the scenes.
    """
    world = world or default_world(model)
    sums, square, n = _moments(model, site.kind, world, shuffled)[site.layer]
    total = n.sum()
    mean = sums.sum(0) / total
    spread = (square / total - mean**2).clamp_min(1e-20).sqrt()
    of_each = (sums / n[:, None] - mean) / spread
    return Selectivity(of_each.argmax(0), of_each.amax(0), of_each)


def _moments(model: VisionModel, kind: str, world: EmojiWorld,
             shuffled: bool) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per layer: sums over the scenes of each concept (concepts, units), sums of squares (units,), scenes of each concept."""
    key = {"weights": model.weights_hash, "kind": kind, "world": repr(world), "concepts": world.concepts, "n": _SCENES}
    path = {mixed: cache.path_of(key | ({"shuffled": "none keeps its own"} if mixed else {}), "selectivity")
            for mixed in (False, True)}
    sites, stored = find_sites(model)[kind], cache.read(path[shuffled])
    if not stored or len(stored) != 1 + 2 * len(sites):
        concepts = len(world.concepts)
        # Both at once, because seeing the scenes is what takes the time, and who asks for one asks for the other.
        sums = {mixed: [torch.zeros(concepts, p.units, dtype=torch.float64) for p in sites] for mixed in path}
        squares = [torch.zeros(p.units, dtype=torch.float64) for p in sites]
        n = {mixed: torch.zeros(concepts, dtype=torch.float64) for mixed in path}
        for start in tqdm(range(0, _SCENES, _AT_ONCE), desc=f"{model.name}: concepts", unit="batch", leave=False, delay=2):
            scenes = world.batch(range(start, start + _AT_ONCE), model.device)
            found, concept = activations(model, kind, scenes.images), scenes.concept.cpu()
            for mixed, whose in ((False, concept), (True, concept[derangement(len(concept), start)])):
                n[mixed] += torch.bincount(whose, minlength=concepts)
                for total, layer in zip(sums[mixed], found, strict=True):
                    total.index_add_(0, whose, layer.double())
            for square, layer in zip(squares, found, strict=True):
                square += layer.double().square().sum(0)
            if start % (16 * _AT_ONCE) == 0:
                release_memory()
        for mixed in path:
            kept = {"n": n[mixed].numpy()}
            for i, (total, square) in enumerate(zip(sums[mixed], squares, strict=True)):
                kept |= {f"sums{i}": total.numpy(), f"squares{i}": square.numpy()}
            kept = {k: v.astype(np.float32) for k, v in kept.items()}
            cache.write(path[mixed], kept)
            stored = kept if mixed == shuffled else stored
    numbers = {k: torch.from_numpy(np.asarray(v, np.float64)) for k, v in stored.items()}
    return [(numbers[f"sums{i}"], numbers[f"squares{i}"], numbers["n"]) for i in range(len(sites))]


@dataclass(frozen=True, eq=False)
class Named:
    """How many pictures another model names as their neuron's own concept.

    Attributes:
        hits: bool (K,), the neuron's top concept is among the judge's five best of the picture.
        counted: bool (K,), the neuron's selectivity reaches the bound, so that it has a concept to show.
        chance: share expected if the judge guessed.
    """

    hits: torch.Tensor
    counted: torch.Tensor
    chance: float

    @property
    def share(self) -> float:
        """Named share of the counted pictures; NaN if there are none."""
        return self.hits[self.counted].float().mean().item()

    @property
    def interval(self) -> tuple[float, float]:
        """Its 95 % interval (Wilson)."""
        return wilson(int(self.hits[self.counted].sum()), int(self.counted.sum()))


def named(pictures: torch.Tensor, concept: torch.Tensor, strength: torch.Tensor, judge: VisionModel, bound: float) -> Named:
    """Show pictures (K, 3, S, S) to ``judge``; neuron k's own concept is ``concept[k]``, with selectivity ``strength[k]``."""
    with torch.inference_mode():
        best = torch.cat([judge(part).topk(5).indices.cpu() for part in pictures.split(_AT_ONCE)])
    release_memory()
    return Named((best == concept[:, None]).any(1), strength >= bound, 5 / len(judge.class_names))


@dataclass(frozen=True, eq=False)
class Raised:
    """How far pictures raise their neurons beyond what natural images do, in standard deviations over the reference images.

    Attributes:
        own: (K,), by how much the neuron's picture excites it more than the strongest reference image does; below 0, less.
        other: (K,), the same for the picture of another neuron of the K: what is not the neuron's own business.
    """

    own: torch.Tensor
    other: torch.Tensor


def raised(visualizer: Visualizer, layer: int, neurons, kind: str = "mlp") -> Raised:
    """The faithfulness score of at least two neurons' pictures, against the visualizer's reference images."""
    made, site = visualizer.render(layer, neurons, kind), find_site(visualizer.model, layer, kind)
    if len(made.neurons) < 2:
        raise VitvizError("The score needs at least two neurons: the picture of another one is its control.")
    known = reference_activations(visualizer.model, site, visualizer.reference)[:, made.neurons]
    found = torch.cat([activations(visualizer.model, kind, part)[site.layer] for part in made.pictures.split(_AT_ONCE)])
    excess = (found[:, made.neurons] - known.amax(0)) / known.std(0, correction=0).clamp_min(1e-12)
    row = torch.arange(len(made.neurons))
    return Raised(excess[row, row], excess[derangement(len(row), 0), row])


def raised_by_depth(visualizer: Visualizer, units: int = 64) -> Result:
    """How many pictures excite their neuron more than every reference image, by layer, of evenly spaced units; beside it
    the control: how many neurons the picture of another one excites more than every image."""
    rows, (kind, sites) = [], next(iter(find_sites(visualizer.model).items()))
    for site in sites:
        found = raised(visualizer, site.layer, _spaced(site, units), kind)
        for name, values in (("the neuron itself", found.own), ("another neuron", found.other)):
            rows.append({"layer": site.layer, "the picture is of": name, **proportion((values > 0).sum(), len(values))})
    return Result(f"{visualizer.model.title}: pictures that beat all of {visualizer.reference.name}", "share of pictures (%)",
                   pd.DataFrame(rows))


def named_by_depth(visualizer: Visualizer, judge: VisionModel, units: int = 64) -> Result:
    """How many pictures ``judge`` names as their unit's favorite concept, by layer, of evenly spaced units; beside it, how many
    it names as the favorite of another of these units. Both models must be embedded."""
    rows, (kind, sites) = [], next(iter(find_sites(visualizer.model).items()))
    for site in sites:
        neurons, chosen = _spaced(site, units), selectivity(visualizer.model, site)
        pictures, concept = visualizer.render(site.layer, neurons, kind).pictures, chosen.concept[neurons]
        for name, whose in (("the unit itself", concept), ("another unit", concept[derangement(len(concept), 0)])):
            found = named(pictures, whose, chosen.strength[neurons], judge, -np.inf)
            rows.append({"layer": site.layer, "favorite of": name, **proportion(found.hits.sum(), len(neurons))})
    return Result(f"{visualizer.model.title}: pictures that {judge.name} names (among its 5 best) as a unit's favorite concept",
                   "share of pictures (%)", pd.DataFrame(rows), ("chance", 100 * found.chance))


def agreement(visualizer: Visualizer, layer: int, neurons, judge: VisionModel, kind: str = "mlp") -> torch.Tensor:
    """Whether ``judge`` sees in a neuron's picture what it sees in its six top images: (K,), the correlation of its answers.

    The answers (logits) are taken about their mean over the K pictures, and over the K sets of images, so that what all share
    does not count. A picture that has nothing to do with the images that excite its neuron lies about 0.
    """
    made, site = visualizer.render(layer, neurons, kind), find_site(visualizer.model, layer, kind)
    known = reference_activations(visualizer.model, site, visualizer.reference)
    best = [visualizer.reference.batch(known[:, n].topk(6).indices.tolist()) for n in made.neurons]
    with torch.inference_mode():  # not before: pictures are made by slopes
        shown = torch.cat([judge(part).float().cpu() for part in made.pictures.split(_AT_ONCE)])
        natural = torch.stack([judge(images).float().mean(0).cpu() for images in best])
    release_memory()
    shown, natural = (found - found.mean(0) for found in (shown, natural))
    return torch.cosine_similarity(shown - shown.mean(1, keepdim=True), natural - natural.mean(1, keepdim=True))


def beside_scenes(visualizer: Visualizer, layer: int, neurons, kind: str = "mlp") -> Image.Image:
    """A row a neuron: its picture with its scores, and the five reference images that excite it most."""
    made, tiles = visualizer.render(layer, neurons, kind), []
    known = reference_activations(visualizer.model, find_site(visualizer.model, layer, kind), visualizer.reference)
    for k, neuron in enumerate(made.neurons):
        best = known[:, neuron].topk(5)
        tiles.append(Tile(made.pictures[k], made.caption(k), made.scores.status[k] == "alive"))
        images = visualizer.reference.batch(best.indices.tolist()).cpu()
        tiles += [Tile(image, [f"{value:.3g}"]) for image, value in zip(images, best.values.tolist(), strict=True)]
    return contact_sheet(tiles, f"{made.title}; left the picture, right the strongest scenes", side=112, columns=6)


def _spaced(site: Site, units: int) -> list[int]:
    return torch.linspace(0, site.units - 1, min(units, site.units)).round().long().tolist()


def tells(hits: torch.Tensor, scores: dict[str, torch.Tensor], title: str) -> Result:
    """Which number tells whether a picture will be named: its correlation with being named, with Fisher's interval.

    Args:
        hits: bool (K,), K > 3, as ``named`` returns them.
        scores: by name, one number a picture, (K,). One that does not vary tells nothing: 0, with no interval.
    """
    rows, n = [], len(hits)
    for name, values in scores.items():
        varies = values.float().std() > 0 and 0 < int(hits.sum()) < n
        r = float(np.corrcoef(values.double().numpy(), hits.double().numpy())[0, 1]) if varies else 0.0
        middle, half = np.arctanh(np.clip(r, -0.999999, 0.999999)), 1.959964 / (n - 3) ** 0.5
        low, high = (np.tanh(middle - half), np.tanh(middle + half)) if varies else (np.nan, np.nan)
        rows.append({"score": name, "value": r, "low": low, "high": high, "n": n})
    return Result(title, "correlation with being named", pd.DataFrame(rows), ("tells nothing", 0.0))
