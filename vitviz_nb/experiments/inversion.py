"""Feature inversion: images whose activations at a layer match those of a scene (Mahendran and Vedaldi 2015)."""

from typing import NamedTuple

import torch
from tqdm import tqdm

from ..models.reading import tokens
from ..models.sites import find_site
from ..models.vision_model import VisionModel, check_finite
from ..utils import validate
from ..utils.errors import VitvizError
from ..visualize.objective import total_variation
from ..visualize.optimize import Adam, check_weights, gradient_of

STEPS, _LR, _TV = 200, 0.05, 0.002


class Inversion(NamedTuple):
    """Inversions, ``pictures`` (N, 3, S, S) in [0, 1], and their ``errors`` (N,): squared distance of their activations from the
    image's, relative to their squared norm.
    """

    pictures: torch.Tensor
    errors: list[float]


@torch.inference_mode(False)
@torch.enable_grad()
def invert(model: VisionModel, images: torch.Tensor, layer: int = -1, position: bool = True, kind: str | None = None,
           seed: int = 0) -> Inversion:
    """Inversions of ``images`` (N, 3, S, S) in [0, 1] from a layer, by gradient descent from noise.

    They match the activations of every patch token or, without ``position``, their mean, which has no spatial information.
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
    return Inversion(adam.images.cpu(), left.tolist())
