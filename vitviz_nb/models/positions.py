"""Where on the image the tokens of each site lie, shown by a probe.

One pass sees an image, and copies of it with changes whose size differs from square to square: tokens respond in proportion to
the changes of their own squares, with random weights, too, because residual connections carry them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .trace import Found, Watch
from .vision_model import VisionModel

_TRUNK = ("mlp", "residual", "channel")  # each a layer of patch tokens, whose order must be known
_MOST_PREFIX = 17  # class, distillation and up to sixteen register tokens
_CERTAIN, _LEAST_AGREEMENT = 0.5, 0.2  # rank correlations of changes and responses: without comparison; if it is the best


@dataclass(frozen=True, eq=False)
class Place:
    """How a site's tokens lie on the image."""

    axis: int  # of the units
    prefix: int = 0
    grid: tuple[int, int] | None = None
    order: torch.Tensor | None = None  # indices of the patch tokens in raster order, where they are in another
    levels: tuple = ()  # sides of the windows within windows of that other order, and which come first


def places(model: VisionModel) -> tuple[list[tuple[Found, Place]], object]:
    """What was found in the trunk of ``model``, in order, each with the place of its tokens; and what the network returns.

    Where tokens lie is proven by their responses to changes of the image, or taken from a site of the same shape for which it
    is (in the last layers of a trained network all tokens may respond alike). Where neither is possible the grid is None.
    """
    size = model.image_size if isinstance(model.image_size, (tuple, list)) else (model.image_size,) * 2
    fields = _fields(max(3, min(40, 700 // max(size))), *size)
    watch = Watch(model, 1 + len(fields))
    watch.run(_images(model, fields).to(model.device))
    found = [each for each in _worth(watch) if each.kind != "channel" or len(each.shape) != 4
             or any(_is_map(_shape(each, axis)[2:], size) for axis in each.responses)]  # else heads or others apart
    known: dict[tuple, Place] = {}

    def same(each: Found) -> Place | None:
        return next((known[shape] for axis in each.responses if (shape := _shape(each, axis)) in known), None)

    def layouts(each: Found, reordered: bool = True) -> list[Place]:
        possible = _layouts(each, model, size) + (_reordered(each, model, size) if reordered else [])
        if each.kind in ("key", "value"):  # Next-ViT pools runs of flattened tokens: as many rows as before, fewer columns
            rows = {place.grid[0] for place in known.values()}
            possible += [Place(axis, 0, (n, responses.shape[1] // n)) for axis, responses in each.responses.items() for n in rows
                         if responses.shape[1] % n == 0 < responses.shape[1] // n < n]
        return [place for place in possible if not _padded(place, each.responses)]

    def settle(each: Found, place: Place | None) -> Place | None:
        return known.setdefault(_shape(each, place.axis), place) and place if place else None

    settled = []
    for each in found:
        place = _proven(each, fields, layouts(each, False), _CERTAIN) or same(each)
        if not place:
            place = _proven(each, fields, layouts(each), _LEAST_AGREEMENT)
            if place and place.order is not None and each.kind not in _TRUNK:
                place = None  # windows of queries and keys stay as they are
        settled.append(settle(each, place))
    for i, each in enumerate(found):
        settled[i] = settled[i] or settle(each, same(each) or _like(each, fields, known, layouts(each)))
    return _trunk(found, settled, model), watch.output


def _worth(watch: Watch) -> list[Found]:
    """What responds to the image at all; channels only in a network of convolutions, where MLPs are none or the exception."""
    found = [each for each in watch.found if any(r.any() for r in each.responses.values()) and each.owner not in watch.constant]
    mlps = [each for each in found if each.kind == "mlp"]
    acts = {each.act[1] for each in mlps if each.act}
    others = sum(each.kind == "channel" and each.path not in acts for each in found)
    if len(mlps) * 4 < others and all(1 in each.responses for each in mlps):  # all are convolutions
        return [each for each in found if each.kind == "channel"]
    return [each for each in found if each.kind != "channel" or not mlps]


def _fields(n: int, height: int, width: int) -> torch.Tensor:
    """n random fields (n, height, width) in [0, 1] with structure at every scale: how much each pixel is changed."""
    random, side, fields = torch.Generator().manual_seed(0), 2, torch.zeros(n, 1, height, width)
    while side <= min(height, width, 128):
        fields += F.interpolate(torch.randn(n, 1, side, side, generator=random), (height, width))
        side *= 2
    return fields[:, 0].sigmoid()


def _images(model: VisionModel, fields: torch.Tensor) -> torch.Tensor:
    """A normalized image of noise, and the same changed by each of ``fields``."""
    random = torch.Generator().manual_seed(1)
    base, other = torch.randn(2, 1, model.mean.numel(), *fields.shape[1:], generator=random)
    return torch.cat([base, base + 0.3 * fields[:, None] * other])


def _shape(found: Found, axis: int) -> tuple:
    return axis, *(side for i, side in enumerate(found.shape) if i != axis % len(found.shape))


def _prefixes(model: VisionModel) -> list[int]:
    declared = getattr(model.module, "num_prefix_tokens", None)
    return [*range(_MOST_PREFIX + 1)] if declared is None else sorted({declared, 0})  # ConViT's first blocks have none


def _grid(patches: int, size: tuple[int, int]) -> tuple[int, int] | None:
    rows = round((max(patches, 0) * size[0] / size[1]) ** 0.5)
    return (rows, patches // rows) if rows and rows * round(rows * size[1] / size[0]) == patches else None


def _layouts(found: Found, model: VisionModel, size: tuple[int, int]) -> list[Place]:
    """How the tokens may lie on the image, if they do so in raster order."""
    layouts = []
    for axis, responses in found.responses.items():
        sides = _shape(found, axis)[1:]
        if len(sides) == 3 and sides[0] == 1 < min(sides[1:]):
            layouts += [Place(axis, 0, sides[1:])] * _is_map(sides[1:], size)
            continue
        layouts += [Place(axis, prefix, grid) for prefix in _prefixes(model)
                    if (grid := _grid(responses.shape[1] - prefix, size))]
    return layouts


def _is_map(sides: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Whether two dimensions of a tensor are as high and wide as the image is, but for a row or column."""
    return abs(sides[0] * size[1] - sides[1] * size[0]) <= max(size)


def _padded(place: Place, responses: dict[int, torch.Tensor]) -> bool:
    """Whether a last row or column never responds: it fills up windows that are larger than the image."""
    never = (responses[place.axis][:, place.prefix:] == 0).all(0).view(place.grid)
    return place.grid[0] > 2 < place.grid[1] and bool(never[-1].all() or never[:, -1].all())


def _agreement(place: Place, responses: dict[int, torch.Tensor], fields: torch.Tensor) -> float:
    """Rank correlation, over tokens, of responses and changes; averaged over images."""
    given = responses[place.axis][:, place.prefix:]
    given = given if place.order is None else given[:, place.order]
    ranks = [values.argsort(1).argsort(1).float() for values in (given, _at(place.grid, fields))]
    mine, theirs = (F.normalize(values - values.mean(1, keepdim=True), dim=1) for values in ranks)
    return (mine * theirs).sum(1).mean().item()


def _at(grid: tuple[int, int], fields: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(fields[None].square(), grid)[0].flatten(1)


def _proven(found: Found, fields: torch.Tensor, layouts: list[Place], least: float) -> Place | None:
    """The layout that responses agree with, better than chance and than with any other."""
    ranked = sorted(((_agreement(place, found.responses, fields), i) for i, place in enumerate(layouts)), reverse=True)
    if not ranked:
        return None
    best, second = layouts[ranked[0][1]], ranked[1][0] if ranked[1:] else 0
    chance = 3 / (len(fields) * best.grid[0] * best.grid[1]) ** 0.5
    return best if ranked[0][0] >= max(least, chance, second + (0.05 if best.levels else 0)) else None


def _like(found: Found, fields: torch.Tensor, known: dict[tuple, Place], layouts: list[Place]) -> Place | None:
    """The layout of a site too coarse for a proof of its own, in a network whose finer sites have it."""
    for place in layouts:
        patches = place.grid[0] * place.grid[1]
        if found.shape[0] > 1 and (not place.levels or found.kind not in _TRUNK):  # windows are in an order of their own
            continue
        finer = [p.grid[0] * p.grid[1] for shape, p in known.items()
                 if (p.levels, p.prefix, len(shape)) == (place.levels, place.prefix, len(found.shape))
                 and (p.axis == place.axis or len(found.responses) == 1) and p.grid[0] >= place.grid[0]]
        # One token is a stage of its own after 2 x 2 or 3 x 3, and a class or pooling token after more.
        if finer and (min(finer) <= 9 if patches == 1 else
                      patches <= 64 or _agreement(place, found.responses, fields) > _LEAST_AGREEMENT / 2):
            return place
    return None


def _reordered(found: Found, model: VisionModel, size: tuple[int, int]) -> list[Place]:
    """How the tokens may lie on the image, if they are in windows within windows, the outermost or the innermost first."""
    grids = [(axis, prefix, _grid(responses.shape[1] - prefix, size))
             for axis, responses in found.responses.items() for prefix in _prefixes(model)]
    return [Place(axis, prefix, grid, order, levels)
            for axis, prefix, grid in grids if grid and grid[0] == grid[1] > 1 for levels, order in _orders(grid[0])]


def _orders(side: int) -> Iterator[tuple[tuple, torch.Tensor]]:
    for sides in _factorizations(side)[1:]:
        cells, levels = torch.arange(side**2).view(*sides, *sides), range(len(sides))
        for ordered in (levels, levels[::-1]):
            order = cells.permute([axis for level in ordered for axis in (level, len(sides) + level)]).flatten().argsort()
            yield (*sides[1:], ordered[0]), order


def _factorizations(n: int) -> list[list[int]]:
    return [[n], *([factor, *rest] for factor in range(2, n) if n % factor == 0 for rest in _factorizations(n // factor))]


def _trunk(found: list[Found], settled: list[Place | None], model: VisionModel) -> list[tuple[Found, Place]]:
    """Without what no patch tokens have (attention pooling, class attention) and what mixes them (MLP-Mixer's other MLP)."""
    few = [min(r.shape[1] for r in each.responses.values()) <= 1 for each in found]
    pooling = {each.owner for each, place, one in zip(found, settled, few, strict=True)
               if one and not place and each.kind not in ("key", "value")}
    placed = [(each, place.axis) for each, place in zip(found, settled, strict=True) if place]
    widths, tokens = {each.shape[axis] for each, axis in placed}, {each.responses[axis].shape[1] for each, axis in placed}
    mixing = [not place and each.made in tokens and any(r.shape[1] in widths for r in each.responses.values())
              for each, place in zip(found, settled, strict=True)]
    declared = getattr(model.module, "num_prefix_tokens", 0)

    def unproven(each: Found) -> Place:
        axis = [*each.responses][0]
        return Place(axis, declared if axis == -1 and len(each.shape) == 3 and each.shape[0] == 1 else 0)

    return [(each, place or unproven(each)) for each, place, mixes in zip(found, settled, mixing, strict=True)
            if each.owner not in pooling and not mixes]
