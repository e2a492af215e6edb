"""Results: their numbers against ones worked out by hand, and what is saved, filtered, drawn and shown of them."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.container import BarContainer, ErrorbarContainer

from vitviz_nb.experiments.result import Result, correlation, mean_of, proportion
from vitviz_nb.utils.errors import VitvizError


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


def row(value: float, low: float, high: float, n: int = 8, **of) -> dict:
    return {**of, "value": value, "low": low, "high": high, "n": n}


DEPTHS = Result("emoji-vit: how deep", "accuracy (%)", pd.DataFrame([
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


def test_a_proportion_is_in_percent_with_wilsons_interval():
    # 8 of 10: z = 1.96, (0.8 + z^2 / 20 -+ z sqrt(0.16 / 10 + z^2 / 400)) / (1 + z^2 / 10) = 0.490 and 0.943
    assert proportion(8, 10) == pytest.approx({"value": 80, "low": 49.02, "high": 94.33, "n": 10}, abs=0.01)
    assert proportion(0, 4) == pytest.approx({"value": 0, "low": 0, "high": 48.99, "n": 4}, abs=0.01)  # z^2 / (4 + z^2)
    assert proportion(4, 4) == pytest.approx({"value": 100, "low": 51.01, "high": 100, "n": 4}, abs=0.01)


def test_a_proportion_of_nothing_may_be_anything():
    row = proportion(0, 0)
    assert np.isnan(row.pop("value")) and row == {"low": 0, "high": 100, "n": 0}


def test_a_mean_has_an_interval_of_1_96_standard_errors_either_side():
    # 1, 2, 3, 4: variance (2.25 + 0.25 + 0.25 + 2.25) / 3 = 5/3, so the standard error is sqrt(5/12) = 0.6455
    assert mean_of([1, 2, 3, 4]) == pytest.approx({"value": 2.5, "low": 1.2348, "high": 3.7652, "n": 4}, abs=1e-4)
    assert mean_of(np.array([3, 3, 3], np.float32)) == {"value": 3, "low": 3, "high": 3, "n": 3}


@pytest.mark.filterwarnings("error")
def test_a_mean_of_one_value_has_no_interval_and_of_none_no_value():
    row = mean_of([7])
    assert row["value"] == 7 and row["n"] == 1 and np.isnan(row["low"]) and np.isnan(row["high"])
    assert np.isnan(mean_of([])["value"]) and mean_of([])["n"] == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nan_or_infinite_values_have_no_mean(wrong: float):
    with pytest.raises(VitvizError, match="1 of 3 measured values are NaN or infinite"):
        mean_of([1, wrong, 3])


# Filtered


def test_rows_of_one_level_lose_the_column_that_is_thereby_constant():
    top5 = DEPTHS.where(measure="top-5")
    assert top5.table.columns.tolist() == ["layer", "value", "low", "high", "n"]
    assert top5.table["layer"].tolist() == [0, 4] and top5.table["value"].tolist() == [30, 2 / 3 * 100]
    assert (top5.title, top5.quantity, top5.control) == (DEPTHS.title, DEPTHS.quantity, DEPTHS.control)
    assert len(DEPTHS.table) == 4  # as it was


def test_several_levels_keep_their_column_and_one_row_keeps_one_factor_to_plot():
    assert KINDS.where(kind=["key", "query"]).table.equals(KINDS.table)
    assert KINDS.where().table["value"].tolist() == KINDS.table["value"].tolist()
    one = KINDS.where(kind="key", where="late")
    assert one.table.columns.tolist() == ["kind", "value", "low", "high", "n"] and one.table["value"].tolist() == [1]


def test_a_factor_that_the_others_fix_goes_and_one_that_was_constant_before_stays():
    table = pd.DataFrame([row(1, 0, 2, layer=0, of="a", by="x", on="z"), row(2, 1, 3, layer=1, of="b", by="y", on="z"),
                          row(3, 2, 4, layer=2, of="b", by="y", on="z")])
    assert Result("", "", table).where(of="b").table.columns.tolist() == ["layer", "on", "value", "low", "high", "n"]


def test_factors_with_spaces_in_their_names_are_written_with_underscores():
    table = pd.DataFrame([row(k, 0, 9, **{"isolated blocks": k, "measure": m}) for k in (0, 3) for m in ("top-1", "top-5")])
    assert Result("", "", table).where(isolated_blocks=3, measure="top-1").table["value"].tolist() == [3]


@pytest.mark.parametrize(("levels", "message"), [
    ({"mesure": "top-1"}, "has the factors layer, measure; there is no 'mesure'. Did you mean measure"),
    ({"measure": "top-3"}, "The levels of measure are 'top-1', 'top-5'; got 'top-3'"), ({"layer": []}, "0, 4; got 'none'"),
    ({"value": 10}, "there is no 'value'")])
def test_a_factor_or_level_that_there_is_not_is_answered_with_those_there_are(levels: dict, message: str):
    with pytest.raises(VitvizError, match=message):
        DEPTHS.where(**levels)


@pytest.mark.parametrize("levels", [pd.Series([0, 4]), np.array([0, 4]), torch.tensor([0, 4]), pd.Index([0, 4]), (0, 4)])
def test_levels_may_be_in_any_list(levels):
    assert DEPTHS.where(layer=levels).table.equals(DEPTHS.where(layer=[0, 4]).table)


def test_levels_that_no_row_has_together_are_named():
    table = pd.DataFrame([row(1, 0, 2, kind="key", where="early"), row(2, 1, 3, kind="query", where="late")])
    with pytest.raises(VitvizError, match="No row has kind 'key', where 'late' together"):
        Result("", "", table).where(kind="key", where="late")


# Relative


def test_values_are_relative_to_the_row_with_the_same_other_levels():
    half = DEPTHS.relative_to(layer=4)  # top-1 of 10 and 20, top-5 of 30 and 200 / 3
    assert half.table["value"].tolist() == pytest.approx([50, 45, 100, 100])
    assert half.table[["low", "high"]].to_numpy()[:2].tolist() == [pytest.approx([40, 65]), pytest.approx([37.5, 60])]
    assert half.table["n"].tolist() == [8] * 4 and half.control is None and half.quantity == "accuracy (% of that for layer 4)"
    assert DEPTHS.where(measure="top-1").relative_to(layer=0).table["value"].tolist() == [100, 200]


def test_nothing_is_relative_to_0_or_to_no_row():
    table = pd.DataFrame([row(0, 0, 1, layer=0, of="a"), row(5, 4, 6, layer=1, of="a"), row(5, 4, 6, layer=1, of="b")])
    for level in (0, 1):
        with pytest.raises(VitvizError, match="relative to a value of 0"):
            Result("", "", table if level == 0 else table[::2]).relative_to(layer=0)
    with pytest.raises(VitvizError, match="The levels of layer are 0, 1; got 2"):
        Result("", "", table).relative_to(layer=2)


# Saved


def test_a_saved_table_is_read_back_as_it_was(tmp_path):
    path = DEPTHS.save(tmp_path / "new" / "folder" / "depths.csv")
    pd.testing.assert_frame_equal(pd.read_csv(path), DEPTHS.table, check_dtype=False)
    assert path == tmp_path / "new" / "folder" / "depths.csv"
    lines = KINDS.save(str(tmp_path / "kinds.csv")).read_text().splitlines()
    assert lines[0] == "kind,where,value,low,high,n" and lines[2] == "query,late,4,3.0,4.5,8"


def test_a_table_is_replaced_and_a_foreign_file_only_by_force(tmp_path):
    path = KINDS.save(tmp_path / "table.csv")
    assert DEPTHS.save(path).read_text().startswith("layer,")
    path.write_text("file,x,y\na.png,1,2\n")
    with pytest.raises(VitvizError, match="force=True"):
        DEPTHS.save(path)
    assert path.read_text() == "file,x,y\na.png,1,2\n"
    assert DEPTHS.save(path, force=True).read_text().startswith("layer,")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "table.csv", tmp_path):  # below a file; a folder
        with pytest.raises(VitvizError, match=f"{path}"):
            DEPTHS.save(path)
    assert (tmp_path / "file").read_text() == "in the way"
    for nothing in ("", 3, None):
        with pytest.raises(VitvizError, match="is a path"):
            DEPTHS.save(nothing)


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
    assert all(len(own) == 1 for own in colors) and colors[0] != colors[1]


def test_the_control_is_drawn_as_a_line_with_its_name_and_value():
    axis = DEPTHS.plot()
    line = next(line for line in axis.lines if line.get_label() == "chance: 0.391")
    assert list(line.get_ydata()) == [0.390625] * 2
    assert [text.get_text() for text in axis.get_legend().get_texts()].count("chance: 0.391") == 1
    assert not any("chance" in line.get_label() for line in KINDS.plot().lines)


def test_axes_are_named_after_the_first_column_and_the_quantity():
    for result, first in ((DEPTHS, "layer"), (KINDS, "kind")):
        axis = result.plot()
        assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == (first, result.quantity, result.title)


def test_the_legend_names_every_series_and_a_single_one_has_none():
    twice = KINDS.table.assign(depth=[1, 1, 2, 2])
    labels = {text.get_text() for text in Result("", "", twice).plot().get_legend().get_texts()}
    assert labels == {"early, 1", "late, 1", "early, 2", "late, 2"}
    assert KINDS.where(where="early").plot().get_legend() is None


def test_it_is_drawn_on_the_axis_given():
    left, right = plt.subplots(1, 2)[1]
    assert DEPTHS.plot(right) is right and len(right.containers) == 2 and not left.has_data()
    assert len(plt.get_fignums()) == 1


@pytest.mark.parametrize("of", [{"layer": 3}, {"kind": "key"}])
def test_a_value_without_an_interval_is_drawn_too(of):
    axis = Result("", "", pd.DataFrame([{**of, **mean_of([7])}])).plot()
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


def test_names_from_folders_are_shown_as_text_and_never_as_html_or_mathematics():
    table = DEPTHS.table.assign(measure=["<b>", "$x^$"] * 2)
    html = Result("<img src=x onerror=alert(1)>", "a & <i>b</i>", table)._repr_html_()
    assert "&lt;img src=x onerror=alert(1)&gt;" in html and "a &amp; &lt;i&gt;b" in html and "&lt;b&gt;" in html
    assert "<img" not in html and "<i>" not in html and "<b>" not in html
    Result("$x^$", "$x^$", table).plot().figure.canvas.draw()  # mathematics that cannot be parsed
    Result("", "", table.drop(columns="layer")).plot().figure.canvas.draw()


def test_results_of_several_models_are_put_side_by_side_by_name_and_share_the_control():
    first, second = (Result(name, "stays (%)", pd.DataFrame([row(v, v - 1, v + 1, layer=i) for i, v in enumerate(values)]),
                            ("even", 1.5)) for name, values in (("a", (90, 50)), ("b", (99, 98))))
    both = Result.side_by_side({"one": first, "two": second}, "Two models")
    assert both.table.columns.tolist() == ["layer", "model", "value", "low", "high", "n"]
    assert both.table["model"].tolist() == ["one", "one", "two", "two"] and both.table["value"].tolist() == [90, 50, 99, 98]
    assert (both.title, both.quantity, both.control) == ("Two models", "stays (%)", ("even", 1.5))
    assert "model" not in first.table  # as it was
    assert len(both.plot().get_legend().get_texts()) == 3


def test_results_with_controls_of_their_own_have_none_in_common():
    first, second = (Result("", "stays (%)", pd.DataFrame([row(5, 4, 6, layer=0)]), ("even", even)) for even in (1.5, 6.25))
    assert Result.side_by_side({"one": first, "two": second}, "").control is None


def test_results_of_other_quantities_or_factors_do_not_stand_side_by_side():
    with pytest.raises(VitvizError, match="accuracy .%. by layer, measure, and mean distance .px. by kind, where"):
        Result.side_by_side({"one": DEPTHS, "two": KINDS}, "")
    with pytest.raises(VitvizError, match="at least one"):
        Result.side_by_side({}, "")


def test_a_correlation_has_fishers_interval_and_that_of_a_constant_none():
    hits = torch.tensor([True, False] * 50)
    exact = torch.where(hits, 1.0, 0.0)
    mixed = exact.clone()
    mixed[:20] = 1 - mixed[:20]  # 80 of 100 agree: correlation 0.6
    scores = {"exact": exact, "mixed": mixed, "independent": torch.tensor([1.0, 1, 0, 0] * 25),
              "constant": torch.full((100,), 0.1)}
    table = pd.DataFrame({name: correlation(values, hits) for name, values in scores.items()}).T
    assert table["value"].tolist() == pytest.approx([1, 0.6, 0, 0], abs=1e-4)
    assert table.loc["mixed", ["low", "high"]].tolist() == pytest.approx([0.4575, 0.7124], abs=1e-3)  # tanh(0.693 -+ 0.199)
    assert table.loc["constant", ["low", "high"]].isna().all()


def test_a_model_has_the_same_color_in_every_plot_and_no_two_models_share_one():
    def colors(*models):
        table = [row(1, 0, 2, layer=layer, model=model) for model in models for layer in (0, 1)]
        axis = Result("", "x", table).plot(plt.subplots()[1])
        return dict(zip(models, [to_rgb(line[0].get_color()) for line in axis.containers], strict=True))

    one = colors("emoji-vit-standard", "emoji-vit", "another")
    other = colors("a third", "emoji-resnet", "emoji-vit", "emoji-vit-standard, measured here", "emoji-vit-b")
    assert one["emoji-vit"] == other["emoji-vit"]
    assert one["emoji-vit-standard"] == other["emoji-vit-standard, measured here"]
    assert len(set(one.values())) == 3 and len(set(other.values())) == 5
