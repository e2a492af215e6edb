"""Emoji World: labeled scenes with ground truth, drawn on the fly from open emoji art.

Every scene is fixed by (split, index, seed), of which each of its properties is a hash, and so is the same in any batch and on
any device (pixels agree to within 1/255).
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from textwrap import wrap

import numpy as np
import torch

from ..plotting.alt_text import bundle
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import random_streams, validate
from ..utils.errors import VitvizError, first_line, nearest
from .backgrounds import CONTEXTS, TILE, tiles
from .drawing import draw
from .sprites import SPRITE, STYLES, concept_table, sprites

SPLITS = ("train", "val", "test")
COUNTS = (1, 2, 3)
SIZES = ("small", "medium", "large")
ROTATIONS = ("upright", "on its side", "upside down")
POSITIONS = ("center", "left", "right", "top", "bottom")

P_USUAL_CONTEXT = 0.7  # a concept is shown in its usual context with this probability, else in any other
P_OCCLUDED = P_SMALL = P_BLURRED = 0.1  # at most one of the three in a scene; the other 70 % are plain
P_COUNT = (0.80, 0.12, 0.08)
P_COMPANION = 0.12  # a smaller object of another concept in the same scene
P_ROTATION = (0.84, 0.08, 0.08)

_TRUTH = ("concept", "style", "context", "count", "size", "rotation", "position", "occluded", "blurred", "companion")
_VARIANTS, _CHUNK = 16, 128
_MOST_PIXELS = 2**29  # in one call: 131,072 scenes of 64 px take 8.6 GB with their masks
_NOUNS = {"3d": ("3D model", "3D models"), "cartoon": ("cartoon", "cartoons"), "flat": ("flat icon", "flat icons"),
          "line": ("line drawing", "line drawings"), "word": ("written word", "written words")}


@dataclass(frozen=True, eq=False)
class Scenes:
    """N scenes and their ground truth, tensors on one device: indices and labels are int64 (N,)."""

    world: "EmojiWorld"
    images: torch.Tensor  # float32 (N, 3, size, size), RGB in [0, 1]
    masks: torch.Tensor  # float32 (N, size, size) in [0, 1], how much of a pixel shows the concept; of a blurred scene, unblurred
    concept: torch.Tensor  # the label, an index into world.concepts
    style: torch.Tensor  # index into world.styles
    context: torch.Tensor  # index into CONTEXTS
    count: torch.Tensor  # 1 to 3 objects of the concept
    size: torch.Tensor  # index into SIZES
    rotation: torch.Tensor  # index into ROTATIONS
    position: torch.Tensor  # index into POSITIONS
    occluded: torch.Tensor  # bool (N,)
    blurred: torch.Tensor  # bool (N,)
    companion: torch.Tensor  # the concept of a second, smaller object, or -1
    indices: torch.Tensor  # which scenes of the split these are

    def __len__(self) -> int:
        return len(self.concept)

    @property
    def category(self) -> torch.Tensor:
        """Indices into ``world.categories``, int64 (N,)."""
        return torch.as_tensor(self.world.category_of, device=self.concept.device)[self.concept]

    @cached_property
    def captions(self) -> list[str]:
        """One sentence a scene, with every fact that a person would see."""
        return _captions(self.world, {name: getattr(self, name) for name in _TRUTH})

    def _repr_mimebundle_(self, include=None, exclude=None):
        shown = [Tile(image, wrap(caption, 24)) for image, caption in zip(self.images, self.captions, strict=True)]
        return bundle(contact_sheet(shown, repr(self.world)), f"{len(self)} scenes: {'; '.join(self.captions)}")


class EmojiWorld:
    """An endless set of labeled scenes.

    Args:
        split: "train", "val" or "test"; they share neither scenes nor background tiles.
        concepts: "trained" (the 256 that embedded models know), "unseen" (all others), "all", or at least two names.
        styles: one or more of ``STYLES``; the others are held out, and one given twice is drawn twice as often.
        size: side of a scene, 8 to 2,048 px.
        seed: another seed is another world of the same statistics.

    Attributes:
        concepts: names, the class names of a model trained on this world.
        categories, category_of: Unicode's categories of the concepts, and the index of each concept's.
        usual_context: index into ``CONTEXTS`` for each concept; a scene shows it with probability ``P_USUAL_CONTEXT``.

    Raises:
        VitvizError: another split, concept, style, size or seed; drawings that are missing or damaged.
    """

    def __init__(self, split: str = "val", concepts="trained", styles=STYLES, size: int = 64, seed: int = 0):
        self.split, self.size = validate.choice("split", split, SPLITS), validate.whole("size", size, 8, 2048)
        self.seed = validate.whole("seed", seed, 0, 2**60)
        self._drawn = tuple(validate.choice("styles", style, STYLES) for style in _names("styles", styles))
        self.styles = tuple(dict.fromkeys(self._drawn))
        rows = concept_table()
        number = {row["name"]: i for i, row in enumerate(rows)}
        if isinstance(concepts, str) and concepts in ("trained", "unseen", "all"):
            chosen = [i for i, row in enumerate(rows) if concepts == "all" or (concepts == "trained") == (row["trained"] == "1")]
        else:
            names = dict.fromkeys(_names("concepts", concepts))
            if unknown := [name for name in names if name not in number]:
                raise VitvizError(f"concepts is 'trained', 'unseen', 'all' or names of data/emoji_world/concepts.csv, got "
                                  f"{validate.shown(unknown[0])}.{nearest(unknown[0], number)}")
            chosen = [number[name] for name in names]
        if len(chosen) < 2:
            raise VitvizError("Emoji World needs at least two concepts: a scene may show a second one beside the first.")
        self.concepts = [rows[i]["name"] for i in chosen]
        self.categories = sorted({rows[i]["category"] for i in chosen})
        self.category_of = np.array([self.categories.index(rows[i]["category"]) for i in chosen])
        self.usual_context = np.array([CONTEXTS.index(rows[i]["context"]) for i in chosen])
        self._rows = tuple(chosen)

    def __repr__(self) -> str:
        return (f"EmojiWorld({self.split}: {len(self.concepts)} concepts in {len(self.categories)} categories, "
                f"styles {', '.join(self._drawn)}, {self.size} px, seed {self.seed})")

    def batch(self, indices, device: str | torch.device = "cpu", contexts=None) -> Scenes:
        """Draw the scenes of ``indices`` (whole numbers from 0 to 2**62, in any order) on ``device``.

        Args:
            contexts: indices into ``CONTEXTS``, one a scene, to draw them in instead of their own; all else stays as it is.
        """
        indices = index_array("indices", indices, 2**62, _MOST_PIXELS // self.size**2)
        facts = self.facts(indices)
        if contexts is not None:
            facts["context"] = index_array("contexts", contexts, len(CONTEXTS) - 1)
            if len(facts["context"]) != len(indices):
                raise VitvizError(f"contexts has one number a scene, {len(indices)} in all, got {len(facts['context'])}.")
        images, masks = self.draw(facts, device)
        truth = {k: torch.as_tensor(facts[k], device=images.device) for k in _TRUTH}
        return Scenes(self, images, masks, **truth, indices=torch.as_tensor(indices, device=images.device))

    def captions(self, indices) -> list[str]:
        """The captions of scenes that are not drawn."""
        return _captions(self, self.facts(indices))

    def facts(self, indices) -> dict[str, np.ndarray]:
        """Every property of scenes ``indices``, drawn or not, as hashes fix them: arrays (N,) or (N, 4 objects)."""
        key = random_streams.keys(self.seed, SPLITS.index(self.split), index_array("indices", indices, 2**62))
        used = 0

        def u(columns: int | None = None) -> np.ndarray:
            """The next uniform in [0, 1) of each scene: (N,) or (N, columns)."""
            nonlocal used
            draws = random_streams.uniforms(key, used, columns or 1)
            used += columns or 1
            return draws if columns else draws[:, 0]

        def pick(probabilities) -> np.ndarray:
            return np.minimum(np.searchsorted(np.cumsum(probabilities), u(), side="right"), len(probabilities) - 1)

        concepts = len(self.concepts)
        concept = (u() * concepts).astype(np.int64)
        style = pick([self._drawn.count(name) / len(self._drawn) for name in self.styles])
        usual = self.usual_context[concept]
        other = (usual + 1 + (u() * (len(CONTEXTS) - 1)).astype(np.int64)) % len(CONTEXTS)
        context = np.where(u() < P_USUAL_CONTEXT, usual, other)
        hard = pick((1 - P_OCCLUDED - P_SMALL - P_BLURRED, P_OCCLUDED, P_SMALL, P_BLURRED))
        count = 1 + pick(P_COUNT)
        other_concept = (concept + 1 + (u() * (concepts - 1)).astype(np.int64)) % concepts
        companion = np.where(u() < P_COMPANION, other_concept, -1)
        rotation = pick(P_ROTATION)
        objects = count + (companion >= 0)

        # One object lies anywhere in the frame; several stand on a circle, so that none hides another.
        largest = np.choose(objects - 1, [0.95, 0.52, 0.46, 0.44])
        scale = largest * (0.6 + 0.4 * u()) * np.where(hard == 2, 0.42, 1.0)
        first, radius = 2 * np.pi * u(), np.where(objects == 1, 0, 0.5)
        free = np.clip(1.06 - scale, 0, None)
        shift = (2 * u(2) - 1) * np.where(objects == 1, free, 0.06)[:, None]
        angle = first[:, None] + 2 * np.pi * np.arange(4) / objects[:, None]
        x = shift[:, :1] + radius[:, None] * np.cos(angle)
        y = shift[:, 1:] + radius[:, None] * np.sin(angle)
        own = np.arange(4) < count[:, None]
        mean_x, mean_y = (x * own).sum(1) / count, (y * own).sum(1) / count
        beside = np.abs(mean_x) >= np.abs(mean_y)
        position = np.where(np.maximum(np.abs(mean_x), np.abs(mean_y)) < 0.2, 0,
                            np.where(beside, np.where(mean_x < 0, 1, 2), np.where(mean_y < 0, 3, 4)))
        written = np.array([s == "word" for s in self.styles])[style]  # mirrored writing would be another task
        tilt = np.deg2rad(rotation * 90 + 25 * (2 * u() - 1))
        return {
            "concept": concept, "style": style, "context": context, "count": count, "companion": companion,
            "rotation": rotation, "position": position, "size": np.digitize(scale, (0.3, 0.6)),
            "occluded": hard == 1, "blurred": hard == 3,
            "objects": objects, "x": x, "y": y, "scale": scale, "tilt": tilt[:, None] + np.deg2rad(10 * (2 * u(4) - 1)),
            "flip": np.where((u() < 0.5) & ~written, -1.0, 1.0), "gain": 0.85 + 0.3 * u(3), "ink": 0.25 * u(3),
            "cut_angle": 2 * np.pi * u(), "cut_at": 0.6 * u() - 0.3,
            "variant": (u() * _VARIANTS).astype(np.int64), "window": (u(2) * (TILE - SPRITE + 1)).astype(np.int64),
            "mirror": u() < 0.5, "light": (0.8 + 0.4 * u())[:, None] * (0.92 + 0.16 * u(3)),
        }

    def draw(self, facts: dict[str, np.ndarray], device: str | torch.device = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
        """Images (N, 3, size, size) and masks (N, size, size) of scenes with these facts, which may have been changed."""
        n = len(facts["concept"])
        try:
            masks = torch.empty(n, self.size, self.size, device=device)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise VitvizError(f"{n} scenes cannot be drawn on {validate.shown(device)} ({first_line(error)}).") from None
        images = masks.new_empty(n, 3, self.size, self.size)
        pyramid, backgrounds = _assets(self.styles, self._rows, len(SPLITS) * self.seed + SPLITS.index(self.split), masks.device)
        for i in range(0, n, _CHUNK):
            chunk = slice(i, i + _CHUNK)
            part = {k: v[chunk] for k, v in facts.items()}
            images[chunk], masks[chunk] = draw(part, self.styles, self.size, pyramid, backgrounds)
        return images, masks


def _captions(world: EmojiWorld, facts: dict) -> list[str]:
    captions = []
    columns = [facts[name].tolist() for name in _TRUTH]  # at once: each read from a GPU waits for it
    for concept, style, context, count, size, rotation, position, occluded, blurred, companion in zip(*columns, strict=True):
        noun = _NOUNS[world.styles[style]][count > 1]
        words = [f"{('a', 'two', 'three')[count - 1]} {('small ', '', 'large ')[size]}{noun} of {world.concepts[concept]}"]
        words += [ROTATIONS[rotation]] * (rotation > 0) + [f"at the {POSITIONS[position]}"] * (position > 0)
        words += [f"with {world.concepts[companion]}"] * (companion >= 0)
        words += ["half hidden"] * occluded + ["blurred"] * blurred
        captions.append(", ".join([*words, f"on {CONTEXTS[context]}"]))
    return captions


@lru_cache(maxsize=4)  # worlds that differ in size only share them
def _assets(styles: tuple[str, ...], concepts: tuple[int, ...], seed: int, device: torch.device) -> tuple[list, torch.Tensor]:
    """Sprites and background tiles, as ``draw`` takes them."""
    levels = zip(*(sprites(style, concepts) for style in styles), strict=True)
    return [torch.stack(level).to(device) for level in levels], tiles(_VARIANTS, seed).to(device)


def index_array(name: str, values, high: int, most: int = 2**24) -> np.ndarray:
    """Whole numbers from 0 to ``high`` (a range, list, array or tensor of up to ``most``) as int64 (N,); else VitvizError."""
    try:
        values = values.cpu().numpy() if isinstance(values, torch.Tensor) else values
        too_many = hasattr(values, "__len__") and len(values) > most
        numbers = np.asarray([] if too_many else values if isinstance(values, np.ndarray) else list(values))
        valid = numbers.ndim == 1 and (not len(numbers) or numbers.dtype.kind in "iu")
        valid = valid and ((numbers >= 0) & (numbers <= high)).all()
    except Exception:  # what is no list of numbers fails in any way there is
        valid = too_many = False
    if too_many:
        raise VitvizError(f"{name} holds {len(values):,} numbers; at most {most:,} can be taken at once.")
    if not valid:
        raise VitvizError(f"{name} are whole numbers from 0 to {high}, such as range(16) or [3], got {validate.shown(values)}.")
    return numbers.astype(np.int64)


def _names(name: str, values) -> list[str]:
    """A list of names, which may be given as a single one; VitvizError if it is empty or holds anything else."""
    try:
        names = [values] if isinstance(values, str) else list(values)
    except Exception:
        names = []
    if not names or not all(isinstance(value, str) for value in names):
        raise VitvizError(f"{name} is a list of names, with at least one, got {validate.shown(values)}.")
    return names
