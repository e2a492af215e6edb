"""Regularizers: artifacts of images drawn by hand, and neurons whose adversarial examples are known."""

import math

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitviz_nb.datasets.image_folder import image_folder
from vitviz_nb.experiments.regularizers import (
    ablated_recipes,
    ablation,
    adversarial_example,
    high_frequencies,
    patch_borders,
    patch_size,
    sensitivity,
)
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.plotting.image_grid import to_image
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.optimize import Adam
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

SIDE = 32
BRIEF = Recipe(steps=2, copies=1)
TWO = Recipe(steps=2, copies=1, color=0, noise=0)  # tv and jitter: four settings


def grating(across: int, amplitude: float = 0.1) -> Tensor:
    """(3, 32, 32), a cosine of so many cycles per image."""
    return (0.5 + amplitude * torch.cos(2 * math.pi * across * torch.arange(SIDE) / SIDE)).expand(3, SIDE, -1)


# Artifacts


def test_high_frequencies_are_the_share_of_variance_above_a_quarter_of_the_side():
    mixed = grating(3, 0.2) + grating(12, 0.1) - 0.5  # four times the power in the low one
    checks = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)).remainder(2).float().expand(3, -1, -1)  # beyond the last ring
    found = high_frequencies(torch.stack([grating(8), grating(9), mixed, checks, torch.full((3, SIDE, SIDE), 0.3)]))
    assert found.tolist() == pytest.approx([0, 100, 20, 100, 0], abs=1e-3)


def test_white_noise_has_the_share_that_the_docstring_says():
    assert high_frequencies(torch.rand(20, 3, 64, 64)).mean().item() == pytest.approx(79, abs=0.5)


def test_patch_borders_are_the_share_of_squared_differences_on_them():
    blocks = torch.arange(4).repeat_interleave(8).float().expand(3, SIDE, -1)  # steps at 8, 16 and 24 and nowhere else
    inside = (torch.arange(SIDE) >= 12).float().expand(3, SIDE, -1)
    ramp = torch.arange(SIDE).float().expand(3, SIDE, -1)  # 31 equal steps, 3 of them on borders
    pictures = torch.stack([blocks, blocks.mT, inside, ramp, ramp.mT, torch.zeros(3, SIDE, SIDE)])
    assert patch_borders(pictures, 8).tolist() == pytest.approx([100, 100, 0, 300 / 31, 300 / 31, 0], abs=1e-4)
    # differences of 3 and 1
    assert patch_borders(ramp[None] + 2 * blocks, 8).item() == pytest.approx(100 * 3 * 9 / (3 * 9 + 28), abs=1e-4)


# Ablated recipes


def test_ablated_recipes_take_away_all_each_and_all_but_each():
    recipe = Recipe(copies=1, noise=0.0)  # tv, jitter and color
    found = ablated_recipes(recipe)
    assert list(found) == ["none", "tv only", "jitter only", "color only", "all but tv", "all but jitter", "all but color",
                           "all"]
    used = {name: [k for k in ("tv", "jitter", "color", "noise") if getattr(made, k)] for name, made in found.items()}
    assert used["none"] == [] and used["tv only"] == ["tv"] and used["all but tv"] == ["jitter", "color"]
    assert found["all"] == recipe and found["tv only"].tv == recipe.tv and found["none"].spread == recipe.spread


def test_copies_count_where_there_are_several_and_no_setting_stands_there_twice():
    assert ablated_recipes(Recipe())["copies only"].copies == 8 and ablated_recipes(Recipe())["all but copies"].copies == 1
    for few, names in (({}, ["none", "tv only", "jitter only", "all"]), ({"tv": 0.0}, ["none", "all"])):
        found = ablated_recipes(Recipe(copies=1, noise=0, color=0, **few))
        assert list(found) == names and len(set(found.values())) == len(found)
    with pytest.raises(VitvizError, match="no regularizer to take away; give at least one of tv, jitter"):
        ablated_recipes(Recipe(copies=1, noise=0, color=0, tv=0, jitter=0))


# Ablation


def test_every_setting_has_its_own_pictures_of_the_same_neurons_and_its_rows(tiny_vit: VisionModel):
    images = torch.rand(12, 3, SIDE, SIDE)
    found = ablation(tiny_vit, images, recipe=BRIEF, neurons=[5, 9])
    assert list(found.pictures) == list(ablated_recipes(BRIEF))
    for name, made in found.pictures.items():
        assert made.recipe == ablated_recipes(BRIEF)[name] and made.neurons == [5, 9] and made.layer == 1
        again = Visualizer(tiny_vit, made.recipe, images).render(1, [5, 9])
        assert torch.equal(made.pictures, again.pictures) and made.scores == again.scores
    artifacts = found.artifacts.table.set_index(["regularizers", "share"])
    assert artifacts.loc[("none", "variance in high frequencies"), "value"] == pytest.approx(
        high_frequencies(found.pictures["none"].pictures).mean().item())
    assert artifacts.loc[("all", "differences at patch borders"), "value"] == pytest.approx(
        patch_borders(found.pictures["all"].pictures, 8).mean().item())
    scenes = artifacts.loc[("scenes", "variance in high frequencies"), ["value", "n"]].tolist()
    assert scenes == pytest.approx([high_frequencies(images).mean().item(), 12])
    assert found.artifacts.control[1] == pytest.approx(300 / 31)
    quality = found.quality.table.set_index("regularizers")
    assert set(quality["pictures"]) == {"above the 99th percentile"} and set(quality["n"]) == {2}
    assert found.quality.control is None
    high = sum(p > 99 for p in found.pictures["tv only"].scores.percentile)
    assert quality.loc["tv only", "value"] == 50 * high


SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
STAGES = {"img_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
FAMILIES = {  # CLIP's image tower is a ViT with a norm before its blocks
    "vit": (lambda: VisionTransformer(**SMALL), 8), "deit": (lambda: VisionTransformerDistilled(**SMALL), 8),
    "clip": (lambda: VisionTransformer(**SMALL, pre_norm=True), 8), "swin": (lambda: SwinTransformer(**STAGES), 4)}


@pytest.mark.parametrize("family", FAMILIES)
def test_experiments_run_on_timms_families_with_random_weights_and_a_folder_of_images(family, tmp_path):
    for i in range(9):
        to_image(torch.rand(3, 40, 50)).save(tmp_path / f"{i}.png")
    make, patch = FAMILIES[family]
    model, images = VisionModel(make(), family, SIDE), image_folder(tmp_path, SIDE)
    assert patch_size(model) == patch
    found = ablation(model, images, recipe=TWO, neurons=[0, 3])
    assert set(found.artifacts.table["share"]) == {"variance in high frequencies", "differences at patch borders"}
    assert found.artifacts.table["value"].between(0, 100).all() and "9 images" in found.quality.title
    increase = sensitivity(model, images, n=4, distances=(0.5,)).table.set_index("perturbation")["value"]
    assert increase["adversarial"] > abs(increase["random"])


def test_a_cnn_has_no_patch_borders_and_is_measured_all_the_same():
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", SIDE)
    found = ablation(cnn, torch.rand(8, 3, SIDE, SIDE), recipe=TWO, neurons=[0])
    assert set(found.artifacts.table["share"]) == {"variance in high frequencies"} and found.artifacts.control is None
    with pytest.raises(VitvizError, match="cnn does not cut images into patches of whole pixels"):
        patch_size(cnn)


def test_a_recognizer_that_knows_other_classes_is_refused(tiny_vit: VisionModel):
    with pytest.raises(VitvizError, match="needs two embedded models"):
        ablation(tiny_vit, recipe=TWO, recognizer=tiny_vit)


def test_an_interrupted_ablation_is_refused(tiny_vit: VisionModel, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(Adam, "update", interrupted)
    with pytest.raises(VitvizError, match="unfinished"):
        ablation(tiny_vit, torch.rand(8, 3, SIDE, SIDE), recipe=TWO, neurons=[0])


# Sensitivity


class Red(nn.Module):
    """Its units: the mean of red, the same upside down, and one that never moves."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]])[:, :, None, None]
        self.conv.bias.data = torch.tensor([0.0, 1.0, 0.5])

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.conv(images)).mean((2, 3))


def test_of_linear_units_the_increase_is_the_largest_there_is_in_standard_deviations():
    reds = torch.tensor([0.3, 0.4, 0.5, 0.6])
    images = torch.stack([reds, *[torch.full((4,), 0.5)] * 2], 1)[:, :, None, None].expand(-1, -1, 16, 16).contiguous()
    model = VisionModel(Red(), "red", 16, mean=(0, 0, 0), std=(1, 1, 1))
    found = sensitivity(model, images, distances=(0.5, 1.0)).table
    best = found[found["perturbation"] == "adversarial"].set_index("L2 norm")
    # A step of length 1 along the gradient adds 1/16 to each of 256 red pixels, and so to their mean; units vary as reds do.
    for distance in (0.5, 1.0):
        assert best.loc[distance, "value"] == pytest.approx(distance / 16 / reds.std().item(), rel=1e-3)
    assert best["n"].tolist() == [4, 4] and best.loc[1.0, "high"] - best.loc[1.0, "low"] < 1e-3
    random = found[found["perturbation"] == "random"]
    assert random["value"].abs().max() < 0.25 * best.loc[0.5, "value"]


def test_one_image_or_images_that_are_all_the_same_are_refused(tiny_vit: VisionModel):
    one = torch.rand(1, 3, SIDE, SIDE)
    for images, said in ((one, "at least two"), (one.repeat(4, 1, 1, 1), "differ")):
        with pytest.raises(VitvizError, match=said):
            sensitivity(tiny_vit, images)


# Adversarial examples


class Units(nn.Module):
    """MLP units that respond to a patch's mean color by these rows."""

    def __init__(self, rows: list[list[float]]):
        super().__init__()
        self.mlp = Mlp(3, len(rows), 3, act_layer=nn.ReLU)
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = torch.tensor(rows), torch.zeros(len(rows))

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp(F.avg_pool2d(images, 4).flatten(2).transpose(1, 2)).mean(1)


SIZE = 16


def flat(*colors: list[float]) -> Tensor:
    return torch.tensor(colors)[:, :, None, None].expand(-1, -1, SIZE, SIZE).contiguous()


def scale(*reds: float) -> Tensor:
    return flat(*([red, 0.0, 0.0] for red in reds))


@pytest.fixture
def red() -> VisionModel:
    """Its neurons: the mean of red, of red less green, and a dead one."""
    return VisionModel(Units([[1.0, 0, 0], [1.0, -1, 0], [-1.0, 0, 0]]), "units", SIZE, mean=(0, 0, 0), std=(1, 1, 1))


REDS = scale(*(0.1 * i for i in range(1, 9)))  # reference images, 0.1 to 0.8 red


def test_of_a_linear_neuron_the_perturbation_is_the_best_there_is(red: VisionModel):
    image = flat([0.45, 0.2, 0.5])[0]
    # The gradient is 1/256 at each of 256 red pixels, a vector of length 1/16; a step of length 1 along it adds 1/16 to each.
    found = adversarial_example(red, image, layer=0, neuron=0, images=REDS)
    assert torch.allclose(found.perturbed - image, torch.tensor([1 / 16, 0, 0]).view(3, 1, 1).expand_as(image), atol=1e-5)
    assert (found.before, found.after, found.distance) == pytest.approx((0.45, 0.45 + 1 / 16, 1), abs=1e-5)
    # Red less green: a gradient of length sqrt(2) / 16, so half a step of each channel's sqrt(1/2).
    found = adversarial_example(red, image, layer=0, neuron=1, images=REDS, distance=0.5)
    assert (found.before, found.after) == pytest.approx((0.25, 0.25 + 0.5 * 2**0.5 / 16), abs=1e-5)


def test_percentiles_are_the_shares_of_reference_images_below(red: VisionModel):
    # 0.1 to 0.4 lie below, and 0.5 too after the perturbation
    found = adversarial_example(red, flat([0.45, 0.2, 0.5])[0], layer=0, neuron=0, images=REDS)
    assert found.percentiles == pytest.approx((50, 62.5)) and "among 8 images" in found.title
    found = adversarial_example(red, flat([0.45, 0.2, 0.5])[0], layer=0, neuron=0, images=scale(0.1, 0.5, 0.9, 0.95))
    assert found.percentiles == pytest.approx((25, 50)) and "among 4 images" in found.title


def test_the_perturbation_is_no_larger_than_allowed_and_leaves_the_image_an_image(tiny_vit: VisionModel):
    image = (3 * torch.rand(3, 32, 32) - 1).clamp(0, 1)  # two thirds of its pixels at the ends of the range
    for neuron, distance in ((3, 0.5), (90, 8.0)):
        found = adversarial_example(tiny_vit, image, neuron=neuron, distance=distance, images=torch.rand(4, 3, 32, 32))
        assert torch.equal(found.image, image) and 0 <= found.perturbed.min() and found.perturbed.max() <= 1
        assert 0.5 * distance < found.distance <= distance + 1e-4
        assert found.distance == pytest.approx((found.perturbed - image).norm().item(), abs=1e-4)
        assert found.after > found.before


def test_an_image_that_cannot_activate_the_neuron_is_left_as_it_is(red: VisionModel):
    image = flat([0.45, 0.2, 0.5])[0]
    found = adversarial_example(red, image, layer=0, neuron=2, images=REDS)
    assert torch.equal(found.perturbed, image) and found.distance == found.before == found.after == 0


def test_wrong_images_neurons_and_distances_are_refused_with_what_is_right(red: VisionModel):
    for image in (torch.rand(1, 3, SIZE, SIZE), torch.rand(3, SIZE, 8), 255 * torch.ones(3, SIZE, SIZE), "scene", None):
        with pytest.raises(VitvizError, match=r"Images for units are floats of shape \(N, 3, 16, 16\) in \[0, 1\]"):
            adversarial_example(red, image, neuron=0, images=REDS)
    with pytest.raises(VitvizError, match="neurons 0 to 2; neuron 3 is out of range"):
        adversarial_example(red, REDS[0], neuron=3, images=REDS)
    with pytest.raises(VitvizError, match="distance is a number from 0 to 10000"):
        adversarial_example(red, REDS[0], neuron=0, distance="1", images=REDS)


def test_a_network_without_a_gradient_is_refused(red: VisionModel):
    forward = red.module.forward
    red.module.forward = lambda images: forward(images.detach())
    for use in (lambda: adversarial_example(red, REDS[0], neuron=0, images=REDS), lambda: sensitivity(red, REDS, n=2)):
        with pytest.raises(VitvizError, match="does not depend differentiably on the image"):
            use()


def test_perturbations_in_inference_mode_are_the_same(red: VisionModel):
    expected = adversarial_example(red, REDS[0], neuron=0, images=REDS)
    with torch.inference_mode():
        assert torch.equal(adversarial_example(red, REDS[0].clone(), neuron=0, images=REDS).perturbed, expected.perturbed)


def test_it_shows_itself_with_the_size_of_the_perturbation(red: VisionModel):
    data = adversarial_example(red, REDS[3], neuron=0, images=REDS)._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"].startswith("units, mlp layer 0, neuron 0: a perturbation of 1.00 (L2), percentiles among 8 images")
