"""The drawings of Emoji World: its concepts, and a sprite of each in five styles, as ``data/emoji_world`` holds them."""

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from .backgrounds import CONTEXTS

STYLES = ("3d", "cartoon", "flat", "line", "word")
INKED = ("line", "word")  # drawn in one color of ink
SPRITE = 64  # px
_COLUMNS = 30  # sprites in a row of a sheet


@cache
def concept_table() -> list[dict[str, str]]:
    """One row a concept: name, codepoint, category, subcategory, usual context, and whether embedded models know it ("1")."""
    with _intact(data_dir() / "emoji_world" / "concepts.csv") as path, open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
        if not rows or not all(row["context"] in CONTEXTS and row["name"] and row["category"] and row["trained"] for row in rows):
            raise ValueError("not a table of concepts and their contexts")
        return rows


@cache
def sprites(style: str, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sprites of these concepts at 64, 32 and 16 px: uint8 (concepts, 4, side, side), premultiplied."""
    full = sheet(style)[list(rows)]
    half = F.avg_pool2d(full.float(), 2)
    quarter = F.avg_pool2d(half, 2)
    return full, half.round().to(torch.uint8), quarter.round().to(torch.uint8)


def sheet(style: str) -> torch.Tensor:
    """All sprites of a style: uint8 (concepts, 4, 64, 64), colors premultiplied by opacity."""
    inked, count = style in INKED, len(concept_table())
    size = (_COLUMNS * SPRITE, -(-count // _COLUMNS) * SPRITE)
    with _intact(data_dir() / "emoji_world" / f"{style}.{'png' if inked else 'webp'}") as path, Image.open(path) as image:
        if image.size != size:
            raise ValueError(f"{image.width} x {image.height} px instead of {size[0]} x {size[1]}")
        pixels = torch.from_numpy(np.array(image.convert("L") if inked else image.convert("RGBA").convert("RGBa")))
    if inked:
        pixels = torch.stack([torch.zeros_like(pixels)] * 3 + [pixels], -1)
    cells = pixels.view(-1, SPRITE, _COLUMNS, SPRITE, 4).permute(0, 2, 4, 1, 3)
    return cells.reshape(-1, 4, SPRITE, SPRITE)[:count].contiguous()


@contextmanager
def _intact(path: Path) -> Iterator[Path]:
    """VitvizError that names ``path`` when reading it fails."""
    try:
        yield path
    except (OSError, ValueError, KeyError, SyntaxError, csv.Error) as error:  # Pillow calls a broken PNG a SyntaxError
        why = getattr(error, "strerror", None) or (f"no column {error}" if isinstance(error, KeyError) else error)
        raise VitvizError(f"Emoji World cannot be drawn, because {path} is missing or damaged ({why}). Restore it with git "
                          f"checkout, or install the kit again.") from None
