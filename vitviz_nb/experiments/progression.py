"""From edges and textures to objects: feature visualizations and units by depth (paper, section 3)."""

import torch
import torch.nn.functional as F

from ..datasets.emoji_world import EmojiWorld
from ..datasets.image_set import ImageSet
from ..models.reading import activations
from ..models.sites import find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import validate
from ..utils.spectrum import radial_spectrum
from ..utils.statistics import pearson
from ..visualize.rendering import Rendering
from .faithfulness import selectivity
from .result import Result, mean_of


def frequency_and_color(pictures: dict[int, Rendering | torch.Tensor], title: str) -> tuple[Result, Result]:
    """Mean spatial frequency, weighted by power, in cycles per image, and colorfulness, the standard deviation of a picture's
    channels about their mean, in percent of the range: by layer, of a finished rendering or pictures (K, 3, S, S) of each.
    """
    frequency, color = [], []
    for layer, images in pictures.items():
        images = images.require_finished().pictures if isinstance(images, Rendering) else images
        validate.images(f"pictures of layer {layer}", images, (3, *getattr(images, "shape", ())[-2:]))
        cycles, power = radial_spectrum(images)
        frequency.append({"layer": layer, **mean_of((power * cycles).sum(1) / power.sum(1).clamp_min(1e-12))})
        chroma = (images - images.mean(1, keepdim=True)).square().mean((1, 2, 3)).sqrt()
        color.append({"layer": layer, **mean_of(100 * chroma)})
    return (Result(f"{title}: spatial frequency of visualizations", "mean frequency (cycles per image)", frequency),
            Result(f"{title}: color of visualizations", "colorfulness (% of range)", color))


def selectivity_by_layer(model: VisionModel, images: EmojiWorld | None = None) -> Result:
    """Concept selectivity (``faithfulness.selectivity``), mean over units, by layer, beside that of shuffled labels."""
    rows = []
    for labels, shuffled in (("concepts", False), ("shuffled", True)):
        for site in find_sites(model)[find_site(model).kind]:
            rows.append({"layer": site.layer, "labels": labels, **mean_of(selectivity(model, site, images, shuffled).strength)})
    return Result(f"{model.title}: selectivity of units for their preferred concept", "selectivity (standard deviations)", rows)


def invariance(model: VisionModel, images=None, *, kind: str | None = None, n: int = 256) -> Result:
    """Invariance of units to shifts (circular) and rotations (filled up by reflection), by layer: the correlation, over images,
    of their activations on an image and on the transformed one, mean over units; 1 where a unit is invariant.
    """
    image_set, sites = ImageSet(model, images, n), find_sites(model)[find_site(model, kind=kind).kind]
    changes = {f"shift by 1/{k} of the side": lambda x, k=k: x.roll((x.shape[-1] // k,) * 2, (2, 3)) for k in (16, 8, 4)}
    changes |= {f"rotation by {angle}°": lambda x, angle=angle: rotated(x, angle) for angle in (15, 45, 90)}
    plain, changed = [], {name: [] for name in changes}
    for _, batch in image_set.batches(f"{model.name}: shifts and rotations"):
        plain.append(activations(model, kind, batch))
        for name, change in changes.items():
            changed[name].append(activations(model, kind, change(batch)))
    rows = []
    for i, site in enumerate(sites):
        first = torch.cat([part[i] for part in plain])
        alive = first.std(0) > 0
        for name, parts in changed.items():
            second = torch.cat([part[i] for part in parts])
            rows.append({"layer": site.layer, "transformation": name, **mean_of(pearson(first, second)[alive])})
    return Result(f"{model.title}: units on shifted and rotated images ({image_set.name})", "correlation", rows)


def rotated(images: torch.Tensor, angle: float) -> torch.Tensor:
    """Images (N, 3, S, S) rotated counterclockwise by ``angle`` degrees about their center."""
    a = torch.deg2rad(torch.tensor(validate.real("angle", angle, -360, 360)))
    theta = torch.tensor([[a.cos(), -a.sin(), 0], [a.sin(), a.cos(), 0]]).expand(len(images), -1, -1).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
