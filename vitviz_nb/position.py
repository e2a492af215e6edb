"""Do patch tokens stay about their own place? Activation maps against masks, linear probes, similarities (paper, section 4)."""

import pandas as pd
import torch
import torch.nn.functional as F

from .errors import VitvizError
from .finding import Finding, mean
from .models import VisionModel
from .scores import reference_activations
from .sites import Site, each_layer, sites
from .stimuli import Stimuli

TOP = 5  # scenes a neuron


def peaks_in_mask(model: VisionModel, images=None, n: int | None = None) -> Finding:
    """How often a neuron is most active on the thing itself, by layer: over every neuron's five strongest scenes, in percent.

    A scene counts as inside if its mask covers half of the patch where the neuron peaks. Beside it the same peaks against the
    mask of another of its five scenes, which says what the middle of the picture, where most things stand, is worth alone; and
    the share of patches that masks cover.

    Args:
        images: with masks (``Stimuli.masks``), such as an ``EmojiWorld``.
    """
    stimuli = _several(model, images, n)
    kind, places = next(iter(sites(model).items()))
    if any(place.grid is None for place in places):
        raise VitvizError(f"The windows of {model.name} do not lie in the order of the image, so its neurons have no maps.")
    peaks, cover = [[] for _ in places], [[] for _ in places]
    for numbers, batch in stimuli.batches(f"{model.name}: where neurons peak"):
        masks = stimuli.masks(numbers)[:, None].cpu()
        found = each_layer(model, kind, batch, lambda place, tokens: tokens.argmax(1).to(torch.int32))
        for i, place in enumerate(places):
            peaks[i].append(found[i])
            cover[i].append(F.adaptive_avg_pool2d(masks, place.grid).flatten(1) >= 0.5)
    rows = []
    for i, place in enumerate(places):
        where, inside = torch.cat(peaks[i]).long(), torch.cat(cover[i])  # (n, units), (n, patches)
        known = reference_activations(model, place, stimuli)
        best = known.topk(min(TOP, len(known)), dim=0).indices  # (5, units)
        living = known.std(0) > 0
        spot = where.gather(0, best)
        own, other = inside[best, spot], inside[best.roll(1, 0), spot]
        area = inside.float().mean(1)[best]
        for name, hits in (("its own scene", own), ("another scene", other), ("area of the masks", area)):
            rows.append({"layer": place.layer, "the mask is of": name, **mean(100 * hits.float().mean(0)[living].numpy())})
    return Finding(f"{model.title}: peaks of neurons inside the mask ({TOP} strongest of {stimuli.name})", "peaks inside (%)",
                   pd.DataFrame(rows))


def probes(model: VisionModel, images=None, n: int = 256) -> Finding:
    """What can be read off a patch's token by a linear probe, by layer: its place, and the mean colour of its own pixels.

    A ridge regression is fitted on the tokens of one half of the images and tested on the other half; the value is the share
    of variance it explains there (R², in percent; below 0 would be worse than the mean). "Place" is row and column. Intervals
    are over test images.
    """
    stimuli, places = _several(model, images, n), _residual(model)
    tokens, colours = [[] for _ in places], [[] for _ in places]
    for _, batch in stimuli.batches(f"{model.name}: probes"):
        found = each_layer(model, "residual", batch, lambda place, tokens: tokens.clone())  # a later layer may work in place
        for i, place in enumerate(places):
            tokens[i].append(found[place.layer])
            colours[i].append(F.adaptive_avg_pool2d(batch, place.grid).flatten(2).transpose(1, 2).cpu())
    rows = []
    for place in places:
        x, colour = torch.cat(tokens.pop(0)), torch.cat(colours.pop(0))  # given back layer by layer: they are large
        grid = torch.stack(torch.meshgrid(*(torch.arange(side).float() for side in place.grid), indexing="ij"), -1).view(-1, 2)
        for name, target in (("its place", grid.expand(len(x), -1, -1)), ("its colour", colour)):
            rows.append({"layer": place.layer, "read from the token": name, **mean(100 * _explained(x, target).numpy())})
    return Finding(f"{model.title}: what a linear probe reads from a patch's token ({stimuli.name})",
                   "variance explained (%)", pd.DataFrame(rows))


def token_similarity(model: VisionModel, images=None, n: int = 256) -> Finding:
    """Mean cosine of residual-stream tokens, by layer: patches of one image, and its class token with its patches."""
    stimuli, places, found = _several(model, images, n), _residual(model), []
    for _, batch in stimuli.batches(f"{model.name}: similarities"):
        found.append(each_layer(model, "residual", batch, _cosines, prefix=True))
    rows = []
    for place in places:
        patches, own = torch.cat([part[place.layer] for part in found]).T
        rows.append({"layer": place.layer, "between": "patches of an image", **mean(patches.numpy())})
        if place.prefix:
            rows.append({"layer": place.layer, "between": "class token and patches", **mean(own.numpy())})
    return Finding(f"{model.title}: how alike tokens are ({stimuli.name})", "mean cosine", pd.DataFrame(rows))


def _several(model: VisionModel, images, n: int | None) -> Stimuli:
    stimuli = Stimuli(model, images, n)
    if stimuli.n < 2:
        raise VitvizError(f"This is measured over several images, at least 2; there is {stimuli.n}.")
    return stimuli


def _residual(model: VisionModel) -> list[Site]:
    places = [place for place in sites(model).get("residual", []) if place.grid]
    if not places:
        raise VitvizError(f"{model.name} has no residual stream of patch tokens that this kit can read; transformers do.")
    return places


def _cosines(place: Site, tokens: torch.Tensor) -> torch.Tensor:
    """(N, 2): mean cosine over all pairs of patch tokens, and over the pairs of a class token and a patch."""
    tokens = F.normalize(tokens, dim=-1)
    own, patches = tokens[:, :place.prefix], tokens[:, place.prefix:]
    count = patches.shape[1]
    pairs = (patches.sum(1).square().sum(-1) - count) / max(1, count * (count - 1))
    with_class = (own @ patches.transpose(1, 2)).flatten(1).mean(1) if place.prefix else torch.zeros_like(pairs)
    return torch.stack([pairs, with_class], 1)


def _explained(x: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """For each image of the second half, 1 - its squared error / the mean squared distance from the mean of the first half.

    Args:
        x: tokens (N, P, D); target: (N, P, T), predicted from them by ridge regression.
    """
    half = len(x) // 2
    centre, spread = x[:half].mean((0, 1)), x[:half].std((0, 1)).clamp_min(1e-6)
    x = ((x - centre) / spread).double()
    middle = target[:half].mean((0, 1)).double()
    seen, wanted = x[:half].flatten(0, 1), (target[:half] - middle).double().flatten(0, 1)
    gram = seen.T @ seen + 1e-3 * len(seen) * torch.eye(x.shape[-1], dtype=torch.float64)
    weights = torch.linalg.solve(gram, seen.T @ wanted)
    rest = target[half:].double() - middle
    errors = (x[half:] @ weights - rest).square().sum((1, 2))
    return 1 - errors / rest.square().sum((1, 2)).mean().clamp_min(1e-12)
