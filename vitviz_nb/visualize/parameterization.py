"""What gradient ascent changes: the pixels of an image, or its Fourier spectrum in decorrelated colors (Olah et al. 2017)."""

from math import inf

import numpy as np
import torch
import torch.nn.functional as F

from ..utils import random_streams
from .recipe import Recipe

# Square root of the color covariance of natural images over its longest column, as Lucid publishes it (optvis/param/color.py).
_COLORS = np.float32([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]]) / np.float32(0.4619)


class Pixels:
    """The image itself, clamped to [0, 1].

    Attributes:
        shape: of the values of one image.
        bounds: to which they are clamped after each step.
    """

    bounds = 0.0, 1.0

    def __init__(self, recipe: Recipe, side: int):
        self._spread, self.shape = recipe.spread, (3, side, side)

    @property
    def count(self) -> int:
        """Random numbers that the start takes: the first of each image's stream."""
        return int(np.prod(self.shape))

    def start(self, keys: np.ndarray) -> torch.Tensor:
        """Low-contrast noise (K, *shape), uniform in 0.5 ± ``recipe.spread``, for K random streams."""
        noise = torch.from_numpy(random_streams.uniforms(keys, 0, self.count)).float().view(-1, *self.shape)
        return 0.5 + self._spread * (2 * noise - 1)

    def images(self, values: torch.Tensor) -> torch.Tensor:
        """RGB (K, 3, side, side) in [0, 1] of values (K, *shape)."""
        return values


class Fourier(Pixels):
    """A spectrum (3 decorrelated colors, frequencies, real and imaginary), scaled by 1 / frequency^power as natural images are.

    One number of the spectrum is worth as much contrast, on a logarithmic scale, at all frequencies that matter to the eye; so
    gradient ascent finds large shapes first instead of pixel noise. The image is a sigmoid of its inverse transform.
    """

    bounds = -inf, inf

    def __init__(self, recipe: Recipe, side: int):
        self._spread, self._side, self.shape = recipe.spread, side, (3, side, side // 2 + 1, 2)
        frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) * side  # cycles per image
        self._scale = np.float32(np.maximum(frequency, 1) ** -recipe.power * side)
        self._on: dict[torch.device, list[torch.Tensor]] = {}  # scale and colors on each device: to copy them waits for a card

    def start(self, keys: np.ndarray) -> torch.Tensor:
        """A normal spectrum (K, *shape) of standard deviation ``recipe.spread``: close to gray."""
        u = random_streams.uniforms(keys, 0, self.count).reshape(-1, *self.shape)
        return self._spread * torch.from_numpy(normal(u[..., :1], u[..., 1:] - np.array([0, 0.25]))).float()  # cosine and sine

    def images(self, values: torch.Tensor) -> torch.Tensor:
        if values.device not in self._on:
            with torch.inference_mode(False):
                self._on[values.device] = [torch.from_numpy(array).to(values.device) for array in (self._scale, _COLORS)]
        scale, mix = self._on[values.device]
        colors = torch.fft.irfft2(torch.view_as_complex(values.contiguous()) * scale, s=(self._side, self._side), norm="ortho")
        return (mix @ colors.flatten(2)).view_as(colors).sigmoid()


def parameterization(recipe: Recipe, size: int) -> Pixels:
    """The recipe's, for a network whose input is ``size`` px wide."""
    return {"pixels": Pixels, "fourier": Fourier}[recipe.parameterization](recipe, recipe.side(size))


def normal(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Standard normal numbers of uniform ones in [0, 1) (Box and Muller)."""
    return np.sqrt(-2 * np.log1p(-u)) * np.cos(2 * np.pi * v)


def cropped(images: torch.Tensor, boxes: torch.Tensor, size: int) -> torch.Tensor:
    """Square parts of images, resampled to ``size`` px without aliasing: (N, 3, size, size).

    As two products of matrices, which are fast and, unlike torch's ``grid_sample``, the same on every device.

    Args:
        images: (N, 3, side, side).
        boxes: (N, 3), the top, left and side of each part in px.
    """
    side = images.shape[-1]
    width = boxes[:, 2, None, None] / size  # of an output pixel
    wanted = boxes[:, :2, None] + (torch.arange(size, device=images.device) + 0.5) * width - 0.5  # (N, 2, size)
    away = (wanted[..., None] - torch.arange(side, device=images.device)).abs() / width[..., None].clamp(min=1)
    weights = (1 - away).clamp(min=0)
    rows, columns = (weights / weights.sum(-1, keepdim=True)).unbind(1)  # (N, size, side)
    return rows[:, None] @ images @ columns.transpose(1, 2)[:, None]


def resized(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images (K, 3, S, S) as a network of ``size`` px is shown them when they are scored: whole, antialiased."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
