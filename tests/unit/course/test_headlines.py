"""The table at the head of notebooks/README.md is what notebooks/headlines.py measured on the weights that ship."""

import importlib.util
import re
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from vitviz_nb.experiments.result import Result
from vitviz_nb.models.cards import read_card

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"
SPEC = importlib.util.spec_from_file_location("headlines", NOTEBOOKS / "headlines.py")
headlines = importlib.util.module_from_spec(SPEC)
sys.modules["headlines"] = headlines  # where its dataclass looks for its own names
SPEC.loader.exec_module(headlines)
ROWS, README = headlines.ROWS, (NOTEBOOKS / "README.md").read_text("utf-8")


def test_the_committed_table_is_the_one_made_from_the_committed_numbers():
    assert headlines.with_table(README, headlines.table(ROWS, headlines.read())) == README


def test_every_number_was_measured_by_its_rows_call_on_the_weights_that_ship():
    assert headlines.stale(ROWS, headlines.read()) == []


def test_every_number_lies_in_its_interval():
    records = headlines.read()
    assert (records["low"] <= records["value"]).all() and (records["value"] <= records["high"]).all() and (records["n"] > 1).all()


def test_all_scenes_are_in_the_three_styles_that_the_readme_names():
    assert "in the styles 3d, cartoon and flat, those of 08 in all five" in README
    calls = [row.call for row in ROWS if row.notebook != "08"]
    assert {tuple(c.styles or read_card(c.models[0])["recipe"]["styles"]) for c in calls} == {headlines.COLORS}


def test_published_numbers_are_the_papers_with_their_source():
    text = headlines.paper("isolated_cls", isolated_blocks=11)
    assert text == "78.6 (ViT-B/16, isolated blocks 11; [isolated_cls.csv](../data/paper/isolated_cls.csv))" and text in README


@pytest.mark.parametrize("name", ["README.md", "teaching/plan_90_minutes.md", "teaching/plan_one_day.md",
                                  "teaching/plan_four_weeks.md"])
def test_numbers_in_prose_for_teachers_are_those_of_the_table(name):
    """Decimal numbers, but not those of code, of exercises such as 03.1, and of what students say."""
    prose = re.sub(r'`.*?`|\]\(.*?\)|\b[01]\d\.\d\b|".*?"', "", (NOTEBOOKS / name).read_text("utf-8").split(headlines.START)[0])
    numbers = set(re.findall(r"\d+\.\d+", prose)) - {"1.5", "2212.06727"}  # gigabytes, and a factor; the paper
    assert len(numbers) > 5 and numbers <= set(re.findall(r"\d+\.\d+", headlines.table(ROWS, headlines.read())))


# Planted: a measurement whose numbers are known.

CALLS = []


def planted(model, n: int, offset: float = 0.0) -> tuple[Result, Result]:
    CALLS.append(model.name)
    rows = [{"layer": i, "of": of, "value": i + offset, "low": i - 0.5, "high": i + 1.25, "n": n} for i in (0, 1) for of in "ab"]
    return (Result("planted", "size (px)", pd.DataFrame(rows)),
            Result("planted", "share (%)", pd.DataFrame([{"layer": 1, "value": 50.0, "low": 1 / 3, "high": 99.0, "n": 1500}])))


@pytest.fixture
def rows(shelf) -> tuple:
    CALLS.clear()
    call = headlines.Call(planted, ("emoji-vit",), "images", arguments={"n": 9})
    size = headlines.Row("05", "the size", "7", call, {"layer": 1, "of": "b"})
    return size, replace(size, what="the share", cell={"layer": 1})


def test_rows_of_one_call_are_measured_once_and_say_how(rows, shelf):
    records = headlines.measure(rows)
    assert CALLS == ["emoji-vit"]
    assert records["cell"].tolist() == ["layer=1, of=b", "layer=1"]
    assert records["call"].tolist() == ["planted(emoji-vit, n=9)"] * 2
    assert records["weights"].tolist() == [read_card("emoji-vit", shelf.folder)["sha256"][:12]] * 2
    assert records[["value", "low", "high", "n"]].values.tolist() == [[1, 0.5, 2.25, 9], [50, 0.333333, 99, 1500]]


def test_table_keeps_published_and_measured_apart_and_names_the_unit(rows):
    assert headlines.table(rows, headlines.measure(rows)).splitlines()[2:] == [
        "| 05 | the size: size (px) | 7 | 1.00 (0.50 to 2.25) | `emoji-vit` | 9 images |",
        "| 05 | the share: share (%) | 7 | 50.0 (0.3 to 99.0) | `emoji-vit` | 1,500 images |"]


def test_what_is_written_is_read_back_the_same(rows, tmp_path):
    records = headlines.measure(rows)
    records.to_csv(tmp_path / "headlines.csv", index=False)
    pd.testing.assert_frame_equal(headlines.read(tmp_path / "headlines.csv"), records)


@pytest.mark.parametrize("change", [
    {"call": headlines.Call(planted, ("emoji-vit",), "images", arguments={"n": 10})},
    {"call": headlines.Call(planted, ("emoji-vit",), "images", ("3d",), {"n": 9})},
    {"call": headlines.Call(headlines.localization.linear_probes, ("emoji-vit",), "images", arguments={"n": 9})},
    {"cell": {"layer": 0, "of": "b"}},
    {"what": "another size"},
])
def test_a_row_that_changed_since_it_was_measured_is_noticed(rows, change):
    records = headlines.measure(rows)
    assert headlines.stale(rows, records) == []
    changed = headlines.stale((replace(rows[0], **change), rows[1]), records)
    assert changed and all("run python notebooks/headlines.py 05" in sentence for sentence in changed)


def test_other_weights_and_a_row_that_is_no_more_are_noticed(rows):
    records = headlines.measure(rows)
    assert "05 the share" in headlines.stale(rows[:1], records)[0]
    assert len(headlines.stale(rows, records.assign(weights="0" * 12))) == 2


@pytest.mark.parametrize("cell", [{"layer": 1, "of": "c"}, {"of": "a"}, {"layer": 0}])
def test_levels_that_are_not_one_row_of_a_result_get_a_sentence(rows, cell):
    with pytest.raises(ValueError, match="0 rows have"):
        headlines.measure([replace(rows[0], cell=cell)])


def test_what_is_checked_again_is_cheap_and_of_every_notebook(rows):
    seconds = headlines.read().drop_duplicates("call").set_index("call")["seconds"]
    chosen = {str(row.call): row.notebook for row in headlines.cheapest(ROWS, headlines.read())}
    assert set(chosen.values()) == {row.notebook for row in ROWS}
    assert seconds[list(chosen)].sum() <= 90  # of processor time, for tests/notebooks/test_headlines.py
