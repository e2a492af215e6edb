"""The notebooks' experiments run on a real ViT with photographs, few of each, or say in a sentence why they do not apply."""

import math
from dataclasses import replace

import pytest
from real_vit import NAME

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments import background, class_token, faithfulness, frequency, localization, progression, regularizers, units
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.visualizer import Visualizer


@pytest.fixture(scope="module")
def few(model, photos) -> ImageSet:
    return ImageSet(model, photos, 24)


def values(result) -> list[float]:
    table = result.table
    assert len(table) and all(math.isfinite(value) for value in table["value"])
    return table["value"].tolist()


def test_01_adversarial_perturbations_raise_a_neuron_and_random_ones_do_not(model, few):
    result = regularizers.sensitivity(model, few, n=4, distances=(2.0,))
    values(result)
    means = result.table.set_index(result.table.columns[1])["value"]
    assert means.max() > 0.5 > abs(means.min())


def test_02_dimensions_of_every_kind_of_unit_are_counted(model, few):
    table = units.effective_dimension(model, few, n=24).table
    assert set(table["kind"]) >= {"mlp", "query", "key", "value", "residual"} and (table["value"] > 0).all()


def test_02_mlp_neurons_are_more_selective_and_vary_in_more_dimensions_than_queries(hub):
    model = vv.load(NAME, image_size=56)  # a third of the work of 112
    selectivity = units.axis_alignment(model, layer=8, n=1024)[0]  # notebook 02 has 2,048 scenes
    dimensions = units.effective_dimension(model, layer=8, n=1024).where(counted="effective dimension").table.set_index("kind")
    assert dimensions.loc["mlp", "low"] > dimensions.loc[["query", "key", "value"], "high"].max()
    table = selectivity.table.set_index(["kind", "of"])
    assert table.loc[("mlp", "units"), "low"] > table.loc[("mlp", "random directions"), "high"] + 0.1
    for kind in ("query", "key", "value"):
        assert abs(table.loc[(kind, "units"), "value"] - table.loc[(kind, "random directions"), "value"]) < 0.1


def test_03_frequency_of_pictures_and_invariance_of_units(model, few):
    pictures = {layer: few.batch(range(4)) for layer in (0, 11)}
    assert all(value > 0 for result in progression.frequency_and_color(pictures, "photographs") for value in values(result))
    correlations = progression.invariance(model, few, n=8).table
    assert set(correlations["layer"]) == set(range(12)) and correlations["value"].between(-1, 1).all()


def test_04_a_changed_patch_is_seen_at_its_position_and_maps_point(model, few):
    share = localization.locality(model, few, n=8).table.set_index("layer")["value"]
    assert share[0] > share[11] and share[0] > 50
    for result in (localization.pointing_game(model, few, n=24), localization.linear_probes(model, few, n=24),
                   localization.token_similarity(model, few, n=8), *localization.mask_agreement(model, few, n=24)):
        values(result)


def test_10_pictures_exceed_photographs_and_those_of_other_neurons_do_not(model, few):
    viewer = Visualizer(model, replace(vv.Recipe.fourier(), steps=16), few)
    own, other = faithfulness.excess_activation(viewer, 3, [0, 400])
    assert (own > other).all()


@pytest.mark.parametrize("experiment", [
    lambda model, few: class_token.cls_isolation(model, few), lambda model, few: frequency.accuracy_by_cutoff(model, few),
    lambda model, few: background.foreground_background(model, few), lambda model, few: units.axis_alignment(model, few, n=24),
    lambda model, few: faithfulness.recognition_by_layer(Visualizer(model), vv.load("emoji-resnet"), 2),
], ids=["05 isolated CLS", "07 low-pass", "06 foreground", "02 selectivity", "10 recognition"])
def test_what_needs_classes_says_so(experiment, model, few):
    with pytest.raises(VitvizError, match="class|embedded") as caught:
        experiment(model, few)
    assert 20 < len(str(caught.value)) < 400
