"""Feature inversion: images whose activations at a layer match those of a scene (Mahendran and Vedaldi 2015)."""

from dataclasses import dataclass

import torch
from PIL import Image
from tqdm import tqdm

from ..models.reading import tokens
from ..models.sites import find_site
from ..models.vision_model import VisionModel, check_finite
from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..utils import validate
from ..utils.errors import VitvizError
from ..visualize.objective import total_variation
from ..visualize.optimize import Adam, check_weights, gradient_of

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


@torch.inference_mode(False)
@torch.enable_grad()
def invert(model: VisionModel, images: torch.Tensor, layer: int = -1, position: bool = True, kind: str | None = None,
           seed: int = 0) -> Inversion:
    """Inversions of ``images`` (N, 3, S, S) in [0, 1] from a layer, by gradient descent from noise.

    They match the activations of every patch token or, without ``position``, their mean, which has no spatial information.

    Raises:
        VitvizError: activations through which no gradient flows, or that are not finite.
    """
    site, seed = find_site(model, layer, kind), validate.whole("A seed", seed)
    validate.images("Images", images, (3, model.image_size, model.image_size))
    check_weights(model)
    images, what = images.to(model.device).clone(), f"The activation at {site} of {model.name}"

    def activations(shown: torch.Tensor) -> torch.Tensor:
        values = tokens(model, site, model.normalize(shown)).float()
        return values if position else values.mean(1, keepdim=True)

    seen = images.clone().requires_grad_()
    gradient_of(what, activations(seen).sum(), seen)  # total variation, too, has one
    target = activations(images).detach()
    scale = target.square().sum((1, 2)).clamp_min(1e-20)

    def errors(shown: torch.Tensor) -> torch.Tensor:
        return (activations(shown) - target).square().sum((1, 2)) / scale

    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    adam = Adam.of(0.5 + 0.2 * (start - 0.5))
    for _ in tqdm(range(STEPS), desc=f"{model.name} {site}: inversion", unit="step", leave=False, delay=1):
        adam = adam.update(lambda shown: errors(shown) + _TV * total_variation(shown), STEPS, _LR)
    left = errors(adam.images).detach()
    if not (left.isfinite() & scale.isfinite()).all():
        check_finite(model.module, model.name)
        raise VitvizError(f"{what} is NaN or infinite, so nothing can match it; use a wider precision (model.module.float()).")
    matched = "every patch" if position else "the mean over patches"
    return Inversion(images.cpu(), adam.images.cpu(), left.tolist(), f"{model.title}: inversion of {site}, {matched}")
