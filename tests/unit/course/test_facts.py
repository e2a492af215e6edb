"""What the first notebook and the models' README say of emoji-vit is what is measured on it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import vitviz_nb as vv
from vitviz_nb.course.checks import nb00
from vitviz_nb.course.checks.nb01 import short_recipe
from vitviz_nb.models.cards import embedded_names, models_dir, read_card
from vitviz_nb.models.sites import find_site
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.visualize.scores import reference_activations, reference_set

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "00_start_here.ipynb"


@pytest.fixture(scope="module")
def model():
    return vv.load("emoji-vit", device="cpu")


def test_the_exercise_takes_any_right_neuron_and_rejects_near_misses(model, capsys):
    for neuron in (19, 39, 59):
        vv.check("00.1", neuron, model)
        assert capsys.readouterr().out.startswith("Right: 6 of the 6")
    vv.check("00.1", 1, model)
    assert "Not yet: 4 of the 6" in capsys.readouterr().out


@pytest.mark.parametrize("answer", ["60", 60.0, True, None, 512, -1])
def test_an_answer_that_is_no_neuron_gets_a_sentence(model, answer):
    with pytest.raises(VitvizError, match="0 to 511"):
        vv.check("00.1", answer, model)


def test_the_checks_of_notebook_01_make_their_pictures_by_its_recipe(model):
    text = NOTEBOOK.with_name("01_obstacle_noise.ipynb").read_text("utf-8")
    assert "recipe = replace(vv.Recipe.quick(model), steps=64, blur=0.0)" in text
    assert short_recipe(model) == replace(vv.Recipe.quick(model), steps=64, blur=0.0) != replace(vv.Recipe.quick(model), steps=64)


def test_an_unknown_exercise_names_those_there_are(model):
    with pytest.raises(VitvizError, match=r"one of \d+: 00\.1"):
        vv.check("99.9", 1, model)


@pytest.mark.slow
def test_49_neurons_of_the_last_layer_pass_the_exercise(model):
    reference = reference_set(model)
    contexts = torch.as_tensor(reference.source.facts(np.arange(reference.n))["context"]).long()
    best = reference_activations(model, find_site(model, 5), reference).topk(6, dim=0).indices
    passes = F.one_hot(contexts[best]).sum(0).amax(1) >= 5
    assert all(nb00.exercise_1(neuron, model)[0] == passes[neuron] for neuron in range(19, 512, 100))
    passing = int(passes.sum())
    assert "49 of the 512 pass" in NOTEBOOK.read_text("utf-8")
    assert abs(passing - 49) <= 2  # another processor's arithmetic may swap two scenes that are nearly equal


def test_neuron_376_answers_to_scenes_with_bullseyes_then_clowns(model):
    concepts = reference_set(model).source.concepts
    best = vv.top_images(model, 5, 376)
    found = [concepts[i] for i in reference_set(model).source.batch(best.indices).concept]
    assert found[:3] == ["bullseye"] * 3 and "clown face" in found[3:]


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


def test_the_first_model_is_at_least_80_percent_right_on_unoccluded_scenes(model):
    row = read_card("emoji-vit")["accuracy"]["unoccluded"]
    assert row["top1"] >= 0.8
    assert read_card("emoji-vit-standard")["accuracy"]["unoccluded"]["top1"] > row["top1"]  # as the notebook's summary says
    # The card is not taken at its word: 250 fresh scenes that it was not measured on agree with it.
    from vitviz_nb.utils.statistics import wilson

    world = vv.EmojiWorld("test", styles=read_card("emoji-vit")["recipe"]["styles"])
    scenes = world.batch(range(250))
    right = (model(scenes.images).argmax(1) == scenes.concept)[~scenes.occluded]
    low, high = wilson(int(right.sum()), len(right))
    assert low <= row["top1"] <= high + 0.03


# The atlas that ships


def test_the_atlas_has_every_neuron_of_the_first_model_and_is_of_its_weights_and_recipe(model):
    atlas = vv.Atlas.open(data_dir() / "atlas" / "emoji-vit")
    assert all(atlas.holds(model, "mlp", layer, vv.Recipe.quick(model), 0) for layer in range(6))
    assert atlas.rendering(5, list(range(512))).pictures.shape == (512, 3, 64, 64)


def test_19_of_20_pictures_of_the_first_models_last_layer_beat_99_percent_of_scenes():
    percentile = np.array(vv.Atlas.open(data_dir() / "atlas" / "emoji-vit").rendering(5, list(range(512))).scores.percentile)
    assert (percentile > 99).mean() >= 0.95


def test_weights_and_atlases_keep_to_their_size():
    def megabytes(files) -> float:
        return sum(file.stat().st_size for file in files if file.is_file()) / 1e6

    assert megabytes(models_dir().glob("*.safetensors")) <= 47.2 and megabytes((data_dir() / "atlas").rglob("*")) <= 15
    assert max(file.stat().st_size for file in data_dir().rglob("*") if file.is_file()) <= 10e6


@pytest.mark.parametrize("folder", [folder for folder in sorted((data_dir() / "atlas").glob("*/"))
                                    if folder.name in embedded_names()], ids=lambda folder: folder.name)
def test_every_atlas_is_of_the_weights_and_the_quick_recipe_that_ship_so_that_sliders_find_it(folder):
    atlas = vv.Atlas.open(folder)
    shown = vv.load(folder.name, device="cpu")
    assert all(vv.Visualizer(shown).in_atlas(layer, atlas.facts["kind"]) for layer in atlas.facts["layers"])


def test_what_notebook_05_plots_of_other_trainings_is_in_the_models_readme():
    text = (models_dir() / "README.md").read_text("utf-8").split("### Trainings for late reading")[1].split("\n### ")[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.count("|") == 13][2:]
    table = pd.read_csv(models_dir() / "late_reading.csv").rename(columns=lambda name: name.replace(" ", "_"))
    reading = "last_blocks_in_which_CLS_reads_the_patches"
    found = table[table.million_scenes == 2.85].pivot_table("value", "training", reading, sort=False)
    assert [found.iloc[i][[12, 9, 6, 3, 1]].tolist() for i in range(5)] == [[float(cell) for cell in row[3:8]] for row in rows]
    early = table[table.million_scenes < 2.85].groupby("training", sort=False)["value"].agg(list)
    assert early.tolist() == [[2, 1, 10], [1, 11, 25]] and "1, 11, 25 and 28 %" in text and "2, 1, 10 and 7 %" in text
