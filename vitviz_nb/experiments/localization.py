"""Do patch tokens keep spatial information? Perturbed patches, pointing game, linear probes, similarities (paper, section 4)."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..datasets.emoji_world import index_array
from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import each_layer
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import validate
from ..utils.errors import NotApplicable, VitvizError
from ..utils.memory import release_memory
from ..utils.statistics import pearson
from ..visualize.scores import reference_activations, reference_set
from ..visualize.top_images import top_images
from .result import Result, mean_of, proportion

TOP = 5  # top images of a neuron


def patch_grid(model: VisionModel) -> tuple[int, int]:
    """(rows, columns) of the patches that ``patch_perturbation`` replaces: those of the model's coarsest layer."""
    return min(site.grid for site in _residual(model))


def patch_perturbation(model: VisionModel, images: torch.Tensor, patches) -> list[torch.Tensor]:
    """How the change of the residual stream is distributed over the tokens if one patch of each image is replaced.

    The patch takes the pixels of the image before, in the first of at least two images of the last.

    Args:
        patches: (N,), the number of the patch of each image, in raster order (see ``patch_grid``).

    Returns:
        For each layer (N, rows, columns): each token's share of the squared change of all patch tokens. The shares of an image
        sum to 1, or to 0 where nothing changed.
    """
    sites, (rows, columns) = _residual(model), patch_grid(model)
    validate.images(f"Images for {model.name}", images, (3, model.image_size, model.image_size))
    numbers = torch.from_numpy(index_array("The numbers of patches", patches, rows * columns - 1))
    if len(images) < 2 or len(numbers) != len(images):
        raise VitvizError(f"At least 2 images, and for each the number of a patch, are needed; got {len(images)} images and "
                          f"{len(numbers)} numbers.")
    pixels = _at_patch(numbers, (rows, columns), images.shape[-2:])[:, None].bool().to(images.device)
    perturbed, shares = torch.where(pixels, images.roll(1, 0), images), [[] for _ in sites]
    for part in range(0, len(images), AT_ONCE):
        before, after = (each_layer(model, "residual", shown[part:part + AT_ONCE], lambda site, tokens: tokens.clone())
                         for shown in (images, perturbed))
        for i, site in enumerate(sites):
            change = (after[site.layer] - before[site.layer]).square().sum(-1)
            shares[i].append((change / change.sum(1, keepdim=True).clamp_min(1e-20)).unflatten(1, site.grid))
    return [torch.cat(parts) for parts in shares]


def locality(model: VisionModel, images=None, *, n: int = 256, seed: int = 0) -> Result:
    """Share of a perturbation that stays at its position, by layer: one random patch of each image is replaced by another
    image's, and the value is the share of the patch tokens' squared change at the tokens of that patch, in percent.
    """
    image_set, sites, grid = _several(model, images, n), _residual(model), patch_grid(model)
    patches = torch.randint(grid[0] * grid[1], (image_set.n,), generator=torch.Generator().manual_seed(seed))
    parts = [patch_perturbation(model, batch, patches[list(numbers)])
             for numbers, batch in image_set.batches(f"{model.name}: one patch replaced") if len(batch) > 1]
    rows = []
    for site, shares in zip(sites, map(torch.cat, zip(*parts, strict=True)), strict=True):
        own = (shares * _at_patch(patches[:len(shares)], grid, shares.shape[1:])).sum((1, 2))
        rows.append({"layer": site.layer, **mean_of(100 * own[shares.sum((1, 2)) > 0])})
    if not rows[0]["n"]:
        raise VitvizError(f"No token of {model.name} changed with the patches: the images are all the same. Give images that "
                          f"differ.")
    return Result(f"{model.title}: one patch of the image is replaced ({image_set.name})", "change at the same position (%)",
                  rows, ("evenly spread", 100 / (grid[0] * grid[1])))


def pointing_game(model: VisionModel, images=None, *, kind: str | None = None, n: int | None = None) -> Result:
    """How often neurons are most active on the foreground, by layer: over each neuron's five top images, in percent.

    A hit is a peak in a patch of which the mask covers at least half. Controls: the mask of another of the five images, which
    says what the center, where most objects are, is worth; and the share of patches under a mask.
    """
    image_set, rows = _several(model, images, n), []
    for site, maps, own, other in _top_maps(model, image_set, kind):
        peak = maps.argmax(-1, keepdim=True)
        for name, masks in (("of the image", own), ("of another image", other)):
            hits = (masks.gather(-1, peak) >= 0.5).float()
            rows.append({"layer": site.layer, "mask": name, **mean_of(100 * hits.mean((0, 2)))})
        rows.append({"layer": site.layer, "mask": "area", **mean_of(100 * (own >= 0.5).float().mean((0, 2)))})
    return Result(f"{model.title}: pointing game ({TOP} top images of {image_set.name})", "peaks inside (%)", rows)


def mask_agreement(model: VisionModel, images=None, *, kind: str | None = None, n: int | None = None) -> tuple[Result, Result]:
    """Whether activation maps follow the mask of the foreground, or of all around it, by layer, over five top images a neuron.

    Returns:
        The fraction of a map's variance that the mask explains (squared correlation over patches, in percent), mean over
        neurons, for the mask of the image and for that of another of the five; and the percentage of neurons that are more
        active on the foreground than around it (mean correlation above 0).
    """
    image_set, explained, on_foreground = _several(model, images, n), [], []
    for site, maps, own, other in _top_maps(model, image_set, kind):
        for name, masks in (("of the image", own), ("of another image", other)):
            r = _over_patches(maps, masks)
            explained.append({"layer": site.layer, "mask": name, **mean_of(100 * r.square().mean(0))})
            if masks is own:
                on_foreground.append({"layer": site.layer, **proportion((r.mean(0) > 0).sum(), r.shape[1])})
    what = f"({TOP} top images of {image_set.name})"
    return (Result(f"{model.title}: activation maps and masks {what}", "variance explained by the mask (%)", explained),
            Result(f"{model.title}: neurons more active on the foreground {what}", "neurons (%)", on_foreground))


def mask_agreement_of(model: VisionModel, layer: int, neuron: int, images=None, *, kind: str | None = None) -> torch.Tensor:
    """Percentage of the variance of one neuron's map that the mask explains in each of its six ``top_images``: (6,)."""
    reference = reference_set(model, images)
    best = top_images(model, layer, neuron, kind, reference)
    if best.maps is None:
        raise NotApplicable(_no_maps(model))
    masks = F.adaptive_avg_pool2d(reference.masks(best.indices)[:, None].cpu(), best.maps.shape[1:])
    return 100 * _over_patches(best.maps.flatten(1), masks.flatten(1)).square()


def linear_probes(model: VisionModel, images=None, *, n: int = 256) -> Result:
    """What a linear probe reads from a patch token, by layer: its position (row and column), and the mean color of its pixels.

    A ridge regression is fitted on one half of the images; the value is the fraction of variance that it explains on the other
    (R², in percent; below 0 would be worse than the mean). Intervals are over test images.
    """
    image_set, sites = _several(model, images, n), _residual(model)
    tokens, colors = [[] for _ in sites], [[] for _ in sites]
    for _, batch in image_set.batches(f"{model.name}: linear probes"):
        layers = each_layer(model, "residual", batch, lambda site, tokens: tokens.half())  # a copy, and all together are large
        for i, site in enumerate(sites):
            tokens[i].append(layers[site.layer])
            colors[i].append(F.adaptive_avg_pool2d(batch, site.grid).flatten(2).transpose(1, 2).cpu())
    rows = []
    for site in sites:
        x, color = torch.cat(tokens.pop(0)).float(), torch.cat(colors.pop(0))  # given back layer by layer
        grid = torch.stack(torch.meshgrid(*(torch.arange(side).float() for side in site.grid), indexing="ij"), -1).view(-1, 2)
        for name, target in (("position", grid.expand(len(x), -1, -1)), ("color", color)):
            rows.append({"layer": site.layer, "probe": name, **mean_of(100 * _ridge_r2(x, target))})
    release_memory()
    return Result(f"{model.title}: linear probes of patch tokens ({image_set.name})", "variance explained (%)", rows)


def token_similarity(model: VisionModel, images=None, *, n: int = 256) -> Result:
    """Mean cosine similarity of tokens of the residual stream, by layer: among an image's patches, and of CLS with them."""
    image_set, sites = _several(model, images, n), _residual(model)
    parts = [each_layer(model, "residual", batch, _cosines, prefix=True)
             for _, batch in image_set.batches(f"{model.name}: token similarity")]
    rows = []
    for site in sites:
        among_patches, with_cls = torch.cat([part[site.layer] for part in parts]).T
        rows.append({"layer": site.layer, "tokens": "patches", **mean_of(among_patches)})
        if site.prefix:
            rows.append({"layer": site.layer, "tokens": "CLS and patches", **mean_of(with_cls)})
    return Result(f"{model.title}: similarity of tokens ({image_set.name})", "mean cosine similarity", rows)


def _several(model: VisionModel, images, n: int | None) -> ImageSet:
    image_set = ImageSet(model, images, n)
    if image_set.n < 2:
        raise VitvizError(f"This is measured over several images, at least 2; there is {image_set.n}.")
    return image_set


def _no_maps(model: VisionModel) -> str:
    return f"The windows of {model.name} do not lie in the order of the image, so its neurons have no activation maps."


def _top_maps(model: VisionModel, image_set: ImageSet,
              kind: str | None) -> Iterator[tuple[Site, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """For each layer the maps of its neurons that vary over their five top images, strongest first (5, neurons, patches); and
    likewise the share of each patch under the image's mask, and under that of the image before it in strength.
    """
    sites = find_sites(model)[find_site(model, kind=kind).kind]
    if any(site.grid is None for site in sites):
        raise NotApplicable(_no_maps(model))
    activations = [reference_activations(model, site, image_set) for site in sites]
    best = [values.topk(min(TOP, len(values)), dim=0).indices for values in activations]  # (5, units)
    maps = [torch.empty(*index.shape, site.grid[0] * site.grid[1]) for index, site in zip(best, sites, strict=True)]
    cover = {site.grid: [] for site in sites}
    for numbers, batch in image_set.batches(f"{model.name}: activation maps"):
        masks = image_set.masks(numbers)[:, None].cpu()
        for grid, parts in cover.items():
            parts.append(F.adaptive_avg_pool2d(masks, grid).flatten(1))
        here = [((index >= numbers[0]) & (index <= numbers[-1])).nonzero(as_tuple=True) for index in best]
        layers = each_layer(model, sites[0].kind, batch, lambda site, tokens, here=here, first=numbers[0]:
                            tokens[best[site.layer][here[site.layer]] - first, :, here[site.layer][1]])
        for i, (rank, unit) in enumerate(here):
            maps[i][rank, unit] = layers[i]
    release_memory()
    covers = {grid: torch.cat(parts) for grid, parts in cover.items()}  # (n, patches)
    for i, site in enumerate(sites):
        alive = activations[i].std(0) > 0
        index, masks = best[i][:, alive], covers[site.grid]
        yield site, maps[i][:, alive], masks[index], masks[index.roll(1, 0)]


def _over_patches(maps: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pearson's r over the last dimension; 0 where one of the two does not vary."""
    return pearson(maps.movedim(-1, 0), masks.movedim(-1, 0))


def _at_patch(numbers: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
    """1 where a map (N, *size) lies in the patch of that number of a grid laid over it, else 0."""
    hot = F.one_hot(numbers.cpu(), grid[0] * grid[1]).float().unflatten(1, grid)
    return F.interpolate(hot[:, None], tuple(size), mode="nearest")[:, 0]


def _residual(model: VisionModel) -> list[Site]:
    sites = [site for site in find_sites(model).get("residual", []) if site.grid]
    if not sites:
        raise NotApplicable(f"{model.name} has no residual stream of patch tokens that this kit can read; transformers do.")
    return sites


def _cosines(site: Site, tokens: torch.Tensor) -> torch.Tensor:
    """(N, 2): mean cosine similarity over all pairs of patch tokens, and over the pairs of CLS and a patch."""
    tokens = F.normalize(tokens, dim=-1)
    cls, patches = tokens[:, :site.prefix], tokens[:, site.prefix:]
    count = patches.shape[1]
    among_patches = (patches.sum(1).square().sum(-1) - count) / max(1, count * (count - 1))
    with_cls = (cls @ patches.transpose(1, 2)).flatten(1).mean(1) if site.prefix else torch.zeros_like(among_patches)
    return torch.stack([among_patches, with_cls], 1)


def _ridge_r2(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """R² of a ridge regression of target (N, P, T) on tokens x (N, P, D), for each image of the second half: 1 - its squared
    error / the mean squared distance from the mean of the first half, on which it is fitted.
    """
    half = len(x) // 2
    center, spread = x[:half].mean((0, 1)), x[:half].std((0, 1)).clamp_min(1e-6)
    x, mean = ((x - center) / spread).double(), target[:half].mean((0, 1)).double()
    train, wanted = x[:half].flatten(0, 1), (target[:half] - mean).double().flatten(0, 1)
    gram = train.T @ train + 1e-3 * len(train) * torch.eye(x.shape[-1], dtype=torch.float64)
    rest = target[half:].double() - mean
    errors = (x[half:] @ torch.linalg.solve(gram, train.T @ wanted) - rest).square().sum((1, 2))
    return 1 - errors / rest.square().sum((1, 2)).mean().clamp_min(1e-12)
