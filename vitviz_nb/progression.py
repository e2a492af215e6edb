"""From edges to things: how pictures and units change with depth (paper, section 3)."""

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from .drawing import Tile, contact_sheet
from .emoji_world import EmojiWorld
from .errors import VitvizError
from .faithfulness import selectivity
from .finding import Finding, mean
from .models import VisionModel
from .sites import activations, sites
from .stimuli import Stimuli
from .visualizer import Visualizer


def power(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Radial spectrum of pictures (K, 3, S, S): the share of each one's variance at 0.5 to 1.5, 1.5 to 2.5, … cycles a side.

    Returns:
        Frequencies (S // 2,), 1, 2, … in cycles a side, and shares (K, S // 2), which sum to 1 but for the corners beyond.
    """
    size = pictures.shape[-1]
    spectrum = torch.fft.fft2(pictures - pictures.mean((2, 3), keepdim=True)).abs().square().sum(1)
    line = torch.fft.fftfreq(size) * size
    ring = (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long().clamp(max=size // 2 + 1).flatten()
    summed = torch.zeros(len(pictures), size // 2 + 2).index_add_(1, ring, spectrum.flatten(1))
    total = spectrum.sum((1, 2)).clamp_min(1e-20)
    return torch.arange(1, size // 2 + 1), summed[:, 1:-1] / total[:, None]


def by_depth(pictures: dict[int, torch.Tensor], title: str) -> tuple[Finding, Finding]:
    """How fine and how colourful pictures are, by layer.

    Args:
        pictures: for each layer pictures (K, 3, S, S) in [0, 1], of as many neurons.

    Returns:
        The mean spatial frequency in cycles a side; and the colourfulness, the standard deviation of a picture's colours about
        its own greys, in percent of the range.
    """
    fine, colourful = [], []
    for layer, stack in pictures.items():
        frequencies, shares = power(stack)
        fine.append({"layer": layer, **mean(((shares * frequencies).sum(1) / shares.sum(1).clamp_min(1e-12)).numpy())})
        chroma = (stack - stack.mean(1, keepdim=True)).square().mean((1, 2, 3)).sqrt()
        colourful.append({"layer": layer, **mean(100 * chroma.numpy())})
    return (Finding(f"{title}: how fine pictures are", "mean frequency (cycles a side)", pd.DataFrame(fine)),
            Finding(f"{title}: how colourful pictures are", "colourfulness (% of range)", pd.DataFrame(colourful)))


def wall(visualizer: Visualizer, units: int = 8) -> Image.Image:
    """Pictures of every layer, the first at the top: so many random units, then so many of the most selective ones.

    The model must be embedded: only of Emoji World is it known which concept a scene shows (``faithfulness.selectivity``).
    """
    model, tiles, random = visualizer.model, [], torch.Generator().manual_seed(0)
    if model.card is None:
        raise VitvizError(f"A wall shows the most selective units, which only embedded models have; {model.name} is none. Render "
                          f"layers of it with a Visualizer.")
    kind, places = next(iter(sites(model).items()))
    for place in places:
        found = selectivity(model, place)
        best = found.strength.topk(units).indices.tolist()
        others = [n for n in torch.randperm(place.units, generator=random).tolist() if n not in best][:units]
        rendering = visualizer.render(place.layer, others + best, kind)
        for k, neuron in enumerate(others + best):
            concept = model.class_names[found.concept[neuron]][:13]
            shown = f"random: {neuron}" if k < units else f"{concept} {found.strength[neuron]:.1f}"
            tiles.append(Tile(rendering.pictures[k], [shown, f"above {rendering.scores.percentile[k]:.1f} %"],
                              rendering.scores.status[k] == "alive"))
    title = (f"{model.title}: each row a layer, from first to last; left {units} random units, right the {units} most selective "
             f"with their concept and selectivity (standard deviations); below, the share of scenes that excite the unit less")
    return contact_sheet(tiles, title, side=96, columns=2 * units)


def selectivity_by_depth(model: VisionModel, world: EmojiWorld | None = None) -> Finding:
    """Concept selectivity by layer (``faithfulness.selectivity``), mean over units, beside that of shuffled labels.

    Shuffled, 32 scenes of each of 256 "concepts" differ by chance alone, and the best of them still stands out a little.
    """
    rows = []
    for name, shuffled in (("concepts", False), ("shuffled labels", True)):
        for place in next(iter(sites(model).values())):
            strength = selectivity(model, place, world, shuffled).strength
            rows.append({"layer": place.layer, "selective for": name, **mean(strength.numpy())})
    return Finding(f"{model.title}: how far a unit's favourite concept stands out", "selectivity (standard deviations)",
                   pd.DataFrame(rows))


def invariance(model: VisionModel, images=None, n: int = 256) -> Finding:
    """How alike a unit answers to an image and to the same image shifted or turned, by layer.

    The correlation over images, mean over units: 1 where a unit does not mind, 0 where the change makes it another image to
    it. Shifts are circular; turned images are filled up by reflection.
    """
    stimuli, (kind, places) = Stimuli(model, images, n), next(iter(sites(model).items()))
    changes = {f"shifted by 1/{k} of the side": lambda x, k=k: x.roll((x.shape[-1] // k,) * 2, (2, 3)) for k in (16, 8, 4)}
    changes |= {f"turned by {angle}°": lambda x, angle=angle: turned(x, angle) for angle in (15, 45, 90)}
    plain, changed = [], {name: [] for name in changes}
    for _, batch in stimuli.batches(f"{model.name}: shifts and turns"):
        plain.append(activations(model, kind, batch))
        for name, change in changes.items():
            changed[name].append(activations(model, kind, change(batch)))
    rows = []
    for i, place in enumerate(places):
        first = torch.cat([part[i] for part in plain])
        living = first.std(0) > 0
        for name, parts in changed.items():
            second = torch.cat([part[i] for part in parts])
            rows.append({"layer": place.layer, "the image is": name, **mean(correlation(first, second)[living].numpy())})
    return Finding(f"{model.title}: units on shifted and turned images ({stimuli.name})", "correlation", pd.DataFrame(rows))


def turned(images: torch.Tensor, angle: float) -> torch.Tensor:
    """Images (N, 3, S, S) turned anticlockwise by ``angle`` degrees about their middle."""
    a = torch.deg2rad(torch.tensor(float(angle)))
    theta = torch.tensor([[a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0]]).expand(len(images), -1, -1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def correlation(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of each column of (n, units) with the same column of the other: (units,)."""
    first, second = first - first.mean(0), second - second.mean(0)
    return (first * second).mean(0) / (first.square().mean(0) * second.square().mean(0)).sqrt().clamp_min(1e-20)
