"""Photographs of one's own, as tensors: every function that takes Emoji World scenes takes these too."""

import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..utils.errors import VitvizError
from .boxes import Boxes, box_mask

_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
_OTHERS = {".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg"}  # named, not silently left out
_ALLOWED = "JPEG, PNG, WebP or BMP"
_HINT = f"Give a folder of {_ALLOWED} images, flat or with a subfolder per class."
_ORIENTATION = 0x0112  # EXIF
_MEGAPIXELS = 100  # a picture of that size takes 400 MB while it is decoded
_NAMED = 5  # skipped files that the summary names; .skipped has all
_OPENING = threading.Lock()


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What ``image_folder`` read.

    ``images``: (N, 3, S, S) float32 RGB in [0, 1]. ``paths``: the N files. ``labels``: for each, the name of the
    subfolder of the given folder that it lies in, "" when it lies in none. ``skipped``: (file, why) of the others.
    ``masks``: (N, S, S) of 0 and 1, the inside of each image's bounding boxes; None if no boxes were given.
    """

    images: torch.Tensor
    paths: list[Path]
    labels: list[str]
    skipped: list[tuple[Path, str]]
    masks: torch.Tensor | None = None


def image_folder(path: str | os.PathLike[str], size: int, limit: int | None = None,
                 boxes: str | os.PathLike[str] | Boxes | None = None) -> ImageFolder:
    """Read the images in a folder and its subfolders, sorted by path: the first ``limit`` of them, or all.

    Each is turned as its EXIF says, laid over white where transparent, resized (bicubic, antialiased) until its
    shorter side has ``size`` px, and cropped to the center. Files that are not images by name and hidden ones are
    passed over; images that cannot be read, or of more than 100 megapixels, are skipped with one warning; with ``boxes``, a
    CSV file as ``boxes.Boxes`` reads it, so are images that have no box inside the crop.
    The result takes 12 * size**2 bytes per image. Raises VitvizError when there is no image to be had.
    """
    folder = Path(path).expanduser()
    known = boxes if boxes is None or isinstance(boxes, Boxes) else Boxes(boxes)
    if not folder.is_dir():
        problem = "is a file, not a folder" if folder.exists() else "does not exist"
        raise VitvizError(f"{folder} {problem}. {_HINT}")
    if size < 1 or (limit is not None and limit < 1):
        raise VitvizError(f"size and limit must be at least 1, not size={size} and limit={limit}.")
    pictures, paths, skipped, masks = [], [], [], []
    for file in _image_files(folder):
        if len(paths) == limit:
            break
        try:
            picture, (width, height) = _read(file, size)
            if known:
                mask = box_mask(known.of(file, folder), width, height, size)
                if not mask.any():
                    raise VitvizError(f"no box in its middle square, in {known.path.name}")
                masks.append(mask)
            pictures.append(picture)
            paths.append(file)
        except Exception as error:  # on damaged files Pillow raises anything from OSError to struct.error
            skipped.append((file, _reason(error)))
    summary = _summary(folder, skipped, len(paths) + len(skipped))
    if not paths:
        raise VitvizError(f"No image in {folder} can be read. {_HINT} {summary}".rstrip())
    if skipped:
        warnings.warn(summary, stacklevel=2)
    images = torch.stack(pictures).float().div_(255)
    relative = [file.relative_to(folder).parts for file in paths]
    labels = [parts[0] if len(parts) > 1 else "" for parts in relative]
    return ImageFolder(images, paths, labels, skipped, torch.stack(masks) if known else None)


def _image_files(folder: Path) -> list[Path]:
    """Files that are images by name, none of them hidden, in an order that is the same on every system."""
    files = {file.relative_to(folder).parts: file for file in folder.rglob("*")}
    return [
        file
        for parts, file in sorted(files.items())
        if file.suffix.lower() in _FORMATS.keys() | _OTHERS
        and not any(part.startswith(".") for part in parts)
        and file.is_file()
    ]


def _read(file: Path, size: int) -> tuple[torch.Tensor, tuple[int, int]]:
    """One image as (3, size, size) uint8, and the width and height of the whole as it is shown."""
    if file.suffix.lower() not in _FORMATS:
        raise VitvizError(f"not {_ALLOWED}")
    with _open(file) as image:
        width, height = image.size
        if width * height > _MEGAPIXELS * 1e6:
            raise VitvizError(
                f"{width} x {height} px = {width * height / 1e6:.0f} megapixels, the limit is {_MEGAPIXELS}"
            )
        image.draft("RGB", (2 * size, 2 * size))  # JPEG only: decodes at 1/2, 1/4 or 1/8 where that is enough
        lying = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
        ImageOps.exif_transpose(image, in_place=True)
        return fit(image, size), (height, width) if lying else (width, height)


def fit(image: Image.Image, size: int) -> torch.Tensor:
    """An image as models see it: over white where transparent, its middle square, ``size`` px a side; uint8 (3, size, size)."""
    if image.mode.startswith("I"):  # 16-bit gray, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).astype(np.uint8))
    transparent = "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA")
    mode = "RGBA" if transparent else "RGB"
    image = image if image.mode == mode else image.convert(mode)  # convert() always copies, up to 400 MB
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if transparent:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _open(file: Path) -> Image.Image:
    """Pillow's image with only its header read, whatever its size."""
    with _OPENING:  # Pillow's own limit is global; ours, applied to what this returns, is lower and says the size
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(file, formats=sorted(set(_FORMATS.values())))
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _reason(error: Exception) -> str:
    if isinstance(error, VitvizError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):  # its message is the path once more
        return f"its content is not {_ALLOWED}"
    return f"damaged: {error}"


def _summary(folder: Path, skipped: list[tuple[Path, str]], tried: int) -> str:
    """One sentence that counts and names what was skipped, "" when nothing was."""
    if not skipped:
        return ""
    named = "; ".join(f"{file.relative_to(folder)} ({why})" for file, why in skipped[:_NAMED])
    more = f"; and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return f"{len(skipped)} of {tried} images in {folder} skipped: {named}{more}."
