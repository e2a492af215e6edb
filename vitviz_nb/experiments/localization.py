"""Do patch tokens stay about their own place? Changed squares, maps against masks, probes, similarities (paper, section 4)."""

from collections.abc import Iterator

import pandas as pd
import torch
import torch.nn.functional as F

from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import each_layer
from ..models.sites import Site, find_sites
from ..models.vision_model import VisionModel
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from ..visualize.scores import reference_activations, reference_set
from ..visualize.top_images import top_images
from .result import Result, mean, share

TOP = 5  # scenes a neuron


def squares(model: VisionModel) -> tuple[int, int]:
    """(rows, columns) of the squares that ``ripples`` changes: the patches of the model's coarsest layer."""
    return min(site.grid for site in _residual(model))


def patch_perturbation(model: VisionModel, images: torch.Tensor, changed: torch.Tensor) -> list[torch.Tensor]:
    """Which patch tokens notice that one square of an image was changed.

    Args:
        images: (N, 3, S, S) in [0, 1], at least 2. The square takes the pixels of the image before, in the first of the last.
        changed: int64 (N,), which square of each image, in reading order (see ``squares``).

    Returns:
        For each layer of the residual stream (N, rows, columns): the share of the squared change of all patch tokens that each
        token has. An image's shares sum to 1, or to 0 where nothing changed.
    """
    sites = _residual(model)
    rows, columns = squares(model)
    if len(images) < 2 or len(changed) != len(images) or not 0 <= changed.min() <= changed.max() < rows * columns:
        raise VitvizError(f"Ripples need at least 2 images and for each a square, 0 to {rows * columns - 1}; got {len(images)} "
                          f"images and squares {changed.tolist()[:5]}.")
    pixels = _squares(changed, (rows, columns), images.shape[-2:])[:, None].bool().to(images.device)
    mixed, found = torch.where(pixels, images.roll(1, 0), images), [[] for _ in sites]
    for part in range(0, len(images), AT_ONCE):
        before, after = (each_layer(model, "residual", shown[part:part + AT_ONCE], lambda site, tokens: tokens.clone())
                         for shown in (images, mixed))
        for i, site in enumerate(sites):
            change = (after[site.layer] - before[site.layer]).square().sum(-1)
            found[i].append((change / change.sum(1, keepdim=True).clamp_min(1e-20)).unflatten(1, site.grid))
    return [torch.cat(parts) for parts in found]


def locality(model: VisionModel, images=None, n: int = 256) -> Result:
    """How much of a change stays where it was made, by layer: one square of each image, drawn by lot, takes the pixels of
    another image; the value is the share of the patch tokens' squared change at the tokens of that square, in percent.
    """
    stimuli, sites = _several(model, images, n), _residual(model)
    grid = squares(model)
    drawn = torch.randint(grid[0] * grid[1], (stimuli.n,), generator=torch.Generator().manual_seed(0))
    own = [[] for _ in sites]
    for numbers, batch in stimuli.batches(f"{model.name}: one square changed"):
        if len(batch) < 2:
            continue
        chosen = drawn[list(numbers)]
        for i, shares in enumerate(patch_perturbation(model, batch, chosen)):
            noticed = shares.sum((1, 2)) > 0
            own[i].append((shares * _squares(chosen, grid, shares.shape[1:])).sum((1, 2))[noticed])
    if not sum(map(len, own[0])):
        raise VitvizError(f"No token of {model.name} changed with the images' squares: these are all alike. Give images that "
                          f"differ.")
    rows = [{"layer": site.layer, **mean(100 * torch.cat(own[i]).numpy())} for i, site in enumerate(sites)]
    return Result(f"{model.title}: one square of the image is changed ({stimuli.name})", "change that stays at its place (%)",
                   pd.DataFrame(rows), ("spread evenly", 100 / (grid[0] * grid[1])))


def pointing_game(model: VisionModel, images=None, n: int | None = None) -> Result:
    """How often a neuron is most active on the thing itself, by layer: over every neuron's five strongest scenes, in percent.

    A scene counts as inside if its mask covers half of the patch where the neuron peaks. Beside it the same peaks against the
    mask of another of its five scenes, which says what the middle of the picture, where most things stand, is worth alone; and
    the share of patches that masks cover.

    Args:
        images: with masks (``Stimuli.masks``), such as an ``EmojiWorld``.
    """
    stimuli, rows = _several(model, images, n), []
    for site, maps, own, other in _top_maps(model, stimuli):
        spot = maps.argmax(-1, keepdim=True)
        for name, inside in (("its own scene", own), ("another scene", other)):
            hits = (inside.gather(-1, spot) >= 0.5).float()
            rows.append({"layer": site.layer, "the mask is of": name, **mean(100 * hits.mean((0, 2)).numpy())})
        area = (own >= 0.5).float().mean((0, 2))
        rows.append({"layer": site.layer, "the mask is of": "area of the masks", **mean(100 * area.numpy())})
    return Result(f"{model.title}: peaks of neurons inside the mask ({TOP} strongest of {stimuli.name})", "peaks inside (%)",
                   pd.DataFrame(rows))


def outlines(model: VisionModel, images=None, n: int | None = None) -> tuple[Result, Result]:
    """Whether a neuron's map over the image follows the outline of the thing, by layer, over its five strongest scenes.

    Unlike a peak, this also counts a neuron that answers everywhere but on the thing.

    Args:
        images: with masks (``Stimuli.masks``), such as an ``EmojiWorld``.

    Returns:
        The share of a map's variance over the patches that the mask explains (squared correlation, in percent), mean over
        neurons, for the scene's own mask and for that of another of the five; and the share of neurons that answer more on the
        thing than beside it (mean correlation above 0).
    """
    stimuli, explained, on_it = _several(model, images, n), [], []
    for site, maps, own, other in _top_maps(model, stimuli):
        for name, mask in (("its own scene", own), ("another scene", other)):
            r = _over_patches(maps, mask)
            explained.append({"layer": site.layer, "the mask is of": name, **mean(100 * r.square().mean(0).numpy())})
            if mask is own:
                on_it.append({"layer": site.layer, **share((r.mean(0) > 0).sum(), r.shape[1])})
    what = f"({TOP} strongest of {stimuli.name})"
    return (Result(f"{model.title}: do maps follow the thing's outline? {what}", "variance explained by the mask (%)",
                    pd.DataFrame(explained)),
            Result(f"{model.title}: neurons that answer on the thing {what}", "neurons (%)", pd.DataFrame(on_it)))


def outline_of(model: VisionModel, layer: int, neuron: int) -> torch.Tensor:
    """Of one neuron (6,): how much of its map the mask explains, in percent, in each of its six strongest scenes
    (``top_images``)."""
    best = top_images(model, layer, neuron, next(iter(find_sites(model))))
    if best.maps is None:
        raise VitvizError(f"The windows of {model.name} do not lie in the order of the image, so its neurons have no maps.")
    masks = F.adaptive_avg_pool2d(reference_set(model).masks(best.indices)[:, None].cpu(), best.maps.shape[1:])
    return 100 * _over_patches(best.maps.flatten(1), masks.flatten(1)).square()


def probes(model: VisionModel, images=None, n: int = 256) -> Result:
    """What can be read off a patch's token by a linear probe, by layer: its place, and the mean color of its own pixels.

    A ridge regression is fitted on the tokens of one half of the images and tested on the other half; the value is the share
    of variance it explains there (R², in percent; below 0 would be worse than the mean). "Place" is row and column. Intervals
    are over test images.
    """
    stimuli, sites = _several(model, images, n), _residual(model)
    tokens, colors = [[] for _ in sites], [[] for _ in sites]
    for _, batch in stimuli.batches(f"{model.name}: probes"):
        found = each_layer(model, "residual", batch, lambda site, tokens: tokens.half())  # a copy, and all together are large
        for i, site in enumerate(sites):
            tokens[i].append(found[site.layer])
            colors[i].append(F.adaptive_avg_pool2d(batch, site.grid).flatten(2).transpose(1, 2).cpu())
    rows = []
    for site in sites:
        x, color = torch.cat(tokens.pop(0)).float(), torch.cat(colors.pop(0))  # given back layer by layer
        grid = torch.stack(torch.meshgrid(*(torch.arange(side).float() for side in site.grid), indexing="ij"), -1).view(-1, 2)
        for name, target in (("its place", grid.expand(len(x), -1, -1)), ("its color", color)):
            rows.append({"layer": site.layer, "read from the token": name, **mean(100 * _explained(x, target).numpy())})
    release_memory()
    return Result(f"{model.title}: what a linear probe reads from a patch's token ({stimuli.name})",
                   "variance explained (%)", pd.DataFrame(rows))


def token_similarity(model: VisionModel, images=None, n: int = 256) -> Result:
    """Mean cosine of residual-stream tokens, by layer: patches of one image, and its class token with its patches."""
    stimuli, sites, found = _several(model, images, n), _residual(model), []
    for _, batch in stimuli.batches(f"{model.name}: similarities"):
        found.append(each_layer(model, "residual", batch, _cosines, prefix=True))
    rows = []
    for site in sites:
        patches, own = torch.cat([part[site.layer] for part in found]).T
        rows.append({"layer": site.layer, "between": "patches of an image", **mean(patches.numpy())})
        if site.prefix:
            rows.append({"layer": site.layer, "between": "class token and patches", **mean(own.numpy())})
    return Result(f"{model.title}: how alike tokens are ({stimuli.name})", "mean cosine", pd.DataFrame(rows))


def _several(model: VisionModel, images, n: int | None) -> ImageSet:
    stimuli = ImageSet(model, images, n)
    if stimuli.n < 2:
        raise VitvizError(f"This is measured over several images, at least 2; there is {stimuli.n}.")
    return stimuli


def _top_maps(model: VisionModel, stimuli: ImageSet) -> Iterator[tuple[Site, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each layer the maps of its living neurons over their five strongest images, strongest first (5, living, patches); and
    as such the share of each patch that the image's mask covers, and that of the one before it in strength.
    """
    kind, sites = next(iter(find_sites(model).items()))
    if any(site.grid is None for site in sites):
        raise VitvizError(f"The windows of {model.name} do not lie in the order of the image, so its neurons have no maps.")
    known = [reference_activations(model, site, stimuli) for site in sites]
    best = [values.topk(min(TOP, len(values)), dim=0).indices for values in known]  # (5, units)
    maps = [torch.empty(*index.shape, site.grid[0] * site.grid[1]) for index, site in zip(best, sites, strict=True)]
    cover = {site.grid: [] for site in sites}
    for numbers, batch in stimuli.batches(f"{model.name}: maps of neurons"):
        masks = stimuli.masks(numbers)[:, None].cpu()
        for grid, parts in cover.items():
            parts.append(F.adaptive_avg_pool2d(masks, grid).flatten(1))
        here = [((index >= numbers[0]) & (index <= numbers[-1])).nonzero(as_tuple=True) for index in best]
        found = each_layer(model, kind, batch, lambda site, tokens, here=here, first=numbers[0]:
                           tokens[best[site.layer][here[site.layer]] - first, :, here[site.layer][1]])
        for i, (rank, unit) in enumerate(here):
            maps[i][rank, unit] = found[i]
    release_memory()
    covers = {grid: torch.cat(parts) for grid, parts in cover.items()}  # (n, patches)
    for i, site in enumerate(sites):
        living = known[i].std(0) > 0
        index, masks = best[i][:, living], covers[site.grid]
        yield site, maps[i][:, living], masks[index], masks[index.roll(1, 0)]


def _over_patches(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Correlation over the last dimension; 0 where one of the two does not vary."""
    first, second = (x - x.mean(-1, keepdim=True) for x in (first, second))
    return (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1)).clamp_min(1e-12)


def _squares(numbers: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """1 where a map (N, *size) lies in the square of that number of a grid laid over it, else 0."""
    hot = F.one_hot(numbers.cpu(), grid[0] * grid[1]).float().unflatten(1, grid)
    return F.interpolate(hot[:, None], tuple(size), mode="nearest")[:, 0]


def _residual(model: VisionModel) -> list[Site]:
    sites = [site for site in find_sites(model).get("residual", []) if site.grid]
    if not sites:
        raise VitvizError(f"{model.name} has no residual stream of patch tokens that this kit can read; transformers do.")
    return sites


def _cosines(site: Site, tokens: torch.Tensor) -> torch.Tensor:
    """(N, 2): mean cosine over all pairs of patch tokens, and over the pairs of a class token and a patch."""
    tokens = F.normalize(tokens, dim=-1)
    own, patches = tokens[:, :site.prefix], tokens[:, site.prefix:]
    count = patches.shape[1]
    pairs = (patches.sum(1).square().sum(-1) - count) / max(1, count * (count - 1))
    with_class = (own @ patches.transpose(1, 2)).flatten(1).mean(1) if site.prefix else torch.zeros_like(pairs)
    return torch.stack([pairs, with_class], 1)


def _explained(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """For each image of the second half, 1 - its squared error / the mean squared distance from the mean of the first half.

    Args:
        x: tokens (N, P, D); target: (N, P, T), predicted from them by ridge regression.
    """
    half = len(x) // 2
    center, spread = x[:half].mean((0, 1)), x[:half].std((0, 1)).clamp_min(1e-6)
    x = ((x - center) / spread).double()
    middle = target[:half].mean((0, 1)).double()
    seen, wanted = x[:half].flatten(0, 1), (target[:half] - middle).double().flatten(0, 1)
    gram = seen.T @ seen + 1e-3 * len(seen) * torch.eye(x.shape[-1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, seen.T @ wanted)
    rest = target[half:].double() - middle
    errors = (x[half:] @ weights - rest).square().sum((1, 2))
    return 1 - errors / rest.square().sum((1, 2)).mean().clamp_min(1e-12)
