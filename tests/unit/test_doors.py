"""The doors of the package: whatever a public function is given, it gives a result or a VitvizError, never anything else."""

import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import vitviz_nb as vv
from vitviz_nb.course.report import Report
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_folder import image_folder
from vitviz_nb.datasets.image_set import ImageSet, derangement
from vitviz_nb.experiments import (
    background,
    class_token,
    frequency,
    inversion,
    localization,
    progression,
    published,
    regularizers,
    semantics,
    units,
)
from vitviz_nb.experiments.result import Result
from vitviz_nb.models.cards import build
from vitviz_nb.models.loading import load
from vitviz_nb.models.sites import check_neurons, find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.plotting.prediction_bars import predict
from vitviz_nb.training.loop import train
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.visualize.atlas import Atlas, embedded
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.rendering import Rendering
from vitviz_nb.visualize.top_images import top_images
from vitviz_nb.visualize.visualizer import Visualizer
from vitviz_nb.widgets.explorer import explore
from vitviz_nb.widgets.interactive import interactive
from vitviz_nb.widgets.two_alternative import Task

QUICK = settings(max_examples=15, deadline=None, derandomize=True, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Hostile:
    """An object that fails whenever it is looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    __len__ = __iter__ = __getitem__ = __bool__ = __repr__


# Names without a slash, so that no file is made outside the test's own folder.
TEXT = st.text(st.characters(exclude_characters="/\\~"), max_size=8)
NUMBERS = st.one_of(st.booleans(), st.integers(-5, 40), st.sampled_from([2**31, 2**63, -2**70, 10**400]),
                    st.floats(allow_nan=True, allow_infinity=True), st.just(1e38))
ARRAYS = st.sampled_from([
    torch.tensor(1), torch.tensor(-1.5), torch.tensor([0, 1]), torch.tensor([[1]]), torch.tensor(math.nan), torch.empty(0),
    torch.rand(2, 3, 32, 32), 255 * torch.rand(2, 3, 32, 32), torch.rand(3, 32, 32), torch.full((1, 3, 32, 32), math.nan),
    torch.randint(255, (2, 3, 32, 32)), np.array(2), np.float32(0.5), np.arange(3), np.array(["a"]), np.array([None])])
OBJECTS = st.sampled_from([None, Hostile(), object(), nn.Linear(2, 2), Path("nowhere"), b"\xff\xfe", "\0", "\udcff", int, len, 1j,
                           range(3), range(10**12), slice(2), Ellipsis])
SIMPLE = st.one_of(NUMBERS, TEXT, ARRAYS, OBJECTS, st.binary(max_size=4))
ANYTHING = st.one_of(SIMPLE, st.lists(SIMPLE, max_size=3), st.lists(SIMPLE, max_size=2).map(tuple),
                     st.dictionaries(TEXT, SIMPLE, max_size=2))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)


def network() -> VisionModel:
    return VisionModel(build({"class": "timm.models.vision_transformer.VisionTransformer", "arguments": {
        "img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 256}}), "tiny", 32,
        class_names=EmojiWorld().concepts)


MODEL = network()
IMAGES = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
VIEWER = Visualizer(MODEL, Recipe(steps=1, copies=1), IMAGES)
TABLE = Result("title", "accuracy (%)", [{"layer": layer, "value": 2.0, "low": 1.0, "high": 3.0, "n": 4} for layer in (0, 1)])
FIELDS = st.sampled_from(list(vars(Recipe())))


def exhausted(items, most: int = 2) -> list:
    return [item for item, _ in zip(items, range(most), strict=False)]


DOORS = {  # one argument of each public function that takes anything
    "load": lambda x: load(x, pretrained=False),
    "load, device": lambda x: load("test_vit", pretrained=False, device=x),
    "load, checkpoint": lambda x: load("test_vit", checkpoint=x) if x is not None else None,
    "load, image size": lambda x: load("test_vit", pretrained=False, image_size=x),
    "wrap": lambda x: vv.wrap(x, 8, (0.5,) * 3, (0.5,) * 3),
    "wrap, size": lambda x: vv.wrap(nn.Flatten(), x, (0.5,) * 3, (0.5,) * 3),
    "wrap, mean": lambda x: vv.wrap(nn.Flatten(), 8, x, (0.5,) * 3),
    "wrap, class names": lambda x: vv.wrap(nn.Flatten(), 8, (0.5,) * 3, (0.5,) * 3, x),
    "wrap, name": lambda x: vv.wrap(nn.Flatten(), 8, (0.5,) * 3, (0.5,) * 3, name=x),
    "build": lambda x: build({"class": "timm.models.resnet.ResNet", "arguments": {"block": x, "layers": [1, 1, 1, 1]}}),
    "VisionModel, module": lambda x: VisionModel(x, "x", 32),
    "VisionModel, name": lambda x: VisionModel(nn.Flatten(), x, 32),
    "VisionModel, size": lambda x: VisionModel(nn.Flatten(), "x", x),
    "VisionModel, mean": lambda x: VisionModel(nn.Flatten(), "x", 8, mean=x),
    "VisionModel, class names": lambda x: VisionModel(nn.Flatten(), "x", 8, class_names=x),
    "model(images)": lambda x: MODEL(x),
    "find_site, layer": lambda x: find_site(MODEL, x),
    "find_site, kind": lambda x: find_site(MODEL, 0, x),
    "check_neurons": lambda x: check_neurons(find_site(MODEL), x),
    "Visualizer, model": lambda x: Visualizer(x),
    "Visualizer, recipe": lambda x: Visualizer(MODEL, x),
    "Visualizer, images": lambda x: Visualizer(MODEL, images=x).reference if x is not None else None,
    "Visualizer, client": lambda x: Visualizer(MODEL, client=x),
    "connect": lambda x: vv.connect(x, timeout=0.1),
    "render, layer": lambda x: VIEWER.render(x, 0),
    "render, neurons": lambda x: VIEWER.render(-1, x),
    "render, kind": lambda x: VIEWER.render(-1, 0, kind=x),
    "render, seed": lambda x: VIEWER.render(-1, 0, seed=x),
    "render, variants": lambda x: VIEWER.render(-1, 0, variants=x) if not isinstance(x, int) or x < 9 else None,
    "render, directions": lambda x: VIEWER.render(-1, x if not isinstance(x, torch.Tensor) else x.float()),
    "stream, every": lambda x: exhausted(VIEWER.stream(-1, 0, every=x)),
    "Recipe.named": lambda x: Recipe.named(x),
    "Recipe.paper": lambda x: Recipe.paper(x),
    "top_images, layer": lambda x: top_images(MODEL, x, 0, images=IMAGES),
    "top_images, neuron": lambda x: top_images(MODEL, -1, x, images=IMAGES),
    "top_images, images": lambda x: top_images(MODEL, -1, 0, images=x) if x is not None else None,
    "top_images, k": lambda x: top_images(MODEL, -1, 0, images=IMAGES, k=x),
    "EmojiWorld, split": lambda x: EmojiWorld(x),
    "EmojiWorld, concepts": lambda x: EmojiWorld(concepts=x),
    "EmojiWorld, styles": lambda x: EmojiWorld(styles=x),
    "EmojiWorld, size": lambda x: EmojiWorld(size=x),
    "EmojiWorld, seed": lambda x: EmojiWorld(seed=x).facts([0]),
    "EmojiWorld.batch": lambda x: EmojiWorld(size=8).batch(x),
    "EmojiWorld.batch, contexts": lambda x: EmojiWorld(size=8).batch([0, 1], contexts=x),
    "EmojiWorld.captions": lambda x: EmojiWorld(size=8).captions(x),
    "image_folder, path": lambda x: image_folder(x, 8),
    "image_folder, size": lambda x: image_folder(".", x),
    "image_folder, limit": lambda x: image_folder(".", 8, x),
    "ImageSet, images": lambda x: ImageSet(MODEL, x),
    "ImageSet, n": lambda x: ImageSet(MODEL, IMAGES, x),
    "ImageSet, model": lambda x: ImageSet(x, IMAGES),
    "ImageSet.batch": ImageSet(MODEL, IMAGES).batch,
    "ImageSet.labels": ImageSet(MODEL, n=3).labels,
    "ImageSet.masks": ImageSet(MODEL, n=3).masks,
    "EmojiWorld.batch, device": lambda x: EmojiWorld(size=8).batch([0], x),
    "EmojiWorld.facts": EmojiWorld(size=8).facts,
    "image_folder, boxes": lambda x: image_folder(data_dir() / "photos", 8, boxes=x),
    "derangement, n": lambda x: derangement(x, 0),
    "derangement, seed": lambda x: derangement(4, x),
    "train, name": lambda x: train(x, "out"),
    "train, steps": lambda x: train("emoji-pit", "out", steps=x) if isinstance(x, str) else None,
    "Atlas.open": Atlas.open,
    "Rendering.load": Rendering.load,
    "Result": lambda x: Result("a", "b", x),
    "Result.where": lambda x: TABLE.where(layer=x),
    "Result.relative_to": lambda x: TABLE.relative_to(layer=x),
    "Result.plot": lambda x: plt.close(TABLE.plot(x).figure),
    "Result.side_by_side": lambda x: Result.side_by_side(x, "title"),
    "Result.side_by_side, result": lambda x: Result.side_by_side({"a": x}, "title"),
    "published": published.accuracy,
    "Atlas.search": lambda x: embedded("emoji-vit").search(x),
    "Atlas.sheet": lambda x: embedded("emoji-vit").sheet(x),
    "Atlas.strongest, layer": lambda x: embedded("emoji-vit").strongest(x, 0),
    "Atlas.strongest, neuron": lambda x: embedded("emoji-vit").strongest(5, x),
    "Atlas.neurons": lambda x: embedded("emoji-vit").neurons(x),
    "Atlas.maps": lambda x: embedded("emoji-vit").maps(5, x),
    "top_images, of an atlas": lambda x: top_images(embedded("emoji-vit"), 5, x),
    "make_atlas, neurons": lambda x: vv.make_atlas(MODEL, 0, "atlas", Recipe(steps=1, copies=1), images=IMAGES, neurons=x),
    "high_frequencies": regularizers.high_frequencies,
    "patch_borders, images": lambda x: regularizers.patch_borders(x, 8),
    "patch_borders, patch": lambda x: regularizers.patch_borders(IMAGES, x),
    "ablated_recipes": regularizers.ablated_recipes,
    "sensitivity, distances": lambda x: regularizers.sensitivity(MODEL, IMAGES, n=1, distances=x),
    "adversarial_example, image": lambda x: regularizers.adversarial_example(MODEL, x, neuron=0, images=IMAGES),
    "adversarial_example, distance": lambda x: regularizers.adversarial_example(MODEL, IMAGES[0], neuron=0, distance=x,
                                                                                images=IMAGES),
    "Report, folder": lambda x: Report(x, "title", force=True),
    "Report, title": lambda x: Report("out", x, force=True),
    "Report.add, item": lambda x: Report("out", "title", force=True).add(x, "heading"),
    "Report.add, heading": lambda x: Report("out", "title", force=True).add(None, x),
    "Report.add, text": lambda x: Report("out", "title", force=True).add(None, "heading", x),
    "check, exercise": lambda x: vv.check(x, 0, MODEL),
    "check, model": lambda x: vv.check("00.1", 0, x),
    "explore, model": explore,
    "browse, atlas": vv.browse,
    "browse, layer": lambda x: vv.browse("emoji-resnet", x),
    "browse, kind": lambda x: vv.browse("emoji-resnet", kind=x),
    "browse, concept": lambda x: vv.browse("emoji-resnet", concept=x),
    "explore, images": lambda x: explore(MODEL, x).close() if x is not None else None,
    "interactive, function": interactive,
    "interactive, control": lambda x: interactive(lambda n: None, n=x),
    "Task, n": lambda x: Task(MODEL, x, images=IMAGES.repeat(4, 1, 1, 1)),
    "predict, truth": lambda x: predict(MODEL, IMAGES, x),
    "background": lambda x: background.foreground_background(MODEL, x, n=2) if x is not None else None,
    "background, n": lambda x: background.foreground_background(MODEL, IMAGES, n=x),
    "masked, fill": lambda x: background.masked(IMAGES, IMAGES[:, 0], "background", fill=x),
    "frequency, radius": lambda x: frequency.filtered(IMAGES, x),
    "frequency, passes": lambda x: frequency.filtered(IMAGES, 2, x),
    "isolate_cls": lambda x: class_token.isolate_cls(MODEL, x).__enter__() if not isinstance(x, (int, float)) else None,
    "cls_only, blocks": lambda x: class_token.cls_only(MODEL, x),
    "locality, n": lambda x: localization.locality(MODEL, IMAGES, n=x),
    "patch_perturbation": lambda x: localization.patch_perturbation(MODEL, IMAGES, x),
    "pointing_game, images": lambda x: localization.pointing_game(MODEL, x, n=2) if x is not None else None,
    "invariance, n": lambda x: progression.invariance(MODEL, IMAGES, n=x),
    "variance_by_fact, n": lambda x: semantics.variance_by_fact(MODEL, IMAGES, n=x) if x is not None else None,
    "axis_alignment, layer": lambda x: units.axis_alignment(MODEL, IMAGES, layer=x),
    "effective_dimension, n": lambda x: units.effective_dimension(MODEL, IMAGES, n=x),
    "invert, images": lambda x: inversion.invert(MODEL, x) if not isinstance(x, torch.Tensor) or x.dim() != 4 else None,
}


@pytest.mark.parametrize("door", DOORS)
@QUICK
@given(x=ANYTHING)
def test_any_argument_gives_a_result_or_one_sentence(door: str, x):
    try:
        DOORS[door](x)
    except VitvizError as error:
        assert str(error) and "\n" not in str(error).strip() or os.linesep


@QUICK
@given(field=FIELDS, value=ANYTHING)
def test_a_recipe_of_anything_is_a_recipe_or_one_sentence(field: str, value):
    try:
        recipe = Recipe(**{field: value})
    except VitvizError as error:
        assert field in str(error) or "recipe" in str(error)
    else:
        assert math.isfinite(getattr(recipe, field))
