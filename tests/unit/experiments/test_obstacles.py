"""Obstacles: kinds of units whose concepts are known by hand, and neurons whose best change is known."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments import faithfulness, obstacles
from vitviz_nb.experiments.obstacles import by_kind, look_alike
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

SIZE = 16
R, G, MIXED = [1.0, 0, 0], [0.0, 1, 0], [1.0, 0.5, 0]
NAMES = [f"concept {i}" for i in range(16)]


class Attention(nn.Module):
    def __init__(self, rows: list[list[float]]):
        super().__init__()
        self.qkv, self.proj = nn.Linear(3, len(rows), bias=False), nn.Identity()
        self.qkv.weight.data = torch.tensor(rows)


class Units(nn.Module):
    """Queries, keys, values and MLP units that answer to a patch's mean color by these rows."""

    def __init__(self, mlp: list[list[float]], attention: list[list[float]] | None = None):
        super().__init__()
        self.attn = Attention(attention) if attention else None
        self.mlp = Mlp(3, len(mlp), 3, act_layer=nn.ReLU)
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = torch.tensor(mlp), torch.zeros(len(mlp))

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
        if self.attn:
            self.attn.qkv(x)
        return self.mlp(x).mean(1)


def make(mlp: list[list[float]], attention: list[list[float]] | None = None, reference: Tensor | None = None) -> VisionModel:
    card = {"recipe": {"styles": ["flat"]}, "pictures": {"steps": 1, "copies": 1, "lr": 0.01}}
    model = VisionModel(Units(mlp, attention), "units", SIZE, mean=(0, 0, 0), std=(1, 1, 1), class_names=NAMES, card=card)
    model.memo["reference"] = ImageSet(model, flat(*[[1.0, 0, 0]] * 8) if reference is None else reference)
    return model


def flat(*colors: list[float]) -> Tensor:
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, SIZE, SIZE).contiguous()


@pytest.fixture
def judge() -> VisionModel:
    """Says concepts 0 to 4, whatever it sees."""
    module = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16))
    module[2].weight.data.zero_()
    module[2].bias.data = -torch.arange(16.0)
    return VisionModel(module, "judge", SIZE, class_names=NAMES)


@pytest.fixture(autouse=True)
def world(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 concepts, the first red, the sixth green, the others black; and fewer scenes."""

    def batch(indices, device="cpu"):
        concept = torch.tensor(list(indices)) % 16
        color = torch.stack([concept == 0, concept == 5, concept < 0], 1).float()
        return SimpleNamespace(images=flat(*color.tolist()), concept=concept)

    monkeypatch.setattr(faithfulness, "EmojiWorld", lambda *a, **k: SimpleNamespace(concepts=NAMES, batch=batch))
    monkeypatch.setattr(faithfulness, "_SCENES", 128)


# By kind


def test_each_kind_has_the_shares_counted_by_hand(judge: VisionModel, monkeypatch: pytest.MonkeyPatch):
    def row(concepts: list[int], percentiles: list[float]) -> SimpleNamespace:
        scores = SimpleNamespace(percentile=percentiles)
        rendering = SimpleNamespace(pictures=torch.rand(len(concepts), 3, SIZE, SIZE), scores=scores)
        return SimpleNamespace(rendering=rendering, concept=torch.tensor(concepts), strength=torch.tensor([-1.0] * len(concepts)))

    # The judge says concepts 0 to 4. All pictures count, however little their unit tells of concepts.
    rows = {"query": row([0, 5, 6, 7], [99.5, 99, 10, 99.1]), "mlp": row([4, 0], [100, 98]),
            "mlp directions": row([15, 5], [1, 2])}
    asked = []
    monkeypatch.setattr(obstacles, "pictures", lambda *given: asked.append(given) or rows)
    monkeypatch.setattr(obstacles, "by_axes", lambda model, layer: ("selectivity", "known"))
    model = make([R, G])
    found, selective = by_kind(model, judge, 0, 4)
    table = found.table.set_index(["pictures", "kind"])
    assert table.loc["named by judge"]["value"].to_dict() == {"query": 25, "mlp": 100, "mlp directions": 0}
    assert table.loc["above the 99th percentile"]["value"].to_dict() == {"query": 50, "mlp": 50, "mlp directions": 0}
    assert table.loc["named by judge"]["n"].to_dict() == {"query": 4, "mlp": 2, "mlp directions": 2}
    assert found.control == ("guessing names", 500 / 16) and found.title.startswith("units, layer 0: ")
    assert selective == "selectivity" and asked == [(model, 0, 4)]


def test_models_without_card_or_with_other_classes_are_refused(judge: VisionModel, tiny_vit: VisionModel):
    model = make([R])
    for of, by in ((model, tiny_vit), (tiny_vit, tiny_vit)):
        with pytest.raises(VitvizError, match="Naming pictures needs two embedded models"):
            by_kind(of, by)


def test_a_model_with_none_of_the_kinds_is_told_so(judge: VisionModel):
    model = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", SIZE, class_names=NAMES, card=make([R]).card)
    with pytest.raises(VitvizError, match="cnn"):
        by_kind(model, judge)


# Look-alikes


def scale(*reds: float) -> Tensor:
    return flat(*([red, 0.0, 0.0] for red in reds))


@pytest.fixture
def red() -> VisionModel:
    """Its neurons: the mean of red, of red less green, and a dead one; its reference images 0.1 to 0.8 red."""
    return make([R, [1.0, -1, 0], [-1.0, 0, 0]], reference=scale(*(0.1 * i for i in range(1, 9))))


def test_of_a_linear_neuron_the_change_is_the_best_there_is(red: VisionModel):
    image = flat([0.45, 0.2, 0.5])[0]
    # The slope is 1/256 at each of 256 red pixels, a vector of length 1/16; a step of length 1 along it adds 1/16 to each.
    found = look_alike(red, image, 0, 0)
    assert torch.allclose(found.changed - image, torch.tensor([1 / 16, 0, 0]).view(3, 1, 1).expand_as(image), atol=1e-5)
    assert (found.before, found.after, found.distance) == pytest.approx((0.45, 0.45 + 1 / 16, 1), abs=1e-5)
    # Red less green: a slope of length sqrt(2) / 16, so half a step of each channel's sqrt(1/2).
    found = look_alike(red, image, 0, 1, distance=0.5)
    assert (found.before, found.after) == pytest.approx((0.25, 0.25 + 0.5 * 2**0.5 / 16), abs=1e-5)


def test_percentiles_are_the_shares_of_reference_images_below(red: VisionModel):
    found = look_alike(red, flat([0.45, 0.2, 0.5])[0], 0, 0)  # 0.1 to 0.4 lie below, and 0.5 too after the change
    assert found.percentiles == pytest.approx((50, 62.5)) and "among 8 images" in found.title
    found = look_alike(red, flat([0.45, 0.2, 0.5])[0], 0, 0, images=scale(0.1, 0.5, 0.9, 0.95))
    assert found.percentiles == pytest.approx((25, 50)) and "among 4 images" in found.title


def test_the_change_is_no_larger_than_allowed_and_leaves_the_image_an_image(tiny_vit: VisionModel):
    tiny_vit.memo["reference"] = ImageSet(tiny_vit, torch.rand(4, 3, 32, 32))
    image = (3 * torch.rand(3, 32, 32) - 1).clamp(0, 1)  # two thirds of its pixels at the ends of the range
    for neuron, distance in ((3, 0.5), (90, 8.0)):
        found = look_alike(tiny_vit, image, 1, neuron, distance=distance)
        assert torch.equal(found.image, image) and 0 <= found.changed.min() and found.changed.max() <= 1
        assert 0.5 * distance < found.distance <= distance + 1e-4
        assert found.distance == pytest.approx((found.changed - image).norm().item(), abs=1e-4)
        assert found.after > found.before


def test_an_image_that_cannot_excite_the_neuron_is_left_as_it_is(red: VisionModel):
    image = flat([0.45, 0.2, 0.5])[0]
    found = look_alike(red, image, 0, 2)
    assert torch.equal(found.changed, image) and found.distance == found.before == found.after == 0


def test_wrong_images_and_neurons_are_told_what_is_right(red: VisionModel):
    for shape in ((1, 3, SIZE, SIZE), (3, SIZE, 8), (1, SIZE, SIZE)):
        with pytest.raises(VitvizError, match=r"units takes an image of shape \(3, 16, 16\), got \("):
            look_alike(red, torch.rand(shape), 0, 0)
    with pytest.raises(VitvizError, match="neurons 0 to 2; neuron 3 is out of range"):
        look_alike(red, torch.rand(3, SIZE, SIZE), 0, 3)


def test_the_sheet_shows_both_images_their_numbers_and_ten_times_the_change(red: VisionModel, monkeypatch: pytest.MonkeyPatch):
    found, shown = look_alike(red, flat([0.45, 0.2, 0.5])[0], 0, 0), []
    draw = obstacles.contact_sheet
    monkeypatch.setattr(obstacles, "contact_sheet", lambda tiles, title, **k: shown.extend(tiles) or draw(tiles, title, **k))
    data, _ = found._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and found.title in data["text/plain"]
    assert found.title.startswith("units, mlp layer 0, neuron 0: a change of 1.00 (L2)")
    said = [" ".join(tile.lines) for tile in shown]
    assert "0.45" in said[0] and "above 50.0 %" in said[0] and "0.512" in said[2] and "above 62.5 %" in said[2]
    assert torch.equal(shown[0].picture, found.image) and torch.equal(shown[2].picture, found.changed)
    assert shown[1].picture.mean((1, 2)).tolist() == pytest.approx([0.5 + 10 / 16, 0.5, 0.5], abs=1e-3)
