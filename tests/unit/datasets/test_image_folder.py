"""Image folders: what is read, how it is resized, and what is skipped."""

import errno
import os
import struct
import sys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from vitviz_nb.datasets.image_folder import image_folder
from vitviz_nb.utils.errors import VitvizError


def save(file: Path, color: str = "red", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(file, **options)
    return file


def header_only_png(file: Path, side: int) -> Path:
    """A valid 1-bit PNG of side x side px: one byte in a thousand of what its pixels take."""
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    row = bytes(1 + (side + 7) // 8)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    file.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))
    return file


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """Unless a test expects it, nothing may warn: neither we nor Pillow."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_flat_and_nested(tmp_path: Path):
    names = ("zebra.JPG", "a/2.png", "b/1.webp", "a/1.bmp", "b/deep/0.jpeg", "0.jpg")
    files = [save(tmp_path / name) for name in names]
    (tmp_path / "notes.txt").write_text("not an image, and not called one")
    save(tmp_path / ".hidden.png")
    save(tmp_path / ".ipynb_checkpoints" / "a.png")
    result = image_folder(tmp_path, 16)
    assert result.paths == sorted(files)
    assert result.labels == ["", "a", "a", "b", "b", ""]
    assert result.skipped == []
    assert result.images.shape == (6, 3, 16, 16) and result.images.dtype == torch.float32
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert (result.images - red).abs().max() < 0.02
    assert result.images.min() >= 0 and result.images.max() <= 1


def test_limit_counts_images_read(tmp_path: Path):
    (tmp_path / "0.png").write_text("broken")
    for i in range(1, 5):
        save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning, match="1 of 3 images and folders"):
        assert [file.name for file in image_folder(str(tmp_path), 8, limit=2).paths] == ["1.png", "2.png"]


def test_center_crop_of_the_shorter_side(tmp_path: Path):
    """A wide picture in three thirds: only the middle one is left."""
    pixels = np.zeros((50, 150, 3), np.uint8)
    pixels[:, :50, 0] = pixels[:, 50:100, 1] = pixels[:, 100:, 2] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "tall.png")
    for image in image_folder(tmp_path, 25).images:
        green = torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1).expand(3, 25, 25)
        assert (image - green).abs().max() < 0.2  # the border pixels take a little from beyond the crop
        assert torch.equal(image[:, 2:-2, 2:-2], green[:, 2:-2, 2:-2])


def test_resizing_is_antialiased(tmp_path: Path):
    """A one-pixel chequerboard becomes even gray, whether Pillow or the JPEG decoder makes it smaller."""
    pixels = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    for name in ("board.png", "board.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, quality=95)
    assert (image_folder(tmp_path, 16).images - 0.5).abs().max() < 0.03


def test_small_images_are_enlarged(tmp_path: Path):
    save(tmp_path / "dot.png", size=(1, 3))
    assert image_folder(tmp_path, 32).images.shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_exif_turn(tmp_path: Path, kind: str):
    """Orientation 6: the camera was held upright, so the left of the stored picture is the top of the shown one."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, :32] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / f"turned.{kind}", exif=exif, quality=95)
    image = image_folder(tmp_path, 16).images[0]
    assert image[:, :7].min() > 0.9 and image[:, 9:].max() < 0.1


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_gray_and_palette(tmp_path: Path, mode: str):
    save(tmp_path / "a.png", "white", mode=mode)
    save(tmp_path / "b.png", "black", mode=mode)
    white, black = image_folder(tmp_path, 8).images
    assert white.min() == 1 and black.max() == 0


def test_gray_of_16_bits(tmp_path: Path):
    Image.fromarray(np.full((9, 9), 0x8080, np.uint16)).save(tmp_path / "a.png")
    assert torch.allclose(image_folder(tmp_path, 8).images, torch.tensor(0x80 / 0xFF))


def test_cmyk_jpeg(tmp_path: Path):
    save(tmp_path / "a.jpg", "white", mode="CMYK")
    assert image_folder(tmp_path, 8).images.min() > 0.98


def test_transparent_is_white(tmp_path: Path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (20, 20), (255, 0, 0, 128)).save(tmp_path / "half.webp", lossless=True)
    Image.new("LA", (20, 20), (0, 0)).save(tmp_path / "gray.png")
    palette = Image.new("P", (20, 20), 0)
    palette.putpalette([255, 0, 0])
    palette.save(tmp_path / "palette.png", transparency=0)
    result = image_folder(tmp_path, 8)
    images = {file.name: image for file, image in zip(result.paths, result.images, strict=True)}
    for name in ("clear.png", "gray.png", "palette.png"):
        assert images[name].min() == 1, name
    assert torch.allclose(images["half.webp"][:, 4, 4], torch.tensor([1.0, 0.5, 0.5]), atol=0.01)


def test_what_cannot_be_read_is_named(tmp_path: Path):
    good = save(tmp_path / "good.jpg")
    (tmp_path / "text.png").write_text("I am a text file.")
    (tmp_path / "empty.webp").touch()
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for name in ("cut.jpg", "cut.png", "cut.bmp", "cut.webp"):
        Image.fromarray(noise).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
    Image.fromarray(noise).save(tmp_path / "moving.gif")
    Image.fromarray(noise).save(tmp_path / "gif.png", format="GIF")
    with pytest.warns(UserWarning, match=r"^8 of 9 images and folders in .* skipped: cut.bmp \(.*; and 3 more") as caught:
        result = image_folder(tmp_path, 16)
    assert len(caught) == 1 and caught[0].filename == __file__
    assert result.paths == [good] and len(result.images) == 1
    why = {file.name: reason for file, reason in result.skipped}
    assert why["text.png"] == why["gif.png"] == "its content is not JPEG, PNG, WebP or BMP"
    assert why["moving.gif"] == "not JPEG, PNG, WebP or BMP"
    assert why["cut.jpg"].startswith("damaged: ")
    assert {"cut.png", "cut.bmp", "cut.webp", "empty.webp"} <= why.keys()


def test_huge_image_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    good = save(tmp_path / "good.png", size=(40, 30))
    header_only_png(tmp_path / "huge.png", 30_000)
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image.size) or load(image))
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.warns(UserWarning, match="1 of 2 images and folders"):
        result = image_folder(tmp_path, 16)
    assert result.paths == [good]
    assert result.skipped[0][1] == "30000 x 30000 px = 900 megapixels, the limit is 100"
    assert set(decoded) == {(40, 30)}
    assert Image.MAX_IMAGE_PIXELS == limit


def test_large_image_within_the_limit(tmp_path: Path):
    """More than Pillow warns about, less than our limit."""
    header_only_png(tmp_path / "large.png", 9_600)
    assert image_folder(tmp_path, 8).images.max() == 0


def test_no_images(tmp_path: Path):
    allowed = "JPEG, PNG, WebP or BMP"
    with pytest.raises(VitvizError, match=f"does not exist. Give a folder of {allowed}"):
        image_folder(tmp_path / "nowhere", 16)
    file = save(tmp_path / "deep" / "file.png")
    with pytest.raises(VitvizError, match=f"is a file, not a folder. Give a folder of {allowed}"):
        image_folder(file, 16)
    (tmp_path / "empty").mkdir()
    with pytest.raises(VitvizError, match=f"No image in .* can be read. Give a folder of {allowed}"):
        image_folder(tmp_path / "empty", 16)
    file.write_text("broken")
    with pytest.raises(VitvizError, match="1 of 1 images and folders in .* skipped: .*file.png .its content is not"):
        image_folder(tmp_path, 16)  # the error says it all: no warning


@pytest.mark.parametrize("size", [0, -3, 2.5, 10**6, None, "64", True])
def test_a_size_out_of_range_is_refused_at_once(tmp_path: Path, size):
    with pytest.raises(VitvizError, match="size .* is a whole number from 1 to 4096"):
        image_folder(save(tmp_path / "a.png").parent, size)


@pytest.mark.parametrize("limit", [0, -1, 1.5, "2"])
def test_a_limit_is_a_whole_number(tmp_path: Path, limit):
    with pytest.raises(VitvizError, match="limit is a whole number from 1"):
        image_folder(save(tmp_path / "a.png").parent, 8, limit)


@pytest.mark.parametrize("path", ["", None, 3, "a\0b", "x" * 5000])
def test_a_path_that_is_none_is_refused(path):
    with pytest.raises(VitvizError, match="path is a path|does not exist"):
        image_folder(path, 8)


def test_more_images_than_fit_into_memory_are_refused_before_any_is_read(tmp_path: Path):
    for i in range(90):
        (tmp_path / f"{i}.png").touch()  # damaged, which would be found out by reading one
    with pytest.raises(VitvizError, match="90 images of 4096 px take 17 GB; the limit is 16 GB"):
        image_folder(tmp_path, 4096)


def test_folders_that_cannot_be_read_are_counted_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("ant/0.png", "bee/0.png", "bee/deep/0.png"):
        save(tmp_path / name)
    scandir = os.scandir

    def closed(path):  # tests may run as root, whom no mode keeps out
        if Path(path) in (tmp_path / "ant", tmp_path / "bee" / "deep"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    named = r"2 of 3 images and folders in .* skipped: ant \(cannot be read: Permission denied\); bee/deep \(cannot be read: Perm"
    with pytest.warns(UserWarning, match=named):
        result = image_folder(tmp_path, 8)
    assert result.labels == ["bee"] and [path for path, _ in result.skipped] == [tmp_path / "ant", tmp_path / "bee" / "deep"]
    with pytest.raises(VitvizError, match="No image in .* can be read.* 1 of 1 images and folders in .* skipped"):
        image_folder(tmp_path / "ant", 8)


def test_links_that_lead_to_nothing_or_to_a_folder_are_named(tmp_path: Path):
    save(tmp_path / "zoo" / "ant" / "0.png")
    (tmp_path / "zoo" / "bee").symlink_to(tmp_path / "lost")
    (tmp_path / "zoo" / "cat.png").symlink_to(tmp_path / "lost.png")
    (tmp_path / "zoo" / "dog").symlink_to(tmp_path / "zoo")  # a loop, if it were followed
    (tmp_path / "zoo" / "elk.png").symlink_to(tmp_path / "zoo" / "ant" / "0.png")
    with pytest.warns(UserWarning, match=r"3 of 5 .*bee \(a link to nothing\); cat.png \(a link to nothing\); dog"):
        result = image_folder(tmp_path / "zoo", 8)
    assert [path.name for path in result.paths] == ["0.png", "elk.png"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of other systems are text")
def test_names_that_are_not_utf_8_can_be_read_and_printed(tmp_path: Path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.makedirs(folder)
    save(Path(folder, "0.png"))
    Path(folder, os.fsdecode(b"\xe9.png")).touch()
    with pytest.warns(UserWarning) as caught:
        result = image_folder(tmp_path, 8)
    assert result.labels == [r"caf\xe9"]
    str(caught[0].message).encode()  # a surrogate would not encode
    with pytest.raises(VitvizError) as error:
        image_folder(Path(folder, "none"), 8)
    str(error.value).encode()


def test_an_image_too_narrow_to_be_resized_is_skipped(tmp_path: Path):
    save(tmp_path / "good.png")
    save(tmp_path / "line.png", size=(30_000, 1))
    with pytest.warns(UserWarning, match="line.png .30000 x 1 px is too narrow"):
        assert len(image_folder(tmp_path, 256).paths) == 1
