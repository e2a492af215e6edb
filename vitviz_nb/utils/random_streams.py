"""Random numbers by hashing (counter-based): each is a function of its key, whatever batch, order or machine computes it."""

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def mix(x: np.ndarray) -> np.ndarray:
    """64-bit hashes of uint64 arrays of any shape: SplitMix64's finalizer (Steele et al. 2014)."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def keys(*parts) -> np.ndarray:
    """uint64 keys from integers or integer arrays (broadcast together), hashed in their order."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = mix(key + np.asarray(part, np.int64).astype(np.uint64))
    return key


def uniforms(key: np.ndarray, first: int, count: int) -> np.ndarray:
    """Uniform numbers ``first`` to ``first + count - 1`` of each key's stream: float64 (*key.shape, count) in [0, 1)."""
    numbers = np.arange(first, first + count, dtype=np.uint64) * _GOLDEN
    return (mix(key[..., None] + numbers) >> np.uint64(11)).astype(np.float64) / 2.0**53
