"""Selectivity of units whose activations are known by hand, and cross-model recognition by logits that are known."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.datasets import image_set as image_set_module
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.experiments import faithfulness
from vitviz_nb.experiments.faithfulness import (
    evenly_spaced,
    excess_activation,
    excess_by_layer,
    logit_correlation,
    recognition,
    recognition_by_layer,
    selectivity,
)
from vitviz_nb.models.loading import load
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils import cache
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.optimize import Adam
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

ROOT = Path(__file__).parents[3]
SIZE, PATCH, SCENES = 16, 8, 2048
RED, GREEN, BLUE, STILL = range(4)


class Colors(nn.Module):
    """Layer 0: units respond to red, green, blue and nothing. Layer 1: to blue and red."""

    def __init__(self):
        super().__init__()
        self.patches, self.first, self.second = nn.AvgPool2d(PATCH), Mlp(3, 4, 2), Mlp(3, 2, 2)
        self.first.act, self.second.act = nn.ReLU(), nn.ReLU()
        self.first.fc1.weight.data = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
        self.first.fc1.bias.data = torch.tensor([0.0, 0, 0, 0.3])
        self.second.fc1.weight.data = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
        self.second.fc1.bias.data = torch.zeros(2)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return (self.first(patches) + self.second(patches)).mean(1)


class Flags:
    """A world of flat colors: in every 8 scenes 4 ants, 2 bees, 1 cat and 1 dog.

    Cats are red. Ants and cats are green. One of every two bees is blue.
    """

    concepts = ["ant", "bee", "cat", "dog"]
    size = SIZE

    def __init__(self):
        self.drawn = 0

    def __repr__(self) -> str:
        return "Flags"

    def batch(self, indices, device="cpu"):
        self.drawn += len(indices)
        row = torch.tensor(list(indices)) % 8
        concept = torch.tensor([0, 1, 0, 2, 0, 1, 0, 3])[row]
        color = torch.stack([concept == 2, (concept == 0) | (concept == 2), row == 5], 1).float()
        return SimpleNamespace(images=color[:, :, None, None].expand(-1, 3, SIZE, SIZE), concept=concept)


def make_model() -> VisionModel:
    torch.manual_seed(0)
    return VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> VisionModel:
    monkeypatch.setattr(faithfulness, "_SCENES", SCENES)
    return make_model()


def test_selectivity_is_what_it_is_by_hand(model):
    # Red: 1 in one scene of 8, so mean 1/8 and deviation sqrt(7/64); cats lie at 1: (7/8) / sqrt(7/64) = sqrt(7).
    # Blue, too, is 1 in one scene of 8, but bees' mean, the highest, is 1/2: (3/8) / sqrt(7/64) = 3 / sqrt(7).
    # Green: 1 in 5 of 8, deviation sqrt(15/64); ants and cats lie at 1: (3/8) / sqrt(15/64) = 3 / sqrt(15).
    found = selectivity(model, find_site(model, 0), Flags())
    assert found.strength.tolist() == pytest.approx([7**0.5, 3 / 15**0.5, 3 / 7**0.5, 0], abs=1e-3)
    assert found.concept[RED] == 2 and found.concept[BLUE] == 1 and found.concept[GREEN] in (0, 2)


def test_selectivity_is_that_of_the_layer_asked_for(model):
    found = selectivity(model, find_site(model, 1), Flags())
    assert found.concept.tolist() == [1, 2] and found.strength.tolist() == pytest.approx([3 / 7**0.5, 7**0.5], abs=1e-3)


def test_by_chance_the_best_of_256_concepts_has_a_strength_of_half_a_deviation(model, monkeypatch: pytest.MonkeyPatch):
    class Noise(Flags):
        concepts = [str(i) for i in range(256)]

        def batch(self, indices, device="cpu"):
            dice = torch.Generator().manual_seed(indices[0])
            images = torch.rand(len(indices), 3, 1, 1, generator=dice).expand(-1, 3, SIZE, SIZE)
            return SimpleNamespace(images=images, concept=torch.tensor(list(indices)) % 256)

    for name, n in (("_SCENES", 8192), ("_SCENES_OF_LARGE", 2048)):
        monkeypatch.setattr(faithfulness, name, n)
    large = selectivity(model, find_site(model, 0), Noise()).strength  # four times fewer of each: twice as much by chance
    model.card = {"name": "planted"}  # as of an embedded model
    own = selectivity(model, find_site(model, 0), Noise()).strength
    assert all(0.4 < own[unit] < 0.65 and 0.75 < large[unit] < 1.3 for unit in (RED, GREEN, BLUE)), (own, large)


def test_scenes_are_seen_once_for_all_layers_of_the_same_weights(model):
    world = Flags()
    first = selectivity(model, find_site(model, 0), world)
    assert world.drawn == SCENES
    again = make_model()  # as in another session
    assert torch.equal(selectivity(again, find_site(again, 0), world).strength, first.strength)
    selectivity(again, find_site(again, 1), world)
    assert world.drawn == SCENES
    other = make_model()
    other.module.first.fc1.weight.data[STILL, 0] = 0.1
    assert selectivity(other, find_site(other, 0), world).strength[STILL] == pytest.approx(7**0.5, abs=1e-3)
    assert world.drawn == 2 * SCENES


def test_scenes_are_by_default_those_of_the_validation_split_in_the_styles_of_the_card(model, monkeypatch):
    asked = []
    monkeypatch.setattr(image_set_module, "EmojiWorld", lambda *a, **k: asked.append((a, k)) or Flags())
    model.card = {"recipe": {"styles": ["3d", "flat"]}}
    assert selectivity(model, find_site(model, 0)).concept[RED] == 2
    assert asked == [(("val",), {"styles": ["3d", "flat"], "size": SIZE})]


def test_shuffled_labels_leave_a_unit_the_selectivity_of_chance(model):
    strength = selectivity(model, find_site(model, 0), Flags(), shuffled=True).strength
    # The best of four means, of at least 256 scenes each, lies by chance about 1 / sqrt(256) = 0.06 deviations above.
    assert all(0 < strength[unit] < 0.25 for unit in (RED, GREEN, BLUE)) and strength[STILL] == pytest.approx(0, abs=1e-3)


def test_a_changed_network_has_its_own_selectivity_and_a_foreign_hook_no_cache(model):
    world, site = Flags(), find_site(model, 0)
    before = selectivity(model, site, world).strength
    model.module.first.fc1.weight.data[RED] = 0  # in place, after it was measured
    assert selectivity(model, site, world).strength[RED] == 0 < before[RED]
    handle = model.module.first.act.register_forward_hook(lambda module, arguments, output: output.flip(-1))
    hooked = [selectivity(model, site, world).strength[STILL] for _ in range(2)]
    handle.remove()
    assert world.drawn == 4 * SCENES and hooked[0] == hooked[1] == 0  # STILL's position now shows RED, whose weights are 0
    model.module.first.fc1.weight.data[RED, 0] = 1
    assert torch.equal(selectivity(model, site, world).strength, before) and world.drawn == 4 * SCENES


def test_shuffled_and_true_selectivity_are_each_kept_and_never_taken_for_the_other(model):
    world = Flags()
    first = [selectivity(model, find_site(model, 0), world, shuffled).strength for shuffled in (False, True)]
    assert world.drawn == SCENES  # once for both
    again = [selectivity(make_model(), find_site(model, 0), world, shuffled).strength for shuffled in (False, True)]
    assert world.drawn == SCENES and torch.equal(torch.stack(first), torch.stack(again))
    assert first[0][RED] > 5 * first[1][RED]


def test_stored_selectivity_is_of_the_weights_that_ship_and_what_the_headlines_measured(monkeypatch):
    monkeypatch.setattr(faithfulness, "sums_by_fact", None)  # nothing is measured
    measured = pd.read_csv(ROOT / "notebooks" / "headlines.csv", dtype={"notebook": str})
    measured = measured[measured["notebook"] == "03"].set_index(["call", "cell"])["value"]
    for name, last in (("emoji-vit", 5), ("emoji-resnet", 12)):
        shipped, call = load(name, device="cpu"), f"selectivity_by_layer({name})"
        for layer in (0, last):
            strength = selectivity(shipped, find_site(shipped, layer)).strength
            assert strength.mean().item() == pytest.approx(measured[call, f"layer={layer}, labels=concepts"], abs=1e-3)
            if name == "emoji-vit" and layer == last:
                control = selectivity(shipped, find_site(shipped, layer), shuffled=True).strength
                assert control.mean().item() == pytest.approx(measured[call, f"layer={layer}, labels=shuffled"], abs=1e-3)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"not an archive"])
def test_damaged_stored_selectivity_is_reported_in_a_sentence(content, monkeypatch, tmp_path):
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "emoji-vit-selectivity.npz").write_bytes(content)
    monkeypatch.setattr(cache, "data_dir", lambda: tmp_path)
    with pytest.raises(VitvizError, match=r"emoji-vit-selectivity\.npz is damaged \(.+\); run vitviz doctor"):
        cache.shipped("emoji-vit-selectivity", "0" * 64)
    assert cache.shipped("emoji-swin-selectivity", "0" * 64) is None  # of which nothing is stored


def test_stored_selectivity_is_not_taken_for_other_scenes_or_weights(monkeypatch):
    monkeypatch.setattr(faithfulness, "_SCENES", 16)
    shipped = load("emoji-vit", device="cpu")
    site = find_site(shipped, 0)
    stored = selectivity(shipped, site).strength
    assert not torch.equal(selectivity(shipped, site, EmojiWorld("val", styles=("3d",))).strength, stored)
    shipped.module.blocks[0].mlp.fc1.weight.data[0] += 1
    assert not torch.equal(selectivity(shipped, site).strength, stored)


# Cross-model recognition


def recognizer(pictures: Tensor) -> Tensor:
    """Takes the first row of red as logits of 16 classes."""
    return pictures[:, 0, 0]


recognizer.class_names, recognizer.image_size = [f"class {i}" for i in range(16)], SIZE


def colors_of(pictures: Tensor) -> Tensor:
    return pictures.mean((2, 3))


colors_of.image_size = SIZE


def ranked(*orders: list[int]) -> Tensor:
    """Pictures in which the recognizer sees these classes, the likeliest first, and the others far below."""
    pictures = torch.zeros(len(orders), 3, SIZE, SIZE)
    for picture, order in zip(pictures, orders, strict=True):
        for rank, number in enumerate(order):
            picture[0, 0, number] = 1 - 0.1 * rank
    return pictures


ORDER = [3, 9, 0, 15, 7, 4, 1]


def test_a_concept_in_the_top_5_is_recognized_and_the_sixth_is_not():
    hits = recognition(ranked(*[ORDER] * 6), torch.tensor([3, 9, 7, 4, 1, 12]), recognizer)
    assert hits.tolist() == [True, True, True, False, False, False]
    with pytest.raises(VitvizError, match="6 pictures have 7"):
        recognition(ranked(*[ORDER] * 6), torch.arange(7), recognizer)


def test_every_picture_is_compared_with_its_own_neuron_however_many_there_are():
    orders = [[i % 16, (i + 1) % 16, (i + 2) % 16, (i + 3) % 16, (i + 4) % 16] for i in range(150)]
    concepts = torch.tensor([(i + 4) % 16 if i % 3 else (i + 5) % 16 for i in range(150)])
    assert recognition(ranked(*orders), concepts, recognizer).tolist() == [i % 3 > 0 for i in range(150)]


def test_recognition_needs_two_embedded_models_of_the_same_concepts(model):
    with pytest.raises(VitvizError, match="needs two embedded models"):
        recognition_by_layer(Visualizer(model), model)


# Visualizations against images, by layer


class Painter:
    """A visualizer whose pictures are known: unit k's picture has the color given; its reference, a ramp of grays."""

    def __init__(self, model, colors, images):
        self.model, self.colors = model, torch.tensor(colors)
        self.reference = image_set_module.ImageSet(model, images)

    def render(self, layer, neurons, kind=None):
        assert not torch.is_inference_mode_enabled()  # where none could be made
        neurons = list(neurons)
        pictures = self.colors[neurons][:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()
        return SimpleNamespace(neurons=neurons, pictures=pictures, finished=True, require_finished=lambda: SimpleNamespace(
            neurons=neurons, pictures=pictures))


def grays() -> Tensor:
    return torch.tensor([0.0, 0.2, 0.4]).view(3, 1, 1, 1).expand(-1, 3, SIZE, SIZE).clone()


def test_the_excess_is_how_far_a_picture_lies_above_the_largest_activation_of_images(model):
    painter = Painter(model, [[1.0, 0, 0], [0, 0.3, 0], [0, 0, 0.4]], grays())
    own, other = excess_activation(painter, 0, [RED, GREEN, BLUE])
    spread = (0.08 / 3) ** 0.5  # of 0, 0.2 and 0.4
    assert own.tolist() == pytest.approx([0.6 / spread, -0.1 / spread, 0], abs=1e-3)
    assert other.tolist() == pytest.approx([-0.4 / spread] * 3, abs=1e-3)  # another's picture has none of the color
    with pytest.raises(VitvizError, match="at least two neurons"):
        excess_activation(painter, 0, [RED])


@pytest.mark.parametrize("experiment", [
    lambda viewer: excess_activation(viewer, 0, [RED, GREEN]), lambda viewer: excess_by_layer(viewer),
    lambda viewer: logit_correlation(viewer, 0, [RED, GREEN], colors_of)])
def test_an_interrupted_rendering_is_refused_and_a_second_call_goes_on(experiment, model, monkeypatch: pytest.MonkeyPatch):
    viewer, update, calls = Visualizer(model, Recipe(steps=4, copies=1), grays()), Adam.update, []

    def interrupted(*arguments, **named):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return update(*arguments, **named)

    monkeypatch.setattr(Adam, "update", interrupted)
    with pytest.raises(VitvizError, match="interrupted|unfinished"):
        experiment(viewer)
    again, fresh = experiment(viewer), experiment(Visualizer(model, Recipe(steps=4, copies=1), grays(), keep=False))
    values = [x.table["value"].tolist() if hasattr(x, "table") else torch.cat(x).tolist() if isinstance(x, tuple) else x.tolist()
              for x in (again, fresh)]
    assert values[0] == pytest.approx(values[1], nan_ok=True)


def test_the_percentage_by_layer_counts_pictures_above_every_image(model):
    painter = Painter(model, [[1.0, 0, 0], [0, 0.3, 0], [0, 0, 1.0], [0, 0, 0]], grays())
    table = excess_by_layer(painter).table
    own = table[table["the picture is of"] == "the neuron itself"].set_index("layer")["value"]
    # Layer 0: red and blue of four lie above. Layer 1: unit 0 responds to blue, shown red; unit 1 to red, shown green.
    assert own.tolist() == [50, 0]
    other = table[table["the picture is of"] == "another neuron"].set_index("layer")["value"]
    assert other[1] == 50  # unit 1 responds to the red picture of unit 0


def test_logits_on_a_picture_correlate_with_those_on_its_top_images_unless_it_shows_something_else(model):
    colors = [[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]]
    images = torch.tensor(colors).repeat(8, 1)[:, :, None, None].expand(-1, -1, SIZE, SIZE).clone()

    honest = logit_correlation(Painter(model, colors, images), 0, [RED, GREEN, BLUE], colors_of)
    assert honest.tolist() == pytest.approx([1, 1, 1], abs=1e-4)
    false = logit_correlation(Painter(model, [colors[1], colors[1], colors[2]], images), 0, [RED, GREEN, BLUE], colors_of)
    assert abs(false[0]) < 1e-4 and min(false[1:]) > 0.4


@pytest.mark.parametrize("n", [0, -3, 2.5, "many", None, True])
def test_a_number_of_neurons_that_is_none_is_refused(n, model):
    with pytest.raises(VitvizError, match="number of neurons is a whole number from 1"):
        evenly_spaced(4, n)
    assert evenly_spaced(4, torch.tensor(2)) == [0, 3] and evenly_spaced(4, 9) == [0, 1, 2, 3]
