"""The families table holds what the experiments measure."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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
    yield script._row("last", Result("", "size (px)", table), {"layer": 1}, {"layer": 0}, "the first")
    yield script._row("first", Result("", "size (px)", table), {"layer": 0}, 2.5, "half")
    yield script._row("alone", Result("", "size (px)", table), {"layer": 0})


def cannot(model, world):
    raise NotApplicable(f"{model.name} has no tail.")
    yield


@pytest.fixture
def planted(monkeypatch, tiny_vit):
    monkeypatch.setattr(script, "EXPERIMENTS", {"03": rows_of, "05": cannot})
    tiny_vit.card = {}
    return tiny_vit


def test_a_number_comes_with_its_control_and_a_missing_one_with_its_reason(planted):
    table = script.measure(planted)
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

    monkeypatch.setitem(script.EXPERIMENTS, "06", unwritable)
    with pytest.raises(VitvizError, match="The cache folder cannot be written"):
        script.measure(planted)


def test_only_the_notebooks_asked_for_are_measured(planted):
    assert script.measure(planted, ["05"])["notebook"].tolist() == ["05"]
    with pytest.raises(VitvizError, match="one of 03, 05; got '3'"):
        script.measure(planted, ["3"])


def test_a_model_that_is_not_embedded_is_told_where_to_go(tiny_vit):
    with pytest.raises(VitvizError, match="tiny-vit is none. Each by itself takes your images"):
        script.measure(tiny_vit)


def test_what_is_written_is_read_back_the_same(planted, tmp_path, monkeypatch):
    table = script.measure(planted)
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


def test_a_model_and_its_twin_are_of_one_family():
    assert {families.family(name) for name in ("emoji-vit", "emoji-vit-standard")} == {"vit"}
    assert {families.family(name) for name in ("emoji-swin", "emoji-swin-robust")} == {"swin"}
    assert families.adversarially_trained("emoji-vit") and not families.adversarially_trained("emoji-swin")


# What is committed


def test_every_embedded_model_was_measured_with_the_weights_that_ship():
    table = families.stored()
    assert script.stale(table) == [] and list(dict.fromkeys(table["model"])) == embedded_names()
    assert script.stale(table.assign(weights="0" * 12)) == sorted(embedded_names())
    assert script.stale(table[table["model"] != "emoji-vit"]) == ["emoji-vit"]


def test_every_model_has_every_experiment_or_a_reason_why_not():
    for name, rows in families.stored().groupby("model"):
        assert list(dict.fromkeys(rows["notebook"])) == list(script.EXPERIMENTS), name
        assert ((rows["n"] > 0) == (rows["why not"] == "")).all(), name


def test_every_number_lies_in_its_interval_and_has_its_control():
    table = families.stored().query("n > 0")
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert (table["control"].notna() == (table["control is"] != "")).all()
    assert table["control"].isna().sum() == len(embedded_names())  # the cutoff: there is no expectation
