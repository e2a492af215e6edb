"""Spatial frequencies of images."""

import torch


def radial_spectrum(pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Radial spectrum of pictures (K, 3, S, S): the share of each one's variance at 0.5 to 1.5, 1.5 to 2.5, … cycles a side.

    Returns:
        Frequencies (S // 2,), 1, 2, … in cycles a side, and shares (K, S // 2), which sum to 1 but for the corners beyond.
    """
    size = pictures.shape[-1]
    spectrum = torch.fft.fft2(pictures - pictures.mean((2, 3), keepdim=True)).abs().square().sum(1)
    line = torch.fft.fftfreq(size) * size
    ring = (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long().clamp(max=size // 2 + 1).flatten()
    summed = torch.zeros(len(pictures), size // 2 + 2).index_add_(1, ring, spectrum.flatten(1))
    total = spectrum.sum((1, 2)).clamp_min(1e-20)
    return torch.arange(1, size // 2 + 1), summed[:, 1:-1] / total[:, None]
