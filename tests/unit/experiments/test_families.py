"""The families table holds what the experiments measure, and its figure shows every number of it."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import vitviz_nb as vv
from vitviz_nb.experiments import families
from vitviz_nb.experiments.result import Result
from vitviz_nb.models.cards import embedded_names
from vitviz_nb.utils.errors import NotApplicable, VitvizError

# notebooks/families.py: a command, no module of the package
SPEC = importlib.util.spec_from_file_location("families_command", Path(__file__).parents[3] / "notebooks" / "families.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)

# Planted: experiments whose numbers are known


def rows_of(model, world):
    table = pd.DataFrame({"layer": [0, 1], "value": [5.0, 7.0], "low": [4.0, 6.0], "high": [6.0, 9.0], "n": [10, 20]})
    yield families._row("last", Result("", "size (px)", table), {"layer": 1}, {"layer": 0}, "the first")
    yield families._row("first", Result("", "size (px)", table), {"layer": 0}, 2.5, "half")
    yield families._row("alone", Result("", "size (px)", table), {"layer": 0})


def cannot(model, world):
    raise NotApplicable(f"{model.name} has no tail.")
    yield


@pytest.fixture
def planted(monkeypatch, tiny_vit):
    monkeypatch.setattr(families, "EXPERIMENTS", {"03": rows_of, "05": cannot})
    tiny_vit.card = {}
    return tiny_vit


def test_a_number_comes_with_its_control_and_a_missing_one_with_its_reason(planted):
    table = families.measure(planted)
    assert list(table.columns) == list(families.COLUMNS)
    assert table.iloc[:, :8].to_numpy().tolist()[:2] == [["03", "last", "size (px)", 7, 6, 9, 20, 5],
                                                         ["03", "first", "size (px)", 5, 4, 6, 10, 2.5]]
    assert np.isnan(table["control"][2]) and table["control is"].tolist() == ["the first", "half", "", ""]
    assert table["why not"].tolist() == ["", "", "", "tiny-vit has no tail."] and table["n"].tolist() == [20, 10, 10, 0]


def test_an_error_is_no_result_of_a_family(planted, monkeypatch):
    """An unwritable cache was stored as a reason why an architecture has no such number."""
    def unwritable(model, world):
        raise VitvizError("The cache folder cannot be written.")
        yield

    monkeypatch.setitem(families.EXPERIMENTS, "06", unwritable)
    with pytest.raises(VitvizError, match="The cache folder cannot be written"):
        families.measure(planted)


def test_only_the_notebooks_asked_for_are_measured(planted):
    assert families.measure(planted, ["05"])["notebook"].tolist() == ["05"]
    with pytest.raises(VitvizError, match="one of 03, 05; got '3'"):
        families.measure(planted, ["3"])


def test_a_model_that_is_not_embedded_is_told_where_to_go(tiny_vit):
    with pytest.raises(VitvizError, match="tiny-vit is none. Each by itself takes your images"):
        families.measure(tiny_vit)


def test_what_is_written_is_read_back_the_same(planted, tmp_path, monkeypatch):
    table = families.measure(planted)
    table.insert(0, "model", "tiny-vit")
    table.insert(1, "weights", "012345678901")
    monkeypatch.setattr(families, "data_dir", lambda: tmp_path)
    for content in (None, b"", b"\xff\xfe", b"a,b\n1,2\n"):
        if content is not None:
            (tmp_path / "families.csv").write_bytes(content)
        with pytest.raises(VitvizError, match="families.csv is missing or damaged .*: `python notebooks/families.py` measures"):
            families.stored()
    table.to_csv(tmp_path / "families.csv", index=False)
    pd.testing.assert_frame_equal(families.stored(), table)


def test_the_picture_has_a_panel_a_number_with_every_model_that_has_it(planted, monkeypatch):
    table = pd.concat([families.measure(planted).assign(model=name) for name in ("emoji-a", "emoji-b", "emoji-b-robust")])
    table = table[(table["model"] != "emoji-b") | (table["what"] != "first")]
    monkeypatch.setattr(families, "read_card", lambda name: {"recipe": {"radius": 2.0 * name.endswith("robust")}})
    figure = families.panels(table)
    shown = [axis for axis in figure.axes if axis.axison]
    assert [axis.get_title() for axis in shown] == ["03: last", "03: first", "03: alone"]
    assert [label.get_text() for label in shown[0].get_yticklabels()] == ["a", "b"]
    dots = [[(line.get_xdata()[0], round(line.get_ydata()[0]), line.get_markerfacecolor() == "white") for line in axis.lines
             if line.get_marker() == "o"] for axis in shown]
    both = [(7, 0, False), (7, 1, False), (7, 1, True)]
    assert dots == [both, [(5, 0, False), (5, 1, True)], [(5, *where) for _, *where in both]]
    assert [line.get_xdata()[0] for line in shown[0].lines if line.get_marker() == "x"] == [5, 5, 5]


def test_a_model_and_its_twin_are_of_one_family():
    assert {families.family(name) for name in ("emoji-vit", "emoji-vit-standard")} == {"vit"}
    assert {families.family(name) for name in ("emoji-swin", "emoji-swin-robust")} == {"swin"}
    assert families.adversarially_trained("emoji-vit") and not families.adversarially_trained("emoji-swin")


# The wall and the gallery


def test_neurons_whose_top_images_agree_come_first_and_dead_ones_not():
    class Known:
        def table(self):
            scenes = [("a", "b", "c"), ("a", "a", "a"), ("a", "a", "b"), ("a", "a", "a")]
            return pd.DataFrame({"layer": [3, 3, 3, 1], "neuron": [0, 1, 2, 9], "scenes": scenes,
                                 "status": ["alive", "alive", "dead", "alive"]})

    assert families.most_consistent(Known())["neuron"].tolist() == [1, 0]


@dataclass
class Made:
    """A rendering that was interrupted, or was not."""

    pictures: torch.Tensor
    finished: bool = True

    def require_finished(self) -> "Made":
        if not self.finished:
            raise VitvizError("unfinished")
        return self


@pytest.mark.parametrize("in_atlas", [True, False])
def test_a_wall_has_a_row_a_model_of_its_units_and_measures_no_scores(monkeypatch, in_atlas):
    model, drawn, made = vv.load("emoji-vit"), [], []
    monkeypatch.setattr(families, "contact_sheet", lambda tiles, title, side, columns: drawn.extend(tiles) or columns)
    monkeypatch.setattr(families.Visualizer, "in_atlas", lambda self, layer: in_atlas)
    for how in ("render", "optimize"):
        monkeypatch.setattr(families.Visualizer, how, lambda self, layer, neurons, how=how: made.append(how) or Made(
            torch.zeros(len(neurons), 3, 8, 8)))
    assert families.wall([model, model], units=1, consistent=2) == 6
    assert made == ["render" if in_atlas else "optimize"] * 8
    assert [tile.lines[1].split(",")[0] for tile in drawn[:4]] == ["layer 0", "layer 2", "layer 3", "layer 5"]
    assert len(drawn) == 12 and drawn[4].lines == drawn[10].lines and drawn[4].lines[0].startswith("unit ")
    monkeypatch.setattr(families, "embedded", lambda name: None)
    with pytest.raises(VitvizError, match="No atlas of emoji-vit comes with the kit; `vitviz atlas emoji-vit --layers -1`"):
        families.wall([model])


@pytest.mark.parametrize("how", ["render", "optimize"])
def test_a_wall_shows_no_unfinished_pictures(monkeypatch, how):
    monkeypatch.setattr(families.Visualizer, "in_atlas", lambda self, layer: how == "render")
    monkeypatch.setattr(families.Visualizer, how, lambda self, layer, neurons: Made(torch.zeros(1, 3, 8, 8), finished=False))
    with pytest.raises(VitvizError, match="unfinished"):
        families.wall([vv.load("emoji-vit")], units=1)


# What is committed


def test_every_embedded_model_was_measured_with_the_weights_that_ship():
    table = families.stored()
    assert script.stale(table) == [] and list(dict.fromkeys(table["model"])) == embedded_names()
    assert script.stale(table.assign(weights="0" * 12)) == sorted(embedded_names())
    assert script.stale(table[table["model"] != "emoji-vit"]) == ["emoji-vit"]


def test_every_model_has_every_experiment_or_a_reason_why_not():
    for name, rows in families.stored().groupby("model"):
        assert list(dict.fromkeys(rows["notebook"])) == list(families.EXPERIMENTS), name
        assert ((rows["n"] > 0) == (rows["why not"] == "")).all(), name


def test_every_number_lies_in_its_interval_and_has_its_control():
    table = families.stored().query("n > 0")
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert (table["control"].notna() == (table["control is"] != "")).all()
    assert table["control"].isna().sum() == len(embedded_names())  # the cutoff: there is no expectation
