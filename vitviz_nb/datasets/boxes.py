"""Bounding boxes from a CSV file."""

import csv
import math
import os
from pathlib import Path

from ..utils import validate
from ..utils.errors import VitvizError

Box = tuple[float, float, float, float]  # left, top, right, bottom, px of the image as it is shown
_SIDES = ("left", "top", "right", "bottom")
_ALLOWED = (f"a CSV file whose first line is file,{','.join(_SIDES)} (pixels; several lines a file for several boxes), or "
            "ImageNet's own LOC_train_solution.csv")


class Boxes:
    """The boxes of many images, by file.

    Args:
        path: CSV with the columns file, left, top, right, bottom (px), ``file`` relative to the images' folder or the one above,
            or a name that only one file has; or with ImageNet's columns ImageId and PredictionString ("n01440764 240 10 390
            211", repeated).

    Raises:
        VitvizError: no such file, other columns, a line that is not a box.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path, self._boxes = validate.path("boxes", path), {}
        try:
            with open(self.path, newline="", encoding="utf-8-sig") as file:
                rows = csv.DictReader(file)
                columns = set(rows.fieldnames or ())
                if not ({"file", *_SIDES} <= columns or {"ImageId", "PredictionString"} <= columns):
                    shown = ", ".join(sorted(columns)) or "(none)"
                    raise VitvizError(f"{self.path} has the columns {shown}. Boxes are {_ALLOWED}.")
                for row in rows:
                    self._add(row, rows.line_num)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            why = getattr(error, "strerror", None) or error
            raise VitvizError(f"The boxes in {self.path} cannot be read ({why}). They are {_ALLOWED}.") from None

    def _add(self, row: dict, line: int) -> None:
        try:
            if row.keys() >= {"file", *_SIDES}:
                name, numbers = row["file"].replace("\\", "/"), [row[side] for side in _SIDES]
            else:
                name, words = row["ImageId"], row["PredictionString"].split()
                numbers = [word for i, word in enumerate(words) if i % 5]
            numbers = [float(number) for number in numbers]
            boxes = [tuple(numbers[i:i + 4]) for i in range(0, len(numbers), 4)]
            valid = name and all(map(math.isfinite, numbers)) and all(l < r and t < b for l, t, r, b in boxes)  # noqa: E741
        except (ValueError, TypeError, AttributeError):
            valid = False
        if not valid:
            raise VitvizError(f"Line {line} of {self.path} is not a box: left must be less than right, and top less than bottom, "
                              f"all in pixels, with the file's name.")
        self._boxes.setdefault(name, []).extend(boxes)

    def of(self, file: Path, folder: Path) -> list[Box]:
        """The boxes of ``file`` in ``folder``: by its path, else its name, else its name without the suffix."""
        return self._boxes.get(self._name(file, folder), [])

    def check(self, files: list[Path], folder: Path) -> None:
        """VitvizError if the boxes of one name are those of two ``files`` in ``folder``."""
        named: dict[str, Path] = {}
        for file in files:
            if (name := self._name(file, folder)) is not None and named.setdefault(name, file) != file:
                raise VitvizError(f"{self.path} has boxes of {name!r}, which is the name of {named[name]} and of {file}; write "
                                  f"the file's path in the folder instead, such as {file.relative_to(folder).as_posix()!r}.")

    def _name(self, file: Path, folder: Path) -> str | None:
        """By what name ``file`` has boxes, if it has any."""
        names = (*(file.relative_to(root).as_posix() for root in (folder.parent, folder)), file.name, file.stem)
        return next((name for name in names if name in self._boxes), None)
