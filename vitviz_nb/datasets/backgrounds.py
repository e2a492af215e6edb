"""The backgrounds of Emoji World: twelve contexts, each a texture with its own colors and spatial frequencies."""

import math
from functools import cache

import torch
import torch.nn.functional as F

CONTEXTS = ("grass", "forest", "sky", "night", "sea", "sand", "snow", "road", "brick", "wood", "tablecloth", "wallpaper")
DARK = ("forest", "night", "road")  # black ink would not be seen on these
TILE = 128  # px; a scene shows a 64 px window of a tile


@cache
def tiles(variants: int, seed: int) -> torch.Tensor:
    """Texture tiles of every context, the same on every machine: uint8 (len(CONTEXTS), variants, 3, TILE, TILE)."""
    random = torch.Generator().manual_seed(seed)
    drawn = [torch.stack([_PAINTERS[name](random) for _ in range(variants)]) for name in CONTEXTS]
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


def _axes() -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of every pixel, (TILE, 1) and (1, TILE), px."""
    line = torch.arange(TILE, dtype=torch.float32)
    return line[:, None], line[None, :]


def _grass(random):
    blades = 0.6 * _noise(random, 24, 96) + 0.4 * _noise(random, 6, 10)
    return _between(blades, (0.12, 0.38, 0.08), (0.55, 0.80, 0.30))


def _forest(random):
    leaves = 0.5 * _noise(random, 14, 14) + 0.5 * _noise(random, 34, 34)
    picture = _between(leaves, (0.02, 0.14, 0.06), (0.20, 0.46, 0.18))
    _, x = _axes()
    for _ in range(4):
        center, width = _uniform(random, 0, TILE), _uniform(random, 3, 7)
        trunk = ((x - center).abs() < width).float().expand(TILE, TILE)
        picture = picture * (1 - trunk) + trunk * _between(_noise(random, 20, 60), (0.16, 0.09, 0.04), (0.36, 0.24, 0.14))
    return picture


def _sky(random):
    y, _ = _axes()
    picture = _between((y / TILE).expand(TILE, TILE), (0.30, 0.58, 0.92), (0.72, 0.88, 0.99))
    cloud = ((0.7 * _noise(random, 4, 3) + 0.3 * _noise(random, 10, 7)) * 3 - 1.5).clamp(0, 1)
    return picture * (1 - cloud) + cloud


def _night(random):
    y, _ = _axes()
    picture = _between((y / TILE).expand(TILE, TILE), (0.02, 0.02, 0.10), (0.12, 0.10, 0.30))
    stars = (torch.rand(TILE, TILE, generator=random) > 0.993).float()[None, None]
    stars = stars + 0.5 * F.avg_pool2d(stars, 3, 1, 1)
    return picture + 0.9 * stars[0]


def _sea(random):
    y, x = _axes()
    wavelength, phase = _uniform(random, 10, 16), _uniform(random, 0, 6.3)
    swell = torch.sin(2 * math.pi * (y + 5 * _noise(random, 3, 8) * 3) / wavelength + phase + x * 0)
    return _between(0.5 + 0.35 * swell + 0.3 * (_noise(random, 30, 12) - 0.5), (0.02, 0.26, 0.52), (0.25, 0.68, 0.80))


def _sand(random):
    y, x = _axes()
    ripple = torch.sin(2 * math.pi * (x * 0.4 + y + 14 * _noise(random, 4, 4)) / 22)
    grain = torch.rand(TILE, TILE, generator=random)
    return _between(0.45 + 0.15 * ripple + 0.4 * (grain - 0.5), (0.68, 0.54, 0.34), (0.97, 0.87, 0.66))


def _snow(random):
    drift = 0.8 * _noise(random, 4, 3) + 0.2 * torch.rand(TILE, TILE, generator=random)
    return _between(drift, (0.74, 0.81, 0.91), (1.0, 1.0, 1.0))


def _road(random):
    y, x = _axes()
    picture = _between(torch.rand(TILE, TILE, generator=random), (0.22, 0.22, 0.24), (0.42, 0.42, 0.44))
    lane = _uniform(random, 8, 40)
    dash = (((y - lane) % 56 < 5) & ((x + _uniform(random, 0, 40)) % 40 < 26)).float()
    return picture * (1 - dash) + dash * torch.tensor([0.95, 0.90, 0.62])[:, None, None]


def _brick(random):
    y, x = _axes()
    row = torch.div(y, 12, rounding_mode="floor")
    column = torch.div(x + 12 * (row % 2), 24, rounding_mode="floor")
    shade = torch.frac(torch.sin(row * 12.99 + column * 78.23 + _uniform(random, 0, 6)) * 437.58).abs()
    picture = _between(0.7 * shade + 0.3 * _noise(random, 40, 40), (0.48, 0.17, 0.12), (0.78, 0.38, 0.27))
    mortar = ((y % 12 < 2) | ((x + 12 * (row % 2)) % 24 < 2)).float()
    return picture * (1 - mortar) + mortar * 0.80


def _wood(random):
    y, _ = _axes()
    rings = torch.sin(2 * math.pi * (y + 30 * _noise(random, 5, 2)) / 9)
    picture = _between(0.5 + 0.25 * rings + 0.5 * (_noise(random, 64, 5) - 0.5), (0.42, 0.25, 0.12), (0.78, 0.56, 0.34))
    return picture * (1 - 0.5 * (y % 42 < 1.5).float())


def _tablecloth(random):
    y, x = _axes()
    period = 16
    checks = ((y % period < period / 2).float() + (x % period < period / 2).float()) / 2
    color = ((0.82, 0.12, 0.16), (0.14, 0.30, 0.70), (0.10, 0.52, 0.32))[int(_uniform(random, 0, 3))]
    return _between(checks + 0.05 * (torch.rand(TILE, TILE, generator=random) - 0.5), (0.98, 0.97, 0.94), color)


def _wallpaper(random):
    y, x = _axes()
    row = torch.div(y, 20, rounding_mode="floor")
    dots = ((y % 20 - 10) ** 2 + ((x + 10 * (row % 2)) % 20 - 10) ** 2 < 18).float()
    base = [_uniform(random, 0.70, 0.92) for _ in range(3)]
    return _between(dots, tuple(base), tuple(min(1.0, b + 0.16) for b in base)) + 0.04 * (_noise(random, 8, 8) - 0.5)


_PAINTERS = {name: globals()[f"_{name}"] for name in CONTEXTS}
