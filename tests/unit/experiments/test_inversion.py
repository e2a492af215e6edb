"""Feature inversion from layers of which it is known what information they contain."""

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
    assert found.pictures.shape == images.shape
    difference = (F.avg_pool2d(found.pictures, PATCH) - patches).abs()  # smoothness takes a little of the contrast
    assert difference.max() < 0.1 and difference.mean() < 0.03 and max(found.errors) < 0.005


def test_without_position_only_the_mean_over_patches_is_matched(model: VisionModel, patches: Tensor):
    found = invert(model, patchwork(patches), 0, position=False)
    assert torch.allclose(found.pictures.mean((2, 3)), patches.mean((2, 3)), atol=0.01) and max(found.errors) < 0.001
    assert (F.avg_pool2d(found.pictures, PATCH) - patches).abs().mean() > 0.1


def test_permuted_patches_make_no_difference_without_position(model: VisionModel, patches: Tensor):
    order = torch.randperm(16)
    moved = patches.flatten(2)[..., order].view_as(patches)
    plain, other = (invert(model, patchwork(p), 0, position=False).pictures for p in (patches, moved))
    assert torch.equal(plain, other)
    plain, other = (F.avg_pool2d(invert(model, patchwork(p), 0).pictures, PATCH).flatten(2) for p in (patches, moved))
    assert torch.allclose(plain[..., order], other, atol=0.1) and not torch.allclose(plain, other, atol=0.3)


def test_a_layer_constrains_only_what_it_depends_on(model: VisionModel, patches: Tensor):
    found = F.avg_pool2d(invert(model, patchwork(patches), -1).pictures, PATCH)
    assert torch.allclose(found[:, 0], patches[:, 0], atol=0.05)
    assert torch.allclose(found[:, 1:], torch.tensor(0.5), atol=0.1)  # as they began, about gray


@pytest.mark.parametrize("position", [True, False])
def test_the_error_is_the_squared_distance_relative_to_the_squared_norm(position: bool, model: VisionModel, patches: Tensor):
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


def test_inversions_are_smooth_where_the_layer_is_invariant(model: VisionModel):
    found = invert(model, torch.full((1, 3, SIZE, SIZE), 0.5), 0).pictures  # begun with a deviation of 0.2 / sqrt(12) = 0.058
    assert found.std() < 0.02


def test_inversions_of_a_real_layer_are_nearer_to_their_own_scene_than_to_another(tiny_vit: VisionModel):
    scenes = EmojiWorld(size=32).batch([0, 1]).images
    found = invert(tiny_vit, scenes, 0)
    assert 0 <= found.pictures.min() and found.pictures.max() <= 1 and max(found.errors) < 0.1
    distance = torch.cdist(F.avg_pool2d(found.pictures, 8).flatten(1), F.avg_pool2d(scenes, 8).flatten(1))
    assert distance.argmin(1).tolist() == [0, 1]
    assert all(parameter.grad is None for parameter in tiny_vit.module.parameters())


@pytest.mark.parametrize("images", [torch.rand(3, SIZE, SIZE), torch.rand(2, 3, SIZE, 8), torch.rand(2, 1, SIZE, SIZE),
                                    torch.full((1, 3, SIZE, SIZE), 1.5), torch.full((1, 3, SIZE, SIZE), torch.nan), "scene"])
def test_images_of_another_shape_or_range_are_refused(images, model: VisionModel):
    with pytest.raises(VitvizError, match=r"Images are floats of shape \(N, 3, 16, 16\) in \[0, 1\], got "):
        invert(model, images, 0)


def detached(model: VisionModel) -> None:
    forward = model.module.forward
    model.module.forward = lambda images: forward(images.detach())


def overflowing(model: VisionModel) -> None:
    model.module.blocks[0].fc1.weight.data *= 1e30


def nan(model: VisionModel) -> None:
    model.module.blocks[0].fc1.weight.data *= float("nan")


@pytest.mark.parametrize(("change", "message"), [
    (detached, "activation at mlp layer 0 of means does not depend differentiably on the image"),
    (overflowing, "activation at mlp layer 0 of means is NaN or infinite"), (nan, "weights of means contain NaN .*blocks.0.fc1")])
def test_what_cannot_be_inverted_is_refused_with_the_reason(change, message, model: VisionModel, patches: Tensor, monkeypatch):
    monkeypatch.setattr(inversion, "STEPS", 2)
    change(model)
    with pytest.raises(VitvizError, match=message):
        invert(model, patchwork(patches), 0)


def test_an_inversion_in_inference_mode_is_the_same(model: VisionModel, patches: Tensor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inversion, "STEPS", 2)
    expected = invert(model, patchwork(patches), 0)
    with torch.inference_mode():
        assert torch.equal(invert(model, patchwork(patches), 0).pictures, expected.pictures)
