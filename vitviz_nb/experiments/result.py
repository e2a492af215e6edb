"""What an experiment returns: a table of measured numbers with 95 % intervals that filters, plots, compares and saves itself."""

import html
import re
import textwrap
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch

from ..utils import files, validate
from ..utils.errors import VitvizError, nearest
from ..utils.statistics import pearson, wilson

NUMBERS = ["value", "low", "high", "n"]
# Of the palette, for the models that the course compares most: each has the same color in every figure.
_COLORS = {"emoji-vit": 0, "emoji-vit-standard": 1, "emoji-resnet": 2, "emoji-vit-deep": 4, "emoji-clip": 9, "ViT-B/16": 7}


@dataclass(frozen=True, eq=False)
class Result:
    """Measured numbers, each with its 95 % interval.

    Attributes:
        title: what was measured, on which images.
        quantity: what ``value`` is, with its unit, as an axis is labeled.
        table: a row a number, also given as a list of dicts: first the factors that it was measured for (layer, measure,
            model, …), the first of them along the horizontal axis of a plot; then ``value``, ``low`` and ``high`` (the
            interval) and ``n`` (how many images, neurons or tokens).
        control: the value expected if there were no effect, with its name; None where there is none.
    """

    title: str
    quantity: str
    table: pd.DataFrame
    control: tuple[str, float] | None = None

    def __post_init__(self):
        rows = self.table
        if not isinstance(rows, pd.DataFrame) and not (isinstance(rows, list) and all(isinstance(row, dict) for row in rows)):
            raise VitvizError(f"A result's table is a DataFrame or a list of dicts, got {validate.shown(rows)}.")
        object.__setattr__(self, "table", pd.DataFrame(rows))

    @property
    def factors(self) -> list[str]:
        """The columns that are no numbers of the measurement, the first along the horizontal axis."""
        return [column for column in self.table.columns if column not in NUMBERS]

    def where(self, **levels) -> "Result":
        """The rows whose factors have these levels, without the factors that are thereby the same in all of them.

        Args:
            levels: for a factor, with ``_`` for the spaces in its name, its level, or a list of levels to keep:
                ``where(measure="top-1", isolated_blocks=[0, 3])``.

        Raises:
            VitvizError: a factor or level that the table does not have.
        """
        chosen, before = self._levels(levels), self.factors
        table = self.table[self._rows(chosen)]
        if table.empty:
            wanted = ", ".join(f"{name} {validate.shown(level)}" for name, level in levels.items())
            raise VitvizError(f"No row has {wanted} together.")
        fixed = [column for column in before if table[column].nunique() == 1
                 and (column in chosen or self.table[column].nunique() > 1)]
        fixed = fixed[1:] if fixed == before else fixed  # a plot needs one
        return replace(self, table=table.drop(columns=fixed).reset_index(drop=True))

    def relative_to(self, **levels) -> "Result":
        """Values and intervals in percent of the value in the row with these levels, for all levels of the other factors.

        The uncertainty of that value is left out.

        Raises:
            VitvizError: a value of 0, or none, to be relative to.
        """
        chosen, table = self._levels(levels), self.table.copy()
        others = [table[factor] for factor in self.factors if factor not in chosen]
        base = table["value"].where(self._rows(chosen))
        base = base.groupby(others).transform("max") if others else base.max() + 0 * base.fillna(0)
        if not (base > 0).all():
            raise VitvizError(f"{self.title}: nothing can be relative to a value of 0, and some rows have no other.")
        table[NUMBERS[:3]] = 100 * table[NUMBERS[:3]].div(base, axis=0)
        whole = ", ".join(f"{name} {level}" for name, level in zip(chosen, levels.values(), strict=True))
        return replace(self, quantity=f"{self.quantity.removesuffix(' (%)')} (% of that for {whole})", table=table, control=None)

    def _levels(self, levels: dict) -> dict[str, list]:
        """The levels wanted of each factor, by the name of its column."""
        names, chosen = {column.replace("_", " "): column for column in self.factors}, {}
        for name, wanted in levels.items():
            column = names.get(name.replace("_", " "))
            if column is None:
                raise VitvizError(f"The table has the factors {', '.join(names)}; there is no {name!r}.{nearest(name, names)}")
            known = list(dict.fromkeys(self.table[column]))
            wanted = validate.scalar(wanted.to_numpy() if isinstance(wanted, (pd.Series, pd.Index)) else wanted)
            several = isinstance(wanted, (list, tuple, range, np.ndarray, torch.Tensor)) and len(wanted) <= len(self.table)
            chosen[column] = [*map(validate.scalar, wanted if several else [wanted])]
            unknown = [level for level in chosen[column] if not isinstance(level, (str, int, float)) or level not in known]
            if unknown or not chosen[column]:
                raise VitvizError(f"The levels of {column} are {', '.join(map(repr, known))}; "
                                  f"got {validate.shown(unknown[0] if unknown else 'none')}.")
        return chosen

    def _rows(self, chosen: dict[str, list]) -> pd.Series:
        if not chosen:  # pandas cannot ask this of no columns
            return pd.Series(True, self.table.index)
        return self.table[[*chosen]].isin(chosen).all(axis=1)

    def plot(self, axis: plt.Axes | None = None) -> plt.Axes:
        """Values with their intervals: lines where the first factor is numeric, else bars; a color for each model, or series."""
        if not isinstance(axis, plt.Axes | None):
            raise VitvizError(f"A result is plotted on an axis of matplotlib, got {validate.shown(axis)}.")
        axis = axis or plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
        first, *others = self.factors
        series = list(self.table.groupby(others, sort=False)) if others else [((), self.table)]
        colors = _colors([", ".join(map(str, levels)) for levels, _ in series])
        lines = pd.api.types.is_numeric_dtype(self.table[first])
        ticks = list(dict.fromkeys(self.table[first]))
        for i, (levels, rows) in enumerate(series):
            label, color = ", ".join(map(str, levels)), colors[i]
            errors = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            if lines:
                axis.errorbar(rows[first], rows["value"], errors, label=label, color=color, capsize=3,
                              marker="os^Dv*XP<>"[i % 10], linestyle=("-", "--", "-.", ":")[i % 4])
            else:
                width = 0.8 / len(series)
                centers = [ticks.index(tick) + (i - (len(series) - 1) / 2) * width for tick in rows[first]]
                axis.bar(centers, rows["value"], 0.9 * width, yerr=errors, label=label, color=color, capsize=3,
                         hatch=("", "//", "..", "xx")[i % 4], edgecolor="white")
        if self.control:
            axis.axhline(self.control[1], color="0.35", linestyle=(0, (1, 2)), label=f"{self.control[0]}: {self.control[1]:.3g}")
        if not lines:
            axis.set_xticks(range(len(ticks)), [textwrap.fill(str(tick), 12, break_long_words=False) for tick in ticks])
        elif len(ticks) <= 13:
            axis.set_xticks(ticks)
        axis.set(xlabel=first, ylabel=self.quantity)
        axis.set_title(self.title, fontsize="medium", wrap=True)
        axis.grid(alpha=0.3, axis="both" if lines else "y")
        texts = [axis.title, axis.xaxis.label, axis.yaxis.label, *([] if lines else axis.get_xticklabels())]
        if others or self.control:
            texts += axis.legend(fontsize="small").get_texts()
        for text in texts:
            text.set_parse_math(False)  # a folder or a model may have $ in its name
        return axis

    @staticmethod
    def side_by_side(results: "dict[str, Result]", title: str, factor: str = "model") -> "Result":
        """Several results of one experiment as one, each under its key in the factor ``factor``.

        Raises:
            VitvizError: results that do not have the same quantity and factors.
        """
        if not isinstance(results, dict) or not results or not all(isinstance(result, Result) for result in results.values()):
            raise VitvizError(f"Results side by side are in a dict by name, at least one, such as {{'emoji-vit': result}}, got "
                              f"{validate.shown(results)}.")
        first, *others = results.values()
        for other in others:
            if (other.quantity, other.factors) != (first.quantity, first.factors):
                raise VitvizError(f"Results side by side have the same quantity and factors; these have {first.quantity} by "
                                  f"{', '.join(first.factors)}, and {other.quantity} by {', '.join(other.factors)}.")
        tables = [result.table.copy() for result in results.values()]
        for name, table in zip(results, tables, strict=True):
            table.insert(1, factor, name)
        control = first.control if all(other.control == first.control for other in others) else None
        return Result(title, first.quantity, pd.concat(tables, ignore_index=True), control)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write the table as CSV and return the path; a file that is no such table is overwritten only with ``force``."""
        return files.write(validate.path("path", path), self.table.to_csv(index=False), ours=is_table, force=force)

    def _repr_html_(self) -> str:
        shown = self.table.copy()
        for column in NUMBERS[:3]:
            shown[column] = shown[column].map("{:.3g}".format)
        text = html.escape(f"{self.title}. Value: {self.quantity}; low and high: its 95 % interval.")
        return f"<p>{text}</p>{shown.to_html(index=False)}"


def _colors(labels: list[str]) -> list[tuple[float, float, float]]:
    """A color for each series: its model's own where its label begins with one, else the first that are free."""
    own = [next((color for name, color in _COLORS.items() if re.match(rf"{name}(?![\w-])", label)), None) for label in labels]
    free = cycle([i for i in range(10) if i not in own] or range(10))
    palette = sns.color_palette("colorblind")
    return [palette[next(free) if color is None else color] for color in own]


def is_table(path: Path) -> bool:
    """Whether a file is a result's table, by its header."""
    with open(path, "rb") as file:
        return file.readline(10_000).rstrip().endswith(",".join(NUMBERS).encode())


def proportion(hits, n: int) -> dict[str, float]:
    """The numbers of a row: ``hits`` of ``n`` in percent, with Wilson's interval; of nothing NaN, within 0 to 100."""
    hits, n = int(hits), int(n)
    low, high = wilson(hits, n)
    return {"value": 100 * hits / n if n else np.nan, "low": 100 * low, "high": 100 * high, "n": n}


def mean_of(values) -> dict[str, float]:
    """The numbers of a row: the mean of independent values, with the interval of 1.96 standard errors; of none NaN.

    Raises:
        VitvizError: values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        raise VitvizError(f"{(~np.isfinite(values)).sum()} of {len(values)} measured values are NaN or infinite, so they have no "
                          f"mean: the weights of the model may be damaged, or the images.")
    mean = values.mean() if len(values) else np.nan
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return {"value": mean, "low": mean - half, "high": mean + half, "n": len(values)}


def correlation(first, second) -> dict[str, float]:
    """The numbers of a row: Pearson's r of n > 3 pairs, with Fisher's interval; 0 without an interval where one is constant."""
    first, second = (torch.as_tensor(values).double()[:, None] for values in (first, second))
    r, varies = pearson(first, second).item(), first.max() > first.min() and second.max() > second.min()
    middle, half = np.arctanh(np.clip(r, -0.999999, 0.999999)), 1.959964 / (len(first) - 3) ** 0.5
    low, high = np.tanh([middle - half, middle + half]) if varies else (np.nan, np.nan)
    return {"value": r, "low": low, "high": high, "n": len(first)}
