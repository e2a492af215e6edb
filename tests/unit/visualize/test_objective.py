"""The objective: numbers worked out by hand, the authors' loss, and random numbers that are what they are said to be."""

import math
import re
import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils import random_streams
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import objective
from vitviz_nb.visualize.objective import PIECE, Augmentation, blurred, loss, total_variation, unchanged
from vitviz_nb.visualize.parameterization import parameterization
from vitviz_nb.visualize.recipe import MOST_STEPS, RECIPES, Recipe

SIZE = 14  # a jitter of 1/7 is 2 px
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
PICTURE = torch.tensor([[[0.0, 0.6], [0.8, 0.0]], [[0.3, 0.3], [0.3, 0.3]], [[1.0, 1.0], [0.0, 0.0]]])
# Differences of neighbors in PICTURE; each square root has 1e-12 added within, so no difference at all counts 1e-6.
#            right                    down                     down right    down left          sum
#   red      .6, -.8: sqrt(1) = 1     .8, -.6: sqrt(1) = 1     0: 1e-6       .8 - .6: .2        2.200 001
#   green    1e-6                     1e-6                     1e-6          1e-6               0.000 004
#   blue     0, 0: 1e-6               -1, -1: 1.414 213 56     -1: 1         0 - 1: 1           3.414 214 56
#   mean over the channels                                                    5.614 219 56 / 3 = 1.871 406 52
TV = 1.87140652


def augmentation(recipe: Recipe, keys: np.ndarray) -> Augmentation:
    return Augmentation(recipe, keys, SIZE, MEAN, STD, "cpu")


def initial_images(recipe: Recipe, keys: np.ndarray, size: int) -> torch.Tensor:
    return parameterization(recipe, size).start(keys)


def every_step(recipe: Recipe, keys: np.ndarray) -> list[torch.Tensor]:
    """Shifts (steps, K, 2), scales and offsets (steps, K, copies, 3, 1, 1)."""
    drawn = augmentation(recipe, keys)
    return [torch.stack(values) for values in zip(*(drawn.parameters(step) for step in range(recipe.steps)), strict=True)]


@pytest.fixture
def keys() -> np.ndarray:
    return random_streams.keys(0, 0, 5, np.arange(3))


def test_total_variation_is_what_it_is_by_hand():
    assert total_variation(PICTURE[None]).tolist() == pytest.approx([TV], abs=1e-6)


def test_total_variation_of_a_batch_is_one_number_for_each_picture():
    # Half the contrast, other brightness: red .5 + .5 + .1 + 1e-6, green 4e-6, blue .707 106 78 + .5 + .5 + 1e-6;
    # 2.807 112 78 / 3.
    found = total_variation(torch.stack([PICTURE, 0.1 + PICTURE / 2, torch.full_like(PICTURE, 0.7)]))
    assert found.tolist() == pytest.approx([TV, 0.93570426, 4e-6], abs=1e-6)


def test_total_variation_of_a_flat_picture_has_a_finite_gradient():
    flat = torch.full((1, 3, 4, 4), 0.5, requires_grad=True)
    total_variation(flat).sum().backward()
    assert flat.grad.isfinite().all()


def test_loss_is_what_it_is_by_hand():
    # Two pictures of two copies: 0.1 * 1.871 406 52 - (1 + 3) / 2 and 0.1 * 0.935 704 26 - (-2 + 0) / 2.
    found = loss(torch.tensor([1.0, 3.0, -2.0, 0.0]), torch.stack([PICTURE, 0.1 + PICTURE / 2]), Recipe(copies=2, tv=0.1))
    assert found.tolist() == pytest.approx([-1.81285935, 1.09357043], abs=1e-6)


def test_paper_recipe_is_the_published_one():
    paper = Recipe.paper()
    # sinh(1) = (e - 1 / e) / 2 = 1.175 201 19; 0.0005 * 8 * that = 0.004 700 80.
    assert paper.tv == pytest.approx(0.0047008048, rel=1e-8)
    assert Recipe.paper(tv=100).tv == pytest.approx(0.47008048, rel=1e-8)
    assert (paper.steps, paper.lr, paper.copies, paper.color, paper.noise) == (400, 0.1, 8, 1.0, 0.5)
    assert paper.jitter * 224 == pytest.approx(32)


def authors_loss(activation: torch.Tensor, copies: torch.Tensor, tv: float) -> torch.Tensor:
    """Theirs, of one picture: the activations of 8 copies lie on the diagonal of an 8 x 8 matrix, whose mean they take."""
    return -torch.diag(activation).mean() + 0.0005 * tv * total_variation(copies).mean()


@pytest.mark.parametrize("nominal", [0.1, 1.0, 100.0])
def test_eight_times_the_authors_loss_is_ours(keys, nominal):
    torch.manual_seed(1)
    picture, activation = torch.rand(1, 3, SIZE, SIZE), torch.randn(8)
    # Without contrast changes 1 / s is 1, not sinh(1) on average; without shifts the copies have no seam.
    ours = Recipe(tv=Recipe.paper(nominal).tv / math.sinh(1), color=0, jitter=0, steps=5)
    copies = augmentation(ours, keys[:1])(picture, step=1) * STD + MEAN  # as the network gets them, normalization taken back
    assert (copies - picture).abs().max() > 0.1  # each has its own color offset, which total variation does not see
    theirs = authors_loss(activation, copies, nominal)
    assert loss(activation, picture, ours).item() == pytest.approx(8 * theirs.item(), rel=1e-5)


def test_contrast_changes_raise_the_copies_variation_by_sinh_1_on_average(keys):
    picture = torch.rand(3, 3, SIZE, SIZE)
    recipe = Recipe(steps=2000, copies=2, jitter=0, noise=0)
    contrast = every_step(recipe, keys)[1] * STD  # 1 / s
    # Its standard deviation is sqrt(sinh(2) / 2 - sinh(1)**2) = 0.66; the mean of 36,000 is known to 0.0035.
    assert contrast.mean().item() == pytest.approx(math.sinh(1), abs=4 * 0.0035)
    copies = augmentation(recipe, keys)(picture, step=7).view(3, 2, 3, SIZE, SIZE) * STD
    for channel in range(3):
        of_picture = total_variation(picture[:, [channel]])
        of_copies = total_variation(copies[:, 1, [channel]])
        assert torch.allclose(of_copies, of_picture * contrast[7, :, 1, channel, 0, 0], rtol=1e-4)


SHIFTS = [(2, -3), (0, 1), (-4, 0)]


def test_gradient_of_the_circular_shift_is_that_of_torch_roll():
    torch.manual_seed(2)
    pictures, weights = torch.rand(3, 3, 5, 7), torch.randn(3, 3, 5, 7)
    shift = augmentation(Recipe(steps=1, copies=1, color=0, noise=0), random_streams.keys(0, np.arange(3)))
    shift.parameters = lambda step: (torch.tensor(SHIFTS), torch.ones(3, 1, 3, 1, 1), torch.zeros(3, 1, 3, 1, 1))
    results = []

    def rolled(x):
        return torch.stack([torch.roll(p, s, (1, 2)) for p, s in zip(x, SHIFTS, strict=True)])

    for move in (lambda x: shift(x, 0), rolled):
        x = pictures.clone().requires_grad_()
        moved = move(x) + 0
        (moved * weights).sum().backward()
        results.append((moved.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_each_copy_is_the_published_formula_of_its_hashes(keys):
    recipe = Recipe(steps=4, copies=2, color=0.7, noise=0.3, jitter=1 / 7)
    pictures, views = initial_images(Recipe(), keys, SIZE), augmentation(recipe, keys)
    for step in range(4):
        copies = views(pictures, step).view(3, 2, 3, SIZE, SIZE)
        for k in range(3):
            first = 3 * SIZE**2 + step * (2 + 2 * 12)  # after the start come 2 numbers for the shift and 12 for each copy
            u = random_streams.uniforms(keys[k : k + 1], first, 2 + 2 * 12)[0]
            rows, columns = (math.floor(x * 5) - 2 for x in u[:2])
            moved = torch.roll(pictures[k], (rows, columns), (1, 2))
            for copy in range(2):
                mine = u[2 + 12 * copy :][:12]
                for channel in range(3):
                    m, log_s = (0.7 * (2 * mine[i + channel] - 1) for i in (0, 3))
                    normal = math.sqrt(-2 * math.log(1 - mine[6 + channel])) * math.cos(2 * math.pi * mine[9 + channel])
                    noise = 0.3 * (1 - (step + 1) / 4) * normal
                    shown = (moved[channel] - m) / math.exp(log_s) + noise
                    expected = (shown - MEAN[channel].item()) / STD[channel].item()
                    assert torch.allclose(copies[k, copy, channel], expected, atol=1e-4)


def test_jitter_reaches_its_share_of_the_side_in_both_directions_and_no_further(keys):
    shift = every_step(Recipe(steps=2000, copies=1), keys)[0]
    counts = torch.bincount(shift.flatten() + 2)
    assert len(counts) == 5 and shift.min() == -2
    assert (counts - 2400).abs().max() < 4 * math.sqrt(12000 * 0.2 * 0.8)  # uniform: five shifts, 12,000 draws
    assert not torch.equal(shift[..., 0], shift[..., 1])
    assert every_step(Recipe(steps=9, jitter=0), keys)[0].abs().max() == 0


def test_noise_fades_and_is_zero_in_the_last_step(keys):
    recipe = Recipe(steps=10, copies=500, color=0, noise=0.5)
    noise = every_step(recipe, keys)[2] * STD + MEAN
    for step in range(10):
        wanted = 0.5 * (1 - (step + 1) / 10)  # 4,500 draws know it to 1.1 %
        assert noise[step].std().item() == pytest.approx(wanted, rel=0.06, abs=1e-6)
        assert noise[step].mean().item() == pytest.approx(0, abs=0.04)
    assert noise[-1].abs().max() < 1e-6


def test_color_stays_in_its_range_and_fills_it(keys):
    _, scale, offset = every_step(Recipe(steps=500, copies=4, color=0.6, noise=0), keys)
    log_s = -(scale * STD).log()
    m = -(offset * STD + MEAN) / (scale * STD)
    for found in (log_s, m):
        assert found.abs().max() < 0.6 + 1e-5 and found.min() < -0.59 and found.max() > 0.59
        assert found.std().item() == pytest.approx(0.6 / math.sqrt(3), rel=0.03)  # uniform
    assert abs(torch.corrcoef(torch.stack([log_s.flatten(), m.flatten()]))[0, 1]) < 0.03


@pytest.mark.parametrize(("step", "deviation"), [(0, 2.0), (10, 1.5), (20, 1.0)])
def test_gradients_are_blurred_by_a_gaussian_that_shrinks_over_two_thirds_of_the_steps(step, deviation):
    recipe, point = Recipe(steps=60, blur=0.125), torch.zeros(2, 3, 16, 16)
    point[1, 2, 15, 4] = 1  # at the border, across which it goes on
    found = blurred(point, recipe, step)
    away = (torch.arange(16) + 8) % 16 - 8.0
    bell = sum(torch.exp(-0.5 * ((away + turn) / deviation) ** 2) for turn in (-32, -16, 0, 16, 32))
    bell = bell / bell.sum()
    expected = bell.roll(15)[:, None] * bell.roll(4)
    assert torch.allclose(found[1, 2], expected, atol=1e-3)  # so small a bell is coarsely sampled
    assert found[0].abs().max() < 1e-7 and found[1, :2].abs().max() < 1e-7


def test_gradients_are_sharp_in_the_last_third_and_without_blur():
    gradient = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blurred(gradient, Recipe(steps=60, blur=0.125), 40), gradient)
    assert torch.equal(blurred(gradient, Recipe(steps=60), 0), gradient)


def test_random_numbers_of_an_image_depend_neither_on_others_nor_on_the_step_asked_for_before(keys):
    recipe = Recipe(steps=2 * PIECE + 6, copies=3)
    together, alone = every_step(recipe, keys), every_step(recipe, keys[1:2])
    for all_of_them, own in zip(together, alone, strict=True):
        assert torch.equal(all_of_them[:, 1:2], own) and not torch.equal(all_of_them[:, 0], all_of_them[:, 1])
    resumed = augmentation(recipe, keys)
    for step in (PIECE + 5, 3, 2 * PIECE):
        assert all(torch.equal(a, b[step]) for a, b in zip(resumed.parameters(step), together, strict=True))
    assert torch.equal(initial_images(Recipe(), keys, SIZE)[1:2], initial_images(Recipe(), keys[1:2], SIZE))


def test_a_long_recipe_draws_its_random_numbers_in_pieces(keys):
    views = augmentation(Recipe(steps=MOST_STEPS, copies=1024), keys)  # 29 GB of numbers, if they were drawn at once
    tracemalloc.start()
    views.parameters(MOST_STEPS - 1)
    assert tracemalloc.get_traced_memory()[1] < 3e8
    tracemalloc.stop()


def test_pictures_begin_uniform(keys):
    start = initial_images(Recipe(), keys, 32)
    assert start.shape == (3, 3, 32, 32) and 0 <= start.min() < 0.01 and 0.99 < start.max() <= 1
    assert start.mean().item() == pytest.approx(0.5, abs=0.015) and start.var().item() == pytest.approx(1 / 12, rel=0.05)
    assert (start[0] - start[1]).abs().mean() > 0.3


# Views are computed only where they must be


@pytest.fixture
def drawn(keys) -> tuple[torch.Tensor, Augmentation]:
    """Three images and two views of each."""
    return initial_images(Recipe(), keys, SIZE).requires_grad_(), augmentation(Recipe(steps=4, copies=2), keys)


def by_hand(pictures: torch.Tensor, views: Augmentation, step: int) -> torch.Tensor:
    shift, scale, offset = views.parameters(step)
    moved = torch.stack([torch.roll(p, s.tolist(), (1, 2)) for p, s in zip(pictures, shift, strict=True)])
    return (moved[:, None] * scale + offset).flatten(0, 1)


def assert_same(network, pictures: torch.Tensor, views: Augmentation) -> None:
    """A network's output for the views, and its gradient, are those for views computed by hand."""
    torch.manual_seed(3)
    outputs = [network(views(pictures, 1)), network(by_hand(pictures, views, 1))]
    assert all(type(output) is torch.Tensor for output in outputs)
    weights = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad((output * weights).sum(), pictures)[0] for output in outputs]
    for value, expected in (outputs, gradients):
        assert torch.allclose(value, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("patch", [1, 2, 7, 14])
def test_a_patch_embedding_of_views_is_that_of_views_computed_by_hand(drawn, patch, bias, monkeypatch):
    network = nn.Conv2d(3, 5, patch, patch, bias=bias).requires_grad_(False)
    assert_same(network, *drawn)
    monkeypatch.setattr(objective, "_computed", None)  # what computes views is not called
    assert network(drawn[1](drawn[0], 1)).shape == (6, 5, SIZE // patch, SIZE // patch)


def test_a_vision_model_embeds_views_without_computing_them(monkeypatch):
    net = VisionTransformer(img_size=SIZE, patch_size=7, embed_dim=8, depth=1, num_heads=1, num_classes=2)
    model, keys = VisionModel(net, "net", SIZE, (0.5,) * 3, (0.5,) * 3, ["a", "b"]), np.arange(2, dtype=np.uint64)
    drawn = initial_images(Recipe(), keys, SIZE), augmentation(Recipe(steps=4, copies=2), keys)
    expected = model.forward(by_hand(*drawn, 1))
    monkeypatch.setattr(objective, "_computed", None)  # what computes views is not called
    assert torch.allclose(model.forward(drawn[1](drawn[0], 1)), expected, atol=1e-5)


FIRST_STEPS = {
    "margin": nn.Conv2d(3, 5, 2, 2, padding=1), "overlap": nn.Conv2d(3, 5, 3, 2), "rest left over": nn.Conv2d(3, 5, 3, 3),
    "no square": nn.Conv2d(3, 5, (2, 7), (2, 7)), "groups": nn.Conv2d(3, 6, 2, 2, groups=3),
    "dilation": nn.Conv2d(3, 5, 2, 2, dilation=2), "same": nn.Conv2d(3, 5, 3, padding="same"), "flatten": nn.Flatten(),
    "function": lambda x: F.conv2d(x, torch.ones(2, 3, 2, 2)), "upsample": nn.Upsample(scale_factor=2),
    "in a list": lambda x: torch.cat([x, x.mean(1, keepdim=True)], 1), "pad": lambda x: F.pad(x, (1, 1)),
    "arithmetic": lambda x: 2 * x - x[:, :1], "reshape": lambda x: x.permute(0, 2, 3, 1).reshape(len(x), -1),
}


@pytest.mark.parametrize("first", FIRST_STEPS)
def test_whatever_else_a_network_does_first_is_done_to_the_views(drawn, first):
    network = FIRST_STEPS[first]
    assert_same(network.requires_grad_(False) if isinstance(network, nn.Module) else network, *drawn)


def test_views_know_their_shape_before_they_are_computed(drawn, monkeypatch):
    monkeypatch.setattr(objective, "_computed", None)
    copies = drawn[1](drawn[0], 0)
    assert copies.shape == copies.size() == (6, 3, SIZE, SIZE) and len(copies) == 6 and copies.dim() == copies.ndim == 4
    assert copies.dtype == torch.float32 and copies.device == torch.device("cpu")
    with torch._C.DisableTorchFunctionSubclass():
        assert copies.untyped_storage().nbytes() == 4


def test_unchanged_pictures_are_normalized(drawn):
    expected = (drawn[0] - MEAN) / STD
    assert torch.allclose(unchanged(drawn[0], MEAN, STD) + 0, expected, atol=1e-5)
    network = nn.Conv2d(3, 5, 7, 7)
    assert torch.allclose(network(unchanged(drawn[0], MEAN, STD)), network(expected), atol=1e-5)


@pytest.mark.parametrize("wrong", [
    {"steps": 0}, {"steps": -1}, {"steps": 10**8}, {"steps": 10**400}, {"steps": 2.0}, {"steps": "many"}, {"steps": True},
    {"copies": 0}, {"copies": None}, {"lr": 0}, {"lr": 1e30}, {"lr": float("nan")}, {"lr": 1j}, {"tv": -1}, {"tv": 1e38},
    {"tv": 10**400}, {"color": -0.1}, {"color": 1e9}, {"noise": -1}, {"noise": float("inf")}, {"jitter": 0.6}, {"jitter": -0.1},
    {"spread": "wide"}, {"leak": [1]}, {"blur": -0.2}, {"blur": 0.7}, {"canvas": 0.5}, {"canvas": 1e9}, {"power": -1},
    {"grain": float("nan")},
])
def test_impossible_recipe_is_refused_with_the_field_and_its_range(wrong):
    with pytest.raises(VitvizError, match=f"A recipe's {next(iter(wrong))} is a (whole )?number from .* to .*, got "):
        Recipe(**wrong)


@pytest.mark.parametrize(("wrong", "said"), [
    ({"crops": (0.9, 0.4)}, "The first of a recipe's crops is a number from 0.05 to 0.4, got 0.9"),
    ({"crops": (0.4, 1.1)}, "The second of a recipe's crops is a number from 0.05 to 1"),
    ({"crops": 0.4}, "crops are two numbers"),
    ({"parameterization": "furier"}, "one of pixels, fourier; got 'furier'. Did you mean fourier"),
    ({"parameterization": "fourier", "blur": 0.1}, "blur is of the gradient of pixels"),
])
def test_impossible_crops_and_parameterizations_are_refused_with_what_is_possible(wrong, said):
    with pytest.raises(VitvizError, match=re.escape(said)):
        Recipe(**wrong)


def test_recipes_have_names():
    assert {name: Recipe.named(name) for name in RECIPES} == {
        "quick": Recipe.quick(), "fourier": Recipe.fourier(), "paper": Recipe.paper()}
    assert Recipe.quick() == Recipe.fourier()
    with pytest.raises(VitvizError, match="one of quick, fourier, paper; got 'papre'. Did you mean paper"):
        Recipe.named("papre")


def test_quick_recipe_of_a_model_is_what_its_card_says_suits_it():
    def model(card: dict | None) -> VisionModel:
        return VisionModel(nn.Linear(1, 1), "tiny", SIZE, card=card)

    suited = model({"name": "tiny", "pictures": {"steps": 60, "tv": 0.5}})
    assert Recipe.quick(suited) == Recipe.named("quick", suited) == Recipe(steps=60, copies=4, tv=0.5)
    assert Recipe.named("paper", suited) == Recipe.paper()
    assert Recipe.quick(model({"name": "tiny"})) == Recipe.quick(model(None)) == Recipe.quick() == Recipe.fourier()
