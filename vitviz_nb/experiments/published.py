"""The paper's tables of accuracies (``data/paper``) as results, to be compared with what is measured here."""

import pandas as pd

from ..utils import validate
from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from .result import Result

# file: (title, columns renamed as the experiments name them)
_TABLES = {
    "isolated_cls": ("isolated CLS for the first blocks", {"isolated_blocks": "isolated blocks"}),
    "cls_only_from_block": ("CLS-only from a block on", {"cls_alone_from_block": "CLS-only from block"}),
    "token_head": ("the trained head on other tokens", {"tokens_read_by_the_head": "head reads"}),
    "foreground_background": ("foreground and background", {}),
}
_SHOWN = {"image": "whole", "foreground": "foreground", "background": "background"}


def accuracy(name: str) -> Result:
    """Published ImageNet accuracies: "isolated_cls", "cls_only_from_block", "token_head" or "foreground_background".

    The paper states no intervals, so ``low``, ``high`` and ``n`` are NaN.
    """
    title, columns = _TABLES[validate.choice("A table of the paper", name, _TABLES)]
    path, parts = data_dir() / "paper" / f"{name}.csv", [""] if columns else [f"{part}_" for part in _SHOWN]
    numbers = {f"{part}{measure}": float for part in parts for measure in ("top1", "top5")}
    try:
        table = pd.read_csv(path, dtype=numbers)
        if {*table.columns} != {"model", *columns, *numbers}:
            raise ValueError("it has other columns")
    except (OSError, ValueError) as error:  # pandas' errors of a damaged file are ValueErrors
        raise VitvizError(f"{path} is missing or damaged ({error}). Restore it with git checkout, or install the package "
                          f"again.") from None
    rows = table.melt([column for column in table if not column.endswith(("top1", "top5"))], var_name="measure")
    if name == "foreground_background":
        parts = rows["measure"].str.split("_", expand=True)
        rows.insert(0, "shown", parts[0].map(_SHOWN))
        rows["measure"] = parts[1]
        rows = rows.sort_values("shown", key=lambda shown: shown.map([*_SHOWN.values()].index), kind="stable")
    rows["measure"] = rows["measure"].str.replace("top", "top-")
    rows = rows.assign(low=float("nan"), high=float("nan"), n=float("nan")).rename(columns=columns)
    first = next(iter(columns.values()), "shown")
    rows = rows[[first, *(column for column in rows if column != first)]]
    return Result(f"Published (ImageNet-1k): {title}", "accuracy (%)", rows)
