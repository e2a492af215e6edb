"""The radial power spectrum, on images whose spectrum is known."""

import pytest
import torch

from vitviz_nb.utils.spectrum import radial_spectrum


def grating(down: int, across: int, size: int = 16) -> torch.Tensor:
    """(3, S, S) in [0, 1], so many cycles per image down and across."""
    line = torch.arange(size) / size
    return (0.5 + 0.5 * torch.cos(2 * torch.pi * (down * line[:, None] + across * line[None]))).expand(3, -1, -1)


@pytest.mark.parametrize(("down", "across", "frequency"), [(1, 0, 1), (0, 5, 5), (3, 4, 5), (2, 2, 3), (8, 0, 8)])
def test_a_grating_has_all_its_power_at_its_frequency(down: int, across: int, frequency: int):
    frequencies, power = radial_spectrum(grating(down, across)[None])
    assert frequencies.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert power[0].tolist() == pytest.approx([float(f == frequency) for f in range(1, 9)], abs=1e-5)


def test_power_beyond_half_of_the_side_is_in_the_total_alone():
    corner = grating(8, 8)
    assert radial_spectrum(corner[None])[1].sum().item() == pytest.approx(0, abs=1e-5)
    mixed = corner + 2 * (grating(0, 3) - 0.5)  # amplitudes 0.5 (whose mean square, at that frequency, is 0.25) and 1 (0.5)
    assert radial_spectrum(mixed[None])[1][0, 2].item() == pytest.approx(2 / 3, abs=1e-4)


def test_an_image_of_one_color_has_no_power():
    assert radial_spectrum(torch.full((2, 3, 16, 16), 0.3))[1].tolist() == [[0] * 8] * 2


def test_many_images_have_the_power_of_each_alone():
    images = torch.rand(70, 3, 16, 16)
    assert torch.allclose(radial_spectrum(images)[1], torch.cat([radial_spectrum(one[None])[1] for one in images]))


def test_not_relative_power_is_that_of_fft2():
    image = grating(0, 3)[None]
    # 16 · 16 / 2 · 0.5 = 64 in each of two coefficients, of three channels
    assert radial_spectrum(image, relative=False)[1][0, 2].item() == pytest.approx(3 * 2 * 64**2, rel=1e-5)
