"""A spectrum's image is what it is by hand; crops are the parts they are said to be; starts are what random streams say."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitviz_nb.utils import random_streams
from vitviz_nb.utils.spectrum import radial_spectrum
from vitviz_nb.visualize.objective import Augmentation
from vitviz_nb.visualize.parameterization import cropped, parameterization, resized
from vitviz_nb.visualize.recipe import Recipe

SIDE = 8
FOURIER = Recipe(parameterization="fourier", power=1.5, spread=0.2)
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.5]).view(3, 1, 1)
# Lucid's matrix by the length of its first column: sqrt(0.26^2 + 0.27^2 + 0.27^2) = 0.461 9.
BRIGHTNESS = torch.tensor([0.26, 0.27, 0.27]).view(3, 1, 1) / 0.4619
RED_OR_BLUE = torch.tensor([0.09, 0.00, -0.09]).view(3, 1, 1) / 0.4619


@pytest.fixture
def keys() -> np.ndarray:
    return random_streams.keys(0, 0, 5, np.arange(3))


def image(color: int, row: int, column: int, value: tuple[float, float]) -> torch.Tensor:
    """The image (3, SIDE, SIDE) of a spectrum in which one coefficient is not 0."""
    made = parameterization(FOURIER, SIDE)
    values = torch.zeros(1, *made.shape)
    values[0, color, row, column] = torch.tensor(value)
    return made.images(values)[0]


def test_no_spectrum_is_gray_and_its_mean_is_one_color():
    assert torch.allclose(image(0, 0, 0, (0, 0)), torch.full((3, SIDE, SIDE), 0.5))
    assert torch.allclose(image(0, 0, 0, (0.7, 0)), torch.sigmoid(0.7 * BRIGHTNESS).expand(3, SIDE, SIDE), atol=1e-6)
    assert torch.allclose(image(1, 0, 0, (0.7, 0)), torch.sigmoid(0.7 * RED_OR_BLUE).expand(3, SIDE, SIDE), atol=1e-6)


@pytest.mark.parametrize(("cycles", "color", "colors"), [(1, 0, BRIGHTNESS), (2, 1, RED_OR_BLUE), (3, 0, BRIGHTNESS)])
def test_a_coefficient_is_a_wave_of_its_frequency_and_color_scaled_by_the_power(cycles, color, colors):
    phase = 2 * math.pi * cycles * torch.arange(SIDE) / SIDE
    # Twice, for the coefficient and its conjugate; a negative sine for the imaginary part.
    wave = 2 * cycles**-1.5 * (0.6 * torch.cos(phase) - 0.3 * torch.sin(phase))
    assert torch.allclose(image(color, 0, cycles, (0.6, 0.3)), torch.sigmoid(colors * wave).expand(3, SIDE, SIDE), atol=1e-5)


def test_a_spectrum_has_a_gradient_although_its_first_image_was_made_in_inference_mode():
    made = parameterization(FOURIER, SIDE)
    values = torch.zeros(1, *made.shape, requires_grad=True)
    with torch.inference_mode():
        made.images(values)
    assert torch.autograd.grad(made.images(values).sum(), values)[0].any()


def test_spectra_of_equal_numbers_fall_with_frequency_as_the_power_says(keys):
    made = parameterization(Recipe(parameterization="fourier", power=1.0, spread=0.05), 64)
    frequency, power = radial_spectrum(made.images(made.start(random_streams.keys(0, np.arange(40)))))
    mean = power.mean(0)[1:30] / frequency[1:30]  # a ring has as many coefficients as it is long
    slope = np.polyfit(frequency[1:30].log(), mean.log(), 1)[0]
    assert slope == pytest.approx(-2.0, abs=0.15)


def test_a_start_is_normal_and_of_its_own_stream(keys):
    made = parameterization(FOURIER, 32)
    start = made.start(keys)
    assert start.shape == (3, 3, 32, 17, 2) and made.count == 3 * 32 * 17 * 2
    assert start.mean().item() == pytest.approx(0, abs=0.01) and start.std().item() == pytest.approx(0.2, rel=0.03)
    assert (start.abs() < 0.2).float().mean().item() == pytest.approx(0.683, abs=0.02)
    assert abs(torch.corrcoef(start.flatten(0, -2).T)[0, 1]) < 0.04  # real and imaginary parts
    assert torch.equal(made.start(keys[1:2]), start[1:2]) and not torch.equal(start[0], start[1])


def test_a_gradient_reaches_every_number_of_a_spectrum_that_counts(keys):
    made = parameterization(FOURIER, SIDE)
    values = made.start(keys).requires_grad_()
    weights = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    gradient = torch.autograd.grad((made.images(values) * weights).sum(), values)[0]
    assert gradient.isfinite().all() and (gradient[..., 1:-1, :].abs() > 0).all()


# Crops


def test_a_crop_of_whole_pixels_is_that_part_of_the_image():
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    found = cropped(images, torch.tensor([[0.0, 0.0, 8.0], [3.0, 4.0, 8.0]]), 8)
    assert torch.allclose(found[0], images[0, :, :8, :8], atol=1e-6)
    assert torch.allclose(found[1], images[1, :, 3:11, 4:12], atol=1e-6)


@pytest.mark.parametrize("size", [6, 8, 9, 18])
def test_a_crop_of_everything_is_the_antialiased_image(size):
    images = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
    assert torch.allclose(cropped(images, torch.tensor([[0.0, 0.0, 12.0]]).expand(2, 3), size), expected, atol=1e-5)
    assert torch.allclose(resized(images, size), expected) and resized(images, 12) is images


def test_each_view_is_a_crop_with_noise_of_its_hashes(keys):
    recipe = Recipe(steps=4, copies=2, jitter=0, color=0, noise=0, canvas=1.5, crops=(0.5, 0.75), grain=0.2)
    views, pictures = Augmentation(recipe, keys, SIDE, MEAN, STD, "cpu"), torch.rand(3, 3, 12, 12)
    for step in range(4):
        shown = ((views(pictures, step) + 0) * STD + MEAN).view(3, 2, 3, SIDE, SIDE)
        for k in range(3):
            u = random_streams.uniforms(keys[k : k + 1], 3 * 12**2 + step * (2 + 2 * 17), 2 + 2 * 17)[0, 26:].reshape(2, 5)
            noise = random_streams.uniforms(random_streams.mix(keys[k : k + 1]), 0, 6 * SIDE**2).reshape(2, 3, SIDE, SIDE)
            noise = torch.from_numpy(np.sqrt(-2 * np.log1p(-noise[0])) * np.cos(2 * np.pi * noise[1])).float()
            for copy, (top, left, wide, down, right) in enumerate(u):
                side = 12 * (0.5 + 0.25 * wide)
                box = torch.tensor([[(12 - side) * top, (12 - side) * left, side]]).float()
                own = torch.roll(noise, (math.floor(down * SIDE), math.floor(right * SIDE)), (1, 2))
                expected = cropped(pictures[k : k + 1], box, SIDE)[0] + 0.2 * (1 - (step + 1) / 4) * own
                assert torch.allclose(shown[k, copy], expected, atol=1e-4)


def test_crops_reach_every_part_of_the_canvas_and_keep_to_their_sizes(keys):
    recipe = Recipe(steps=500, copies=4, canvas=1.5, crops=(0.4, 0.9))
    drawn = Augmentation(recipe, keys, SIDE, MEAN, STD, "cpu")
    boxes = torch.stack([drawn.parameters(step)[3] for step in range(500)]).flatten(0, 2)
    side = boxes[:, 2]
    assert 0.4 * 12 <= side.min() < 0.41 * 12 and 0.89 * 12 < side.max() <= 0.9 * 12
    assert boxes[:, :2].min() < 0.1 and (boxes[:, :2] + side[:, None]).max() > 11.9
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + side[:, None] <= 12 + 1e-4).all()
    assert abs(torch.corrcoef(boxes[:, :2].T)[0, 1]) < 0.5
