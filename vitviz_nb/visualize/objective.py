"""What a picture is optimized for: its neuron's activation on augmented copies, and smoothness.

All random numbers of picture k come from a hash of (seed, layer, neuron), so it is the same picture alone, in any batch,
after a resume and in any chunking: bit for bit on one CPU (tests/unit/test_visualizer.py). Where rounding differs, as on
another machine or on a GPU with another batch size, the ascent amplifies that: a start changed by 1e-6 moved single pixels
of emoji-vit's last-layer pictures by up to 0.09 after 100 steps and 0.7 after 400.
"""

from dataclasses import dataclass

import numpy as np
import torch

from ..utils import random_streams as hashing
from .recipe import Recipe


def total_variation(pictures: torch.Tensor) -> torch.Tensor:
    """Total variation of each picture as the authors define it (their loss/regularizers/image.py).

    The L2 norm of the differences between neighbors, averaged over channels and summed over four directions: right,
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
        activation: (K * copies,), the neuron's mean over patch tokens on each copy; copies of a picture are neighbors.
        pictures: (K, 3, H, W) in [0, 1].
    """
    return recipe.tv * total_variation(pictures) - activation.view(len(pictures), recipe.copies).mean(1)


@dataclass(frozen=True, eq=False)
class Draws:
    """All random numbers of K pictures, made once before the first step so that no step waits for the device.

    Attributes:
        shift: int64 (steps, K, 2), circular shift of rows and columns, px.
        scale, offset: (steps, K, copies, 3, 1, 1): a copy is picture * scale + offset, normalized for the network.
    """

    shift: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor


def begin(recipe: Recipe, keys: np.ndarray, size: int) -> torch.Tensor:
    """Where pictures begin: (K, 3, size, size), uniform in 0.5 ± ``recipe.spread``, the first numbers of each stream."""
    noise = torch.from_numpy(hashing.uniforms(keys, 0, 3 * size * size)).float().view(-1, 3, size, size)
    return 0.5 + recipe.spread * (2 * noise - 1)


def draw(recipe: Recipe, keys: np.ndarray, size: int, mean: torch.Tensor, std: torch.Tensor, device) -> Draws:
    """The draws of the pictures with stream ``keys`` (K,), for a network of ``size`` px and its normalization (3, 1, 1)."""
    k, per_step = len(keys), 2 + recipe.copies * 12
    u = hashing.uniforms(keys, 3 * size * size, recipe.steps * per_step).reshape(k, recipe.steps, per_step).swapaxes(0, 1)
    reach = round(recipe.jitter * size)
    shift = np.floor(u[..., :2] * (2 * reach + 1)).astype(np.int64) - reach
    u = u[..., 2:].reshape(recipe.steps, k, recipe.copies, 4, 3)
    m, s = recipe.color * (2 * u[..., 0, :] - 1), np.exp(recipe.color * (2 * u[..., 1, :] - 1))
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


def augment(pictures: torch.Tensor, draws: Draws, step: int, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """The normalized copies of step ``step``, in ``precision``: (K * copies, 3, S, S) from pictures (K, 3, S, S) in [0, 1]."""
    return _copies(_Roll.apply(pictures, draws.shift[step]), draws.scale[step], draws.offset[step], precision)


def unchanged(pictures: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Pictures (K, 3, S, S) in [0, 1] as they are, normalized, each its own and only copy."""
    scale = (1 / std).to(pictures).expand(len(pictures), 1, -1, -1, -1)
    return _copies(pictures, scale, -mean.to(pictures) * scale, torch.float32)


def _copies(moved: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, precision: torch.dtype) -> "_Copies":
    # The shape without the memory: one number, shown as many times as there are pixels.
    shape = moved.new_empty(1, dtype=precision).expand(scale.shape[0] * scale.shape[1], *moved.shape[1:])
    copies = shape.as_subclass(_Copies)
    copies.moved, copies.scale, copies.offset = moved, scale, offset
    return copies


class _Copies(torch.Tensor):
    """Copies that are made only where something other than a patch embedding asks for them.

    A copy is picture * scale + offset, with one number of each for a channel, and a patch embedding (a convolution whose
    patches do not overlap) is linear. So each channel of a picture is embedded once, however many copies there are, as one
    product of matrices, of which a copy is a sum; torch's convolution is slower even for one copy, most of all backwards.
    """

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        if function in _FACTS:
            return super().__torch_function__(function, types, arguments, named)
        if function is torch.conv2d and isinstance(arguments[0], cls) and not named and _of_patches(*arguments):
            return arguments[0]._embed(*arguments[1:3])
        return function(*_made(arguments), **{key: _made(value) for key, value in (named or {}).items()})

    def _embed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of the copies with ``weight`` (D, 3, P, P), in strides of P: (K * copies, D, S / P, S / P)."""
        (k, channels, size, _), (depth, _, patch, _) = self.moved.shape, weight.shape
        side = size // patch
        # In float32 (a share of a sum needs more digits than the sum), and about gray, so that what the three channels share
        # is not rounded before it cancels.
        patches = (self.moved - 0.5).view(k, channels, side, patch, side, patch).permute(1, 0, 2, 4, 3, 5)
        kernel = weight.flatten(2).permute(1, 2, 0).float()  # (3, P * P, D)
        shares = patches.reshape(channels, k * side * side, patch * patch) @ kernel
        mixed = self.scale.flatten(2) @ shares.view(channels, k, -1).transpose(0, 1)  # (K, copies, side * side * D)
        shift = (self.offset + 0.5 * self.scale).flatten(2) @ kernel.sum(1)  # (K, copies, D)
        if bias is not None:
            shift = shift + bias
        found = mixed.view(k, -1, side, side, depth) + shift[:, :, None, None]
        return found.to(weight.dtype).flatten(0, 1).permute(0, 3, 1, 2)


_FACTS = {torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.ndim.__get__,
          torch.Tensor.size, torch.Tensor.dim, torch.Tensor.__len__}  # what is known of copies before they are made


def _made(value):
    """``value`` with the copies in it made."""
    if isinstance(value, _Copies):
        return (value.moved[:, None] * value.scale + value.offset).flatten(0, 1).to(value.dtype)
    return type(value)(map(_made, value)) if type(value) in (list, tuple) else value


def _of_patches(copies, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    """Whether a convolution cuts pictures into square patches that neither overlap nor leave a margin."""
    patch = weight.shape[2]
    return (weight.shape[2:] == (patch, patch) == stride and copies.shape[2] % patch == 0 and padding == (0, 0)
            and dilation == (1, 1) and groups == 1)


def blurred(slope: torch.Tensor, recipe: Recipe, step: int) -> torch.Tensor:
    """The slopes (K, 3, S, S) of step ``step`` (from 0), blurred as the recipe has it; across the borders, as shifts go."""
    side = slope.shape[-1]
    deviation = recipe.blur * side * max(0.0, 1 - 1.5 * step / recipe.steps)
    if not deviation:
        return slope
    rows, columns = torch.fft.fftfreq(side, device=slope.device), torch.fft.rfftfreq(side, device=slope.device)
    passed = torch.exp(-2 * (torch.pi * deviation) ** 2 * (rows[:, None] ** 2 + columns**2))
    return torch.fft.irfft2(torch.fft.rfft2(slope) * passed, s=(side, side))


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
