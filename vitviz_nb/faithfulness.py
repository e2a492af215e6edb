"""Does the picture of a neuron show what the neuron detects? Emoji World knows the truth, so it can be measured."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from . import cache
from .emoji_world import EmojiWorld
from .intervals import wilson
from .models import VisionModel
from .sites import Site, activations, sites
from .stimuli import default_world, others

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


def selectivity(model: VisionModel, place: Site, world: EmojiWorld | None = None, shuffled: bool = False) -> Selectivity:
    """Concept selectivity of every unit at a site over 8,192 scenes, by default validation scenes in the styles it knows.

    By chance, where a unit knows nothing of concepts, the strength of its best of 256 is about 0.5; ``shuffled`` measures that,
    with concepts that are exchanged among the scenes.
    """
    world = world or default_world(model)
    sums, square, n = _moments(model, place.kind, world, shuffled)[place.layer]
    total = n.sum()
    mean = sums.sum(0) / total
    spread = (square / total - mean**2).clamp_min(1e-20).sqrt()
    of_each = (sums / n[:, None] - mean) / spread
    return Selectivity(of_each.argmax(0), of_each.amax(0), of_each)


def _moments(model: VisionModel, kind: str, world: EmojiWorld,
             shuffled: bool) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per layer: sums over the scenes of each concept (concepts, units), sums of squares (units,), scenes of each concept."""
    path = cache.path_of({"weights": model.weights_hash, "kind": kind, "world": repr(world), "concepts": world.concepts,
                          "n": _SCENES} | ({"shuffled": "none keeps its own"} if shuffled else {}), "selectivity")
    places, stored = sites(model)[kind], cache.read(path)
    if not stored or len(stored) != 1 + 2 * len(places):
        concepts = len(world.concepts)
        sums = [torch.zeros(concepts, p.units, dtype=torch.float64) for p in places]
        squares = [torch.zeros(p.units, dtype=torch.float64) for p in places]
        n = torch.zeros(concepts, dtype=torch.float64)
        for start in tqdm(range(0, _SCENES, _AT_ONCE), desc=f"{model.name}: concepts", unit="batch", leave=False, delay=2):
            scenes = world.batch(range(start, start + _AT_ONCE), model.device)
            concept = scenes.concept.cpu()
            if shuffled:
                concept = concept[others(len(concept), start)]
            n += torch.bincount(concept, minlength=concepts)
            for total, square, found in zip(sums, squares, activations(model, kind, scenes.images), strict=True):
                total.index_add_(0, concept, found.double())
                square += found.double().square().sum(0)
        stored = {"n": n.numpy()}
        for i, (total, square) in enumerate(zip(sums, squares, strict=True)):
            stored |= {f"sums{i}": total.numpy(), f"squares{i}": square.numpy()}
        cache.write(path, {k: v.astype(np.float32) for k, v in stored.items()})
    numbers = {k: torch.from_numpy(np.asarray(v, np.float64)) for k, v in stored.items()}
    return [(numbers[f"sums{i}"], numbers[f"squares{i}"], numbers["n"]) for i in range(len(places))]


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
    return Named((best == concept[:, None]).any(1), strength >= bound, 5 / len(judge.class_names))
