"""What the first notebook and the models' README say of emoji-vit is what is measured on it."""

import re
from pathlib import Path

import pytest

import vitviz_nb as vv
from vitviz_nb.errors import VitvizError
from vitviz_nb.exercises import _shared_context
from vitviz_nb.models import embedded_names, models_dir, read_card
from vitviz_nb.scores import default_reference

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "00_start_here.ipynb"


@pytest.fixture(scope="module")
def model():
    return vv.load("emoji-vit", device="cpu")


def test_the_exercise_takes_any_right_neuron_and_rejects_near_misses(model, capsys):
    for neuron in (25, 60, 105):
        vv.check("00.1", neuron, model)
        assert capsys.readouterr().out.startswith("Right: 6 of the 6")
    vv.check("00.1", 4, model)
    assert "Not yet: 4 of the 6" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["60", 60.0, True, None, 512, -1])
def test_an_answer_that_is_no_neuron_gets_a_sentence(model, answer):
    with pytest.raises(VitvizError, match="0 to 511"):
        vv.check("00.1", answer, model)


def test_an_unknown_exercise_names_those_there_are(model):
    with pytest.raises(VitvizError, match="there are 00.1"):
        vv.check("99.9", 1, model)


def test_a_hundred_neurons_of_the_last_layer_pass_the_exercise(model):
    passing = sum(_shared_context(neuron, model)[0] for neuron in range(512))
    assert "100 of the 512 neurons" in NOTEBOOK.read_text("utf-8")
    assert abs(passing - 100) <= 2  # another processor's arithmetic may swap two scenes that are nearly equal


def test_neuron_422_answers_to_scenes_with_construction_workers(model):
    reference = default_reference(model)
    worker = reference.source.concepts.index("construction worker")
    scenes = reference.source.batch(range(reference.n))
    best = vv.top_images(model, 5, 422)
    assert (scenes.concept == worker).sum() == 7 and reference.n == 1024
    assert scenes.concept[best.indices].tolist()[:4] == [worker] * 4


COLUMNS = ("unoccluded", "occluded", "small", "blurred", "plain", "style 3d", "style cartoon", "style flat", "style word",
           "style line")


def row(card: dict) -> str:
    """A model's line of the README's table; ° marks styles it was not trained on."""
    cells = []
    for column in COLUMNS:
        held_out = column.startswith("style") and column not in card["accuracy"]
        found = card["accuracy"][f"held-out {column}" if held_out else column]
        low, high = (100 * end for end in found["interval95"])
        cells.append(f"{100 * found['top1']:.1f}{'°' * held_out} ({low:.1f} to {high:.1f})")
    return f"| `{card['name']}` | " + " | ".join(cells) + " |"


@pytest.mark.parametrize("name", embedded_names())
def test_the_readme_of_the_models_says_what_the_cards_say(name):
    assert row(read_card(name)) in (models_dir() / "README.md").read_text("utf-8")


def test_the_first_model_is_at_least_85_percent_right_on_unoccluded_scenes(model):
    row = read_card("emoji-vit")["accuracy"]["unoccluded"]
    assert row["top1"] >= 0.85
    text = NOTEBOOK.read_text("utf-8")
    assert re.search(r"85\.1 % of unoccluded and 64\.8 % of occluded", text) and round(row["top1"], 3) == 0.851
    # The card is not taken at its word: 500 fresh scenes that it was not measured on agree with it.
    from vitviz_nb.intervals import wilson

    world = vv.EmojiWorld("test", styles=read_card("emoji-vit")["recipe"]["styles"])
    scenes = world.batch(range(500))
    right = (model(scenes.images).argmax(1) == scenes.concept)[~scenes.occluded]
    low, high = wilson(int(right.sum()), len(right))
    assert low <= row["top1"] <= high + 0.03
