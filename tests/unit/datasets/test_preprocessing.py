"""Images as a model sees them: timm's own transform to 1/255, whatever the size and format; masks and boxes follow it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.datasets.preprocessing import Preprocessing
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CONFIGS = [{"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"},
           {"crop_pct": 0.875, "interpolation": "bilinear", "crop_mode": "center"},
           {"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash"},
           {"crop_pct": 0.9, "interpolation": "bilinear", "crop_mode": "squash"},
           {"crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "border"}]
SIZES = [(40, 30), (31, 97), (300, 200), (64, 64), (20, 333), (7, 5)]  # width and height


def model(size: int = 48, **config) -> VisionModel:
    return VisionModel(nn.Identity(), "model", size, MEAN, STD, class_names=["cat", "dog"], **config)


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).random((height, width, 3)) * 255
    return Image.fromarray(pixels.astype(np.uint8))


def timms(size: int, config: dict, image: Image.Image) -> Tensor:
    """Pixels in [0, 1] as timm's evaluation transform makes them, its normalization undone."""
    pixels = create_transform(size, is_training=False, mean=MEAN, std=STD, **config)(image)
    return pixels * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)


@pytest.mark.parametrize("config", CONFIGS)
def test_pixels_are_timms_to_one_255th(config: dict, tmp_path: Path):
    seen = model(**config)
    images = [noise(*shape) for shape in SIZES]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    expected = torch.stack([timms(48, config, image) for image in images])

    class Items:
        classes = ["cat", "dog"]
        __len__ = lambda self: len(images)  # noqa: E731
        __getitem__ = lambda self, i: (images[i], 0)  # noqa: E731

    for source in (vv.image_folder(tmp_path, seen), tmp_path, Items()):
        assert (ImageSet(seen, source).batch(range(len(images))) - expected).abs().max() <= 1.01 / 255
    if config["crop_mode"] != "center" or config["crop_pct"] < 1:
        assert (vv.image_folder(tmp_path, 48).images - expected).abs().max() > 0.1  # the whole middle square is another


def test_a_size_takes_the_whole_middle_square(tmp_path: Path):
    noise(90, 60).save(tmp_path / "a.png")
    expected = timms(48, {"crop_pct": 1.0, "interpolation": "bicubic"}, noise(90, 60))
    assert (vv.image_folder(tmp_path, 48).images[0] - expected).abs().max() <= 1.01 / 255


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("shape", SIZES[:4])
def test_masks_and_boxes_lie_on_the_pixels_they_mark(config: dict, shape: tuple[int, int]):
    width, height = shape
    box = (width // 5, height // 3, width // 5 + width // 2, height // 3 + height // 4)  # no edge in the middle of a pixel
    marked, mask = Image.new("RGB", shape), Image.new("L", shape)
    marked.paste((255, 255, 255), box)
    mask.paste(1, box)
    preprocessing = Preprocessing.of(model(**config))
    black_outside = Preprocessing(48, **config, mean=(0.0, 0.0, 0.0))
    expected = (black_outside(marked)[0] > 127).float()
    assert 0 < expected.sum() < 48 * 48
    assert torch.equal(preprocessing.mask(mask), expected)
    inside = preprocessing.box_mask([box], width, height)
    assert (inside != expected).sum() <= 4  # corners, where less than half of a pixel is white


@pytest.mark.parametrize(("image", "said"), [(Image.new("F", (8, 8), 0.5), "mode 'F' .* scale it to 0-255"),
                                             (Image.new("I", (8, 8), 255), "mode 'I' .* scale it to 0-255"),
                                             (Image.new("RGB", (0, 8)), "0 x 8 px has no pixels")])
def test_images_without_a_range_or_pixels_are_refused(image: Image.Image, said: str):
    with pytest.raises(VitvizError, match=said):
        Preprocessing(8)(image)


@pytest.mark.parametrize(("mode", "value"), [("F", 0.5), ("I", 1), ("I;16", 1), ("L", 1), ("1", 1)])
def test_a_mask_of_any_mode_is_where_it_is_not_0(mode: str, value: float):
    mask = Image.new(mode, (8, 8))
    mask.paste(value, (0, 0, 4, 8))
    assert Preprocessing(8).mask(mask).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0]] * 8


def test_a_border_shows_nothing_in_a_mask():
    preprocessing = Preprocessing(16, crop_mode="border", mean=(0.9, 0.9, 0.9))
    assert preprocessing(Image.new("RGB", (40, 10)))[:, 0].float().mean() > 200  # padded in the mean's color
    assert preprocessing.mask(Image.new("L", (40, 10), 255)).sum(1).tolist() == [0.0] * 6 + [16.0] * 4 + [0.0] * 6
    assert preprocessing.box_mask([(0, 0, 40, 10)], 40, 10).sum(1).tolist() == [0.0] * 6 + [16.0] * 4 + [0.0] * 6


@pytest.mark.parametrize("size", [0, 4097, 2.5, "48", None])
def test_a_size_out_of_range_is_refused(size):
    with pytest.raises(VitvizError, match="size .*a model.* is a whole number from 1 to 4096"):
        Preprocessing.of(size)
