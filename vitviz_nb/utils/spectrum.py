"""Spatial frequencies of images."""

import torch

_AT_ONCE = 64  # images in a Fourier transform: 256 at once would take 100 MB


def rings(size: int) -> torch.Tensor:
    """Spatial frequency of each of fft2's coefficients, rounded to whole cycles per image: int64 (size, size)."""
    line = torch.fft.fftfreq(size) * size
    return (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long()


def radial_spectrum(images: torch.Tensor, relative: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Power spectrum of images (K, 3, S, S), summed over directions and channels: frequencies 1, 2, … S // 2 in cycles per
    image, each of which stands for half a cycle to both sides, and the power there (K, S // 2).

    It is in shares of each image's variance (an image of one color has none), or, if not ``relative``, in squared magnitudes of
    ``torch.fft.fft2``.
    """
    size, power = images.shape[-1], []
    ring = rings(size).clamp(max=size // 2 + 1).flatten().to(images.device)
    for part in images.split(_AT_ONCE):
        spectrum = torch.fft.fft2(part - part.mean((2, 3), keepdim=True)).abs().square().sum(1).flatten(1)
        summed = spectrum.new_zeros(len(part), size // 2 + 2).index_add_(1, ring, spectrum)[:, 1:-1]
        power.append(summed / spectrum.sum(1, keepdim=True).clamp_min(1e-20) if relative else summed)
    return torch.arange(1, size // 2 + 1), torch.cat(power)
