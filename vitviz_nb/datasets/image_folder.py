"""Images of one's own, as tensors: every function that takes Emoji World scenes takes these too."""

import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

import torch
from PIL import Image, ImageOps

from ..utils import validate
from ..utils.errors import VitvizError
from .boxes import Boxes
from .preprocessing import Preprocessing

if TYPE_CHECKING:  # models import this subpackage
    from ..models.vision_model import VisionModel

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # as Pillow calls them
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_OTHERS = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg")  # named, not silently left out
_ALLOWED = "JPEG, PNG, WebP or BMP"
_HINT = f"Give a folder of {_ALLOWED} images, flat or with a subfolder per class."
_ORIENTATION = 0x0112  # EXIF
_MEGAPIXELS = 100  # an image of that size takes 400 MB while it is decoded
_DRAFT = 16  # megapixels; a larger JPEG is decoded at a half, a quarter or an eighth of its size where that is enough
_MOST_BYTES = 16 * 2**30  # of all images together
_NAMED = 5  # skipped files that the summary names; .skipped has all
_OPENING = threading.Lock()


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What ``image_folder`` read: N images and what is known of each."""

    images: torch.Tensor  # float32 (N, 3, S, S), RGB in [0, 1]
    paths: list[Path]
    labels: list[str]  # the subfolder of the given folder that each lies in, "" when it lies in none
    skipped: list[tuple[Path, str]]  # (file or folder, why) of what was not read
    masks: torch.Tensor | None = None  # float32 (N, S, S) of 0 and 1, the inside of the bounding boxes; None without boxes


def image_folder(path: str | os.PathLike[str], size: Union[int, "VisionModel"], limit: int | None = None,
                 boxes: str | os.PathLike[str] | Boxes | None = None) -> ImageFolder:
    """The images in a folder and its subfolders, sorted by path, turned as their EXIF says, over white where transparent.

    Hidden files and those that are not images by name are passed over. Images that cannot be read, have more than 100 megapixels
    or no box inside the crop, and folders that cannot be read, are skipped with one warning.

    Args:
        size: a model, whose preprocessing (timm's) is applied but for its normalization; or px, for the whole middle square.
        limit: the first so many of them; by default all.
        boxes: a CSV file as ``boxes.Boxes`` reads it.

    Raises:
        VitvizError: there is no image to be had; a size beyond 4,096 px; more images than fit into 16 GB.
    """
    folder, preprocessing = validate.path("path", path), Preprocessing.of(size)
    limit = limit if limit is None else validate.whole("limit", limit, 1)
    boxes = boxes if boxes is None or isinstance(boxes, Boxes) else Boxes(boxes)
    if not os.path.isdir(folder):
        problem = "is a file, not a folder" if os.path.exists(folder) else "does not exist"
        raise VitvizError(f"{_printable(folder)} {problem}. {_HINT}")
    files, skipped = image_files(folder)
    if boxes:
        boxes.check(files, folder)
    check_memory(len(files[:limit]), preprocessing.size)
    read = []
    for file in files:
        if len(read) == limit:
            break
        try:
            image, mask = _read(file, preprocessing, boxes and boxes.of(file, folder))
            if boxes and not mask.any():
                raise VitvizError(f"no box in what the model sees of it, in {boxes.path.name}")
            read.append((file, image, mask))
        except Exception as error:  # on damaged files Pillow raises anything from OSError to struct.error
            skipped.append((file, _reason(error)))
    shown, count = _printable(folder), f"{len(skipped)} of {len(skipped) + len(read)}"
    named = [f"{_printable(os.path.relpath(path, folder))} ({why})" for path, why in skipped[:_NAMED]]
    named += [f"and {len(skipped) - _NAMED} more"] * (len(skipped) > _NAMED)
    summary = f"{count} images and folders in {shown} skipped: {'; '.join(named)}." if skipped else ""
    if not read:
        raise VitvizError(f"No image in {shown} can be read. {_HINT} {summary}".rstrip())
    if summary:
        warnings.warn(summary, stacklevel=2)
    paths, images, masks = zip(*read, strict=True)
    labels = ["" if path.parent == folder else _printable(path.relative_to(folder).parts[0]) for path in paths]
    return ImageFolder(torch.stack(images).float().div_(255), list(paths), labels, skipped, torch.stack(masks) if boxes else None)


def check_memory(n: int, size: int) -> None:
    """VitvizError if ``n`` images of ``size`` px would not fit into 16 GB."""
    if n * 12 * size**2 > _MOST_BYTES:
        raise VitvizError(f"{n:,} images of {size} px take {n * 12 * size**2 / 2**30:,.0f} GB; the limit is "
                          f"{_MOST_BYTES / 2**30:.0f} GB. Take fewer of them, or smaller ones.")


def image_files(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Files that are images by name, in an order that is the same on every system, and (folder or link, why) of what is not."""
    files, skipped, errors = [], [], []
    for here, subfolders, names in os.walk(folder, onerror=errors.append):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for path in (Path(here, name) for name in (*subfolders, *names) if not name.startswith(".")):
            if os.path.islink(path) and not os.path.isfile(path):
                why = "a link; links to folders are not followed" if os.path.exists(path) else "a link to nothing"
                skipped.append((path, why))
            elif path.suffix.lower() in _SUFFIXES + _OTHERS and os.path.isfile(path):
                files.append(path)
    skipped += [(Path(error.filename), _reason(error)) for error in errors]
    return sorted(files, key=lambda file: file.relative_to(folder).parts), sorted(skipped)


def _read(file: Path, preprocessing: Preprocessing, boxes: list | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """One image as uint8 (3, size, size), and the mask (size, size) of its boxes if there are boxes."""
    if file.suffix.lower() not in _SUFFIXES:
        raise VitvizError(f"not {_ALLOWED}")
    with _OPENING:  # Pillow's own limit is global; ours, applied to what is only a header yet, is lower and says the size
        pillows, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file, formats=_FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = pillows
    with image:
        width, height = image.size
        if width * height > _MEGAPIXELS * 1e6:
            raise VitvizError(f"{width} x {height} px = {width * height / 1e6:.0f} megapixels, the limit is {_MEGAPIXELS}")
        scaled = preprocessing.resized(width, height)
        if not 0 < scaled[0] * scaled[1] <= _MEGAPIXELS * 1e6:
            raise VitvizError(f"{width} x {height} px is too narrow to be resized")
        if width * height > _DRAFT * 1e6:
            image.draft("RGB", (2 * scaled[0], 2 * scaled[1]))
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            width, height = height, width
        ImageOps.exif_transpose(image, in_place=True)
        return preprocessing(image), None if boxes is None else preprocessing.box_mask(boxes, width, height)


def _reason(error: Exception) -> str:
    if isinstance(error, VitvizError):
        return str(error)
    if isinstance(error, Image.UnidentifiedImageError):  # its message is the path once more
        return f"its content is not {_ALLOWED}"
    return f"cannot be read: {error.strerror}" if getattr(error, "strerror", None) else f"damaged: {error}"


def _printable(path: str | Path) -> str:
    """A path as text that can be printed, also where its name is not UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
