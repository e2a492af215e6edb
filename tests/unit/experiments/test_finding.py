"""Findings: their numbers against ones worked out by hand, and what is saved, drawn and shown of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer

from vitviz_nb.experiments.result import Result, beside, mean, share
from vitviz_nb.utils.errors import VitvizError


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def row(value: float, low: float, high: float, n: int = 8, **of) -> dict:
    return {**of, "value": value, "low": low, "high": high, "n": n}


DEPTHS = Result("emoji-vit: how deep", "right answers (%)", pd.DataFrame([
    row(10, 8, 13, layer=0, measure="top-1"), row(30, 25, 40, layer=0, measure="top-5"),
    row(20, 16, 21, layer=4, measure="top-1"), row(2 / 3 * 100, 60, 70, layer=4, measure="top-5"),
]), control=("chance", 0.390625))
KINDS = Result("emoji-vit: which kind", "mean distance (px)", pd.DataFrame([
    row(2, 1, 5, kind="query", where="early"), row(4, 3, 4.5, kind="query", where="late"),
    row(3, 2, 3.5, kind="key", where="early"), row(1, 0.5, 1.5, kind="key", where="late"),
]))


def segments(container: ErrorbarContainer) -> list[tuple[float, float, float]]:
    """(x, low, high) of each error bar."""
    return [(line[0][0], line[0][1], line[1][1]) for line in container.lines[2][0].get_segments()]


# Numbers of a row


def test_share_is_in_percent_with_wilsons_interval():
    # 8 of 10: z = 1.96, (0.8 + z^2 / 20 -+ z sqrt(0.16 / 10 + z^2 / 400)) / (1 + z^2 / 10) = 0.490 and 0.943
    assert share(8, 10) == pytest.approx({"value": 80, "low": 49.02, "high": 94.33, "n": 10}, abs=0.01)
    assert share(0, 4) == pytest.approx({"value": 0, "low": 0, "high": 48.99, "n": 4}, abs=0.01)  # z^2 / (4 + z^2)
    assert share(4, 4) == pytest.approx({"value": 100, "low": 51.01, "high": 100, "n": 4}, abs=0.01)


def test_share_of_nothing_may_be_anything():
    assert share(0, 0) == {"value": 0, "low": 0, "high": 100, "n": 0}


def test_mean_has_an_interval_of_1_96_standard_errors_either_side():
    # 1, 2, 3, 4: variance (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3, so the standard error is sqrt(5/12) = 0.6455
    assert mean([1, 2, 3, 4]) == pytest.approx({"value": 2.5, "low": 1.2348, "high": 3.7652, "n": 4}, abs=1e-4)
    assert mean(np.array([3, 3, 3], np.float32)) == {"value": 3, "low": 3, "high": 3, "n": 3}


def test_mean_of_one_value_has_no_interval():
    found = mean([7])
    assert found["value"] == 7 and found["n"] == 1 and np.isnan(found["low"]) and np.isnan(found["high"])


# Saved


def test_a_saved_table_is_read_back_as_it_was(tmp_path):
    path = DEPTHS.save(tmp_path / "new" / "folder" / "depths.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), DEPTHS.table, check_dtype=False)
    assert path == tmp_path / "new" / "folder" / "depths.csv"
    lines = KINDS.save(str(tmp_path / "kinds.csv")).read_text().splitlines()
    assert lines[0] == "kind,where,value,low,high,n" and lines[2] == "query,late,4,3.0,4.5,8"


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "table.csv", tmp_path):  # below a file; a folder
        with pytest.raises(VitvizError, match=f"cannot be written to {path}"):
            DEPTHS.save(path)
    assert (tmp_path / "file").read_text() == "in the way"


# Drawn


def test_numbers_are_drawn_as_one_line_a_series_with_intervals():
    axis = DEPTHS.plot()
    lines = {c.get_label(): c for c in axis.containers}
    assert list(lines) == ["top-1", "top-5"] and all(isinstance(c, ErrorbarContainer) for c in lines.values())
    assert np.allclose(lines["top-1"].lines[0].get_xydata(), [[0, 10], [4, 20]])
    assert np.allclose(lines["top-5"].lines[0].get_xydata(), [[0, 30], [4, 200 / 3]])
    assert np.allclose(segments(lines["top-1"]), [(0, 8, 13), (4, 16, 21)])
    assert np.allclose(segments(lines["top-5"]), [(0, 25, 40), (4, 60, 70)])
    assert list(axis.get_xticks()) == [0, 4]  # no layer 0.5


def test_names_are_drawn_as_bars_side_by_side_with_intervals():
    axis = KINDS.plot()
    bars = {c.get_label(): c for c in axis.containers if isinstance(c, BarContainer)}
    assert list(bars) == ["early", "late"] and [label.get_text() for label in axis.get_xticklabels()] == ["query", "key"]
    assert [bar.get_height() for bar in bars["early"]] == [2, 3] and [bar.get_height() for bar in bars["late"]] == [4, 1]
    assert np.allclose([s[1:] for s in segments(bars["early"].errorbar)], [(1, 5), (2, 3.5)])
    # From left to right, none over another, and each nearer to its own tick than to the other one.
    ordered = [bars["early"][0], bars["late"][0], bars["early"][1], bars["late"][1]]
    edges = [edge for bar in ordered for edge in (bar.get_x(), bar.get_x() + bar.get_width())]
    assert edges == sorted(edges)
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in ordered] == [0, 0, 1, 1]


def test_a_bar_stands_at_its_name_though_another_series_lacks_it():
    table = pd.DataFrame([row(2, 1, 3, kind="query", where="early"), row(4, 3, 5, kind="key", where="early"),
                          row(6, 5, 7, kind="key", where="late")])
    axis = Result("", "", table).plot()
    late = next(c for c in axis.containers if c.get_label() == "late" and isinstance(c, BarContainer))
    assert [round(bar.get_x() + bar.get_width() / 2) for bar in late] == [1] and late[0].get_height() == 6


def test_each_series_has_a_color_of_its_own_also_for_its_intervals():
    lines = DEPTHS.plot().containers
    assert to_rgb(lines[0].lines[0].get_color()) != to_rgb(lines[1].lines[0].get_color())
    for line in lines:
        assert to_rgb(line.lines[2][0].get_color()[0]) == to_rgb(line.lines[0].get_color())
    bars = [c for c in KINDS.plot().containers if isinstance(c, BarContainer)]
    colors = [{bar.get_facecolor() for bar in series} for series in bars]
    assert all(len(found) == 1 for found in colors) and colors[0] != colors[1]


def test_the_control_is_drawn_as_a_line_with_its_name_and_value():
    axis = DEPTHS.plot()
    line = next(line for line in axis.lines if line.get_label() == "chance: 0.391")
    assert list(line.get_ydata()) == [0.390625] * 2
    assert [text.get_text() for text in axis.get_legend().get_texts()].count("chance: 0.391") == 1
    assert not any("chance" in line.get_label() for line in KINDS.plot().lines)


def test_axes_are_named_after_the_first_column_and_the_quantity():
    for finding, first in ((DEPTHS, "layer"), (KINDS, "kind")):
        axis = finding.plot()
        assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == (first, finding.quantity, finding.title)


def test_the_legend_names_every_series_and_a_single_one_has_none():
    twice = KINDS.table.assign(depth=[1, 1, 2, 2])
    labels = {text.get_text() for text in Result("", "", twice).plot().get_legend().get_texts()}
    assert labels == {"early, 1", "late, 1", "early, 2", "late, 2"}
    assert Result("", "", KINDS.table.drop(columns="where")[::2]).plot().get_legend() is None


def test_it_is_drawn_on_the_axis_given():
    left, right = plt.subplots(1, 2)[1]
    assert DEPTHS.plot(right) is right and len(right.containers) == 2 and not left.has_data()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("of", [{"layer": 3}, {"kind": "key"}])
def test_a_value_without_an_interval_is_drawn_too(of):
    axis = Result("", "", pd.DataFrame([{**of, **mean([7])}])).plot()
    axis.figure.canvas.draw()
    drawn = axis.containers[-1]
    assert (drawn[0].get_height() if isinstance(drawn, BarContainer) else drawn.lines[0].get_ydata()[0]) == 7


# Shown


def test_a_notebook_shows_title_quantity_and_every_number():
    html = DEPTHS._repr_html_()
    assert DEPTHS.title in html and DEPTHS.quantity in html and "95 % interval" in html
    cells = [cell.split("<")[0] for cell in html.split("<td>")[1:]]
    assert cells[-6:] == ["4", "top-5", "66.7", "60", "70", "8"] and len(cells) == 4 * 6
    assert DEPTHS.table["value"].dtype == float  # shown from a copy


def test_findings_of_several_models_stand_beside_each_other_by_name_and_share_the_control():
    first, second = (Result(name, "stays (%)", pd.DataFrame([row(v, v - 1, v + 1, layer=i) for i, v in enumerate(values)]),
                             ("even", 1.5)) for name, values in (("a", (90, 50)), ("b", (99, 98))))
    both = beside({"one": first, "two": second}, "Two models")
    assert both.table.columns.tolist() == ["layer", "model", "value", "low", "high", "n"]
    assert both.table["model"].tolist() == ["one", "one", "two", "two"] and both.table["value"].tolist() == [90, 50, 99, 98]
    assert (both.title, both.quantity, both.control) == ("Two models", "stays (%)", ("even", 1.5))
    assert "model" not in first.table  # as it was
    assert len(both.plot().get_legend().get_texts()) == 3
