"""Adversarial examples stay within the radius and increase the loss."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vitviz_nb.training.pgd import pgd

GRAY = torch.full((2, 3, 8, 8), 0.5)


@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("radius", [0.1, 1.0, 5.0])
def test_an_adversarial_example_is_within_the_radius_of_its_image(radius: float, steps: int, tiny_vit):
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    moved = pgd(lambda x: F.cross_entropy(tiny_vit(x), labels), images, radius, steps)
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= radius * (1 + 1e-5)).all() and (distance > 0.2 * radius).all()
    assert moved.min() >= 0 and moved.max() <= 1 and not moved.requires_grad
    assert all(parameter.grad is None for parameter in tiny_vit.module.parameters())


def test_the_perturbation_increases_the_loss():
    def loss(images: Tensor) -> Tensor:
        return images[1, 0].mean() - images[0, 0].mean()  # less red is better for the first, more red for the second

    for steps in (1, 2, 10):
        change = pgd(loss, GRAY, 0.8, steps) - 0.5
        # By the same at each of 64 pixels: 0.8 / 8.
        assert torch.allclose(change[0, 0], torch.full((8, 8), -0.1), atol=1e-5)
        assert torch.allclose(change[1, 0], torch.full((8, 8), 0.1), atol=1e-5)
        assert change[:, 1:].abs().max() < 1e-6


def test_a_second_step_goes_on_from_the_first_and_stays_within_the_radius():
    channels = iter([1, 0])  # the channel whose sum is measured in the first step, then in the second

    moved = pgd(lambda images: images[:, next(channels)].sum(), GRAY[:1], 0.8, 2)
    # 0.8 toward green, then 0.8 toward red: together 0.8 * sqrt(2), shortened to 0.8.
    expected = torch.tensor([0.1, 0.1, 0.0]).view(3, 1, 1).expand(3, 8, 8) / 2**0.5
    assert torch.allclose(moved[0] - 0.5, expected, atol=1e-5)


def test_ten_steps_are_a_quarter_of_the_radius_each():
    channels = iter([1] + [0] * 9)
    moved = pgd(lambda images: images[:, next(channels)].sum(), GRAY[:1], 0.8, 10) - 0.5
    # One step of 0.2 toward green and nine of 0.2 toward red, at 64 pixels each; past 0.8 the whole is shortened at each step.
    red, green = 0.0, 0.2
    for _ in range(9):
        red += 0.2
        whole = max(1.0, (red**2 + green**2) ** 0.5 / 0.8)
        red, green = red / whole, green / whole
    assert torch.allclose(moved[0, :2].mean((1, 2)), torch.tensor([red, green]) / 8, atol=1e-5)
