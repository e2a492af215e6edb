"""What an experiment returns: a small table of measured numbers that shows, plots and saves itself."""

import textwrap
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns

from ..utils.errors import VitvizError
from ..utils.statistics import wilson

NUMBERS = ["value", "low", "high", "n"]


@dataclass(frozen=True, eq=False)
class Result:
    """Measured numbers, each with its 95 % interval.

    Attributes:
        title: what was measured, on which images.
        quantity: what ``value`` is, with its unit, as an axis is named.
        table: one row a number: columns that say what it is of, the first of them being what varies (a layer, a number of
            blocks, …); then ``value``, ``low`` and ``high`` (its interval) and ``n`` (how many images, neurons or tokens it is
            measured on).
        control: the value expected if there were no effect, with its name; None where there is none.
    """

    title: str
    quantity: str
    table: pd.DataFrame
    control: tuple[str, float] | None = None

    def save(self, path: str | Path) -> Path:
        """Write the table as CSV; returns the path."""
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.table.to_csv(path, index=False)
        except OSError as error:
            raise VitvizError(f"The table cannot be written to {path} ({error.strerror}); name a file you may write.") from None
        return path

    def plot(self, axis: plt.Axes | None = None) -> plt.Axes:
        """Values with their intervals: lines where the first column is a number, else bars; one color a series."""
        axis = axis or plt.subplots(figsize=(7, 3.6), layout="constrained")[1]
        first, *others = [c for c in self.table.columns if c not in NUMBERS]
        series = list(self.table.groupby(others, sort=False)) if others else [((), self.table)]
        lines = pd.api.types.is_numeric_dtype(self.table[first])
        ticks = list(dict.fromkeys(self.table[first]))
        for i, (names, rows) in enumerate(series):
            label, color = ", ".join(map(str, names)), sns.color_palette("colorblind")[i % 10]
            errors = np.abs(rows[["low", "high"]].to_numpy().T - rows["value"].to_numpy())
            if lines:
                axis.errorbar(rows[first], rows["value"], errors, label=label, color=color, capsize=3,
                              marker="os^Dv*XP<>"[i % 10], linestyle=("-", "--", "-.", ":")[i % 4])
            else:
                width = 0.8 / len(series)
                places = [ticks.index(tick) + (i - (len(series) - 1) / 2) * width for tick in rows[first]]
                axis.bar(places, rows["value"], 0.9 * width, yerr=errors, label=label, color=color, capsize=3,
                         hatch=("", "//", "..", "xx")[i % 4], edgecolor="white")
        if self.control:
            axis.axhline(self.control[1], color="0.35", linestyle=(0, (1, 2)), label=f"{self.control[0]}: {self.control[1]:.3g}")
        if not lines:
            axis.set_xticks(range(len(ticks)), [textwrap.fill(str(tick), 12) for tick in ticks])
        elif len(ticks) <= 13:
            axis.set_xticks(ticks)
        axis.set(xlabel=first, ylabel=self.quantity)
        axis.set_title(self.title, fontsize="medium", wrap=True)
        axis.grid(alpha=0.3, axis="both" if lines else "y")
        if others or self.control:
            axis.legend(fontsize="small")
        return axis

    def _repr_html_(self) -> str:
        shown = self.table.copy()
        for column in NUMBERS[:3]:
            shown[column] = shown[column].map("{:.3g}".format)
        return f"<p>{self.title}. Value: {self.quantity}; low and high: its 95 % interval.</p>{shown.to_html(index=False)}"


def beside(findings: dict[str, Result], title: str) -> Result:
    """The same measurement of several models in one finding, each under its name in a column "model"."""
    tables = []
    for name, finding in findings.items():
        tables.append(finding.table.copy())
        tables[-1].insert(1, "model", name)
    first = next(iter(findings.values()))
    return Result(title, first.quantity, pd.concat(tables, ignore_index=True), first.control)


def share(hits, n: int) -> dict[str, float]:
    """The four numbers of a row: a share in percent, with Wilson's interval."""
    low, high = wilson(int(hits), int(n))
    return {"value": 100 * int(hits) / max(1, n), "low": 100 * low, "high": 100 * high, "n": int(n)}


def mean(values) -> dict[str, float]:
    """The four numbers of a row: the mean of independent values, with the interval of 1.96 standard errors."""
    values = np.asarray(values, np.float64)
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return {"value": values.mean(), "low": values.mean() - half, "high": values.mean() + half, "n": len(values)}
