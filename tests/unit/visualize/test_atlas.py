"""An atlas holds what the visualizer would make, and answers for nothing else."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn.functional import avg_pool2d

import vitviz_nb as vv
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models.sites import find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.cache import FORMAT
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.files import sha256
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.visualize import atlas as atlas_module
from vitviz_nb.visualize import top_images as top_module
from vitviz_nb.visualize.atlas import STRONGEST, Atlas, embedded
from vitviz_nb.visualize.atlas_maker import make_atlas
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.scores import reference_activations, reference_set, score
from vitviz_nb.visualize.top_images import top_images
from vitviz_nb.visualize.visualizer import Visualizer

SIZE, UNITS = 16, 48  # a row and a half of a sheet
LAYERS = [2, 0]
RECIPE = Recipe(steps=3, copies=1, jitter=0)
FILES = ["manifest.json", "mlp_00.npz", "mlp_00.webp", "mlp_02.npz", "mlp_02.webp"]


def make_model(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    module = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.weight.data *= 6  # timm's 0.02 would leave so narrow a network almost linear, and its units almost still
    model = VisionModel(module, "tiny", SIZE)
    model.remember("reference set", lambda: ImageSet(model, EmojiWorld(size=SIZE), 64), weights=False)  # few, to be quick
    return model


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return make_model()


@pytest.fixture(scope="module")
def data(model, tmp_path_factory) -> Iterator[Path]:
    """A data folder that has an atlas of the model."""
    folder = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        make_atlas(model, LAYERS, folder / "atlas" / "tiny", RECIPE)
    return folder


@pytest.fixture(scope="module")
def atlas(data) -> Atlas:
    return Atlas.open(data / "atlas" / "tiny")


@pytest.fixture
def shipped(data, monkeypatch) -> None:
    """The atlas comes with the kit."""
    monkeypatch.setattr(atlas_module, "data_dir", lambda: data)


@pytest.fixture
def forwards(model, monkeypatch) -> list[int]:
    """The batch size of every forward pass of the model, for whatever purpose."""
    find_sites(model)  # found by a pass, once
    sizes, forward = [], VisionModel.forward
    monkeypatch.setattr(VisionModel, "forward", lambda self, inputs: sizes.append(len(inputs)) or forward(self, inputs))
    return sizes


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


# What is in it


def test_every_neuron_is_there_with_the_picture_the_visualizer_makes(model, atlas):
    viewer = Visualizer(model, RECIPE, atlas=False)
    for layer in LAYERS:
        made, stored = viewer.render(layer, range(UNITS)), atlas.rendering(layer, list(range(UNITS)))
        assert stored.pictures.shape == (UNITS, 3, SIZE, SIZE)
        distance = torch.cdist(stored.pictures.flatten(1), made.pictures.flatten(1))
        assert distance.argmin(1).tolist() == list(range(UNITS))
        coarse = avg_pool2d(stored.pictures - made.pictures, 4)  # single pixels of noise are what WebP keeps least
        assert coarse.abs().mean() < 0.05
        assert torch.equal(stored.curves, made.curves) and stored.curve_steps == made.curve_steps
        facts = (stored.model, stored.kind, stored.layer, stored.neurons, stored.steps, stored.recipe, stored.seed)
        assert facts == (made.model, made.kind, made.layer, made.neurons, made.steps, made.recipe, made.seed)
        assert stored.finished and stored.title == made.title


def test_smooth_pictures_lose_little(tmp_path):
    ramp = torch.linspace(0, 1, SIZE)
    tints = torch.rand(UNITS, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    pictures = tints * ramp[:, None].expand(3, SIZE, SIZE)
    sheet = atlas_module.paste((pictures * 255).round().byte())
    assert sheet.size == (32 * SIZE, 2 * SIZE)
    sheet.save(tmp_path / "sheet.webp", quality=atlas_module.QUALITY, method=6)
    stored = atlas_module.cut(tmp_path / "sheet.webp", SIZE, UNITS).float() / 255
    assert (stored - pictures).abs().mean((1, 2, 3)).max() < 0.05


def test_neurons_come_in_the_order_asked_for(atlas):
    order = [40, *range(UNITS - 1, 40, -1), *range(40)]
    some, every = atlas.rendering(2, order), atlas.rendering(2, list(range(UNITS)))
    assert some.neurons == order and len(set(every.scores.status)) > 1
    assert torch.equal(some.pictures, every.pictures[order]) and torch.equal(some.curves, every.curves[order])
    for name in ("activation", "percentile", "rank", "status"):
        values = getattr(every.scores, name)
        assert getattr(some.scores, name) == [values[neuron] for neuron in order] != values


def test_scores_are_those_of_the_pictures_as_stored(model, atlas):
    for layer in LAYERS:
        stored = atlas.rendering(layer, list(range(UNITS)))
        place, reference = find_site(model, layer), reference_set(model)
        again = score(model, place, stored.neurons, stored.pictures, reference)
        assert stored.scores.activation == pytest.approx(again.activation, abs=1e-4)
        assert stored.scores.percentile == pytest.approx(again.percentile, abs=0.2)
        assert stored.scores.rank == again.rank and stored.scores.status == again.status
        assert stored.scores.reference == "64 Emoji World scenes"
        lossless = Visualizer(model, RECIPE, atlas=False).render(layer, range(UNITS)).scores.activation
        assert stored.scores.activation != pytest.approx(lossless, abs=1e-2)


def test_facts_say_what_it_holds(model, atlas):
    assert atlas.facts == {
        "model": "tiny", "weights": model.weights_hash, "kind": "mlp", "layers": [0, 2], "seed": 0,
        "recipe": json.loads(json.dumps(vars(RECIPE))), "size": SIZE, "reference": "64 Emoji World scenes",
        "format": FORMAT, "version": vv.__version__,
        "sheet": 32 * 256, "chunk": 16,
        "files": {name: sha256(atlas.folder / name) for name in FILES[1:]}}
    assert sorted(contents(atlas.folder)) == FILES


def test_pictures_larger_than_the_input_are_kept_and_found_as_large_as_they_are(model, tmp_path):
    recipe = replace(Recipe.fourier(), steps=2, copies=1, canvas=1.5)
    made = make_atlas(model, [1], tmp_path / "larger", recipe)
    rendering, side = made.rendering(1, range(UNITS)), SIZE * 3 // 2
    assert made.facts["size"] == side and rendering.pictures.shape == (UNITS, 3, side, side) and rendering.recipe == recipe
    assert made.holds(model, "mlp", 1, recipe, 0) and not made.holds(model, "mlp", 1, replace(recipe, power=1), 0)
    again = score(model, find_site(model, 1), rendering.neurons, rendering.pictures, reference_set(model))
    assert rendering.scores.activation == pytest.approx(again.activation, abs=1e-4)
    assert make_atlas(model, [1], tmp_path / "larger", recipe).facts == made.facts  # which is complete


@pytest.mark.parametrize("manifest", [None, b"", b'{"model": "ti', b"[]", b"null", b"\xff\xfe", b"{}"])
def test_a_folder_without_an_atlas_gets_one_sentence(tmp_path, manifest):
    if manifest is not None:
        (tmp_path / "manifest.json").write_bytes(manifest)
    with pytest.raises(VitvizError, match=r"holds no atlas .*`vitviz atlas MODEL --out .*` makes one") as error:
        Atlas.open(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"kind": "../x"}, {"layers": 3}, {"layers": ["a"]}, {"size": 0}, {"sheet": -1}, {"files": 3},
                                    {"files": []}, {"files": [["a", "b"]]}, {"files": {"mlp_02.npz": 3}},
                                    {"recipe": {"steps": 0}}, {"recipe": None}])
def test_a_manifest_with_a_wrong_fact_gets_one_sentence(atlas, tmp_path, change):
    (tmp_path / "manifest.json").write_text(json.dumps({**atlas.facts, **change}))
    with pytest.raises(VitvizError, match="holds no atlas"):
        Atlas.open(tmp_path)


@pytest.mark.parametrize("file", ["mlp_02.npz", "mlp_02.webp"])
@pytest.mark.parametrize(("damage", "checked"), [
    (lambda content: b"", True), (lambda content: b"", False), (lambda content: content[: len(content) // 2], False),
    (lambda content: content[:-300] + b"\0" * 40 + content[-260:], True)])  # which only the SHA-256 shows
def test_a_damaged_file_is_named(atlas, tmp_path, file, damage, checked):
    for name, content in contents(atlas.folder).items():
        (tmp_path / name).write_bytes(damage(content) if name == file else content)
    facts = {name: value for name, value in atlas.facts.items() if checked or name != "files"}
    with pytest.raises(VitvizError, match=f"{file} of the atlas is damaged or missing .*Restore it, or delete the folder"):
        Atlas(tmp_path, facts).rendering(2, [40])


def test_files_of_another_shape_are_named(atlas, tmp_path):
    unchecked = Atlas(tmp_path, {name: value for name, value in atlas.facts.items() if name != "files"})
    for name, content in contents(atlas.folder).items():
        (tmp_path / name).write_bytes(content)
    with np.load(atlas.folder / "mlp_02.npz") as arrays:
        np.savez_compressed(tmp_path / "mlp_02.npz", **{**arrays, "rank": arrays["rank"][:-1]})
        np.savez_compressed(tmp_path / "mlp_00.npz", **{**arrays, "activation": arrays["activation"] * np.nan})
    for layer, reason in ((2, "rank has shape"), (0, "or NaN")):
        with pytest.raises(VitvizError, match=f"mlp_0{layer}.npz of the atlas is damaged .*{reason}"):
            unchecked.rendering(layer, [1])
    (tmp_path / "mlp_02.npz").write_bytes((atlas.folder / "mlp_02.npz").read_bytes())
    Image.new("RGB", (512, 16)).save(tmp_path / "mlp_02.webp")
    with pytest.raises(VitvizError, match="mlp_02.webp of the atlas is damaged .*512 x 16 px instead of 512 x 32"):
        Atlas(tmp_path / ".", unchecked.facts).rendering(2, [1])


@pytest.mark.parametrize(("name", "change"), [
    ("status", lambda a: a.astype(np.int8) - 3), ("status", lambda a: a + 0.5), ("status", lambda a: a + 3),
    ("rank", lambda a: 0 * a), ("rank", lambda a: a + UNITS), ("percentile", lambda a: a + 101), ("top", lambda a: a - 1024),
    ("curve_steps", lambda a: a - 9), ("top", lambda a: a + 1024), ("top", lambda a: a + 0.5),
    ("activation", lambda a: a.astype(str))])
def test_tables_of_values_that_there_are_not_are_named(atlas, tmp_path, name, change):
    with np.load(atlas.folder / "mlp_02.npz") as arrays:
        np.savez_compressed(tmp_path / "mlp_02.npz", **{**arrays, name: change(arrays[name])})
    for use in (Atlas.table, lambda damaged: damaged.strongest(2, 1), lambda damaged: damaged.rendering(2, 1)):
        with pytest.raises(VitvizError, match=f"mlp_02.npz of the atlas is damaged .*{name} has shape"):
            use(Atlas(tmp_path, {**atlas.facts, "layers": [2], "files": {}}))


# What it can be asked without its model


def test_the_table_has_every_neuron_and_what_its_strongest_scenes_show(model, atlas):
    table = atlas.table()
    assert list(table.columns) == ["layer", "neuron", "activation", "percentile", "rank", "status", "scenes"]
    assert list(zip(table["layer"], table["neuron"], strict=True)) == [(i, n) for i in (0, 2) for n in range(UNITS)]
    world = reference_set(model).source
    for row in (0, UNITS + 33):
        layer, neuron = int(table["layer"][row]), int(table["neuron"][row])
        scores = atlas.rendering(layer, [neuron]).scores
        assert (table["activation"][row], table["percentile"][row], table["rank"][row], table["status"][row]) == (
            scores.activation[0], scores.percentile[0], scores.rank[0], scores.status[0])
        shown = world.batch(top_images(model, layer, neuron).indices).concept
        assert table["scenes"][row] == tuple(world.concepts[i] for i in shown)


def test_search_finds_the_neurons_whose_strongest_scenes_show_a_concept(atlas):
    table = atlas.table()
    concept = table["scenes"][0][0]
    counts = [scenes.count(concept) for scenes in table["scenes"]]
    found = atlas.search(concept)
    assert 0 < len(found) == sum(count > 0 for count in counts) < len(table) and sum(found["count"]) == sum(counts)
    assert list(found["count"]) == sorted(found["count"], reverse=True)
    order = [(-count, scenes.index(concept), -percentile) for count, scenes, percentile in
             zip(found["count"], found["scenes"], found["percentile"], strict=True)]
    assert order == sorted(order)
    with pytest.raises(VitvizError, match="No reference scene shows 'ghots'; they show [0-9]+ concepts.*Did you mean ghost"):
        atlas.search("ghots")


def test_a_sheet_shows_the_rows_chosen_with_what_they_show_most(atlas, monkeypatch):
    drawn = []
    monkeypatch.setattr(atlas_module, "contact_sheet", lambda tiles, *more, **named: drawn.extend(tiles))
    table = atlas.table()
    poor = int(table.index[(table["status"] != "alive") & (table["layer"] == 2)][0])
    rows = table.iloc[[poor, 5]]
    atlas.sheet(rows)
    assert torch.equal(drawn[0].picture, atlas.rendering(2, [poor - UNITS]).pictures[0])
    assert drawn[1].lines[0].startswith("0:5, above")
    most = max(rows["scenes"].iloc[1], key=rows["scenes"].iloc[1].count)
    assert drawn[1].lines[1] == f"{rows['scenes'].iloc[1].count(most)} x {most}"[:19]
    assert not drawn[0].good and drawn[1].good == (rows["status"].iloc[1] == "alive")
    with pytest.raises(VitvizError, match="There is no neuron to show"):
        atlas.sheet(rows.head(0))


def test_the_atlas_that_ships_is_searched_without_a_model(monkeypatch):
    monkeypatch.setattr(VisionModel, "__init__", lambda *arguments: pytest.fail("a model was made"))
    shipped = Atlas.open(data_dir() / "atlas" / "emoji-vit")
    assert len(shipped.table()) == 6 * 512
    best = shipped.search("ghost").iloc[0]
    assert best["count"] > 1 and "ghost" in best["scenes"]
    assert shipped.rendering(int(best["layer"]), [int(best["neuron"])]).finished


def test_what_is_not_in_it_gets_one_sentence(atlas):
    with pytest.raises(VitvizError, match="lacks layer 1; its layers: 0, 2"):
        atlas.rendering(1, [0])
    for neurons in ([UNITS], [-1], [], "a", None, [1.5]):
        with pytest.raises(VitvizError, match="eurons.* 0 to 47"):
            atlas.rendering(2, neurons)
    for layer in (True, "a", None, [2]):
        with pytest.raises(VitvizError, match="lacks layer"):
            atlas.rendering(layer, [0])
    assert atlas.rendering(torch.tensor(2), torch.tensor([4, 3])).neurons == [4, 3] and atlas.rendering(2, 5).neurons == [5]
    with pytest.raises(VitvizError, match="No layer .* is complete yet"):
        Atlas(atlas.folder, {**atlas.facts, "layers": []}).table()


def test_an_atlas_from_before_sheets_were_several_has_one_a_layer(atlas):
    old = Atlas(atlas.folder, {name: value for name, value in atlas.facts.items() if name not in ("sheet", "chunk", "files")})
    assert torch.equal(old.rendering(2, [40]).pictures, atlas.rendering(2, [40]).pictures)


@pytest.mark.parametrize(("size", "wide", "pictures"), [(64, 32, 512), (224, 32, 32), (512, 31, 31), (20000, 1, 1)])
def test_a_sheet_stays_small_and_within_what_webp_holds(size, wide, pictures):
    assert atlas_module.columns(size) == wide and atlas_module.per_sheet(size) == pictures


# What answers from it


def test_a_visualizer_hands_out_its_pictures_without_computing(model, atlas, shipped, forwards, tmp_path):
    for layer, meant in ((0, 0), (2, 2), (-1, 2)):
        found = Visualizer(model, RECIPE).render(layer, [5, 47])
        expected = atlas.rendering(meant, [5, 47])
        assert torch.equal(found.pictures, expected.pictures) and found.scores == expected.scores
        assert found.layer == meant and found.title == expected.title
    (frame,) = Visualizer(model, RECIPE).stream(0, 9)
    assert frame.finished and frame.scores and frame.neurons == [9]
    assert forwards == [] and not (tmp_path / "vitviz_cache").exists()
    with pytest.raises(VitvizError, match="neuron 48 is out of range"):
        Visualizer(model, RECIPE).render(0, 48)


@pytest.mark.parametrize("change", ["seed", "recipe", "weights", "images", "layer", "kind", "name", "atlas=False",
                                    "zeroed weights", "a hook", "a context", "another forward", "float64"])
def test_it_answers_for_no_other_picture(shipped, change):
    model = make_model()
    block = model.module.blocks[0]
    if change == "weights":
        model = make_model(seed=1)
    elif change == "zeroed weights":  # after the atlas was asked once
        assert Visualizer(model, RECIPE).in_atlas(0)
        block.mlp.fc1.weight.data.zero_()
    elif change == "a hook":
        block.attn.register_forward_hook(lambda module, arguments, output: output * 0)
    elif change == "another forward":
        block.attn.forward = lambda x, **more: x
    elif change == "float64":
        find_sites(model)
        model.module.double()
        assert not Visualizer(model, RECIPE).in_atlas(0)
        return
    elif change == "a context":
        with model.changed("half of it"):
            assert not Visualizer(model, RECIPE).in_atlas(0)
        assert Visualizer(model, RECIPE).in_atlas(0)
        return
    elif change == "name":
        model = VisionModel(model.module, "small", SIZE)
    recipe = replace(RECIPE, tv=0.5) if change == "recipe" else RECIPE
    images = torch.rand(8, 3, SIZE, SIZE) if change == "images" else None
    viewer = Visualizer(model, recipe, images, atlas=change != "atlas=False")
    frame = next(viewer.stream(1 if change == "layer" else 0, 7, "residual" if change == "kind" else "mlp",
                               seed=1 if change == "seed" else 0, every=1))
    assert frame.steps == [1] and frame.scores is None


def test_pictures_of_another_version_of_the_method_are_made_anew(model, atlas):
    assert atlas.holds(model, "mlp", 0, RECIPE, 0)
    assert not Atlas(atlas.folder, {**atlas.facts, "format": FORMAT - 1}).holds(model, "mlp", 0, RECIPE, 0)


def test_a_model_without_an_atlas_has_none(shipped):
    assert embedded("tiny").facts["model"] == "tiny" and embedded("small") is None


def test_top_images_from_it_are_those_computed(model, shipped, monkeypatch):
    from_atlas = {(layer, neuron): top_images(model, layer, neuron) for layer in (0, 2) for neuron in (0, 33, 47)}
    three = top_images(model, 2, 33, k=3)
    monkeypatch.setattr(top_module, "embedded", lambda name: None)
    for address, best in from_atlas.items():
        computed = top_images(model, *address)
        assert len(best.indices) == STRONGEST and best.indices == computed.indices and best.title == computed.title
        assert best.activations == computed.activations
        assert torch.equal(best.images, computed.images) and torch.equal(best.maps, computed.maps)
    assert three.indices == from_atlas[2, 33].indices[:3] and len(three.images) == len(three.maps) == 3


def test_top_images_it_does_not_have_are_computed(model, shipped):
    seven = top_images(model, 0, 5, k=STRONGEST + 1)
    assert len(seven.indices) == STRONGEST + 1 and seven.indices[:STRONGEST] == top_images(model, 0, 5).indices
    images = torch.rand(8, 3, SIZE, SIZE)
    own = top_images(model, 0, 5, images=images)
    assert torch.equal(own.images, images[own.indices])
    layer, residual = top_images(model, 1, 5), top_images(model, 0, 5, "residual")
    for best, place in ((layer, find_site(model, 1)), (residual, find_site(model, 0, "residual"))):
        expected = reference_activations(model, place, reference_set(model))[:, 5].topk(STRONGEST)
        assert best.activations == expected.values.tolist()
