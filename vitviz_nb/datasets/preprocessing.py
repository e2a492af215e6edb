"""How a model sees an image file: resized and cropped as timm does it for that model, and the same for masks and boxes."""

import math
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Union

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform

from ..utils import validate
from ..utils.errors import VitvizError

if TYPE_CHECKING:  # models import this subpackage
    from ..models.vision_model import VisionModel


@dataclass(frozen=True)
class Preprocessing:
    """timm's evaluation transform without its normalization: from a PIL image to pixels, a mask or a box in them."""

    size: int  # side of the result, px
    crop_pct: float = 1.0  # which fraction of the resized image's (shorter) side is seen
    interpolation: str = "bicubic"
    crop_mode: str = "center"  # crops the longer side; "squash" changes the aspect ratio, "border" pads the shorter side
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # RGB in [0, 1], the color of the padding

    @classmethod
    def of(cls, size: Union[int, "VisionModel"]) -> "Preprocessing":
        """A model's own; for a size in px, the whole middle square. VitvizError for anything else."""
        if not hasattr(size, "image_size"):
            return cls(validate.whole("size (px; or a model, for its preprocessing)", size, 1, 4096))
        settings = {name: value for name in ("crop_pct", "interpolation", "crop_mode") if (value := getattr(size, name, None))}
        return cls(size.image_size, **settings, mean=tuple(size.mean.flatten().tolist()))

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """An image of any mode, over white where it is transparent, as uint8 RGB (3, size, size)."""
        return _transform(self)(rgb(image))

    def mask(self, image: Image.Image) -> torch.Tensor:
        """A mask, which is not 0 where the class is shown, as float32 (size, size) of 0 and 1."""
        whole = Image.fromarray(np.asarray(image) > 0) if _with_pixels(image).mode == "F" else image  # else 0.5 would be 0
        shown = whole.convert("L").point(lambda value: 255 * (value > 0)).convert("RGB")
        return (_transform(replace(self, mean=(0.0, 0.0, 0.0)))(shown)[0] > 127).float()

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height of an image once it is resized, before it is cropped or padded to the size."""
        target = math.floor(self.size / self.crop_pct)
        if self.crop_mode == "squash":
            return target, target
        if self.crop_mode == "border":
            ratio = max(width, height) / target
            return round(width / ratio), round(height / ratio)
        short = min(width, height)
        return tuple(target if side == short else int(target * side / short) for side in (width, height))

    def box_mask(self, boxes: list[tuple[float, float, float, float]], width: int, height: int) -> torch.Tensor:
        """The inside of boxes (left, top, right, bottom; px) of an image of that size as float32 (size, size) of 0 and 1."""
        mask = torch.zeros(self.size, self.size)
        scaled = self.resized(width, height)
        crop = [round((side - self.size) / 2) if side >= self.size else -((self.size - side) // 2) for side in scaled]
        for box in boxes:
            left, top, right, bottom = (min(max(round(end * scaled[i % 2] / (width, height)[i % 2] - crop[i % 2]), 0), self.size)
                                        for i, end in enumerate(box))
            mask[top:bottom, left:right] = 1
        return mask


@cache
def _transform(settings: Preprocessing):
    arguments = asdict(settings)
    return create_transform(arguments.pop("size"), is_training=False, normalize=False, **arguments)


def rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, over white where it is transparent; VitvizError for one without pixels or without a range."""
    _with_pixels(image)
    mode = "I;16" if image.mode == "I" and image.format == "PNG" else image.mode  # older Pillows call it so
    if mode in ("I", "F"):
        raise VitvizError(f"An image of mode {mode!r} does not say which values are black and white; scale it to 0-255 and make "
                          f"it one of mode 'L' or 'RGB': Image.fromarray(array.astype('uint8')).")
    if mode.startswith("I"):  # 16-bit gray, which convert() would cut off at 255
        image = Image.fromarray((np.asarray(image) / 257).clip(0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        layer, image = image.convert("RGBA"), Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer.getchannel("A"))
    return image if image.mode == "RGB" else image.convert("RGB")  # convert() always copies, up to 300 MB


def _with_pixels(image: Image.Image) -> Image.Image:
    if 0 in image.size:
        raise VitvizError(f"An image of {image.width} x {image.height} px has no pixels; leave it out.")
    return image
