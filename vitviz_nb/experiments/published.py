"""The paper's tables of accuracies (``data/paper``) as results, to be compared with what is measured here."""

import pandas as pd

from ..utils import validate
from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from .result import Result

TABLES = {"isolated_cls": "isolated CLS for the first blocks", "cls_only_from_block": "CLS-only from a block on",
          "token_head": "the trained head on other tokens", "foreground_background": "foreground and background"}


def accuracy(name: str) -> Result:
    """Published ImageNet accuracies: one of ``TABLES``. The paper states no intervals, so ``low``, ``high`` and ``n`` are NaN."""
    path = data_dir() / "paper" / f"{validate.choice('A table of the paper', name, TABLES)}.csv"
    try:
        table = pd.read_csv(path, dtype={"value": float})
        if [*table.columns[1:]] != ["model", "measure", "value"]:
            raise ValueError("it has other columns")
    except (OSError, ValueError) as error:  # pandas' errors of a damaged file are ValueErrors
        raise VitvizError(f"{path} is missing or damaged ({error}). Restore it with git checkout, or install the package "
                          f"again.") from None
    unknown = dict.fromkeys(("low", "high", "n"), float("nan"))
    return Result(f"Published (ImageNet-1k): {TABLES[name]}", "accuracy (%)", table.assign(**unknown))
