"""Emoji World: labeled scenes with ground truth, drawn on the fly from open emoji art.

Every scene is fixed by (split, index, seed): each of its properties is a hash of the three, so it does not depend on
the batch it is drawn in, on the other scenes or on the device (pixels agree to within 1/255).
"""

import csv
from dataclasses import dataclass
from functools import cache, cached_property
from textwrap import wrap

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..utils import random_streams as hashing
from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from .backgrounds import CONTEXTS, DARK, TILE, tiles

SPLITS = ("train", "val", "test")
STYLES = ("3d", "cartoon", "flat", "line", "word")
INKED = ("line", "word")  # drawn in one color of ink
COUNTS = (1, 2, 3)
SIZES = ("small", "medium", "large")
TURNS = ("upright", "on its side", "upside down")
PLACES = ("center", "left", "right", "top", "bottom")

P_USUAL_CONTEXT = 0.7  # a concept stands in its usual context with this probability, else in any other
P_OCCLUDED = P_SMALL = P_BLURRED = 0.1  # at most one of the three in a scene; the other 70 % are plain
P_COUNT = (0.80, 0.12, 0.08)
P_COMPANION = 0.12  # a smaller object of another concept in the same scene
P_TURN = (0.84, 0.08, 0.08)

_TRUTH = ("concept", "style", "context", "count", "size", "turn", "place", "occluded", "blurred", "companion")
_BASE, _COLUMNS, _VARIANTS, _CHUNK = 64, 30, 16, 128
_STYLE_WORDS = {"3d": ("3D model", "3D models"), "cartoon": ("cartoon", "cartoons"), "flat": ("flat icon", "flat icons"),
                "line": ("line drawing", "line drawings"), "word": ("written word", "written words")}


@dataclass(frozen=True, eq=False)
class Scenes:
    """A batch of N scenes and the truth about them. All tensors lie on one device.

    Attributes:
        images: float32 (N, 3, size, size), RGB in [0, 1].
        masks: float32 (N, size, size) in [0, 1], the share of each pixel that shows the scene's concept; of a blurred
            scene, before the blur.
        concept: int64 (N,), index into ``world.concepts``: the label.
        style, context: int64 (N,), indices into ``world.styles`` and ``CONTEXTS``.
        count: int64 (N,), 1 to 3 objects of the concept.
        size, turn, place: int64 (N,), indices into ``SIZES``, ``TURNS`` and ``PLACES``.
        occluded, blurred: bool (N,).
        companion: int64 (N,), the concept of a second, smaller object, or -1.
        indices: int64 (N,), which scenes of the split these are.
    """

    world: "EmojiWorld"
    images: torch.Tensor
    masks: torch.Tensor
    concept: torch.Tensor
    style: torch.Tensor
    context: torch.Tensor
    count: torch.Tensor
    size: torch.Tensor
    turn: torch.Tensor
    place: torch.Tensor
    occluded: torch.Tensor
    blurred: torch.Tensor
    companion: torch.Tensor
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.concept)

    @property
    def category(self) -> torch.Tensor:
        """int64 (N,), index into ``world.categories``."""
        return torch.as_tensor(self.world.category_of, device=self.concept.device)[self.concept]

    @cached_property
    def captions(self) -> list[str]:
        """One sentence a scene, naming every fact that a person would see."""
        columns = [getattr(self, name).tolist() for name in _TRUTH]  # at once: on a GPU, each number read alone waits for it
        return [self._caption(**dict(zip(_TRUTH, facts, strict=True))) for facts in zip(*columns, strict=True)]

    def _repr_mimebundle_(self, include=None, exclude=None):
        tiles = [Tile(image, wrap(caption, 24)) for image, caption in zip(self.images, self.captions, strict=True)]
        return bundle(contact_sheet(tiles, repr(self.world)), f"{len(self)} scenes: {'; '.join(self.captions)}")

    def _caption(self, concept, style, context, count, size, turn, place, occluded, blurred, companion) -> str:
        world = self.world
        noun = _STYLE_WORDS[world.styles[style]][count > 1]
        words = [f"{('a', 'two', 'three')[count - 1]} {('small ', '', 'large ')[size]}{noun} of {world.concepts[concept]}"]
        if turn:
            words.append(TURNS[turn])
        if place:
            words.append(f"at the {PLACES[place]}")
        if companion >= 0:
            words.append(f"with {world.concepts[companion]}")
        if occluded:
            words.append("half hidden")
        if blurred:
            words.append("blurred")
        return ", ".join([*words, f"on {CONTEXTS[context]}"])


class EmojiWorld:
    """An endless set of labeled scenes.

    Args:
        split: "train", "val" or "test"; they share neither scenes nor background tiles.
        concepts: "trained" (the committed list of 256 the embedded models know), "unseen" (all others), "all", or names.
        styles: which of ``STYLES`` to draw; leave one out to hold it out, name one twice to draw it twice as often.
        size: side of a scene, px.
        seed: another seed is another world of the same statistics.

    Attributes:
        concepts: names, the class names of a model trained on this world.
        categories: the Unicode categories of ``concepts``; ``category_of`` gives each concept's index in it.
        usual_context: index into ``CONTEXTS`` for each concept; a scene shows it with probability ``P_USUAL_CONTEXT``.
    """

    def __init__(self, split: str = "val", concepts="trained", styles=STYLES, size: int = 64, seed: int = 0):
        if split not in SPLITS:
            raise VitvizError(f"Emoji World has no split {split!r}; it has {', '.join(SPLITS)}.")
        unknown = [s for s in styles if s not in STYLES]
        if unknown or not styles:
            raise VitvizError(f"Emoji World is drawn in the styles {', '.join(STYLES)}; got {list(styles)}.")
        if size < 8:
            raise VitvizError(f"A scene's side must be at least 8 px, got {size}.")
        rows = _concept_table()
        if isinstance(concepts, str):
            keep = {"trained": lambda r: r["trained"] == "1", "unseen": lambda r: r["trained"] == "0", "all": lambda r: True}
            if concepts not in keep:
                raise VitvizError(f"concepts is 'trained', 'unseen', 'all' or a list of names, got {concepts!r}.")
            chosen = [i for i, row in enumerate(rows) if keep[concepts](row)]
        else:
            place = {row["name"]: i for i, row in enumerate(rows)}
            for name in concepts:
                if name not in place:
                    raise VitvizError(f"Emoji World has no concept {name!r}; data/emoji_world/concepts.csv lists all "
                                      f"{len(place)}.{nearest(name, place)}")
            chosen = [place[name] for name in dict.fromkeys(concepts)]
        if len(chosen) < 2:
            raise VitvizError("Emoji World needs at least two concepts: a scene may show a second one beside the first.")
        self.split, self.styles, self.size, self.seed = split, tuple(dict.fromkeys(styles)), size, seed
        self._drawn = tuple(styles)
        self.concepts = [rows[i]["name"] for i in chosen]
        self.categories = sorted({rows[i]["category"] for i in chosen})
        self.category_of = np.array([self.categories.index(rows[i]["category"]) for i in chosen])
        self.usual_context = np.array([CONTEXTS.index(rows[i]["context"]) for i in chosen])
        self._rows = np.array(chosen)
        self._on_device: dict[str, tuple] = {}

    def __repr__(self) -> str:
        return (f"EmojiWorld({self.split}: {len(self.concepts)} concepts in {len(self.categories)} categories, "
                f"styles {', '.join(self._drawn)}, {self.size} px, seed {self.seed})")

    def batch(self, indices, device: str | torch.device = "cpu", contexts=None) -> Scenes:
        """Draw the scenes of ``indices`` (ints of any order, 0 to 2**62) on ``device``.

        Args:
            contexts: indices into ``CONTEXTS``, one a scene, to draw them in instead of their own; all else stays as it is.
        """
        indices = np.asarray(list(indices), dtype=np.int64)
        if len(indices) and indices.min() < 0:
            raise VitvizError(f"Scene numbers start at 0, got {indices.min()}.")
        facts = self.facts(indices)
        if contexts is not None:
            contexts = np.asarray(contexts, dtype=np.int64)
            if contexts.shape != indices.shape or not ((contexts >= 0) & (contexts < len(CONTEXTS))).all():
                raise VitvizError(f"Contexts are numbers from 0 to {len(CONTEXTS) - 1}, one for each of {len(indices)} scenes.")
            facts["context"] = contexts
        images = torch.empty(len(indices), 3, self.size, self.size, device=device)
        masks = torch.empty(len(indices), self.size, self.size, device=device)
        for i in range(0, len(indices), _CHUNK):
            here = slice(i, i + _CHUNK)
            images[here], masks[here] = self._draw({k: v[here] for k, v in facts.items()}, torch.device(device))
        truth = {k: torch.as_tensor(facts[k], device=device) for k in _TRUTH}
        return Scenes(self, images, masks, **truth, indices=torch.as_tensor(indices, device=device))

    def captions(self, indices) -> list[str]:
        """The captions of scenes that are not drawn."""
        facts = self.facts(np.asarray(list(indices), dtype=np.int64))
        none = torch.empty(0)
        return Scenes(self, none, none, **{k: torch.as_tensor(facts[k]) for k in _TRUTH}, indices=none).captions

    def facts(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Every property of scenes ``indices`` (N,), drawn or not, as hashes fix them: arrays (N,) or (N, 4 objects)."""
        key = hashing.keys(self.seed, SPLITS.index(self.split), indices)
        used = 0

        def u(columns: int | None = None) -> np.ndarray:
            """The next uniform in [0, 1) of each scene: (N,) or (N, columns)."""
            nonlocal used
            draws = hashing.uniforms(key, used, columns or 1)
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
        turn = pick(P_TURN)
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
        mine = np.arange(4) < count[:, None]
        mean_x, mean_y = (x * mine).sum(1) / count, (y * mine).sum(1) / count
        side = np.abs(mean_x) >= np.abs(mean_y)
        place = np.where(np.maximum(np.abs(mean_x), np.abs(mean_y)) < 0.2, 0,
                         np.where(side, np.where(mean_x < 0, 1, 2), np.where(mean_y < 0, 3, 4)))
        written = np.array([s == "word" for s in self.styles])[style]  # mirrored writing would be another task
        tilt = np.deg2rad(turn * 90 + 25 * (2 * u() - 1))
        return {
            "concept": concept, "style": style, "context": context, "count": count, "companion": companion,
            "turn": turn, "place": place, "size": np.digitize(scale, (0.3, 0.6)), "occluded": hard == 1, "blurred": hard == 3,
            "objects": objects, "x": x, "y": y, "scale": scale, "tilt": tilt[:, None] + np.deg2rad(10 * (2 * u(4) - 1)),
            "flip": np.where((u() < 0.5) & ~written, -1.0, 1.0), "gain": 0.85 + 0.3 * u(3), "ink": 0.25 * u(3),
            "cut_angle": 2 * np.pi * u(), "cut_at": 0.6 * u() - 0.3,
            "variant": (u() * _VARIANTS).astype(np.int64), "window": (u(2) * (TILE - _BASE + 1)).astype(np.int64),
            "mirror": u() < 0.5, "light": (0.8 + 0.4 * u())[:, None] * (0.92 + 0.16 * u(3)),
        }

    def _draw(self, f: dict[str, np.ndarray], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Images and masks of one chunk, on ``device``."""
        pyramid, backgrounds = self._assets(device)
        # Rounded before they move, because not every device knows float64 (MPS does not).
        t = {k: torch.as_tensor(v.astype(np.float32) if v.dtype == np.float64 else v).to(device) for k, v in f.items()}
        images = self._backgrounds(t, backgrounds)
        n, masks = len(images), torch.zeros(len(images), self.size, self.size, device=device)
        for slot in range(int(f["objects"].max(initial=0))):
            rows = torch.as_tensor(np.flatnonzero(f["objects"] > slot), device=device) if slot else slice(None)
            own = t["count"][rows] > slot
            concept = torch.where(own, t["concept"][rows], t["companion"][rows])
            alpha, color = self._objects({k: v[rows] for k, v in t.items()}, slot, concept, own, pyramid)
            clear = 1 - alpha
            images[rows] = images[rows].mul_(clear).add_(color)
            masks[rows] = masks[rows].mul_(clear[:, 0]).add_(alpha[:, 0].mul_(own[:, None, None]))
        if n and f["blurred"].any():
            rows = torch.as_tensor(np.flatnonzero(f["blurred"]), device=device)
            images[rows] = _blur(images[rows], sigma=1.5 * self.size / _BASE)
        return images.clamp_(0, 1), masks

    def _backgrounds(self, t: dict[str, torch.Tensor], backgrounds: torch.Tensor) -> torch.Tensor:
        line = torch.arange(_BASE, device=backgrounds.device)
        y = t["window"][:, :1] + line
        x = t["window"][:, 1:] + torch.where(t["mirror"][:, None], line.flip(0), line)
        window = backgrounds[t["context"], t["variant"]].view(-1, 3, TILE * TILE)
        flat = (y[:, :, None] * TILE + x[:, None, :]).view(len(y), 1, -1).expand(-1, 3, -1)
        pixels = window.gather(2, flat).view(-1, 3, _BASE, _BASE).float() / 255
        if self.size != _BASE:
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return (pixels * t["light"][:, :, None, None]).clamp_(0, 1)

    def _objects(self, t, slot, concept, own, pyramid) -> tuple[torch.Tensor, torch.Tensor]:
        """Opacity (n, 1, size, size) and premultiplied color (n, 3, size, size) of one object in each scene."""
        scale = t["scale"] * torch.where(own, 1.0, 0.8)
        cos, sin = torch.cos(t["tilt"][:, slot]), torch.sin(t["tilt"][:, slot])
        x, y = t["x"][:, slot], t["y"][:, slot]
        # Each output pixel looks up its place in the sprite: shift, turn back, shrink, flip.
        first = torch.stack([cos, sin, -(cos * x + sin * y)], 1) * (t["flip"] / scale)[:, None]
        second = torch.stack([-sin, cos, sin * x - cos * y], 1) / scale[:, None]
        theta = torch.stack([first, second], 1)
        grid = F.affine_grid(theta, (len(x), 4, self.size, self.size), align_corners=False)
        sprite = torch.empty(len(x), 4, self.size, self.size, device=x.device)
        level = torch.bucketize(scale * self.size, torch.tensor([20.0, 40.0], device=x.device))  # coarse sprites when small
        for k, sprites in enumerate(pyramid):
            rows = (level == 2 - k).nonzero()[:, 0]
            if len(rows):
                picture = sprites[t["style"][rows], concept[rows]].float() / 255
                sprite[rows] = F.grid_sample(picture, grid[rows], align_corners=False)
        alpha = sprite[:, 3:]
        hidden = torch.cos(t["cut_angle"])[:, None, None] * grid[..., 0] + torch.sin(t["cut_angle"])[:, None, None] * grid[..., 1]
        hidden = (hidden > t["cut_at"][:, None, None]) & (t["occluded"] & own)[:, None, None]
        keep = (~hidden)[:, None].float()
        inked = torch.tensor([s in INKED for s in self.styles], device=x.device)[t["style"]]
        dark = torch.tensor([c in DARK for c in CONTEXTS], device=x.device)[t["context"]]
        ink = torch.where(dark[:, None], 1 - t["ink"], t["ink"])
        color = torch.where(inked[:, None, None, None], alpha * ink[:, :, None, None],
                             torch.minimum(sprite[:, :3] * t["gain"][:, :, None, None], alpha))
        return alpha * keep, color * keep

    def _assets(self, device: torch.device) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Sprites at 64, 32 and 16 px, uint8 (styles, concepts, 4, side, side), premultiplied; background tiles."""
        if str(device) not in self._on_device:
            levels = zip(*(_sprites(style, tuple(self._rows.tolist())) for style in self.styles), strict=True)
            pyramid = [torch.stack(level) for level in levels]
            backgrounds = _split_tiles(SPLITS.index(self.split), self.seed)
            self._on_device[str(device)] = [p.to(device) for p in pyramid], backgrounds.to(device)
        return self._on_device[str(device)]


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = max(1, round(2.5 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel = (line / line.sum()).repeat(3, 1, 1, 1)
    images = F.pad(images, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(images, kernel, groups=3), kernel.transpose(2, 3), groups=3)


@cache
def _concept_table() -> list[dict[str, str]]:
    with open(data_dir() / "emoji_world" / "concepts.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@cache
def _split_tiles(split: int, seed: int) -> torch.Tensor:
    return tiles(_VARIANTS, seed=seed * len(SPLITS) + split)


@cache
def _sprites(style: str, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sprites of these concepts at 64, 32 and 16 px: uint8 (concepts, 4, side, side), premultiplied."""
    full = _sheet(style)[list(rows)]
    half = F.avg_pool2d(full.float(), 2)
    quarter = F.avg_pool2d(half, 2)
    return full, half.round().to(torch.uint8), quarter.round().to(torch.uint8)


def _sheet(style: str) -> torch.Tensor:
    """All sprites of a style: uint8 (concepts, 4, 64, 64), colors premultiplied by opacity."""
    folder = data_dir() / "emoji_world"
    if style in INKED:
        alpha = torch.from_numpy(np.asarray(Image.open(folder / f"{style}.png").convert("L")).copy())
        sheet = torch.stack([torch.zeros_like(alpha)] * 3 + [alpha], -1)
    else:
        sheet = torch.from_numpy(np.asarray(Image.open(folder / f"{style}.webp").convert("RGBA").convert("RGBa")).copy())
    rows = len(sheet) // _BASE
    sprites = sheet.view(rows, _BASE, _COLUMNS, _BASE, 4).permute(0, 2, 4, 1, 3).reshape(-1, 4, _BASE, _BASE)
    return sprites[: len(_concept_table())].contiguous()
