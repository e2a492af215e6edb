"""Grids of small images with captions, and activation maps over images."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import torch
import torch.nn.functional as F
from matplotlib.colors import Normalize
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import to_pil_image

_GAP, _LINE = 8, 16
_INK, _FAINT, _ALARM = "#1b1b1b", "#5a5a5a", "#a33a00"  # on white, readable in light and dark themes


@dataclass(frozen=True)
class Tile:
    """One image (3, H, W) in [0, 1] with its caption lines; ``good=False`` shows them in a warning color."""

    picture: torch.Tensor
    lines: list[str]
    good: bool = True


def to_image(picture: torch.Tensor, side: int | None = None) -> Image.Image:
    """A PIL image of (3, H, W) in [0, 1], enlarged smoothly to ``side`` px."""
    image = to_pil_image((picture.detach().cpu().clamp(0, 1) * 255).round().byte())
    return image.resize((side, side), Image.Resampling.BICUBIC) if side else image


def contact_sheet(tiles: list[Tile], title: str, side: int = 160, columns: int = 8, row_labels: Sequence[str] = (),
                  column_labels: Sequence[str] = ()) -> Image.Image:
    """Tiles in rows of ``columns`` under a title, on white; each image ``side`` px wide. Labels, where given, stand at the left
    of the first rows (wrapped at about 14 characters) and above the first columns."""
    columns = max(1, min(columns, len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    labels = [textwrap.wrap(label, 14) for label in row_labels]
    left = _GAP + max((math.ceil(font.getlength(line)) + _GAP for lines in labels for line in lines), default=0)
    width = left + max(columns, 3) * (side + _GAP)
    heading = textwrap.wrap(title, max(20, int(width / 7.2)))
    top = _GAP + _LINE * (len(heading) + bool(column_labels)) + _GAP // 2
    below = _LINE * max((len(tile.lines) for tile in tiles), default=0)
    sheet = Image.new("RGB", (width, top + rows * (side + below + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(heading):
        draw.text((_GAP, _GAP // 2 + i * _LINE), line, font=font, fill=_INK)
    for i, label in enumerate(column_labels[:columns]):
        draw.text((left + i * (side + _GAP), top - _LINE - 2), label, font=font, fill=_INK)
    for i, lines in enumerate(labels[:rows]):
        middle = top + i * (side + below + _GAP) + (side - _LINE * len(lines)) // 2
        draw.multiline_text((_GAP, middle), "\n".join(lines), font=font, fill=_INK)
    for i, tile in enumerate(tiles):
        x, y = left + i % columns * (side + _GAP), top + i // columns * (side + below + _GAP)
        sheet.paste(to_image(tile.picture, side), (x, y))
        for j, line in enumerate(tile.lines):
            color = _ALARM if not tile.good else _INK if j == 0 else _FAINT
            draw.text((x, y + side + 2 + j * _LINE), line, font=small, fill=color)
    sheet.info["alt"] = title
    return sheet


def stack(images: list[Image.Image]) -> Image.Image:
    """Images one below the other, on white, as wide as the widest."""
    whole = Image.new("RGB", (max(image.width for image in images), sum(image.height for image in images)), "white")
    for i, image in enumerate(images):
        whole.paste(image, (0, sum(above.height for above in images[:i])))
    whole.info["alt"] = "; ".join(image.info["alt"] for image in images if "alt" in image.info)
    return whole


def with_map(picture: torch.Tensor, activation: torch.Tensor) -> torch.Tensor:
    """An image (3, H, W) in gray under its activation map (h, w), from dark blue (its minimum) to yellow (its maximum).

    The colors (cividis) are safe for color-blind readers.
    """
    shown = Normalize()(F.interpolate(activation[None, None], picture.shape[1:], mode="nearest")[0, 0].numpy())
    color = torch.from_numpy(matplotlib.colormaps["cividis"](shown)[..., :3]).float().permute(2, 0, 1)
    return 0.45 * picture.mean(0) + 0.55 * color
