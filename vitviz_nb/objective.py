"""What a picture is optimised for: its neuron's activation on augmented copies, and smoothness.

All random numbers of picture k come from a hash of (seed, layer, neuron), so it is the same picture alone, in any batch,
after a resume and in any chunking: bit for bit on one CPU (tests/unit/test_visualizer.py). Where rounding differs, as on
another machine or on a GPU with another batch size, the ascent amplifies that: a start changed by 1e-6 moved single pixels
of emoji-vit's last-layer pictures by up to 0.09 after 100 steps and 0.7 after 400.
"""

from dataclasses import dataclass

import numpy as np
import torch

from . import hashing
from .recipe import Recipe


def total_variation(pictures: torch.Tensor) -> torch.Tensor:
    """Total variation of each picture as the authors define it (their loss/regularizers/image.py).

    The L2 norm of the differences between neighbours, averaged over channels and summed over four directions: right,
    down and both diagonals.

    Args:
        pictures: (K, 3, H, W).

    Returns:
        (K,).
    """
    total = 0
    for a, b in ((pictures[..., :, 1:], pictures[..., :, :-1]), (pictures[..., 1:, :], pictures[..., :-1, :]),
                 (pictures[..., 1:, 1:], pictures[..., :-1, :-1]), (pictures[..., 1:, :-1], pictures[..., :-1, 1:])):
        # A small constant keeps the slope of the square root finite on a flat picture.
        total = total + ((a - b).square().sum((2, 3)) + 1e-12).sqrt().mean(1)
    return total


def loss(activation: torch.Tensor, pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Loss of each picture, (K,).

    Args:
        activation: (K * copies,), the neuron's mean over patch tokens on each copy; copies of a picture are neighbours.
        pictures: (K, 3, H, W) in [0, 1].
    """
    return recipe.tv * total_variation(pictures) - activation.view(len(pictures), recipe.copies).mean(1)


@dataclass(frozen=True, eq=False)
class Draws:
    """All random numbers of K pictures, made once before the first step so that no step waits for the device.

    Attributes:
        shift: int64 (steps, K, 2), circular shift of rows and columns, px.
        scale, offset: (steps, K, copies, 3, 1, 1): a copy is picture * scale + offset, normalised for the network.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor


def begin(recipe: Recipe, keys: np.ndarray, size: int) -> torch.Tensor:
    """Where pictures begin: (K, 3, size, size), uniform in 0.5 ± ``recipe.spread``, the first numbers of each stream."""
    noise = torch.from_numpy(hashing.uniforms(keys, 0, 3 * size * size)).float().view(-1, 3, size, size)
    return 0.5 + recipe.spread * (2 * noise - 1)


def draw(recipe: Recipe, keys: np.ndarray, size: int, mean: torch.Tensor, std: torch.Tensor, device) -> Draws:
    """The draws of the pictures with stream ``keys`` (K,), for a network of ``size`` px and its normalisation (3, 1, 1)."""
    k, per_step = len(keys), 2 + recipe.copies * 12
    u = hashing.uniforms(keys, 3 * size * size, recipe.steps * per_step).reshape(k, recipe.steps, per_step).swapaxes(0, 1)
    reach = round(recipe.jitter * size)
    shift = np.floor(u[..., :2] * (2 * reach + 1)).astype(np.int64) - reach
    u = u[..., 2:].reshape(recipe.steps, k, recipe.copies, 4, 3)
    m, s = recipe.colour * (2 * u[..., 0, :] - 1), np.exp(recipe.colour * (2 * u[..., 1, :] - 1))
    normal = np.sqrt(-2 * np.log1p(-u[..., 2, :])) * np.cos(2 * np.pi * u[..., 3, :])  # Box and Muller
    remaining = 1 - (np.arange(recipe.steps) + 1) / recipe.steps
    noise = recipe.noise * remaining[:, None, None, None] * normal
    # (x - m) / s + noise, then (. - mean) / std, as one multiplication and one addition.
    mean, std = mean.cpu().numpy().reshape(3), std.cpu().numpy().reshape(3)
    scale, offset = 1 / (s * std), (noise - m / s - mean) / std

    def there(array, kind):
        return torch.as_tensor(array).to(kind).to(device)  # in this order, because MPS knows no float64

    return Draws(there(shift, torch.int64), there(scale, torch.float32)[..., None, None],
                 there(offset, torch.float32)[..., None, None])


def augment(pictures: torch.Tensor, draws: Draws, step: int) -> torch.Tensor:
    """The normalised copies of step ``step``: (K * copies, 3, S, S) from pictures (K, 3, S, S) in [0, 1]."""
    moved = _Roll.apply(pictures, draws.shift[step])
    copies = moved[:, None] * draws.scale[step] + draws.offset[step]
    return copies.flatten(0, 1)


class _Roll(torch.autograd.Function):
    """Circular shift of each picture by its own (rows, columns); the gradient is shifted back."""

    @staticmethod
    def forward(context, pictures, shift):
        context.save_for_backward(shift)
        return _roll(pictures, shift)

    @staticmethod
    def backward(context, slope):
        (shift,) = context.saved_tensors
        return _roll(slope, -shift), None


def _roll(pictures: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    k, channels, height, width = pictures.shape
    rows = (torch.arange(height, device=pictures.device) - shift[:, :1]) % height
    columns = (torch.arange(width, device=pictures.device) - shift[:, 1:]) % width
    index = (rows[:, :, None] * width + columns[:, None, :]).view(k, 1, -1).expand(-1, channels, -1)
    return pictures.flatten(2).gather(2, index).view_as(pictures)
