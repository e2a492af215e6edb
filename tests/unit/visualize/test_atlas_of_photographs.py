"""An atlas of some neurons, with the kit's photographs as reference: what an atlas of a real network is, without its model."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import atlas as atlas_module
from vitviz_nb.visualize.atlas import Atlas, evenly_spaced
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

RECIPE, N = Recipe(steps=2, copies=1, jitter=0), 40
CHOSEN = [0, 12, 24, 35, 47]  # five of 48


@pytest.fixture(scope="module")
def model() -> VisionModel:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=2, num_classes=4)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 6
    return VisionModel(module, "tiny", 16)


@pytest.fixture(scope="module")
def images(model) -> ImageSet:
    return ImageSet(model, vv.photos(), N)


@pytest.fixture(scope="module")
def data(model, images, tmp_path_factory) -> Iterator[Path]:
    """A data folder that has the atlas, called "a-real-one"."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        vv.make_atlas(model, [0, 1], folder / "atlas" / "a-real-one", RECIPE, neurons=5, images=images, title="A real one")
    return folder


@pytest.fixture
def atlas(data, monkeypatch) -> Atlas:
    monkeypatch.setattr(atlas_module, "data_dir", lambda: data)
    return vv.Atlas.open("a-real-one")


def test_neurons_are_evenly_spaced():
    chosen = evenly_spaced(1536, 48)
    assert evenly_spaced(48, 5) == CHOSEN and (len(chosen), chosen[0], chosen[-1]) == (48, 0, 1535)
    assert {b - a for a, b in zip(chosen, chosen[1:], strict=False)} == {32, 33}
    assert evenly_spaced(1536, 10**9) == list(range(1536))


def test_it_opens_by_its_name_and_has_the_pictures_and_scores_of_the_chosen_neurons(model, images, atlas):
    assert atlas.neurons(1) == CHOSEN and atlas.facts["model"] == "A real one"
    made = Visualizer(model, RECIPE, images, keep=False).render(1, [47, 12])
    stored = atlas.rendering(1, [47, 12])
    assert stored.neurons == [47, 12] and stored.scores.reference == f"{N} photographs of vv.photos()"
    assert torch.allclose(stored.curves, made.curves, atol=1e-4) and "A real one" in stored.title
    distance = torch.cdist(stored.pictures.flatten(1), made.pictures.flatten(1))  # stored with a loss
    assert distance.argmin(1).tolist() == [0, 1]
    assert stored.scores.rank != [0, 0] and max(stored.scores.rank) <= 48


@pytest.mark.parametrize("neuron", CHOSEN)
def test_the_photographs_that_activate_a_neuron_most_come_with_maps_and_without_the_model(model, images, atlas, neuron):
    known, stored = vv.top_images(model, 1, neuron, images=images), vv.top_images(atlas, 1, neuron)
    assert stored.indices == known.indices and stored.activations == pytest.approx(known.activations, rel=1e-5)
    assert stored.images.shape == (6, 3, 224, 224) and stored.maps.shape == (6, 2, 2)
    low, high = known.maps.amin((1, 2), keepdim=True), known.maps.amax((1, 2), keepdim=True)
    assert torch.allclose(stored.maps, (known.maps - low) / (high - low), atol=0.51 / 255)
    assert stored.sheet().width > 300


def test_its_table_and_search_speak_of_the_photographs_classes(atlas):
    photos, table = vv.photos(), atlas.table()
    assert table["neuron"].tolist() == CHOSEN * 2
    first = table.iloc[0]
    assert first["scenes"] == tuple(photos.labels[i] for i in atlas.strongest(0, 0)[0])
    found = atlas.search(first["scenes"][0])
    assert 0 in found[found["layer"] == 0]["neuron"].tolist()
    with pytest.raises(VitvizError, match="shows 'ghost'"):
        atlas.search("ghost")
    assert atlas.sheet(table).width > 300


def test_a_neuron_it_does_not_have_is_refused_with_those_it_has(atlas):
    for ask in (lambda: atlas.rendering(1, 1), lambda: atlas.strongest(1, 1), lambda: vv.top_images(atlas, 1, 1)):
        with pytest.raises(VitvizError, match=r"5 of the 48 neurons of layer 1 \(0, 12, 24, …\), and not 1; atlas.neurons"):
            ask()


def test_other_images_or_neurons_than_an_atlas_has_are_asked_of_the_model(atlas):
    for more in ({"images": torch.rand(8, 3, 16, 16)}, {"kind": "residual"}):
        with pytest.raises(VitvizError, match="its own images and kind, mlp; for others give the model"):
            vv.top_images(atlas, 1, 0, **more)
    assert vv.top_images(atlas, 1, 0, "mlp").indices == vv.top_images(atlas, 1, 0).indices


def test_other_photographs_than_it_was_made_with_are_not_shown_for_them(atlas, monkeypatch):
    monkeypatch.setitem(atlas.facts, "photos", "0" * 64)
    with pytest.raises(VitvizError, match="are not the photographs"):
        vv.top_images(atlas, 1, 0)


def test_it_does_not_answer_for_whole_layers(model, atlas):
    assert not atlas.covers(model, "mlp", 1)


def test_another_choice_of_neurons_or_images_is_another_atlas(model, images, data):
    folder = data / "atlas" / "a-real-one"
    with pytest.raises(VitvizError, match="neurons 5, now 6"):
        vv.make_atlas(model, 1, folder, RECIPE, neurons=6, images=images, title="A real one")
    with pytest.raises(VitvizError, match="reference"):
        vv.make_atlas(model, 1, folder, RECIPE, neurons=5, images=ImageSet(model, vv.photos(), 39), title="A real one")


def test_a_name_that_no_atlas_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VitvizError, match="nowhere holds no atlas"):
        vv.Atlas.open("nowhere")
