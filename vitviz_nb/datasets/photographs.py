"""Labeled photographs for real networks, in torchvision's form, which ``ImageSet`` takes: those that ship, and two downloads.

All are in a random order that is always the same, so that the first ``n``, as experiments take them, are a sample of all.
"""

import csv
import os
import tempfile
import zipfile
from collections.abc import Callable
from io import BytesIO

import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import Imagenette, OxfordIIITPet

from ..utils import files
from ..utils.errors import VitvizError
from ..utils.paths import cache_dir, data_dir


class Photos(Dataset):
    """Cut-out photographs of objects on photographic backgrounds: items (PIL image, (class number, PIL mask)), 224 x 224 px.

    Attributes:
        names, labels, classes: the file and the class of each photograph, and all classes.
        sha256: of the file that they are read from.
    """

    def __init__(self):
        folder = data_dir() / "photos"
        try:
            with open(folder / "objects.csv", encoding="utf-8", newline="") as file:
                self.names, self.labels = zip(*((row["file"], row["class"]) for row in csv.DictReader(file)), strict=True)
            self._zip, self.sha256 = zipfile.ZipFile(folder / "objects.zip"), files.sha256(folder / "objects.zip")
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise VitvizError(f"The photographs in {folder} are damaged or missing ({error}); run vitviz doctor.") from None
        self.classes = sorted(set(self.labels))

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Image.Image, tuple[int, Image.Image]]:
        image, mask = (Image.open(BytesIO(self._zip.read(name)))
                       for name in (self.names[i], os.path.splitext(self.names[i])[0] + ".png"))
        return image, (self.classes.index(self.labels[i]), mask)


def photos() -> Photos:
    """The photographs that ship, with classes and masks: 319 objects of 255 classes (``data/photos/README.md``)."""
    return Photos()


def imagenette() -> Subset:
    """The 3,925 validation photographs of Imagenette, ten classes of ImageNet; downloaded once (340 MB).

    Raises:
        VitvizError: they are not there yet, and cannot be downloaded.
    """
    return _shuffled(_downloaded("Imagenette", lambda **where: Imagenette(split="val", size="320px", **where)))


def pets() -> Subset:
    """The 3,669 test photographs of Oxford-IIIT Pet, 37 breeds, with masks of the animals; downloaded once (810 MB).

    A mask has the animal and its outline, the classes 1 and 3 of the data set's trimaps.

    Raises:
        VitvizError: they are not there yet, and cannot be downloaded.
    """
    return _shuffled(_downloaded("OxfordIIITPet", lambda **where: OxfordIIITPet(
        split="test", target_types=("category", "segmentation"), target_transform=_with_mask, **where)))


def _with_mask(target: tuple[int, Image.Image]) -> tuple[int, Image.Image]:
    return target[0], target[1].point(lambda value: 255 * (value != 2))  # 2 is the background


def _downloaded(name: str, make: Callable) -> Dataset:
    """A data set of torchvision in the cache folder: there only when it is whole, for torchvision takes half of one, too."""
    folder = cache_dir() / "datasets" / name
    if not folder.is_dir():
        files.ready(folder.parent, "The folder for data sets,")
        try:
            with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as partial:
                make(root=partial, download=True)
                os.rename(partial, folder)
        except (OSError, RuntimeError, EOFError) as error:  # no network; another checksum; a full disk
            raise VitvizError(f"{name} cannot be downloaded ({error}). It needs internet once; without it, vv.photos() gives "
                              f"the photographs that ship.") from None
    try:
        return make(root=folder, download=False)
    except (OSError, RuntimeError) as error:
        raise VitvizError(f"{name} in {folder} is damaged ({error}); delete that folder, and it is downloaded again.") from None


def _shuffled(source: Dataset) -> Subset:
    shuffled = Subset(source, torch.randperm(len(source), generator=torch.Generator().manual_seed(0)).tolist())
    shuffled.classes = source.classes
    return shuffled
