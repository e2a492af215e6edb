"""From edges to things: how pictures and units change with depth (paper, section 3)."""

import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image

from ..datasets.emoji_world import EmojiWorld
from ..datasets.image_set import ImageSet
from ..models.reading import activations
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils.errors import VitvizError
from ..utils.spectrum import radial_spectrum
from ..utils.statistics import pearson
from ..visualize.visualizer import Visualizer
from .faithfulness import selectivity
from .result import Result, mean


def by_depth(pictures: dict[int, torch.Tensor], title: str) -> tuple[Result, Result]:
    """How fine and how colorful pictures are, by layer.

    Args:
        pictures: for each layer pictures (K, 3, S, S) in [0, 1], of as many neurons.

    Returns:
        The mean spatial frequency in cycles a side; and the colorfulness, the standard deviation of a picture's colors about
        its own grays, in percent of the range.
    """
    fine, colorful = [], []
    for layer, stack in pictures.items():
        frequencies, shares = radial_spectrum(stack)
        fine.append({"layer": layer, **mean(((shares * frequencies).sum(1) / shares.sum(1).clamp_min(1e-12)).numpy())})
        chroma = (stack - stack.mean(1, keepdim=True)).square().mean((1, 2, 3)).sqrt()
        colorful.append({"layer": layer, **mean(100 * chroma.numpy())})
    return (Result(f"{title}: how fine pictures are", "mean frequency (cycles a side)", pd.DataFrame(fine)),
            Result(f"{title}: how colorful pictures are", "colorfulness (% of range)", pd.DataFrame(colorful)))


def wall(visualizer: Visualizer, units: int = 8) -> Image.Image:
    """Pictures of every layer, the first at the top: so many random units, then so many of the most selective ones.

    The model must be embedded: only of Emoji World is it known which concept a scene shows (``faithfulness.selectivity``).
    """
    model, tiles, random = visualizer.model, [], torch.Generator().manual_seed(0)
    if model.card is None:
        raise VitvizError(f"A wall shows the most selective units, which only embedded models have; {model.name} is none. Render "
                          f"layers of it with a Visualizer.")
    kind, sites = next(iter(find_sites(model).items()))
    for site in sites:
        found = selectivity(model, site)
        best = found.strength.topk(units).indices.tolist()
        others = [n for n in torch.randperm(site.units, generator=random).tolist() if n not in best][:units]
        rendering = visualizer.render(site.layer, others + best, kind)
        for k, neuron in enumerate(others + best):
            concept = model.class_names[found.concept[neuron]][:13]
            shown = f"random: {neuron}" if k < units else f"{concept} {found.strength[neuron]:.1f}"
            tiles.append(Tile(rendering.pictures[k], [shown, f"above {rendering.scores.percentile[k]:.1f} %"],
                              rendering.scores.status[k] == "alive"))
    title = (f"{model.title}: each row a layer, from first to last; left {units} random units, right the {units} most selective "
             f"with their concept and selectivity (standard deviations); below, the share of scenes that excite the unit less")
    return contact_sheet(tiles, title, side=96, columns=2 * units)


def selectivity_by_depth(model: VisionModel, world: EmojiWorld | None = None) -> Result:
    """Concept selectivity by layer (``faithfulness.selectivity``), mean over units, beside that of shuffled labels.

    Shuffled, 32 scenes of each of 256 "concepts" differ by chance alone, and the best of them still stands out a little.
    """
    rows = []
    for name, shuffled in (("concepts", False), ("shuffled labels", True)):
        for site in next(iter(find_sites(model).values())):
            strength = selectivity(model, site, world, shuffled).strength
            rows.append({"layer": site.layer, "selective for": name, **mean(strength.numpy())})
    return Result(f"{model.title}: how far a unit's favorite concept stands out", "selectivity (standard deviations)",
                   pd.DataFrame(rows))


def invariance(model: VisionModel, images=None, n: int = 256) -> Result:
    """How alike a unit answers to an image and to the same image shifted or turned, by layer.

    The correlation over images, mean over units: 1 where a unit does not mind, 0 where the change makes it another image to
    it. Shifts are circular; turned images are filled up by reflection.
    """
    stimuli, (kind, sites) = ImageSet(model, images, n), next(iter(find_sites(model).items()))
    changes = {f"shifted by 1/{k} of the side": lambda x, k=k: x.roll((x.shape[-1] // k,) * 2, (2, 3)) for k in (16, 8, 4)}
    changes |= {f"turned by {angle}°": lambda x, angle=angle: turned(x, angle) for angle in (15, 45, 90)}
    plain, changed = [], {name: [] for name in changes}
    for _, batch in stimuli.batches(f"{model.name}: shifts and turns"):
        plain.append(activations(model, kind, batch))
        for name, change in changes.items():
            changed[name].append(activations(model, kind, change(batch)))
    rows = []
    for i, site in enumerate(sites):
        first = torch.cat([part[i] for part in plain])
        living = first.std(0) > 0
        for name, parts in changed.items():
            second = torch.cat([part[i] for part in parts])
            rows.append({"layer": site.layer, "the image is": name, **mean(pearson(first, second)[living].numpy())})
    return Result(f"{model.title}: units on shifted and turned images ({stimuli.name})", "correlation", pd.DataFrame(rows))


def turned(images: torch.Tensor, angle: float) -> torch.Tensor:
    """Images (N, 3, S, S) turned counterclockwise by ``angle`` degrees about their middle."""
    a = torch.deg2rad(torch.tensor(float(angle)))
    theta = torch.tensor([[a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0]]).expand(len(images), -1, -1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
