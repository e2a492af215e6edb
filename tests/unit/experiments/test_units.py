"""Kinds of units: spaces whose concepts and dimensions are known by hand, and networks that may be turned."""

from types import SimpleNamespace

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.experiments import units as kinds
from vitviz_nb.experiments.units import (
    Row,
    _jackknife,
    answers,
    by_axes,
    directions,
    discriminant,
    effective_dimension,
    explained,
    pictures,
    rank,
    readable,
    rotated,
    sheet,
    stand_out,
)
from vitviz_nb.models.reading import activations, tokens
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

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


# How far concepts stand out, and what they explain


def test_a_concept_stands_out_by_what_is_counted_by_hand():
    labels = torch.tensor([0] * 4 + [1] * 12)
    found = torch.stack([(labels == 0).float(), torch.ones(16)], 1)
    # A mean of 1/4 and a deviation of sqrt(3)/4: 1 lies 3/sqrt(3) above, 0 lies 1/sqrt(3) below. A constant unit: nothing.
    each = stand_out(found, labels, 3)
    assert each[:2, 0].tolist() == pytest.approx([3**0.5, -(3**-0.5)], abs=1e-5)
    assert each[:2, 1].tolist() == [0, 0] and each[2].tolist() == [-torch.inf] * 2


def test_a_concept_of_three_images_is_no_favorite():
    labels = torch.tensor([0] * 3 + [1] * 4 + [2] * 9)
    each = stand_out(F.one_hot(labels, 3).float() * torch.tensor([9.0, 1, 1]), labels, 3)
    assert each[0].tolist() == [-torch.inf] * 3 and each[1, 1] > 1


def test_explained_is_the_intraclass_correlation_and_zero_on_average_by_chance():
    labels = torch.arange(64).repeat(8)
    noise, concept = torch.randn(512, 400), torch.randn(64, 400)[labels]
    assert explained(concept, labels).tolist() == pytest.approx([1] * 400, abs=1e-5)
    assert explained(noise, labels).mean().item() == pytest.approx(0, abs=0.01)
    assert explained(noise + concept, labels).mean().item() == pytest.approx(0.5, abs=0.02)
    # Two groups by hand: means 0 and 2, within-group squares of 4 over 2 degrees, between 4: (4 - 2) / (4 + 2).
    assert explained(torch.tensor([[-1.0], [1], [1], [3]]), torch.tensor([0, 0, 1, 1])).item() == pytest.approx(1 / 3, abs=1e-5)


# Dimensions


def test_variance_spread_evenly_has_as_many_dimensions_as_directions_and_no_more_for_copies():
    even = torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).repeat(16, 1)
    assert _jackknife(even)["value"] == pytest.approx(3, abs=1e-6)
    assert _jackknife(even.repeat(1, 5))["value"] == pytest.approx(3, abs=1e-6)
    assert _jackknife(even * torch.tensor([2.0, 1, 1]))["value"] == pytest.approx(36 / 18, abs=1e-6)  # (4+1+1)² / (16+1+1)
    row = _jackknife(even)
    assert row["low"] <= row["value"] <= row["high"] and row["n"] == 64


def test_the_interval_of_a_dimension_holds_the_truth_about_as_often_as_it_says():
    inside = []
    for _ in range(60):
        row = _jackknife(torch.randn(800, 3) * torch.tensor([2.0, 1, 1]))
        inside.append(row["low"] < 2 < row["high"])
    assert 50 <= sum(inside) <= 60


def test_rank_counts_all_directions_however_weak():
    x = torch.randn(50, 3)
    assert rank(torch.cat([x, x @ torch.randn(3, 4), 0.01 * torch.randn(50, 1)], 1)) == 4
    assert rank(x @ torch.tensor([[1.0, 0, 1], [0, 1, -1], [1, 1, 0]])) == 2


def plant(monkeypatch: pytest.MonkeyPatch, found: dict[str, Tensor], labels: Tensor) -> None:
    stimuli = SimpleNamespace(n=len(labels), name=f"{len(labels)} images", labels=lambda numbers: labels[list(numbers)])
    monkeypatch.setattr(kinds, "answers", lambda model, layer=-1, images=None, n=0: (stimuli, found))


def test_units_that_each_stand_for_one_concept_are_told_from_directions_that_mix_them(tiny_vit, monkeypatch):
    tiny_vit.class_names = [f"c{i}" for i in range(128)]
    labels = torch.arange(128).repeat(4)
    one_each = F.one_hot(labels, 128).float()
    mixed = one_each[:, :32] @ torch.linalg.qr(torch.randn(32, 32))[0]
    plant(monkeypatch, {"query": mixed, "mlp": one_each, "before": one_each}, labels)
    selective, known = by_axes(tiny_vit)
    assert selective.table["kind"].unique().tolist() == ["query", "mlp"]
    values = selective.table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] == pytest.approx(127**0.5, abs=1e-3)  # one scene in 128
    assert values["mlp", "random directions"] < 0.6 * values["mlp", "units"]
    assert values["query", "units"] == pytest.approx(values["query", "random directions"], rel=0.1)
    assert set(selective.table["n"]) == {32, 128}
    values = known.table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] == values["mlp", "random directions"] == pytest.approx(100, abs=1e-3)
    assert abs(values["mlp", "units, shuffled labels"]) < 5


def test_a_concept_that_no_unit_shows_is_found_along_a_direction(tiny_vit, monkeypatch):
    labels = torch.arange(4).repeat(100)
    # Two units share what tells concept 0 under a large common noise: their difference shows it, neither of them does.
    noise, sign = torch.randn(400), (labels == 0).float()
    units = torch.stack([10 * noise + sign, 10 * noise - sign], 1) + 0.01 * torch.randn(400, 2)
    plant(monkeypatch, {"query": units}, labels)
    along = discriminant(units, labels, 0)
    assert along[0] > 0 > along[1] and along.sum().abs() < 0.2 * along[0]
    values = readable(tiny_vit).table.set_index("along")["value"]
    each = stand_out((units @ along)[:, None], labels, 4)[0, 0].item()
    assert each == pytest.approx(3**0.5, rel=0.02)  # the most there can be for a quarter of the scenes
    assert values["best unit"] < 0.4 and values["best direction"] > values["best unit"] + 0.3
    with pytest.raises(VitvizError, match="No class has 4 of the 6 images in each half"):
        plant(monkeypatch, {"query": units[:6]}, labels[:6])
        readable(tiny_vit)


# The network turned


@pytest.mark.parametrize("name", FAMILIES)
def test_turned_networks_answer_as_before_with_other_units(name: str):
    model, images = family(name), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        before = model(images)
        for kind in ("query", "key", "value", "mlp"):
            turned = rotated(model, -1, kind)
            assert torch.allclose(turned(images), before, atol=1e-4 * before.abs().max().item()), kind
            old, new = (activations(m, kind, images)[-1] for m in (model, turned))
            assert torch.allclose(new, old @ directions(model, find_site(model, -1, kind)), atol=1e-4), kind
            assert (new - old).abs().max() > 0.01 and turned.weights_hash != model.weights_hash
            assert rotated(model, -1, kind) is turned
        assert torch.equal(model(images), before)  # itself it is as it was


def test_directions_are_at_right_angles_and_keep_to_their_heads(tiny_vit):
    turn = directions(tiny_vit, find_site(tiny_vit, 0, "query"))
    assert torch.allclose(turn.T @ turn, torch.eye(32), atol=1e-5)
    assert turn[:16, 16:].abs().max() == 0 < turn[:16, :16].abs().min()
    assert torch.equal(turn, directions(tiny_vit, find_site(tiny_vit, 0, "key")))
    turn = directions(tiny_vit, find_site(tiny_vit, 0))
    assert torch.allclose(turn.T @ turn, torch.eye(128), atol=1e-5) and turn[:16, 16:].abs().min() > 0


def test_the_leak_of_a_turned_unit_is_turned_as_well(tiny_vit):
    x, place = torch.randn(2, 3, 32, 32), find_site(tiny_vit, -1)
    with torch.no_grad():
        expected = tokens(tiny_vit, place, x, leak=0.1) @ directions(tiny_vit, place)
        assert torch.allclose(tokens(rotated(tiny_vit), place, x, leak=0.1), expected, atol=1e-5)


def test_a_network_that_treats_queries_one_by_one_and_other_kinds_are_refused(tiny_vit):
    normed = VisionModel(VisionTransformer(**SMALL, qk_norm=True), "normed", 32)
    for parameter in normed.module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    with pytest.raises(VitvizError, match="normed answers otherwise once its query units are turned"):
        rotated(normed, kind="query")
    with pytest.raises(VitvizError, match="not of 'residual'"):
        rotated(tiny_vit, kind="residual")


# Answers


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_those_of_each_site_from_one_pass_and_cached(name: str, monkeypatch):
    model, images = family(name), torch.rand(20, 3, 32, 32)
    stimuli, found = answers(model, -1, images)
    assert list(found) == ["query", "key", "value", "mlp", "residual", "before"] and stimuli.n == 20
    for kind in ("query", "key", "value", "mlp", "residual"):
        assert torch.allclose(found[kind], activations(model, kind, images)[-1], atol=1e-5), kind
    with pytest.raises(VitvizError, match="several images"):
        effective_dimension(model, -1, images[:1])
    monkeypatch.setattr(kinds, "at_sites", None)
    assert all(torch.equal(units, found[kind]) for kind, units in answers(model, -1, images)[1].items())
    finding = effective_dimension(model, -1, images)
    assert finding.table["value"].min() > 0 and finding.title.startswith(f"{name}, layer 1 (20 images)")
    with pytest.raises(VitvizError, match="labels"):
        by_axes(model, -1, images)


def test_before_the_activation_function_is_what_goes_into_it(tiny_vit):
    tiny_vit.module.blocks[1].mlp.act = nn.Identity()
    found = answers(tiny_vit, 1, torch.rand(4, 3, 32, 32))[1]
    assert torch.equal(found["before"], found["mlp"])


def test_a_cnn_has_no_kinds_to_compare():
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", 32)
    for experiment in (answers, by_axes, effective_dimension, readable):
        with pytest.raises(VitvizError, match="cnn has neither queries, keys and values nor MLP units"):
            experiment(cnn)


# Pictures


def test_pictures_are_of_evenly_spaced_units_and_random_directions_each_with_its_favorite(tiny_vit, monkeypatch):
    labels = torch.arange(4).repeat(16)
    found = {kind: torch.randn(64, units) for kind, units in (("query", 32), ("key", 32), ("value", 32), ("mlp", 128))}
    plant(monkeypatch, found, labels)
    shown = []

    class Painter:
        def __init__(self, model):
            self.model = model

        def render(self, layer, neurons, kind):
            shown.append((self.model.name, kind))
            scores = SimpleNamespace(percentile=[99.9] * len(neurons), status=["alive"] * len(neurons))
            return SimpleNamespace(neurons=neurons, pictures=torch.rand(len(neurons), 3, 32, 32), scores=scores)

    monkeypatch.setattr(kinds, "Visualizer", Painter)
    rows = pictures(tiny_vit, -1, 3)
    assert list(rows) == ["query", "key", "value", "mlp", "mlp directions"]
    assert shown == [("tiny-vit", kind) for kind in list(rows)[:4]] + [("tiny-vit with random mlp directions in layer 1", "mlp")]
    assert rows["query"].rendering.neurons == [0, 16, 31] and rows["mlp directions"].rendering.neurons == [0, 64, 127]
    each = stand_out(found["mlp"] @ directions(tiny_vit, find_site(tiny_vit, -1)), labels, 4)[:, [0, 64, 127]].max(0)
    assert torch.equal(rows["mlp directions"].concept, each.indices)
    assert torch.allclose(rows["mlp directions"].strength, each.values)
    each = stand_out(found["value"], labels, 4)[:, [0, 16, 31]].max(0)
    assert torch.equal(rows["value"].concept, each.indices) and isinstance(rows["value"], Row)
    tiles, draw = [], kinds.contact_sheet
    monkeypatch.setattr(kinds, "contact_sheet", lambda given, title, **more: tiles.extend(given) or draw(given, title, **more))
    assert sheet(rows, tiny_vit).width > 3 * 104 and len(tiles) == 15
    assert tiles[1].lines[0] == "query 16" and tiny_vit.class_names[rows["query"].concept[1]] in tiles[1].lines[1]


def test_the_embedded_model_has_axes_in_its_mlp_and_none_in_its_queries():
    values = by_axes(vv.load("emoji-vit", device="cpu"), n=512)[0].table.set_index(["kind", "of"])["value"]
    assert values["mlp", "units"] > 1.5 * values["mlp", "random directions"]
    assert values["query", "units"] == pytest.approx(values["query", "random directions"], rel=0.1)
