"""Changes that cannot be seen and that change what a network says."""

from collections.abc import Callable

import torch


def pgd(measure: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor, radius: float, steps: int) -> torch.Tensor:
    """Images (N, 3, H, W) in [0, 1] changed by at most ``radius`` (L2, each) so that ``measure`` of them grows.

    Projected gradient ascent (Madry et al. 2018) from the images themselves, in steps of 2.5 / ``steps`` of the radius, of the
    whole radius at most.

    Args:
        measure: from images to one number, in which each image has its own share: a mean or sum of losses or activations.
    """
    moved = images
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        slope = torch.autograd.grad(measure(moved), moved)[0].float()
        change = (moved + min(1.0, 2.5 / steps) * radius * slope / _norm(slope) - images).detach()
        moved = (images + change * (radius / _norm(change)).clamp(max=1)).clamp(0, 1)
    return moved.detach()


def _norm(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1).norm(dim=1).clamp_min(1e-20).view(-1, 1, 1, 1)
