"""The paper's own figures (``data/paper``), in the shape of what the experiments measure, to be drawn beside it."""

import pandas as pd

from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from .result import Result

_IMAGENET = "ImageNet-1k"
# file: (title, columns renamed as the experiments name them)
_FILES = {
    "isolated_cls": ("class token apart from the patches for the first blocks", {"isolated_blocks": "isolated blocks"}),
    "cls_only_from_block": ("class token alone from a block on", {"cls_alone_from_block": "class token alone from block"}),
    "token_head": ("the trained head on other tokens", {"tokens_read_by_the_head": "the head reads"}),
    "foreground_background": ("what is shown", {}),
}
_SHOWN = {"image": "whole", "background": "background", "foreground": "foreground"}


def published(name: str) -> Result:
    """A table of the paper: "isolated_cls", "cls_only_from_block", "token_head" or "foreground_background".

    The paper states no intervals, so ``low``, ``high`` and ``n`` are empty.
    """
    if name not in _FILES:
        raise VitvizError(f"The paper's tables here are {', '.join(_FILES)}; there is no {name!r}.{nearest(name, _FILES)}")
    title, names = _FILES[name]
    table = pd.read_csv(data_dir() / "paper" / f"{name}.csv")
    own = [column for column in table.columns if not column.endswith(("top1", "top5"))]
    rows = table.melt(own, var_name="measure")
    if name == "foreground_background":
        parts = rows["measure"].str.split("_", expand=True)
        rows.insert(0, "shown", parts[0].map(_SHOWN))
        rows["measure"] = parts[1]
    rows["measure"] = rows["measure"].str.replace("top", "top-")
    rows = rows.assign(low=float("nan"), high=float("nan"), n=float("nan")).rename(columns=names)
    first = next(iter(names.values()), "shown")
    return Result(f"Published ({_IMAGENET}): {title}", "right answers (%)", rows[[first, *(c for c in rows if c != first)]])
