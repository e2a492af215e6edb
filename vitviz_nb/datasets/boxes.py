"""Bounding boxes from a CSV file."""

import csv
import math
import os
from pathlib import Path

from ..utils import validate
from ..utils.errors import VitvizError

Box = tuple[float, float, float, float]  # left, top, right, bottom, px of the image as it is shown
_OWN, _IMAGENET = {"file", "left", "top", "right", "bottom"}, {"ImageId", "PredictionString"}
_ALLOWED = ("a CSV file whose first line is file,left,top,right,bottom (pixels; several lines a file for several boxes), or "
            "ImageNet's own LOC_train_solution.csv")


class Boxes:
    """The boxes of many images, by file.

    Args:
        path: CSV with the columns file, left, top, right, bottom (px), ``file`` relative to the images' folder or a bare name;
            or with ImageNet's columns ImageId and PredictionString ("n01440764 240 10 390 211", repeated).

    Raises:
        VitvizError: no such file, other columns, a line that is not a box.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self._boxes = validate.path("boxes", path), {}
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                columns = set(rows.fieldnames or ())
                if not (_OWN <= columns or _IMAGENET <= columns):
                    shown = ", ".join(sorted(columns)) or "(none)"
                    raise VitvizError(f"{self.path} has the columns {shown}. Boxes are {_ALLOWED}.")
                for row in rows:
                    self._add(row, rows.line_num, own=_OWN <= columns)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise VitvizError(f"The boxes in {self.path} cannot be read ({why}). They are {_ALLOWED}.") from None

    def _add(self, row: dict, line: int, own: bool) -> None:
        try:
            if own:
                name, boxes = row["file"].replace("\\", "/"), [tuple(float(row[k]) for k in ("left", "top", "right", "bottom"))]
            else:
                words = row["PredictionString"].split()
                name = row["ImageId"]
                boxes = [tuple(map(float, words[i + 1:i + 5])) for i in range(0, len(words), 5)]
            for box in boxes:
                left, top, right, bottom = box
                if not name or not all(map(math.isfinite, box)) or not (left < right and top < bottom):
                    raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise VitvizError(f"Line {line} of {self.path} is not a box: left must be less than right, and top less than bottom, "
                              f"all in pixels, with the file's name.") from None
        self._boxes.setdefault(name, []).extend(boxes)

    def of(self, file: Path, folder: Path) -> list[Box]:
        """The boxes of ``file`` in ``folder``: by its path in it, else its name, else its name without the suffix."""
        for name in (file.relative_to(folder).as_posix(), file.name, file.stem):
            if name in self._boxes:
                return self._boxes[name]
        return []
