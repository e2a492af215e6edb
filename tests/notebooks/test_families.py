"""The numbers of data/families.csv come out again: the cheapest experiments, on two models."""

import importlib.util
from pathlib import Path

import pytest

import vitviz_nb as vv
from vitviz_nb.experiments.families import stored

SPEC = importlib.util.spec_from_file_location("families_command", Path(__file__).parents[2] / "notebooks" / "families.py")
script = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(script)


@pytest.mark.parametrize("name", ["emoji-twins", "emoji-coat"])
def test_numbers_of_a_family_come_out_again(name, tmp_path, monkeypatch):
    """To within a fifth of the interval: other processors add in another order, and a scene or two may change sides."""
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path))
    found = script.measure(vv.load(name, device="cpu"), ["04", "06"])
    table = stored()
    known = table[(table["model"] == name) & table["notebook"].isin(["04", "06"])].reset_index(drop=True)
    assert found["what"].tolist() == known["what"].tolist() and found["n"].tolist() == known["n"].tolist()
    assert ((found["value"] - known["value"]).abs() <= (known["high"] - known["low"]) / 5).all()
