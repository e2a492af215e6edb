"""Inversion: pictures made from layers of which it is known what they keep."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.experiments import inversion
from vitviz_nb.experiments.inversion import invert
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

SIZE, PATCH = 16, 4


class Means(nn.Module):
    """Units of the first layer are the mean colors of each of 4 x 4 patches; the second layer's unit sees red alone."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Mlp(3, 3, 3, act_layer=nn.ReLU), Mlp(3, 1, 3, act_layer=nn.ReLU)])
        for block, rows in zip(self.blocks, (torch.eye(3), torch.eye(3)[:1]), strict=True):
            block.fc1.weight.data, block.fc1.bias.data = rows, torch.zeros(len(rows))

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
        return sum(block(x) for block in self.blocks).mean(1)


@pytest.fixture
def model() -> VisionModel:
    return VisionModel(Means(), "means", SIZE, mean=(0, 0, 0), std=(1, 1, 1))


def patchwork(patches: Tensor) -> Tensor:
    """Images (N, 3, 16, 16) of flat patches (N, 3, 4, 4)."""
    return patches.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)


@pytest.fixture
def patches() -> Tensor:
    """Two images' colors, in eighths, whose sums are exact in any order."""
    return torch.randint(0, 9, (2, 3, 4, 4)) / 8


def test_every_patch_gets_the_mean_color_of_its_own(model: VisionModel, patches: Tensor):
    images = patchwork(patches)
    found = invert(model, images, 0)
    assert torch.equal(found.images, images) and found.pictures.shape == images.shape
    difference = (F.avg_pool2d(found.pictures, PATCH) - patches).abs()  # smoothness takes a little of the contrast
    assert difference.max() < 0.1 and difference.mean() < 0.03 and max(found.errors) < 0.005


def test_without_position_only_the_mean_over_patches_is_matched(model: VisionModel, patches: Tensor):
    found = invert(model, patchwork(patches), 0, position=False)
    assert torch.allclose(found.pictures.mean((2, 3)), patches.mean((2, 3)), atol=0.01) and max(found.errors) < 0.001
    assert (F.avg_pool2d(found.pictures, PATCH) - patches).abs().mean() > 0.1


def test_where_patches_lie_says_nothing_without_position_and_all_with_it(model: VisionModel, patches: Tensor):
    order = torch.randperm(16)
    moved = patches.flatten(2)[..., order].view_as(patches)
    plain, other = (invert(model, patchwork(p), 0, position=False).pictures for p in (patches, moved))
    assert torch.equal(plain, other)
    plain, other = (F.avg_pool2d(invert(model, patchwork(p), 0).pictures, PATCH).flatten(2) for p in (patches, moved))
    assert torch.allclose(plain[..., order], other, atol=0.1) and not torch.allclose(plain, other, atol=0.3)


def test_a_layer_is_matched_in_what_it_sees_and_in_nothing_else(model: VisionModel, patches: Tensor):
    found = F.avg_pool2d(invert(model, patchwork(patches), -1).pictures, PATCH)
    assert torch.allclose(found[:, 0], patches[:, 0], atol=0.05)
    assert torch.allclose(found[:, 1:], torch.tensor(0.5), atol=0.1)  # as they began, about gray


@pytest.mark.parametrize("position", [True, False])
def test_the_error_is_the_squared_distance_as_a_share_of_the_squared_size(position: bool, model: VisionModel, patches: Tensor):
    images = patchwork(patches * torch.tensor([1.0, 0.125]).view(2, 1, 1, 1))  # of two sizes
    found = invert(model, images, 0, position=position)
    wanted, got = (F.avg_pool2d(x, PATCH) if position else x.mean((2, 3), keepdim=True) for x in (images, found.pictures))
    expected = (got - wanted).square().sum((1, 2, 3)) / wanted.square().sum((1, 2, 3))
    assert found.errors == pytest.approx(expected.tolist(), rel=1e-3, abs=1e-9)


def test_the_seed_fixes_the_picture(model: VisionModel, patches: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inversion, "STEPS", 5)  # in the end this model's pictures are the same from every start
    images = patchwork(patches)
    first, again, other = (invert(model, images, 0, position=False, seed=seed).pictures for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=0.02)


def test_pictures_are_smooth_where_the_layer_does_not_mind(model: VisionModel):
    found = invert(model, torch.full((1, 3, SIZE, SIZE), 0.5), 0).pictures  # begun with a deviation of 0.2 / sqrt(12) = 0.058
    assert found.std() < 0.02


def test_pictures_stay_within_the_range_even_where_nothing_in_it_answers_so(model: VisionModel):
    found = invert(model, torch.full((1, 3, SIZE, SIZE), 1.5), 0)  # brighter than white
    assert torch.equal(found.pictures, torch.ones_like(found.images)) and found.errors == pytest.approx([1 / 9], abs=1e-5)


def test_pictures_of_a_real_layer_are_nearer_to_their_own_scene_than_to_another(tiny_vit: VisionModel):
    scenes = EmojiWorld(size=32).batch([0, 1]).images
    found = invert(tiny_vit, scenes, 0)
    assert 0 <= found.pictures.min() and found.pictures.max() <= 1 and max(found.errors) < 0.1
    distance = torch.cdist(F.avg_pool2d(found.pictures, 8).flatten(1), F.avg_pool2d(scenes, 8).flatten(1))
    assert distance.argmin(1).tolist() == [0, 1]
    assert all(parameter.grad is None for parameter in tiny_vit.module.parameters())


@pytest.mark.parametrize("shape", [(3, SIZE, SIZE), (2, 3, SIZE, 8), (2, 1, SIZE, SIZE), (1, 2, 3, SIZE, SIZE)])
def test_images_of_another_shape_are_told_the_right_one(shape: tuple, model: VisionModel):
    with pytest.raises(VitvizError, match=r"means takes images of shape \(N, 3, 16, 16\), got \("):
        invert(model, torch.rand(shape), 0)


def test_the_sheet_shows_scenes_above_pictures_with_their_errors(model: VisionModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inversion, "STEPS", 3)
    shown, draw = [], inversion.contact_sheet
    monkeypatch.setattr(inversion, "contact_sheet", lambda *a, **k: shown.append((a, k)) or draw(*a, **k))
    for position, how in ((True, "every patch"), (False, "the mean over patches")):
        found = invert(model, torch.rand(2, 3, SIZE, SIZE), 1, position)
        data, _ = found._repr_mimebundle_()
        assert data["image/png"].startswith(b"\x89PNG")
        assert found.title == data["text/plain"] == f"means: made from mlp layer 1, {how}"
        (tiles, title), more = shown.pop()
        assert title == found.title and more["columns"] == 2
        assert torch.equal(torch.stack([tile.picture for tile in tiles]), torch.cat([found.images, found.pictures]))
        assert [tile.lines for tile in tiles[2:]] == [[f"error {100 * e:.1f} %"] for e in found.errors]
