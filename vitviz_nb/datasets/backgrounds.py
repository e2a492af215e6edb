"""The backgrounds of Emoji World: twelve contexts, each a texture with its own colors and spatial frequencies."""

import math
from functools import cache

import torch
import torch.nn.functional as F

CONTEXTS = ("grass", "forest", "sky", "night", "sea", "sand", "snow", "road", "brick", "wood", "tablecloth", "wallpaper")
DARK = ("forest", "night", "road")  # black ink would not be seen on these
TILE = 128  # px; a scene shows a 64 px window of a tile
_Y, _X = torch.arange(TILE, dtype=torch.float32)[:, None], torch.arange(TILE, dtype=torch.float32)[None]  # of each pixel


@cache
def tiles(variants: int, seed: int) -> torch.Tensor:
    """Texture tiles of every context, the same on every machine: uint8 (len(CONTEXTS), variants, 3, TILE, TILE)."""
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.stack([globals()[f"_{name}"](random) for _ in range(variants)]) for name in CONTEXTS]
    return (torch.stack(drawn).clamp(0, 1) * 255).round().to(torch.uint8)


def _noise(random: torch.Generator, rows: int, columns: int) -> torch.Tensor:
    """Smooth noise (TILE, TILE) in [0, 1] with about ``rows`` x ``columns`` bumps."""
    grid = torch.rand(1, 1, rows, columns, generator=random)
    return F.interpolate(grid, (TILE, TILE), mode="bicubic", align_corners=False)[0, 0].clamp(0, 1)


def _between(value: torch.Tensor, low: tuple, high: tuple) -> torch.Tensor:
    """Colors (3, TILE, TILE) on the line from ``low`` (value 0) to ``high`` (value 1)."""
    low, high = torch.tensor(low)[:, None, None], torch.tensor(high)[:, None, None]
    return low + (high - low) * value


def _uniform(random: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * torch.rand((), generator=random).item()


def _grass(random):
    blades = 0.6 * _noise(random, 24, 96) + 0.4 * _noise(random, 6, 10)
    return _between(blades, (0.12, 0.38, 0.08), (0.55, 0.80, 0.30))


def _forest(random):
    leaves = 0.5 * _noise(random, 14, 14) + 0.5 * _noise(random, 34, 34)
    pixels = _between(leaves, (0.02, 0.14, 0.06), (0.20, 0.46, 0.18))
    for _ in range(4):
        center, width = _uniform(random, 0, TILE), _uniform(random, 3, 7)
        trunk = ((_X - center).abs() < width).float().expand(TILE, TILE)
        pixels = pixels * (1 - trunk) + trunk * _between(_noise(random, 20, 60), (0.16, 0.09, 0.04), (0.36, 0.24, 0.14))
    return pixels


def _sky(random):
    pixels = _between((_Y / TILE).expand(TILE, TILE), (0.30, 0.58, 0.92), (0.72, 0.88, 0.99))
    cloud = ((0.7 * _noise(random, 4, 3) + 0.3 * _noise(random, 10, 7)) * 3 - 1.5).clamp(0, 1)
    return pixels * (1 - cloud) + cloud


def _night(random):
    pixels = _between((_Y / TILE).expand(TILE, TILE), (0.02, 0.02, 0.10), (0.12, 0.10, 0.30))
    stars = (torch.rand(TILE, TILE, generator=random) > 0.993).float()[None, None]
    stars = stars + 0.5 * F.avg_pool2d(stars, 3, 1, 1)
    return pixels + 0.9 * stars[0]


def _sea(random):
    wavelength, phase = _uniform(random, 10, 16), _uniform(random, 0, 6.3)
    swell = torch.sin(2 * math.pi * (_Y + 5 * _noise(random, 3, 8) * 3) / wavelength + phase + _X * 0)
    return _between(0.5 + 0.35 * swell + 0.3 * (_noise(random, 30, 12) - 0.5), (0.02, 0.26, 0.52), (0.25, 0.68, 0.80))


def _sand(random):
    ripple = torch.sin(2 * math.pi * (_X * 0.4 + _Y + 14 * _noise(random, 4, 4)) / 22)
    grain = torch.rand(TILE, TILE, generator=random)
    return _between(0.45 + 0.15 * ripple + 0.4 * (grain - 0.5), (0.68, 0.54, 0.34), (0.97, 0.87, 0.66))


def _snow(random):
    drift = 0.8 * _noise(random, 4, 3) + 0.2 * torch.rand(TILE, TILE, generator=random)
    return _between(drift, (0.74, 0.81, 0.91), (1.0, 1.0, 1.0))


def _road(random):
    pixels = _between(torch.rand(TILE, TILE, generator=random), (0.22, 0.22, 0.24), (0.42, 0.42, 0.44))
    lane = _uniform(random, 8, 40)
    dash = (((_Y - lane) % 56 < 5) & ((_X + _uniform(random, 0, 40)) % 40 < 26)).float()
    return pixels * (1 - dash) + dash * torch.tensor([0.95, 0.90, 0.62])[:, None, None]


def _brick(random):
    row = torch.div(_Y, 12, rounding_mode="floor")
    column = torch.div(_X + 12 * (row % 2), 24, rounding_mode="floor")
    shade = torch.frac(torch.sin(row * 12.99 + column * 78.23 + _uniform(random, 0, 6)) * 437.58).abs()
    pixels = _between(0.7 * shade + 0.3 * _noise(random, 40, 40), (0.48, 0.17, 0.12), (0.78, 0.38, 0.27))
    mortar = ((_Y % 12 < 2) | ((_X + 12 * (row % 2)) % 24 < 2)).float()
    return pixels * (1 - mortar) + mortar * 0.80


def _wood(random):
    rings = torch.sin(2 * math.pi * (_Y + 30 * _noise(random, 5, 2)) / 9)
    pixels = _between(0.5 + 0.25 * rings + 0.5 * (_noise(random, 64, 5) - 0.5), (0.42, 0.25, 0.12), (0.78, 0.56, 0.34))
    return pixels * (1 - 0.5 * (_Y % 42 < 1.5).float())


def _tablecloth(random):
    period = 16
    checks = ((_Y % period < period / 2).float() + (_X % period < period / 2).float()) / 2
    color = ((0.82, 0.12, 0.16), (0.14, 0.30, 0.70), (0.10, 0.52, 0.32))[int(_uniform(random, 0, 3))]
    return _between(checks + 0.05 * (torch.rand(TILE, TILE, generator=random) - 0.5), (0.98, 0.97, 0.94), color)


def _wallpaper(random):
    row = torch.div(_Y, 20, rounding_mode="floor")
    dots = ((_Y % 20 - 10) ** 2 + ((_X + 10 * (row % 2)) % 20 - 10) ** 2 < 18).float()
    base = [_uniform(random, 0.70, 0.92) for _ in range(3)]
    return _between(dots, tuple(base), tuple(min(1.0, b + 0.16) for b in base)) + 0.04 * (_noise(random, 8, 8) - 0.5)
