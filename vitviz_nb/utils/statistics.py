"""How sure a measured number is."""

import math

import torch


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), both ends in [0, 1]."""
    if not n:
        return 0.0, 1.0
    z, share = 1.959964, hits / n
    center, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (center - half) / (1 + z * z / n)), min(1.0, (center + half) / (1 + z * z / n))


def pearson(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Of each column of (n, units) with the same column of the other: (units,)."""
    first, second = first - first.mean(0), second - second.mean(0)
    return (first * second).mean(0) / (first.square().mean(0) * second.square().mean(0)).sqrt().clamp_min(1e-20)
