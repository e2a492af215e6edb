"""L2-bounded adversarial perturbations (PGD)."""

from collections.abc import Callable

import torch

from ..visualize.optimize import gradient_of


@torch.inference_mode(False)
@torch.enable_grad()
def pgd(loss: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, radius: float, steps: int) -> torch.Tensor:
    """Adversarial examples of images (N, 3, H, W) in [0, 1], each within ``radius`` (L2) of its own, that increase ``loss``:
    projected gradient ascent (Madry et al. 2018) in steps of 2.5 / ``steps`` of the radius, of the whole radius at most.

    Args:
        loss: from images to what is summed up, a number (a mean or sum of losses) or one an image, which are independent.

    Raises:
        VitvizError: no gradient of the loss reaches the images.
    """
    adversarial = images = images.clone()  # those of inference mode take no gradient
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_()
        gradient = gradient_of("The loss", loss(adversarial).sum(), adversarial).float()
        change = (adversarial + min(1.0, 2.5 / steps) * radius * gradient / _norm(gradient) - images).detach()
        adversarial = (images + change * (radius / _norm(change)).clamp(max=1)).clamp(0, 1)
    return adversarial.detach()


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
