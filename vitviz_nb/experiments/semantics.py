"""What explains a unit's answers: what a scene shows, or how it looks? Shares of variance by what is known (paper, section 6).

Emoji World knows every fact of its scenes, so the share of a unit's variance that each fact explains can be measured.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm import tqdm

from ..datasets.backgrounds import CONTEXTS
from ..datasets.emoji_world import COUNTS, PLACES, SIZES, STYLES, TURNS, EmojiWorld, Scenes
from ..datasets.image_set import AT_ONCE, ImageSet, default_world, derangement
from ..models.reading import activations
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.errors import VitvizError, nearest
from ..utils.memory import release_memory
from ..utils.statistics import pearson
from .result import Result, mean_of, proportion

FACTS = ("concept", "category", "style", "color", "context", "count", "size", "turn", "place")
IN_ONE_STYLE = "concept in one style"
_PAIR = ("concept", "style")  # what a unit makes of the two together beyond each alone is explained by IN_ONE_STYLE


@dataclass(frozen=True, eq=False)
class Explained:
    """Shares of the variance of every unit's answer that facts about the images explain.

    Attributes:
        facts: their names.
        shares: one tensor (facts, units) a layer: adjusted for the number of values a fact takes (epsilon squared), so 0 on
            average for a fact that tells nothing; 1 at most. Facts that go together each count what they share.
        levels: how many values each fact took.
        title: model and images.
    """

    facts: tuple[str, ...]
    shares: list[torch.Tensor]
    levels: tuple[int, ...]
    title: str

    def by_layer(self) -> Result:
        """The mean over units, by layer and fact, in percent."""
        rows = [{"layer": layer, "explained by": fact, **mean_of(100 * shares[i].numpy())}
                for layer, shares in enumerate(self.shares) for i, fact in enumerate(self.facts)]
        return Result(f"{self.title}: what explains units' answers", "variance explained (%)", pd.DataFrame(rows))

    def best(self, fact: str, layer: int = -1, count: int = 8) -> list[tuple[int, float]]:
        """The units that ``fact`` explains best in a layer, as (unit, share), the best first."""
        if fact not in self.facts:
            raise VitvizError(f"Facts are {', '.join(self.facts)}; there is no {fact!r}.{nearest(fact, self.facts)}")
        found = self.shares[layer][self.facts.index(fact)].topk(min(count, self.shares[layer].shape[1]))
        return list(zip(found.indices.tolist(), found.values.tolist(), strict=True))


def explained(model: VisionModel, images=None, n: int | None = None, facts: dict[str, list] | None = None,
              shuffled: bool = False) -> Explained:
    """Shares of every unit's variance that facts explain, at all layers (MLP units; channels of a CNN).

    Args:
        images: by default validation scenes of Emoji World in all five styles, each thing in a context drawn by lot, so that
            concept and context do not go together; else images as ``Stimuli`` takes them.
        n: by default 8,192 scenes, or as ``Stimuli`` says.
        facts: for images other than scenes, what is known of each: a name, and a value for each image. By default their classes.
        shuffled: the control: the facts of other images.
    """
    world = images if isinstance(images, EmojiWorld) else EmojiWorld("val", size=model.image_size) if images is None else None
    if world and facts:
        raise VitvizError("The facts of Emoji World's scenes are known; give facts only with images of your own.")
    stimuli = ImageSet(model, world or images, n or (8192 if world else None))
    known = None if world else _given(model, stimuli, facts)
    kind, sites = next(iter(find_sites(model).items()))
    path = cache.path_of({"weights": model.weights_hash, "kind": kind, "images": stimuli.key, "n": stimuli.n,
                          "facts": repr(facts), "shuffled": shuffled, "styles": STYLES}, "explained")
    stored = cache.read(path)
    if stored and len(stored) == 2 + len(sites):
        names, levels = tuple(stored["facts"].tolist()), tuple(stored["levels"].tolist())
        shares = [torch.from_numpy(stored[f"shares{i}"]) for i in range(len(sites))]
    else:
        tables = [_Sums() for _ in sites]
        for start in tqdm(range(0, stimuli.n, AT_ONCE), desc=f"{model.name}: facts", unit="batch", leave=False, delay=2):
            numbers = range(start, min(start + AT_ONCE, stimuli.n))
            if world:
                scenes = world.batch(numbers, model.device, contexts=by_lot(numbers))
                batch, here = scenes.images, facts_of(scenes)
            else:
                batch, here = stimuli.batch(numbers), {name: values[start:numbers.stop] for name, values in known.items()}
            if shuffled:
                lot = derangement(len(numbers), start)
                here = {name: values[lot] for name, values in here.items()}
            for table, found in zip(tables, activations(model, kind, batch), strict=True):
                table.add(found, here)
        results = [table.shares() for table in tables]
        names, levels, shares = tuple(results[0]), tables[0].levels(), [torch.stack([*r.values()]).float() for r in results]
        cache.write(path, {"facts": np.array(names), "levels": np.array(levels)}
                    | {f"shares{i}": s.numpy() for i, s in enumerate(shares)})
    return Explained(names, shares, levels, f"{model.title} ({stimuli.name}{', facts shuffled' if shuffled else ''})")


def across_styles(model: VisionModel, n: int = 2048) -> Result:
    """Does a unit that answers to a concept in one style answer to it in the others? By layer, mean correlation over units.

    A unit's profile is its mean answer to each concept. Correlated are the profile in 3D models with that in another style, on
    other scenes; "3d" itself, on other scenes, says how high a correlation can be. The control compares with the profile of
    other concepts, drawn by lot.
    """
    (kind, sites), first_style = next(iter(find_sites(model).items())), STYLES[0]
    own, shown = _profiles(model, kind, first_style, range(n))
    derangement, seen = zip(*(_profiles(model, kind, style, range(n, 2 * n)) for style in STYLES), strict=True)
    shown = shown & torch.stack(seen).all(0)
    rows, lot = [], torch.randperm(int(shown.sum()), generator=torch.Generator().manual_seed(0))
    for i, site in enumerate(sites):
        first = own[i][shown]
        compared = {style: profile[i][shown] for style, profile in zip(STYLES, derangement, strict=True)}
        compared["3d, other concepts"] = compared[first_style][lot]
        for name, second in compared.items():
            living = (first.std(0) > 0) & (second.std(0) > 0)
            rows.append({"layer": site.layer, "3d and": name, **mean_of(pearson(first, second)[living].numpy())})
    return Result(f"{model.title}: units' profiles over concepts in 3D models and in other styles ({n:,} scenes each)",
                   "correlation", pd.DataFrame(rows))


def _has_text(model: VisionModel) -> None:
    if not model.text:
        raise VitvizError(f"{model.name} has no text tower, so no caption can be compared with an image; take emoji-clip.")


def _profiles(model: VisionModel, kind: str, style: str, numbers: range) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Mean answers to each concept (concepts, units), a layer each, over scenes in one style; and which concepts were shown."""
    world = EmojiWorld("val", styles=(style,), size=model.image_size)
    sums, count = None, torch.zeros(len(world.concepts))
    steps = range(numbers.start, numbers.stop, AT_ONCE)
    for start in tqdm(steps, desc=f"{model.name}: {style}", unit="batch", leave=False, delay=2):
        part = range(start, min(start + AT_ONCE, numbers.stop))
        scenes = world.batch(part, model.device, contexts=by_lot(part))
        found, concept = activations(model, kind, scenes.images), scenes.concept.cpu()
        sums = sums or [torch.zeros(len(world.concepts), layer.shape[1]) for layer in found]
        count += torch.bincount(concept, minlength=len(count))
        for total, layer in zip(sums, found, strict=True):
            total.index_add_(0, concept, layer)
    return [total / count.clamp_min(1)[:, None] for total in sums], count > 0


def points(model: VisionModel, images: torch.Tensor) -> torch.Tensor:
    """Images (N, 3, S, S) in [0, 1] as points (N, width) of length 1, where ``model.text(captions)`` has points of captions."""
    _has_text(model)
    with torch.inference_mode():
        parts = [model.module(model.normalize(part.to(model.device))) for part in images.split(AT_ONCE)]
    release_memory()
    return F.normalize(torch.cat(parts).float(), dim=-1)


def by_captions(model: VisionModel, n: int = 240) -> Result:
    """Which facts does a model with a text tower tell apart? Right choices among captions that differ in one fact alone.

    For each fact ``n`` scenes in the styles of the model's training, equally many of each value. A scene's own caption stands
    beside those that say another value; chosen is the nearest to the picture, in the control the nearest to another scene's.
    """
    _has_text(model)
    if n < 2 * len(CONTEXTS):
        raise VitvizError(f"Of {len(CONTEXTS)} contexts two scenes each are needed, {2 * len(CONTEXTS)} in all, got n={n}.")
    world, rows = default_world(model), []
    values = {"count": COUNTS, "size": range(len(SIZES)), "turn": range(len(TURNS)), "style": range(len(world.styles)),
              "place": range(len(PLACES)), "context": range(len(CONTEXTS))}
    enough = range(40 * n)
    known = world.facts(np.array(enough)) | {"context": by_lot(enough)}
    for fact, of in values.items():
        numbers = np.concatenate([np.flatnonzero(known[fact] == value)[:n // len(of)] for value in of])
        parts = []
        for here in np.split(numbers, range(AT_ONCE, len(numbers), AT_ONCE)):
            scenes = world.batch(here, model.device, contexts=by_lot(here))
            told = [replace(scenes, **{fact: torch.full_like(scenes.concept, value)}).captions for value in of]
            with torch.inference_mode():
                words = torch.stack([model.text(captions) for captions in told], 1)
            parts.append((points(model, scenes.images), words, getattr(scenes, fact) - of[0]))
        seen, words, own = (torch.cat(part) for part in zip(*parts, strict=True))
        for near, pictures in (("its own picture", seen), ("another scene's picture", seen[derangement(len(seen), 0)])):
            hits = ((words * pictures[:, None]).sum(-1).argmax(1) == own).sum()
            rows.append({"captions differ in": fact, "nearest to": near, **proportion(hits, len(seen))})
    return Result(f"{model.title}: the right one of captions that differ in one fact", "right choices (%)", pd.DataFrame(rows))


def by_lot(numbers) -> np.ndarray:
    """A context for each scene, drawn by lot from all twelve: fixed by its number, whatever batch it is in."""
    return np.array([np.random.default_rng(int(i)).integers(len(CONTEXTS)) for i in numbers])


def facts_of(scenes: Scenes) -> dict[str, torch.Tensor]:
    """Each of ``FACTS`` as a number a scene, int64 (N,)."""
    facts = {name: getattr(scenes, name).cpu() for name in FACTS if name != "color"}
    return {name: colors(scenes.images, scenes.masks).cpu() if name == "color" else facts[name] for name in FACTS}


def colors(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean color inside each mask as one of 11 names: black, gray, white, or one of eight hues; int64 (N,)."""
    weight = masks[:, None].clamp_min(1e-6)
    red, green, blue = ((images * weight).sum((2, 3)) / weight.sum((2, 3))).unbind(1)
    high, low = torch.stack([red, green, blue]).amax(0), torch.stack([red, green, blue]).amin(0)
    angle = torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue)
    hue = 3 + (angle / (2 * torch.pi) * 8).round().long().remainder(8)
    gray = (high + low).mul(1.5).long().clamp(0, 2)
    return torch.where(high - low < 0.12, gray, hue)


def _given(model: VisionModel, stimuli: ImageSet, facts: dict[str, list] | None) -> dict[str, torch.Tensor]:
    """Facts of images that are not scenes, as numbers."""
    if facts is None:
        return {"class": stimuli.labels(range(stimuli.n))}
    for name, values in facts.items():
        if len(values) < stimuli.n:
            raise VitvizError(f"The fact {name!r} is given for {len(values)} images, but there are {stimuli.n}.")
    return {name: torch.tensor([sorted(set(values)).index(value) for value in values]) for name, values in facts.items()}


class _Sums:
    """Sums of units' answers over the images of each value of each fact."""

    def __init__(self):
        self.total = self.square = 0.0
        self.n, self.of = 0, {}

    def add(self, found: torch.Tensor, facts: dict[str, torch.Tensor]) -> None:
        found = found.double()
        self.n, self.total, self.square = self.n + len(found), self.total + found.sum(0), self.square + found.square().sum(0)
        if all(name in facts for name in _PAIR):
            facts = facts | {IN_ONE_STYLE: facts["concept"] * len(STYLES) + facts["style"]}
        for name, values in facts.items():
            sums, count = self.of.get(name, (found.new_zeros(0, found.shape[1]), found.new_zeros(0)))
            more = max(0, int(values.max()) + 1 - len(count))
            sums, count = torch.cat([sums, sums.new_zeros(more, sums.shape[1])]), torch.cat([count, count.new_zeros(more)])
            self.of[name] = sums.index_add_(0, values, found), count + torch.bincount(values, minlength=len(count))

    def levels(self) -> tuple[int, ...]:
        return tuple(int((count > 0).sum()) for _, count in self.of.values())

    def shares(self) -> dict[str, torch.Tensor]:
        """Epsilon squared of each fact and unit; what does not vary is explained by nothing."""
        whole = (self.square - self.total**2 / self.n).clamp_min(0)
        shares = {}
        for name, (sums, count) in self.of.items():
            within = self.square - (sums**2 / count.clamp_min(1)[:, None]).sum(0)
            free = self.n - int((count > 0).sum())
            if free < 1:
                raise VitvizError(f"Of {self.n} images each has its own value of {name!r}, so what it explains cannot be "
                                  f"measured; take more images.")
            share = 1 - within / free / (whole / (self.n - 1)).clamp_min(1e-30)
            shares[name] = torch.where(whole > 1e-9 * self.square, share, 0.0)
        if IN_ONE_STYLE in shares:
            shares[IN_ONE_STYLE] = shares[IN_ONE_STYLE] - sum(shares[name] for name in _PAIR)
        return shares
