"""The eight whole photographs that ship: all have their source stated, and can be read with their boxes."""

import warnings

import vitviz_nb as vv
from vitviz_nb.utils.paths import data_dir

FOLDER = data_dir() / "photos"


def test_every_photograph_has_its_source_and_rights():
    lines = (FOLDER / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [line.split("|") for line in lines if line.startswith("| `") and ".jpg" in line]
    stated = {row[1].strip().strip("`"): row[4].strip() for row in rows}
    assert set(stated) == {path.name for path in FOLDER.glob("*.jpg")} and len(stated) == 8
    assert set(stated.values()) == {"CC0", "public domain"}


def test_they_are_read_with_and_without_boxes():
    assert vv.image_folder(FOLDER, 64).images.shape == (8, 3, 64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # three show a texture, no object
        boxed = vv.image_folder(FOLDER, 64, boxes=FOLDER / "boxes.csv")
    assert [path.stem for path in boxed.paths] == ["astronaut", "cat", "coffee", "photographer", "rocket"]
    shares = boxed.masks.mean((1, 2))
    assert shares.min() > 0.02 and shares.max() < 0.99  # of the picture
