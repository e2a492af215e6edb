"""Arguments of public functions, checked once, in one place and in the same words."""

import os
from collections.abc import Iterable
from math import isfinite, isnan
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import VitvizError, nearest

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SLACK = 1e-3  # how far rounding (float16, resampling) may carry a pixel out of [0, 1]


def scalar(value: Any) -> Any:
    """``value`` as a Python number where it is a tensor or array of one number; anything else as it is."""
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)) and getattr(value, "ndim", 0) == 0:
        return value.item()
    return value


def whole(name: str, value: Any, low: int = 0, high: int = 2**63 - 1) -> int:
    """``value`` as an int within ``low`` to ``high``; VitvizError, naming ``name``, if it is not a whole number in there."""
    number = scalar(value)
    if isinstance(number, bool) or not isinstance(number, Integral) or not low <= number <= high:
        raise VitvizError(f"{name} is a whole number from {low} to {high}, got {shown(value)}.")
    return int(number)


def real(name: str, value: Any, low: float, high: float) -> float:
    """``value`` as a float within ``low`` to ``high``; VitvizError if it is not a finite number in there."""
    number = scalar(value)
    if isinstance(number, bool) or not isinstance(number, Real) or not low <= number <= high or not isfinite(number):
        raise VitvizError(f"{name} is a number from {low:g} to {high:g}, got {shown(value)}.")
    return float(number)


def choice(name: str, value: Any, allowed: Iterable[str]) -> str:
    """``value`` if it is one of ``allowed``; else VitvizError with them, the first few of very many, and the nearest."""
    allowed = list(allowed)
    if not isinstance(value, str) or value not in allowed:
        hint = nearest(value, allowed) if isinstance(value, str) else ""
        listed = allowed if len(allowed) <= 40 else [f"{len(allowed)}: {allowed[0]}", *allowed[1:3], "…"]
        raise VitvizError(f"{name} is one of {', '.join(listed)}; got {shown(value)}.{hint}")
    return value


def path(name: str, value: Any) -> Path:
    """``value`` as a path, with ``~`` expanded; VitvizError for an empty one or something that is none."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value) or "\0" in os.fsdecode(value):
        raise VitvizError(f"{name} is a path, such as 'out', got {shown(value)}.")
    try:
        return Path(os.fsdecode(value)).expanduser()
    except RuntimeError:  # ~nobody
        raise VitvizError(f"{name} begins with a home folder that does not exist: {shown(value)}.") from None


def images(name: str, value: Any, shape: tuple[int, ...]) -> torch.Tensor:
    """``value`` if it holds images (N, *shape) of floats in [0, 1]; VitvizError that says which of these it is not."""
    wanted = f"{name} are floats of shape (N, {', '.join(map(str, shape))}) in [0, 1]"
    if not (isinstance(value, torch.Tensor) and value.dtype in _FLOATS and value.layout == torch.strided
            and not value.is_nested and not value.is_meta):
        raise VitvizError(f"{wanted}, got {shown(value)}.")
    if value.dim() != 1 + len(shape) or tuple(value.shape[1:]) != tuple(shape):
        raise VitvizError(f"{wanted}, got shape {tuple(value.shape)}.")
    if value.numel():
        low, high = (float(end) for end in value.detach().aminmax())
        if not low >= -_SLACK or not high <= 1 + _SLACK:  # NaN is neither
            hint = ("NaN is no pixel: find out where it came from." if isnan(low + high) else
                    "Divide 0-255 images by 255." if low >= 0 and high > 2 else
                    "Give images as they are, not normalized: the model normalizes them itself.")
            raise VitvizError(f"{wanted}, got {low:.3g} to {high:.3g}. {hint}")
    return value


def shown(value: Any) -> str:
    """``value`` in few words, whatever it is."""
    if isinstance(value, torch.Tensor) and (value.is_nested or value.is_meta or value.layout != torch.strided):
        return f"a {'nested' if value.is_nested else 'meta' if value.is_meta else 'sparse'} tensor of {value.dtype}"
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    if isinstance(value, torch.nn.Module):
        return f"a {type(value).__name__}"
    try:
        text = repr(value)
    except Exception:  # ints of thousands of digits, and objects whose repr fails
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}…"
