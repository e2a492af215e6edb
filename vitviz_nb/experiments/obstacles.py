"""The two obstacles of the paper: noise instead of pictures, and units that pictures do not explain (sections 2 and 3)."""

from dataclasses import dataclass

import pandas as pd
import torch
from PIL import Image

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import check_neurons, find_site
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..training.pgd import pgd
from ..utils.errors import VitvizError
from ..visualize.scores import default_reference, reference_activations
from .faithfulness import named
from .result import Result, proportion
from .units import by_axes, pictures


def by_kind(model: VisionModel, judge: VisionModel, layer: int = -1, neurons: int = 12) -> tuple[Result, Result]:
    """Pictures and units of one layer, by kind of unit: queries, keys, values, MLP units, and random directions of the last.

    Args:
        judge: another embedded model, which names what pictures show (``faithfulness.named``).
        layer: counted as everywhere; -1 is the last.
        neurons: how many of each kind, evenly spaced.

    Returns:
        The share of pictures that the judge names as their unit's own top concept, beside the share above the 99th percentile
        of scenes, in percent; and the concept selectivity of all units beside that of random directions (``kinds.by_axes``).
    """
    if model.card is None or judge.class_names != model.class_names:
        raise VitvizError("Naming pictures needs two embedded models: only of Emoji World is it known what each scene shows. "
                          "Load them with vv.load('emoji-…').")
    shares = []
    for kind, row in pictures(model, layer, neurons).items():
        hits = named(row.rendering.pictures, row.concept, row.strength, judge, -torch.inf).hits
        high = sum(p > 99 for p in row.rendering.scores.percentile)
        shares += [{"kind": kind, "pictures": f"named by {judge.name}", **proportion(hits.sum(), len(hits))},
                   {"kind": kind, "pictures": "above the 99th percentile", **proportion(high, len(hits))}]
    where = f"{model.title}, layer {find_site(model, layer).layer}"
    chance = "guessing names", 500 / len(judge.class_names)
    return Result(f"{where}: pictures by kind of unit", "pictures (%)", pd.DataFrame(shares), chance), by_axes(model, layer)[0]


@dataclass(frozen=True, eq=False)
class LookAlike:
    """An image, and one that looks like it but excites a neuron far more. Shows itself.

    Attributes:
        image, changed: (3, S, S) in [0, 1].
        distance: L2 norm of the change, over all pixels and channels.
        before, after: the neuron's activation on the two.
        percentiles: share of reference images, in percent, that excite it less, of both.
    """

    image: torch.Tensor
    changed: torch.Tensor
    distance: float
    before: float
    after: float
    percentiles: tuple[float, float]
    title: str

    def sheet(self) -> Image.Image:
        change = 0.5 + 10 * (self.changed - self.image)
        lines = [[f"the scene: {self.before:.3g}", f"above {self.percentiles[0]:.1f} %"], ["10 x the change, on gray"],
                 [f"with the change: {self.after:.3g}", f"above {self.percentiles[1]:.1f} %"]]
        tiles = [Tile(p, text) for p, text in zip((self.image, change, self.changed), lines, strict=True)]
        return contact_sheet(tiles, self.title, side=192, columns=3)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.sheet(), f"{self.title}: a scene, ten times the change, and the changed scene")


def look_alike(model: VisionModel, image: torch.Tensor, layer: int, neuron: int, kind: str = "mlp", distance: float = 1.0,
               steps: int = 20, images=None) -> LookAlike:
    """Change an image by no more than ``distance`` (L2, pixels in [0, 1]) so that it excites one neuron as much as it can.

    At 64 px a distance of 1 is a hundredth of the range a pixel, which cannot be seen.

    Args:
        image: (3, S, S) in [0, 1].
        images: what percentiles refer to (see ``Stimuli``); by default scenes of Emoji World.
    """
    site = find_site(model, layer, kind)
    (neuron,) = check_neurons(site, neuron)
    if tuple(image.shape) != (3, model.image_size, model.image_size):
        raise VitvizError(f"{model.name} takes an image of shape (3, {model.image_size}, {model.image_size}), got "
                          f"{tuple(image.shape)}.")
    image = image[None].to(model.device)

    def activation(shown: torch.Tensor) -> torch.Tensor:
        return tokens(model, site, model.normalize(shown))[..., neuron].float().mean()

    changed = pgd(activation, image, distance, steps)
    reference = default_reference(model) if images is None else ImageSet(model, images)
    known = reference_activations(model, site, reference)[:, neuron]
    with torch.inference_mode():
        values = [activation(shown).item() for shown in (image, changed)]
    percentiles = tuple(100 * (known < value).float().mean().item() for value in values)
    found = (changed - image).norm().item()
    return LookAlike(image[0].cpu(), changed[0].cpu(), found, *values, percentiles,
                     f"{model.title}, {site}, neuron {neuron}: a change of {found:.2f} (L2), percentiles among {reference.name}")
