"""What of a scene is left in a layer? Feature inversion: a picture whose units answer as they did to the scene.

After Mahendran and Vedaldi 2015, "Understanding deep image representations by inverting them".
"""

from dataclasses import dataclass

import torch
from PIL import Image
from tqdm import tqdm

from ..models.reading import tokens
from ..models.sites import find_site
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, bundle, contact_sheet
from ..utils.errors import VitvizError
from ..visualize.objective import total_variation

STEPS, _LR, _TV = 200, 0.05, 0.002


@dataclass(frozen=True, eq=False)
class Inversion:
    """Images and what was made from their activations. Shows itself, a row of images above a row of what was made.

    Attributes:
        images, pictures: (N, 3, S, S) in [0, 1].
        errors: (N,), squared distance of the picture's activations from the image's, as a share of their squared size.
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


def invert(model: VisionModel, images: torch.Tensor, layer: int, position: bool = True, kind: str = "mlp",
           seed: int = 0) -> Inversion:
    """Make, from noise, pictures whose units at a layer answer as they do to ``images`` (N, 3, S, S) in [0, 1].

    Args:
        position: True to match every patch token; False to match only the mean over patches, which says nothing of where.
    """
    site, size = find_site(model, layer, kind), model.image_size
    if images.dim() != 4 or tuple(images.shape[1:]) != (3, size, size):
        raise VitvizError(f"{model.name} takes images of shape (N, 3, {size}, {size}), got {tuple(images.shape)}.")
    images = images.to(model.device)

    def seen(shown: torch.Tensor) -> torch.Tensor:
        found = tokens(model, site, model.normalize(shown)).float()
        return found if position else found.mean(1, keepdim=True)

    with torch.no_grad():
        wanted = seen(images)
    scale = wanted.square().sum((1, 2)).clamp_min(1e-20)
    start = torch.rand(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    pictures = (0.5 + 0.2 * (start - 0.5)).requires_grad_()
    optimizer = torch.optim.Adam([pictures], lr=_LR, betas=(0.5, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in tqdm(range(STEPS), desc=f"{model.name} {site}: inversion", unit="step", leave=False, delay=1):
        optimizer.zero_grad()
        errors = (seen(pictures) - wanted).square().sum((1, 2)) / scale
        (errors + _TV * total_variation(pictures)).sum().backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
    with torch.no_grad():
        errors = (seen(pictures) - wanted).square().sum((1, 2)) / scale
    how = "every patch" if position else "the mean over patches"
    return Inversion(images.cpu(), pictures.detach().cpu(), errors.tolist(), f"{model.title}: made from {site}, {how}")
