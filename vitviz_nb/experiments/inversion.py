"""Feature inversion: images whose activations at a layer match those of a scene (Mahendran and Vedaldi 2015)."""

from dataclasses import dataclass

import torch
from PIL import Image
from tqdm import tqdm

from ..models.reading import tokens
from ..models.sites import find_site
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..utils import validate
from ..visualize.objective import total_variation
from ..visualize.optimize import Adam

STEPS, _LR, _TV = 200, 0.05, 0.002


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images and their inversions. Shows itself, a row of images above a row of inversions.

    Attributes:
        images, pictures: (N, 3, S, S) in [0, 1].
        errors: (N,), squared distance of the inversion's activations from the image's, relative to their squared norm.
    """

    images: torch.Tensor
    pictures: torch.Tensor
    errors: list[float]
    title: str

    def sheet(self) -> Image.Image:
        tiles = [Tile(image, ["the scene"]) for image in self.images]
        tiles += [Tile(picture, [f"error {100 * e:.1f} %"]) for picture, e in zip(self.pictures, self.errors, strict=True)]
        return contact_sheet(tiles, self.title, side=128, columns=len(self.images))

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.sheet(), self.title)


def invert(model: VisionModel, images: torch.Tensor, layer: int = -1, position: bool = True, kind: str | None = None,
           seed: int = 0) -> Inversion:
    """Inversions of ``images`` (N, 3, S, S) in [0, 1] from a layer, by gradient descent from noise.

    They match the activations of every patch token or, without ``position``, their mean, which has no spatial information.
    """
    site, seed = find_site(model, layer, kind), validate.whole("A seed", seed)
    validate.images("Images", images, (3, model.image_size, model.image_size))
    images = images.to(model.device)

    def activations(shown: torch.Tensor) -> torch.Tensor:
        values = tokens(model, site, model.normalize(shown)).float()
        return values if position else values.mean(1, keepdim=True)

    with torch.no_grad():
        target = activations(images)
    scale = target.square().sum((1, 2)).clamp_min(1e-20)

    def errors(shown: torch.Tensor) -> torch.Tensor:
        return (activations(shown) - target).square().sum((1, 2)) / scale

    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    adam = Adam.of(0.5 + 0.2 * (start - 0.5))
    for _ in tqdm(range(STEPS), desc=f"{model.name} {site}: inversion", unit="step", leave=False, delay=1):
        adam = adam.update(lambda shown: errors(shown) + _TV * total_variation(shown), STEPS, _LR)
    with torch.no_grad():
        left = errors(adam.images).tolist()
    matched = "every patch" if position else "the mean over patches"
    return Inversion(images.cpu(), adam.images.cpu(), left, f"{model.title}: inversion of {site}, {matched}")
