"""Kinds of units: spaces whose concepts and dimensions are known by hand, and networks that may be rotated."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.experiments import units as kinds
from vitviz_nb.experiments.units import (
    axis_alignment,
    covariance_rank,
    discriminant,
    effective_dimension,
    layer_activations,
    linear_readout,
    participation_ratio,
    random_directions,
    recognition_by_kind,
    rotated,
    visualize,
)
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.statistics import class_selectivity
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 4}
FAMILIES = {
    "ViT": lambda: VisionTransformer(**SMALL),
    "DeiT": lambda: VisionTransformerDistilled(**SMALL),
    "CLIP": lambda: timm.create_model("vit_base_patch32_clip_quickgelu_224", **SMALL),
    "Swin": lambda: SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(1, 1), num_heads=(2, 2), window_size=4,
                                    num_classes=4),
}


def family(name: str) -> VisionModel:
    torch.manual_seed(0)
    module = FAMILIES[name]()
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases too, and attention that is not even
    return VisionModel(module, name, 32, class_names=["ant", "bee", "cat", "dog"])


# Dimensions


def test_variance_spread_evenly_has_as_many_dimensions_as_directions_and_no_more_for_copies():
    even = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).repeat(16, 1)
    assert participation_ratio(even)["value"] == pytest.approx(3, abs=1e-6)
    assert participation_ratio(even.repeat(1, 5))["value"] == pytest.approx(3, abs=1e-6)
    assert participation_ratio(even * torch.tensor([2.0, 1, 1]))["value"] == pytest.approx(36 / 18, abs=1e-6)  # 6² / (16+1+1)
    row = participation_ratio(even)
    assert row["low"] <= row["value"] <= row["high"] and row["n"] == 64


def test_the_interval_of_a_dimension_holds_the_truth_about_as_often_as_it_says():
    inside = []
    for _ in range(60):
        row = participation_ratio(torch.randn(800, 3) * torch.tensor([2.0, 1, 1]))
        inside.append(row["low"] < 2 < row["high"])
    assert 50 <= sum(inside) <= 60


def test_rank_counts_all_directions_however_weak():
    x = torch.randn(50, 3)
    assert covariance_rank(torch.cat([x, x @ torch.randn(3, 4), 0.01 * torch.randn(50, 1)], 1)) == 4
    assert covariance_rank(x @ torch.tensor([[1.0, 0, 1], [0, 1, -1], [1, 1, 0]])) == 2


def plant(monkeypatch: pytest.MonkeyPatch, found: dict[str, Tensor], labels: Tensor, classes: int = 4) -> None:
    stimuli = SimpleNamespace(n=len(labels), name=f"{len(labels)} images", class_of=lambda numbers: labels[list(numbers)],
                              classes=[f"c{i}" for i in range(classes)])
    monkeypatch.setattr(kinds, "layer_activations", lambda model, images=None, layer=-1, n=0: (stimuli, found))


def test_units_that_each_represent_one_concept_are_more_selective_than_directions_that_mix_them(tiny_vit, monkeypatch):
    labels = torch.arange(128).repeat(4)
    one_each = F.one_hot(labels, 128).float()
    mixed = one_each[:, :32] @ torch.linalg.qr(torch.randn(32, 32))[0]
    plant(monkeypatch, {"query": mixed, "mlp": one_each, "before": one_each}, labels, 128)
    selective, known = axis_alignment(tiny_vit)
    assert selective.table["kind"].unique().tolist() == ["query", "mlp"]
    values = selective.table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] == pytest.approx(127**0.5, abs=1e-3)  # one scene in 128
    assert values["mlp", "random directions"] < 0.6 * values["mlp", "units"]
    assert values["query", "units"] == pytest.approx(values["query", "random directions"], rel=0.1)
    assert set(selective.table["n"]) == {32, 128}
    values = known.table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] == values["mlp", "random directions"] == pytest.approx(100, abs=1e-3)
    assert abs(values["mlp", "units, shuffled labels"]) < 5


def test_a_concept_that_no_unit_represents_is_read_out_along_a_direction(tiny_vit, monkeypatch):
    labels = torch.arange(4).repeat(100)
    # Two units share what tells concept 0 under a large common noise: their difference shows it, neither of them does.
    noise, sign = torch.randn(400), (labels == 0).float()
    units = torch.stack([10 * noise + sign, 10 * noise - sign], 1) + 0.01 * torch.randn(400, 2)
    plant(monkeypatch, {"query": units}, labels)
    along = discriminant(units, labels, 0)
    assert along[0] > 0 > along[1] and along.sum().abs() < 0.2 * along[0]
    values = linear_readout(tiny_vit).table.set_index("along")["value"]
    each = class_selectivity((units @ along)[:, None], labels, 4)[0, 0].item()
    assert each == pytest.approx(3**0.5, rel=0.02)  # the most there can be for a quarter of the scenes
    assert values["best unit"] < 0.4 and values["best direction"] > values["best unit"] + 0.3
    with pytest.raises(VitvizError, match="No class has 4 of the 8 images in each half"):
        plant(monkeypatch, {"query": units[[*range(5), 8, 12, 16]]}, labels[[*range(5), 8, 12, 16]])
        linear_readout(tiny_vit)


# The network rotated


@pytest.mark.parametrize("name", FAMILIES)
def test_rotated_networks_have_the_same_logits_and_other_units(name: str):
    model, images = family(name), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        changed = rotated(model, -1)
        assert torch.allclose(changed(images), before, atol=1e-4 * before.abs().max().item())
        old, new = (activations(m, "mlp", images)[-1] for m in (model, changed))
        assert torch.allclose(new, old @ random_directions(model, find_site(model, -1)), atol=1e-4)
        assert (new - old).abs().max() > 0.01 and changed.weights_hash != model.weights_hash and rotated(model) is changed
        assert torch.equal(model(images), before)  # itself it is as it was


def test_random_directions_are_orthogonal_and_within_heads(tiny_vit):
    rotation = random_directions(tiny_vit, find_site(tiny_vit, 0, "query"))
    assert torch.allclose(rotation.T @ rotation, torch.eye(32), atol=1e-5)
    assert rotation[:16, 16:].abs().max() == 0 < rotation[:16, :16].abs().min()
    assert torch.equal(rotation, random_directions(tiny_vit, find_site(tiny_vit, 0, "key")))
    rotation = random_directions(tiny_vit, find_site(tiny_vit, 0))
    assert torch.allclose(rotation.T @ rotation, torch.eye(128), atol=1e-5) and rotation[:16, 16:].abs().min() > 0


def test_the_leak_of_a_rotated_unit_is_rotated_as_well(tiny_vit):
    x, place = torch.randn(2, 3, 32, 32), find_site(tiny_vit, -1)
    with torch.no_grad():
        expected = tokens(tiny_vit, place, x, leak=0.1) @ random_directions(tiny_vit, place)
        assert torch.allclose(tokens(rotated(tiny_vit), place, x, leak=0.1), expected, atol=1e-5)


def test_a_network_that_treats_units_one_by_one_is_refused(tiny_vit):
    tiny_vit.module.blocks[-1].mlp.norm = nn.LayerNorm(128)
    tiny_vit.module.blocks[-1].mlp.norm.weight.data = torch.rand(128)
    with pytest.raises(VitvizError, match="The logits of tiny-vit change once its MLP neurons are rotated"):
        rotated(tiny_vit)


# Activations


@pytest.mark.parametrize("name", FAMILIES)
def test_activations_are_those_of_each_site_from_one_pass_and_cached(name: str, monkeypatch):
    model, images = family(name), torch.rand(20, 3, 32, 32)
    stimuli, found = layer_activations(model, images)
    assert list(found) == ["query", "key", "value", "mlp", "residual", "before"] and stimuli.n == 20
    for kind in ("query", "key", "value", "mlp", "residual"):
        assert torch.allclose(found[kind], activations(model, kind, images)[-1], atol=1e-5), kind
    with pytest.raises(VitvizError, match="several images"):
        effective_dimension(model, images[:1])
    monkeypatch.setattr(kinds, "at_sites", None)
    assert all(torch.equal(units, found[kind]) for kind, units in layer_activations(model, images)[1].items())
    finding = effective_dimension(model, images)
    assert finding.table["value"].min() > 0 and finding.title.startswith(f"{name}, layer 1 (20 images)")
    with pytest.raises(VitvizError, match="labels"):
        axis_alignment(model, images)


def test_before_the_activation_function_is_what_goes_into_it(tiny_vit):
    tiny_vit.module.blocks[1].mlp.act = nn.Identity()
    found = layer_activations(tiny_vit, torch.rand(4, 3, 32, 32), layer=1)[1]
    assert torch.equal(found["before"], found["mlp"])


@pytest.mark.parametrize("measure", [axis_alignment, linear_readout])
def test_concepts_are_those_of_the_images_also_for_a_network_that_predicts_none(measure, tiny_vit):
    class Pairs(list):  # as torchvision's data sets are
        classes = ["dark", "light"]

    tiny_vit.class_names = None  # as of DINOv2
    pairs = Pairs((Image.new("RGB", (32, 32), (40 + 160 * (i % 2), 9 * i, 200 - 9 * i)), i % 2) for i in range(20))
    result = measure(tiny_vit, pairs, n=20)
    assert (result[0] if isinstance(result, tuple) else result).table["value"].notna().all()
    with pytest.raises(VitvizError, match="images with labels"):
        measure(tiny_vit, torch.rand(8, 3, 32, 32))
    with pytest.raises(VitvizError, match="are of 1 class, at most 10 of one. Use more"):
        measure(tiny_vit, Pairs(pairs[::2]))
    with pytest.raises(VitvizError, match="needs 4 images of it; the 4 images are of 2 classes, at most 2 of one"):
        measure(tiny_vit, Pairs(pairs[:4]))


def test_a_cnn_has_no_kinds_to_compare():
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", 32)
    for experiment in (layer_activations, axis_alignment, effective_dimension, linear_readout):
        with pytest.raises(VitvizError, match="cnn has neither queries, keys and values nor MLP neurons"):
            experiment(cnn)


# Visualizations


@pytest.fixture
def visualized(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    """A model and its kinds' activations; the pictures of every kind take two steps and are scored on eight images."""
    labels = torch.arange(4).repeat(16)
    found = {kind: torch.randn(64, units) for kind, units in (("query", 32), ("key", 32), ("value", 32), ("mlp", 128))}
    plant(monkeypatch, found, labels)
    images = torch.rand(8, 3, 32, 32)
    monkeypatch.setattr(kinds, "Visualizer", lambda model: Visualizer(model, Recipe(steps=2, copies=1), images))
    return tiny_vit, found, labels


def test_visualizations_are_of_evenly_spaced_units_and_random_directions_each_with_its_preferred_concept(visualized):
    model, found, labels = visualized
    rows = visualize(model, neurons=3)
    assert list(rows) == ["query", "key", "value", "mlp", "mlp directions"]
    assert rows["query"].rendering.neurons == [0, 16, 31] and rows["mlp directions"].rendering.neurons == [0, 64, 127]
    assert rows["mlp"].rendering.model == "tiny-vit"
    assert rows["mlp directions"].rendering.model == "tiny-vit with random mlp directions in layer 1"
    directions = found["mlp"] @ random_directions(model, find_site(model, -1))
    for name, units in (("value", found["value"][:, [0, 16, 31]]), ("mlp directions", directions[:, [0, 64, 127]])):
        best = class_selectivity(units, labels, 4).max(0)
        assert torch.equal(rows[name].concept, best.indices) and torch.allclose(rows[name].selectivity, best.values)


def test_recognition_by_kind_counts_top_5_hits_however_selective_the_unit(visualized):
    model, found, labels = visualized
    model.class_names, model.module.head = [f"concept {i}" for i in range(16)], nn.Linear(32, 16).requires_grad_(False)
    model.card = {"recipe": {"styles": ["flat"]}}
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16))
    module[2].weight.data.zero_()
    module[2].bias.data = -torch.arange(16.0).roll(2)  # predicts 2, 3, … 6, whatever it sees
    table = recognition_by_kind(model, VisionModel(module, "other", 32, class_names=model.class_names), neurons=32)
    rows = table.table.set_index(["pictures", "kind"])
    preferred = class_selectivity(found["query"], labels, 4).argmax(0)
    assert rows.loc[("recognized by other", "query"), "value"] == pytest.approx(100 * (preferred >= 2).float().mean().item())
    assert set(rows["n"]) == {32} and table.control == ("chance recognition", 500 / 16)
    high = sum(p > 99 for p in visualize(model, neurons=32)["key"].rendering.scores.percentile)
    assert rows.loc[("above the 99th percentile", "key"), "value"] == pytest.approx(100 * high / 32)


def test_recognition_by_kind_needs_two_embedded_models(tiny_vit):
    with pytest.raises(VitvizError, match="needs two embedded models"):
        recognition_by_kind(tiny_vit, tiny_vit)


# What a network computes now


def test_a_changed_network_is_measured_and_rotated_anew_and_a_foreign_hook_is_never_cached(tiny_vit):
    images = torch.rand(6, 3, 32, 32)
    before, turned = layer_activations(tiny_vit, images)[1], rotated(tiny_vit)
    tiny_vit.module.blocks[1].attn.qkv.weight.data.mul_(0.5)
    changed, again = layer_activations(tiny_vit, images)[1], rotated(tiny_vit)
    assert not torch.allclose(changed["query"], before["query"]) and again is not turned
    assert torch.allclose(again(images), tiny_vit(images), atol=1e-4) and again.lock is not tiny_vit.lock
    handle = tiny_vit.module.blocks[1].attn.qkv.register_forward_hook(lambda module, arguments, output: 0 * output)
    assert layer_activations(tiny_vit, images)[1]["query"].abs().max() == 0
    handle.remove()
    assert torch.equal(layer_activations(tiny_vit, images)[1]["query"], changed["query"])


@pytest.mark.slow
def test_the_embedded_model_has_axes_in_its_mlp_and_none_in_its_queries():
    values = axis_alignment(vv.load("emoji-vit", device="cpu"), n=512)[0].table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] > 1.5 * values["mlp", "random directions"]
    assert values["query", "units"] == pytest.approx(values["query", "random directions"], rel=0.1)
