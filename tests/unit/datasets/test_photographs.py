"""Photographs with classes and masks: those that ship, and torchvision's data sets as they lie on disk after a download."""

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torchvision import datasets

import vitviz_nb as vv
from vitviz_nb.datasets import photographs
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.models.wrapping import imagenet_names
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.paths import cache_dir, data_dir


@pytest.fixture
def model() -> VisionModel:
    """A network of 64 px whose classes are ImageNet's."""
    module = torch.nn.Sequential(torch.nn.AvgPool2d(64), torch.nn.Flatten(), torch.nn.Linear(3, 1000))
    return VisionModel(module, "means", 64, class_names=imagenet_names())


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_, **__):
        raise OSError("no route to host")

    for module in (datasets.imagenette, datasets.oxford_iiit_pet):
        monkeypatch.setattr(module, "download_and_extract_archive", refused)


def image(path: Path, color: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (80, 64), color).save(path)


def imagenette_at(root: Path) -> None:
    """Ten classes of three photographs in the layout of the archive; each class has its own level of red."""
    for k, wordnet in enumerate(datasets.Imagenette._WNID_TO_CLASS):
        for i in range(3):
            image(root / "imagenette2-320" / "val" / wordnet / f"{i}.JPEG", (25 * k, 0, 0))
            image(root / "imagenette2-320" / "train" / wordnet / f"{i}.JPEG", (0, 255, 0))


def pets_at(root: Path) -> None:
    """Two breeds of two photographs; trimaps are 1 in a middle square, 3 around it, and 2 elsewhere."""
    folder, lines = root / "oxford-iiit-pet", []
    (folder / "annotations" / "trimaps").mkdir(parents=True)
    trimap = np.full((64, 80), 2, np.uint8)
    trimap[16:48, 24:56], trimap[24:40, 32:48] = 3, 1
    for k, breed in enumerate(("Abyssinian", "american_bulldog")):
        for i in (1, 2):
            image(folder / "images" / f"{breed}_{i}.jpg", (200 * k, 0, 0))
            Image.fromarray(trimap).save(folder / "annotations" / "trimaps" / f"{breed}_{i}.png")
            lines.append(f"{breed}_{i} {k + 1} {k + 1} 1")
    for split in ("trainval", "test"):
        (folder / "annotations" / f"{split}.txt").write_text("\n".join(lines))


def test_at_least_300_photographs_ship_with_class_and_mask_in_8_megabytes(model: VisionModel):
    photos = vv.photos()
    assert len(photos) >= 300 and sum(path.stat().st_size for path in (data_dir() / "photos").iterdir()) <= 8e6
    assert 0 <= min(label for _, (label, _) in map(photos.__getitem__, range(20)))
    for i in range(len(photos)):
        image, (label, mask) = photos[i]
        assert image.size == mask.size == (224, 224) and image.mode == "RGB" and label < len(photos.classes)
        assert 0.005 < np.asarray(mask).mean() < 0.7, photos.names[i]


def test_a_photograph_has_its_own_class_and_its_mask_lies_on_the_object(model: VisionModel):
    photos = vv.photos()
    number = photos.names.index("food-fruit-lemon.jpg")
    image, (label, mask) = photos[number]
    yellow, inside = np.asarray(image).astype(int), np.asarray(mask)
    assert photos.classes[label] == "lemon"
    yellow = (yellow[..., 0] - yellow[..., 2]) > 100  # on pale wood
    assert (yellow == inside).mean() > 0.95
    seen = ImageSet(model, photos, n=number + 1)
    assert seen.batch([number]).shape == (1, 3, 64, 64)
    assert abs(seen.masks([number]).mean() - inside.mean()) < 0.01


def test_each_photograph_has_its_source_and_its_license():
    folder = data_dir() / "photos"
    rows = list(csv.DictReader((folder / "objects.csv").open(encoding="utf-8")))
    with zipfile.ZipFile(folder / "objects.zip") as archive:
        assert set(archive.namelist()) == {row["file"][:-3] + suffix for row in rows for suffix in ("jpg", "png")}
    stated = {}
    for line in (folder / "README.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4:
            stated |= {name.strip("` "): cells[3] for name in cells[0].split(",")}
    assert {row["background"] for row in rows} <= stated.keys() and "all stamps" in stated
    assert all(stated[row["background"]].startswith(("GPL-", "LGPL-", "CC", "public")) for row in rows)
    assert "GNU GENERAL PUBLIC LICENSE" in (folder / "COPYING").read_text(encoding="utf-8")


def test_the_first_of_them_are_a_sample_of_all():
    photos = vv.photos()
    kinds = [name.split("-")[0] for name in photos.names]
    assert set(kinds[:100]) >= {"animals", "food", "plants", "vehicles", "household"}
    assert 0.25 < kinds[:100].count("animals") / 100 < 0.5 and 0.25 < kinds.count("animals") / len(kinds) < 0.5


def test_damaged_photographs_are_named_with_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(photographs, "data_dir", lambda: tmp_path)
    with pytest.raises(VitvizError, match="vitviz doctor"):
        vv.photos()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "objects.csv").write_text("file,class\na.jpg,ant\n")
    (tmp_path / "photos" / "objects.zip").write_bytes(b"PK")
    with pytest.raises(VitvizError, match="vitviz doctor"):
        vv.photos()


def test_imagenettes_classes_are_those_of_imagenet(model: VisionModel, offline):
    imagenette_at(cache_dir() / "datasets" / "Imagenette")
    found = vv.imagenette()
    assert len(found) == 30  # of the validation photographs alone
    seen = ImageSet(model, found)
    wordnet_ids = list(datasets.Imagenette._WNID_TO_CLASS)
    reds = [wordnet_ids[round(255 * value / 25)] for value in seen.batch(range(30))[:, 0, 32, 32].tolist()]
    names = ImageNetInfo("imagenet-1k").label_names()
    assert [names[i] for i in seen.labels(range(30))] == reds
    assert len(set(reds[:10])) > 4  # in random order


def test_pets_have_masks_of_the_animal_and_its_outline(model: VisionModel, offline):
    pets_at(cache_dir() / "datasets" / "OxfordIIITPet")
    found = vv.pets()
    assert found.classes == ["Abyssinian", "American Bulldog"] and len(found) == 4
    mask = ImageSet(model, found).masks([0])[0]
    assert mask[16:48, 16:48].min() == 1 and mask.sum() == 32 * 32  # the square's left is at 24 of 80 px, at 16 once cropped


@pytest.mark.parametrize("fetch", ["imagenette", "pets"])
def test_without_internet_one_sentence_says_what_ships(fetch: str, offline):
    with pytest.raises(VitvizError, match=r"no route to host.*vv\.photos\(\)"):
        getattr(vv, fetch)()
    assert not [path for path in (cache_dir() / "datasets").iterdir()]


def test_a_download_that_is_interrupted_leaves_no_half_of_a_data_set(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def fetched(url: str, root, md5: str) -> None:
        calls.append(md5)
        imagenette_at(Path(root))
        if len(calls) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(datasets.imagenette, "download_and_extract_archive", fetched)
    with pytest.raises(KeyboardInterrupt):
        vv.imagenette()
    assert len(vv.imagenette()) == 30 and len(vv.imagenette()) == 30
    assert calls == [datasets.Imagenette._ARCHIVES["320px"][1]] * 2  # torchvision's checksum; and the third call needed none
