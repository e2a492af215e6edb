"""The architecture families compared: what the course's experiments measured on each (paper, all sections).

``data/families.csv`` has the numbers of every embedded model; ``python notebooks/families.py`` measures them.
"""

import pandas as pd

from ..models.cards import read_card
from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from .result import NUMBERS

COLUMNS = ("notebook", "what", "unit", *NUMBERS, "control", "control is", "why not")


def stored() -> pd.DataFrame:
    """One number or a few of each experiment for every embedded model, as ``python notebooks/families.py`` measured them.

    A row a number: ``model``, ``weights`` (the first of their SHA-256) and ``COLUMNS``, with value, low, high and n as in
    ``Result``; ``control``, the value expected if there were no effect, and what that is; or ``why not``, for an experiment that
    the architecture has no object for.
    """
    text, path = dict.fromkeys(("notebook", "what", "unit", "control is", "why not", "weights"), str), data_dir() / "families.csv"
    try:
        table = pd.read_csv(path, dtype=text)
        if [*table.columns] != ["model", "weights", *COLUMNS]:
            raise ValueError("it has other columns")
        return table.fillna({name: "" for name in text})
    except (OSError, ValueError) as error:  # pandas' errors of a damaged file are ValueErrors
        raise VitvizError(f"{path} is missing or damaged ({error}): `python notebooks/families.py` measures every embedded model "
                          f"and writes it.") from None


def adversarially_trained(name: str) -> bool:
    """Whether an embedded model was trained on adversarial examples (see ``training.Training.radius``), too."""
    return read_card(name)["recipe"]["radius"] > 0


def family(name: str) -> str:
    """The architecture family of an embedded model, whatever its training: "vit", "swin", …"""
    return name.removeprefix("emoji-").removesuffix("-robust").removesuffix("-standard")
