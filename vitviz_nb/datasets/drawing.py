"""Scenes drawn from their facts: objects turned, scaled, cut and tinted over a background, with the mask of the concept."""

import numpy as np
import torch
import torch.nn.functional as F

from .backgrounds import CONTEXTS, DARK, TILE
from .sprites import INKED, SPRITE


def draw(facts: dict[str, np.ndarray], styles: tuple[str, ...], size: int, pyramid: list[torch.Tensor],
         tiles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, size, size) and masks (N, size, size) of scenes with the facts of ``EmojiWorld.facts``, from sprites at 64,
    32 and 16 px, uint8 (styles, concepts, 4, side, side), and backgrounds, uint8 (contexts, variants, 3, TILE, TILE).
    """
    # Rounded before they move, because not every device knows float64 (MPS does not).
    t = {k: torch.as_tensor(v.astype(np.float32) if v.dtype == np.float64 else v).to(tiles.device) for k, v in facts.items()}
    images = _backgrounds(t, tiles, size)
    masks = images.new_zeros(len(images), size, size)
    for slot in range(int(facts["objects"].max(initial=0))):
        rows = torch.as_tensor(np.flatnonzero(facts["objects"] > slot), device=tiles.device) if slot else slice(None)
        own = t["count"][rows] > slot
        concept = torch.where(own, t["concept"][rows], t["companion"][rows])
        alpha, color = _objects({k: v[rows] for k, v in t.items()}, slot, concept, own, pyramid, styles, size)
        clear = 1 - alpha
        images[rows] = images[rows].mul_(clear).add_(color)
        masks[rows] = masks[rows].mul_(clear[:, 0]).add_(alpha[:, 0].mul_(own[:, None, None]))
    if facts["blurred"].any():
        rows = torch.as_tensor(np.flatnonzero(facts["blurred"]), device=tiles.device)
        images[rows] = _blur(images[rows], sigma=1.5 * size / SPRITE)
    return images.clamp_(0, 1), masks


def _backgrounds(t: dict[str, torch.Tensor], tiles: torch.Tensor, size: int) -> torch.Tensor:
    """Windows of the scenes' tiles in their light, (N, 3, size, size)."""
    line = torch.arange(SPRITE, device=tiles.device)
    y = t["window"][:, :1] + line
    x = t["window"][:, 1:] + torch.where(t["mirror"][:, None], line.flip(0), line)
    window = tiles[t["context"], t["variant"]].view(-1, 3, TILE * TILE)
    flat = (y[:, :, None] * TILE + x[:, None, :]).view(len(y), 1, -1).expand(-1, 3, -1)
    pixels = window.gather(2, flat).view(-1, 3, SPRITE, SPRITE).float() / 255
    if size != SPRITE:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    return (pixels * t["light"][:, :, None, None]).clamp_(0, 1)


def _objects(t, slot, concept, own, pyramid, styles, size) -> tuple[torch.Tensor, torch.Tensor]:
    """Opacity (N, 1, size, size) and premultiplied color (N, 3, size, size) of one object in each scene."""
    scale = t["scale"] * torch.where(own, 1.0, 0.8)
    cos, sin = torch.cos(t["tilt"][:, slot]), torch.sin(t["tilt"][:, slot])
    x, y = t["x"][:, slot], t["y"][:, slot]
    # Each output pixel looks up its position in the sprite: shift, turn back, shrink, flip.
    first = torch.stack([cos, sin, -(cos * x + sin * y)], 1) * (t["flip"] / scale)[:, None]
    second = torch.stack([-sin, cos, sin * x - cos * y], 1) / scale[:, None]
    grid = F.affine_grid(torch.stack([first, second], 1), (len(x), 4, size, size), align_corners=False)
    sprite = torch.empty(len(x), 4, size, size, device=x.device)
    level = torch.bucketize(scale * size, torch.tensor([20.0, 40.0], device=x.device))  # coarse sprites when small
    for k, sprites in enumerate(pyramid):
        rows = (level == 2 - k).nonzero()[:, 0]
        if len(rows):
            pixels = sprites[t["style"][rows], concept[rows]].float() / 255
            sprite[rows] = F.grid_sample(pixels, grid[rows], align_corners=False)
    alpha = sprite[:, 3:]
    hidden = torch.cos(t["cut_angle"])[:, None, None] * grid[..., 0] + torch.sin(t["cut_angle"])[:, None, None] * grid[..., 1]
    hidden = (hidden > t["cut_at"][:, None, None]) & (t["occluded"] & own)[:, None, None]
    visible = (~hidden)[:, None].float()
    inked = torch.tensor([s in INKED for s in styles], device=x.device)[t["style"]]
    dark = torch.tensor([c in DARK for c in CONTEXTS], device=x.device)[t["context"]]
    ink = torch.where(dark[:, None], 1 - t["ink"], t["ink"])
    color = torch.where(inked[:, None, None, None], alpha * ink[:, :, None, None],
                        torch.minimum(sprite[:, :3] * t["gain"][:, :, None, None], alpha))
    return alpha * visible, color * visible


def _blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    reach = max(1, round(2.5 * sigma))
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel = (line / line.sum()).repeat(3, 1, 1, 1)
    images = F.pad(images, [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(images, kernel, groups=3), kernel.transpose(2, 3), groups=3)
