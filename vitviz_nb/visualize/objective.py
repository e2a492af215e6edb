"""The objective of activation maximization: mean activation over augmented views of an image, minus total variation.

All random numbers of an image come from a hash of (seed, kind, layer, neuron) and their position in its stream, so it is the
same image alone, in any batch and after a resume: bit for bit on one CPU (tests/unit/visualize). Where rounding differs, as
with other machines, numbers of threads or batch sizes of a GPU, gradient ascent amplifies that: a start changed by 1e-6 moved
single pixels of emoji-vit's last layer by up to 0.09 after 100 steps and 0.7 after 400.
"""

import numpy as np
import torch

from ..utils import random_streams
from .parameterization import cropped, normal, parameterization
from .recipe import Recipe

PIECE = 64  # steps whose random numbers are drawn together, so that no step waits for the device and memory stays small


def total_variation(pictures: torch.Tensor) -> torch.Tensor:
    """Total variation (K,) of images (K, 3, H, W) as the authors define it (their loss/regularizers/image.py).

    The L2 norm of the differences between neighbors, averaged over channels and summed over right, down and both diagonals.
    """
    total = 0
    for a, b in ((pictures[..., :, 1:], pictures[..., :, :-1]), (pictures[..., 1:, :], pictures[..., :-1, :]),
                 (pictures[..., 1:, 1:], pictures[..., :-1, :-1]), (pictures[..., 1:, :-1], pictures[..., :-1, 1:])):
        # A small constant keeps the gradient of the square root finite on a flat image.
        total = total + ((a - b).square().sum((2, 3)) + 1e-12).sqrt().mean(1)
    return total


def loss(activation: torch.Tensor, pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Loss (K,) of images (K, 3, H, W) in [0, 1], to be minimized: total variation minus mean activation over the views.

    Args:
        activation: (K * copies,), the neuron's mean over patch tokens in each view; views of an image are neighbors.
    """
    return recipe.tv * total_variation(pictures) - activation.view(len(pictures), recipe.copies).mean(1)


class Augmentation:
    """The augmented views of K images in every step: circular shift; then crop, contrast, color and noise of each view.

    Args:
        keys: (K,), the images' random streams.
        size: side of the network's input, px; ``mean`` and ``std`` (3, 1, 1) are its normalization.
    """

    def __init__(self, recipe: Recipe, keys: np.ndarray, size: int, mean: torch.Tensor, std: torch.Tensor, device):
        self.recipe, self.size, self.device, self._keys, self._first = recipe, size, device, keys, None
        self._mean, self._std = (values.cpu().numpy().reshape(3) for values in (mean, std))
        self._start = parameterization(recipe, size).count
        self._cropped = recipe.crops != (1, 1) or recipe.side(size) != size
        if recipe.grain:  # drawn once, and shifted in each view: drawing it anew would take longer than a step on a card
            u = random_streams.uniforms(random_streams.mix(keys), 0, 6 * size**2).reshape(-1, 2, 3, size, size)
            self._grain = torch.from_numpy(normal(u[:, 0], u[:, 1])).float().to(device)

    def __call__(self, pictures: torch.Tensor, step: int, precision: torch.dtype = torch.float32) -> "Views":
        """Normalized views (K * copies, 3, S, S) of images (K, 3, side, side) in [0, 1] in step ``step`` (from 0)."""
        recipe, (shift, scale, offset, *of_views) = self.recipe, self.parameters(step)
        moved = _roll(pictures, shift)
        if not of_views:
            return Views(moved, scale, offset, precision)
        boxes, roll = (values.flatten(0, 1) for values in of_views)
        moved = moved.repeat_interleave(recipe.copies, 0)
        if self._cropped:
            moved = cropped(moved, boxes, self.size)
        if recipe.grain:
            grain = _roll(self._grain.repeat_interleave(recipe.copies, 0), roll)
            moved = moved + recipe.grain * (1 - (step + 1) / recipe.steps) * grain
        return Views(moved, *(values.flatten(0, 1)[:, None] for values in (scale, offset)), precision)

    def parameters(self, step: int) -> tuple[torch.Tensor, ...]:
        """Of a step: shifts (K, 2) of rows and columns, px; scale and offset (K, copies, 3, 1, 1), normalization included.

        Where views differ in more than color, also their boxes (K, copies, 3; see ``cropped``) and shifts of the noise in them
        (K, copies, 2).
        """
        first = step - step % PIECE
        if self._first != first:
            self._first, self._piece = first, self._draw(first, min(PIECE, self.recipe.steps - first))
        return tuple(values[step - first] for values in self._piece)

    def _draw(self, first: int, steps: int) -> tuple[torch.Tensor, ...]:
        recipe, k, per_view = self.recipe, len(self._keys), 17 if self._cropped or self.recipe.grain else 12
        per_step = 2 + recipe.copies * per_view
        u = random_streams.uniforms(self._keys, self._start + first * per_step, steps * per_step)
        u = u.reshape(k, steps, per_step).swapaxes(0, 1)
        side, of_view = recipe.side(self.size), u[..., 2 + 12 * recipe.copies :].reshape(steps, k, recipe.copies, -1)
        reach = round(recipe.jitter * side)
        shift = np.floor(u[..., :2] * (2 * reach + 1)).astype(np.int64) - reach
        u = u[..., 2 : 2 + 12 * recipe.copies].reshape(steps, k, recipe.copies, 4, 3)
        m, s = recipe.color * (2 * u[..., 0, :] - 1), np.exp(recipe.color * (2 * u[..., 1, :] - 1))
        remaining = 1 - (np.arange(first, first + steps) + 1) / recipe.steps
        noise = recipe.noise * remaining[:, None, None, None] * normal(u[..., 2, :], u[..., 3, :])
        # (x - m) / s + noise, then (. - mean) / std, as one multiplication and one addition.
        scale, offset = 1 / (s * self._std), (noise - m / s - self._mean) / self._std
        drawn = [torch.as_tensor(shift), *(torch.as_tensor(values).float()[..., None, None] for values in (scale, offset))]
        if per_view > 12:
            low, high = recipe.crops
            sides = side * (low + (high - low) * of_view[..., 2:3])
            boxes = np.concatenate([(side - sides) * of_view[..., :2], sides], -1)
            drawn += [torch.as_tensor(boxes).float(), torch.as_tensor(np.floor(self.size * of_view[..., 3:]).astype(np.int64))]
        return tuple(values.to(self.device) for values in drawn)  # MPS knows no float64


def unchanged(pictures: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> "Views":
    """Images (K, 3, S, S) in [0, 1] as they are, normalized, each its own and only view."""
    scale = (1 / std).to(pictures).expand(len(pictures), 1, -1, -1, -1)
    return Views(pictures, scale, -mean.to(pictures) * scale)


class Views(torch.Tensor):
    """Views that are computed only where something other than a patch embedding asks for them.

    A view is ``moved`` * scale + offset, with one number of each for a channel, and a patch embedding (a convolution whose
    patches do not overlap) is linear. So each channel of an image is embedded once, however many views are sums of it, as one
    product of matrices: torch's convolution is slower even for one view, most of all backwards.
    """

    def __new__(cls, moved: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor, precision: torch.dtype = torch.float32):
        # The shape without the memory: one number, shown as many times as there are pixels.
        shape = moved.new_empty(1, dtype=precision).expand(scale.shape[0] * scale.shape[1], *moved.shape[1:])
        views = shape.as_subclass(cls)
        views.moved, views.scale, views.offset = moved, scale, offset
        return views

    @classmethod
    def __torch_function__(cls, function, types, arguments=(), named=None):
        if function in _METADATA:
            return super().__torch_function__(function, types, arguments, named)
        if function is torch.conv2d and isinstance(arguments[0], cls) and not named and _of_patches(*arguments):
            return arguments[0]._embed(*arguments[1:3])
        return function(*_computed(arguments), **{key: _computed(value) for key, value in (named or {}).items()})

    def _embed(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """The convolution of the views with ``weight`` (D, 3, P, P), in strides of P: (K * views, D, S / P, S / P)."""
        (k, channels, size, _), (depth, _, patch, _) = self.moved.shape, weight.shape
        side = size // patch
        # In float32 (a summand needs more digits than the sum), and relative to gray, so that what the three channels have in
        # common is not rounded before it cancels.
        patches = (self.moved - 0.5).view(k, channels, side, patch, side, patch).permute(1, 0, 2, 4, 3, 5)
        kernel = weight.flatten(2).permute(1, 2, 0).float()  # (3, P * P, D)
        products = patches.reshape(channels, k * side * side, patch * patch) @ kernel
        mixed = self.scale.flatten(2) @ products.view(channels, k, -1).transpose(0, 1)  # (K, views, side * side * D)
        shift = (self.offset + 0.5 * self.scale).flatten(2) @ kernel.sum(1)  # (K, views, D)
        if bias is not None:
            shift = shift + bias
        embedded = mixed.view(k, -1, side, side, depth) + shift[:, :, None, None]
        return embedded.to(weight.dtype).flatten(0, 1).permute(0, 3, 1, 2)


_METADATA = {torch.Tensor.shape.__get__, torch.Tensor.dtype.__get__, torch.Tensor.device.__get__, torch.Tensor.ndim.__get__,
          torch.Tensor.size, torch.Tensor.dim, torch.Tensor.__len__}  # known of views before they are computed


def _computed(value):
    """``value`` with the views in it computed."""
    if isinstance(value, Views):
        return (value.moved[:, None] * value.scale + value.offset).flatten(0, 1).to(value.dtype)
    return type(value)(map(_computed, value)) if type(value) in (list, tuple) else value


def _of_patches(views, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> bool:
    """Whether a convolution cuts images into square patches that neither overlap nor leave a margin."""
    patch = weight.shape[2]
    return (weight.shape[2:] == (patch, patch) == stride and views.shape[2] % patch == 0 and padding == (0, 0)
            and dilation == (1, 1) and groups == 1)


def blurred(gradient: torch.Tensor, recipe: Recipe, step: int) -> torch.Tensor:
    """Gradients (K, 3, S, S) of step ``step`` (from 0), low-pass filtered as the recipe says; circular, as shifts are."""
    side = gradient.shape[-1]
    deviation = recipe.blur * side * max(0.0, 1 - 1.5 * step / recipe.steps)
    if not deviation:
        return gradient
    rows, columns = torch.fft.fftfreq(side, device=gradient.device), torch.fft.rfftfreq(side, device=gradient.device)
    transfer = torch.exp(-2 * (torch.pi * deviation) ** 2 * (rows[:, None] ** 2 + columns**2))
    return torch.fft.irfft2(torch.fft.rfft2(gradient) * transfer, s=(side, side))


def _roll(pictures: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Images (K, C, H, W), each circularly shifted by its own (rows, columns)."""
    k, channels, height, width = pictures.shape
    rows = (torch.arange(height, device=pictures.device) - shift[:, :1]) % height
    columns = (torch.arange(width, device=pictures.device) - shift[:, 1:]) % width
    index = (rows[:, :, None] * width + columns[:, None, :]).view(k, 1, -1).expand(-1, channels, -1)
    return pictures.flatten(2).gather(2, index).view_as(pictures)
