"""Bounding boxes: read from two kinds of CSV, laid over the middle square, and every bad line named."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import vitviz_nb as vv
from vitviz_nb.datasets.boxes import Boxes
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.datasets.preprocessing import Preprocessing
from vitviz_nb.experiments.background import paper_table
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError


def csv(folder: Path, text: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_box_is_cropped_to_the_middle_square_and_scaled():
    # 40 x 20 px: the middle square begins at x = 10; 20 px become 10, so all halves.
    square = Preprocessing(10)
    mask = square.box_mask([(0, 4, 20, 10)], 40, 20)
    wanted = torch.zeros(10, 10)
    wanted[2:5, 0:5] = 1
    assert torch.equal(mask, wanted)
    assert not square.box_mask([(0, 0, 9, 20)], 40, 20).any()  # wholly cut away
    two = square.box_mask([(10, 0, 12, 2), (28, 18, 30, 20)], 40, 20)
    assert two.sum() == 2 and two[0, 0] == two[9, 9] == 1


def test_both_kinds_of_file_are_read(tmp_path: Path):
    own = Boxes(csv(tmp_path, "file,left,top,right,bottom\ncat/1.png,1,2,3,4\ncat/1.png,5,6,7,8\n2.png,0,0,1,1\n"))
    assert own.of(tmp_path / "cat/1.png", tmp_path) == [(1, 2, 3, 4), (5, 6, 7, 8)]
    assert own.of(tmp_path / "dog/2.png", tmp_path) == [(0, 0, 1, 1)]
    assert own.of(tmp_path / "dog/1.png", tmp_path) == []
    theirs = Boxes(csv(tmp_path, "ImageId,PredictionString\nn01_1,n01440764 1 2 3 4 n01440764 5 6 7 8 \n"))
    assert theirs.of(tmp_path / "n01/n01_1.JPEG", tmp_path) == [(1, 2, 3, 4), (5, 6, 7, 8)]


@pytest.mark.parametrize(("text", "sentence"), [
    ("name,x\n", "has the columns name, x. Boxes are a CSV file whose first line is file,left"),
    ("", r"has the columns \(none\)"),
    ("file,left,top,right,bottom\na.png,1,2,3,4\na.png,3,2,1,4\n", "Line 3 of .* is not a box: left must be less than right"),
    ("file,left,top,right,bottom\na.png,1,2,3\n", "Line 2 of .* is not a box"),
    ("file,left,top,right,bottom\na.png,1,2,x,4\n", "Line 2 of"),
    ("ImageId,PredictionString\nn01_1,n01440764 1 2 3\n", "Line 2 of"),
    ("file,left,top,right,bottom\na.png,-inf,2,inf,4\n", "Line 2 of"),
    ("file,left,top,right,bottom\na.png,nan,2,3,4\n", "Line 2 of"),
])
def test_a_bad_file_is_refused_with_its_line(text, sentence, tmp_path: Path):
    with pytest.raises(VitvizError, match=sentence):
        Boxes(csv(tmp_path, text))


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(VitvizError, match="cannot be read .*LOC_train_solution"):
        Boxes(tmp_path / "none.csv")


def test_a_folder_with_boxes_has_masks_and_skips_what_has_no_box(tmp_path: Path):
    for name in ("cat/1.png", "cat/2.png", "dog/3.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (90, 0, 0)).save(tmp_path / name)
    lying = Image.Exif()
    lying[0x0112] = 6  # turned: shown as 20 x 40
    Image.new("RGB", (40, 20)).save(tmp_path / "dog/4.jpg", exif=lying)
    boxes = csv(tmp_path, "file,left,top,right,bottom\n1.png,10,0,20,10\n3.jpg,0,0,40,20\n4.jpg,0,10,10,20\n")
    why = r"1 of 4 images and folders in .* skipped: cat/2.png \(no box in what the model sees of it, in boxes.csv\)"
    with pytest.warns(UserWarning, match=why):
        folder = vv.image_folder(tmp_path, 10, boxes=boxes)
    assert [path.name for path in folder.paths] == ["1.png", "3.jpg", "4.jpg"] and folder.masks.shape == (3, 10, 10)
    assert folder.masks[0, :5, :5].all() and folder.masks[0].sum() == 25
    assert folder.masks[1].all()
    assert folder.masks[2, :5, :5].all() and folder.masks[2].sum() == 25


@pytest.mark.parametrize("name", ["1.png", "1"])
def test_a_name_that_two_files_have_is_refused(name: str, tmp_path: Path):
    for file in ("tench/1.png", "goldfish/1.png"):
        (tmp_path / file).parent.mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / file)
    model = VisionModel(torch.nn.Identity(), "none", 8, class_names=["tench", "goldfish"])
    boxes = csv(tmp_path, f"file,left,top,right,bottom\n{name},0,0,4,8\n")
    for read in (lambda: vv.image_folder(tmp_path, 8, boxes=boxes), lambda: paper_table([model], tmp_path, boxes)):
        with pytest.raises(VitvizError, match=rf"boxes of '{name}', which is the name of .*goldfish/1.png and of .*tench/1.png"):
            read()


def test_names_may_be_relative_to_the_folder_or_the_one_above(tmp_path: Path):
    boxes = Boxes(csv(tmp_path, "file,left,top,right,bottom\ntench/1.png,1,2,3,4\n1.png,5,6,7,8\n"))
    for folder in (tmp_path, tmp_path / "tench"):
        assert boxes.of(tmp_path / "tench/1.png", folder) == [(1, 2, 3, 4)]
    assert boxes.of(tmp_path / "goldfish/1.png", tmp_path / "goldfish") == [(5, 6, 7, 8)]


def test_masks_of_a_folder_and_of_a_data_set_reach_the_experiments(tmp_path: Path):
    model = VisionModel(torch.nn.Identity(), "none", 8, class_names=["cat", "dog"])
    Image.new("RGB", (8, 8)).save(tmp_path / "1.png")
    folder = vv.image_folder(tmp_path, 8, boxes=csv(tmp_path, "file,left,top,right,bottom\n1.png,0,0,4,8\n"))
    assert ImageSet(model, folder).masks([0])[0, :, :4].all()
    assert ImageSet(model, folder).key != ImageSet(model, vv.image_folder(tmp_path, 8)).key

    class Pets:
        classes = ["cat", "dog"]

        def __len__(self):
            return 2

        def __getitem__(self, i):
            mask = Image.new("L", (8, 8))
            mask.paste(1, (4, 0, 8, 8))
            return Image.new("RGB", (8, 8)), (i, mask)

    images = ImageSet(model, Pets())
    assert images.labels([0, 1]).tolist() == [0, 1]
    assert images.masks([1])[0].tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 8
    with pytest.raises(VitvizError, match="1 images have no masks.* boxes=.*class number, mask"):
        ImageSet(model, torch.zeros(1, 3, 8, 8)).masks([0])
