"""Progression: frequencies of known gratings, colors by hand, and units that are invariant to known transformations."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

import vitviz_nb as vv
from vitviz_nb.experiments.progression import frequency_and_color, invariance, rotated, selectivity_by_layer
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.visualizer import Visualizer

SIDE = 32


def grating(down: int, across: int) -> Tensor:
    """(3, 32, 32), a cosine of so many cycles per image."""
    line = 2 * math.pi * torch.arange(SIDE) / SIDE
    return (0.5 + 0.4 * torch.cos(down * line[:, None] + across * line)).expand(3, -1, -1)


# Visualizations by layer


def test_the_mean_frequency_of_gratings_is_theirs_layer_by_layer():
    fine, _ = frequency_and_color({0: torch.stack([grating(0, 2), grating(4, 0)]), 3: grating(0, 8)[None]}, "a title")
    assert fine.table["layer"].tolist() == [0, 3] and fine.table["n"].tolist() == [2, 1]
    assert fine.table["value"].tolist() == pytest.approx([3, 8], abs=1e-4)
    # 2 and 4 deviate by sqrt(2) from 3, so their standard error is 1.
    assert (fine.table["low"][0], fine.table["high"][0]) == pytest.approx((1.04, 4.96), abs=1e-4)
    assert fine.title.startswith("a title")


def test_the_mean_frequency_is_weighted_by_power():
    both = 0.5 + (grating(0, 2) - 0.5) / 4 + (grating(0, 7) - 0.5) / 2  # powers 1 : 4
    assert frequency_and_color({0: both[None]}, "")[0].table["value"][0] == pytest.approx((2 + 4 * 7) / 5, abs=1e-4)


def test_colorfulness_is_the_deviation_from_gray():
    gray = torch.rand(1, 1, 8, 8).expand(-1, 3, -1, -1)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(-1, -1, 8, 8)
    half = torch.cat([red[..., :4], gray[..., :4]], 3)
    # Of red the mean is 1/3, so the squares are 4/9, 1/9 and 1/9, on average 2/9; over half of the picture, 1/9.
    table = frequency_and_color({0: gray, 1: red, 2: half}, "")[1].table
    assert table["value"].tolist() == pytest.approx([0, 100 * 2**0.5 / 3, 100 / 3], abs=1e-3)


# Selectivity


class Reds(nn.Module):
    """Two layers of one unit each, the first of which answers to red."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Mlp(3, 1, 3, act_layer=nn.ReLU) for _ in range(2))
        for block, row in zip(self.blocks, ([1.0, 0, 0], [0.0, 1, 0]), strict=True):
            block.fc1.weight.data, block.fc1.bias.data = torch.tensor([row]), torch.zeros(1)

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        return sum(block(x) for block in self.blocks).mean(1)


class Flags:
    """Of 8 concepts, scenes of the third are red, of all others black, and half of each are green."""

    concepts = list("abcdefgh")

    def batch(self, indices, device="cpu"):
        number = torch.tensor(list(indices))
        color = torch.stack([number % 8 == 2, number // 8 % 2 == 0, number < 0], 1).float()
        return SimpleNamespace(images=color[:, :, None, None].expand(-1, 3, 16, 16), concept=number % 8)


def test_a_concept_detector_is_as_selective_as_by_hand_and_hardly_once_labels_are_shuffled():
    table = selectivity_by_layer(VisionModel(Reds(), "reds", 16, mean=(0, 0, 0), std=(1, 1, 1)), Flags()).table
    assert table["labels"].tolist() == ["concepts"] * 2 + ["shuffled"] * 2 and table["layer"].tolist() == [0, 1] * 2
    # Red: 1 in one scene of 8, so mean 1/8 and deviation sqrt(7)/8, and its concept lies at 1. Green says nothing of concepts.
    # The best of 8 means of 1,024 scenes lies by chance 1.4 / sqrt(1024) = 0.04 deviations above.
    assert table["value"].tolist()[:2] == pytest.approx([7**0.5, 0], abs=1e-3)
    assert all(0 < value < 0.15 for value in table["value"][2:])


# Invariance


def test_units_without_position_are_invariant_to_shifts_by_whole_patches_only(tiny_vit: VisionModel):
    module = tiny_vit.module
    module.pos_embed.data.zero_()
    for block in module.blocks:
        block.attn.proj.weight.data.zero_()
        block.attn.proj.bias.data.zero_()
    module.blocks[0].mlp.fc1.weight.data[0] = module.blocks[0].mlp.fc1.bias.data[0] = 0  # a dead unit does not count
    table = invariance(tiny_vit, torch.rand(40, 3, SIDE, SIDE)).table
    value = {key: rows["value"].tolist() for key, rows in table.groupby("transformation")}
    assert table.groupby("layer")["n"].unique().map(list).to_dict() == {0: [127], 1: [128]}
    assert value["shift by 1/4 of the side"] == pytest.approx([1, 1], abs=1e-3)  # 8 px, one patch
    for name in ("shift by 1/8 of the side", "shift by 1/16 of the side", "rotation by 90°"):
        assert max(value[name]) < 0.8, name


class Corner(nn.Module):
    """A unit that sees the first patch of 4 x 4 alone, and one that sees the mean of the image."""

    def __init__(self):
        super().__init__()
        self.mlp = Mlp(2, 2, 2, act_layer=nn.ReLU)
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = torch.tensor([[1.0, 9], [1, 0]]), torch.tensor([-9.0, 0])

    def forward(self, images: Tensor) -> Tensor:
        red = F.avg_pool2d(images, 4).flatten(2).transpose(1, 2)[..., :1]
        first = (torch.arange(16) == 0).float()[:, None].expand(len(images), -1, -1)
        return self.mlp(torch.cat([red, first], 2)).mean(1)


def test_to_a_unit_that_sees_one_patch_a_moved_image_is_another_and_to_the_mean_it_is_the_same():
    model = VisionModel(Corner(), "corner", 16, mean=(0, 0, 0), std=(1, 1, 1))
    table = invariance(model, torch.rand(512, 3, 16, 16), n=512).table.set_index("transformation")["value"]
    for change in ("shift by 1/4 of the side", "rotation by 90°"):  # chance is 0 -+ 1 / 23, in the mean with 1 half of it
        assert table[change] == pytest.approx(0.5, abs=0.08)
    # Shifted by 1 px of 4 in both directions, 9 of the 16 pixels are those it saw before.
    assert table["shift by 1/16 of the side"] == pytest.approx((1 + 9 / 16) / 2, abs=0.06)


def test_a_quarter_turn_is_counterclockwise_and_moves_whole_pixels():
    images = torch.rand(2, 3, 16, 16)
    assert torch.allclose(rotated(images, 90), images.rot90(1, (2, 3)), atol=1e-4)
    assert torch.allclose(rotated(images, 0), images, atol=1e-5)


def test_half_a_quarter_turn_twice_is_a_quarter_turn_in_the_middle():
    image = grating(2, 1)[None]
    twice = rotated(rotated(image, 45), 45)
    middle = (..., slice(8, 24), slice(8, 24))
    assert torch.allclose(twice[middle], image.rot90(1, (2, 3))[middle], atol=0.05)
    assert not torch.allclose(twice[middle], image[middle], atol=0.2)


def test_turned_images_are_filled_up_without_a_border():
    assert torch.allclose(rotated(torch.full((1, 3, 16, 16), 0.7), 30), torch.tensor(0.7))


def test_no_unfinished_picture_is_measured_as_finished():
    model = vv.load("emoji-vit", device="cpu")
    finished = Visualizer(model).render(0, range(4))
    unfinished = replace(finished, steps=[1, *finished.steps[1:]])
    assert frequency_and_color({0: finished}, "")[0].table["n"].tolist() == [4]
    with pytest.raises(VitvizError, match="unfinished"):
        frequency_and_color({0: unfinished}, "")
