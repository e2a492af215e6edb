"""Computed arrays on disk, found again by what they were made from: renderings, reference activations, accuracies."""

import hashlib
import json
import os
import re
import warnings
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from . import files
from .errors import VitvizError
from .paths import cache_dir

if TYPE_CHECKING:
    from ..models.vision_model import VisionModel

FORMAT = 2  # raise it when the same settings would make another picture
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_room: dict[tuple[Path, int], float] = {}  # by folder and limit: bytes to be written before its size is looked at again


def entry(model: "VisionModel", facts: dict, folder: str) -> Path | None:
    """Path of what ``model``, in its present state, makes from ``facts`` (anything JSON can hold); None if unknown.

    Args:
        folder: a name for what is kept: "renderings", "references" …

    Returns:
        None where ``model.state()`` is None (foreign hooks): ``read`` and ``write`` then do nothing.
    """
    state = model.state()
    return None if state is None else path_of({**facts, "model": state}, folder)


def path_of(facts: dict, folder: str) -> Path:
    """Where the entry made from ``facts`` (anything JSON can hold) lies."""
    text = json.dumps({**facts, "format": FORMAT}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_dir() / folder / name[:2] / f"{name}.npz"


def ready() -> None:
    """Make the cache folder; VitvizError if nothing can be written there, before any work is done in vain."""
    limit()
    try:
        files.ready(cache_dir(), "The cache folder")
    except VitvizError as error:
        raise VitvizError(f"{error} The environment variable VITVIZ_CACHE names it.") from None


def limit() -> int:
    """Bytes that the cache may hold: ``$VITVIZ_CACHE_LIMIT``, such as 500MB or 2 GB; 1 GB unless set."""
    text = os.environ.get("VITVIZ_CACHE_LIMIT") or "1GB"
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if not match:
        raise VitvizError(f"VITVIZ_CACHE_LIMIT is a size such as 500MB or 2GB, got {text!r}.")
    return round(float(match[1]) * _UNITS[match[2]])


def read(path: Path | None, finite: bool = False) -> dict[str, np.ndarray] | None:
    """The arrays of an entry; None if there is none, or if it is corrupt: then it is dropped, to be made again.

    Args:
        finite: also drop an entry that holds NaN or infinities.
    """
    try:
        file = open(path, "rb") if path else None  # np.load(path) would leak the file of a corrupt entry
    except OSError:
        return None
    if file is None:
        return None
    try:
        with file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if finite and not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind in "fc"):
            raise ValueError("not finite")
    except MemoryError:
        raise
    except Exception:  # a damaged zip fails in many ways, none of which the user need know
        drop(path)
        return None
    with suppress(OSError):
        os.utime(path)  # just used: the last to be evicted
    return arrays


def drop(path: Path) -> None:
    """Remove an entry that is no good, as far as that is possible."""
    with suppress(OSError):
        path.unlink()


def write(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    """Write an entry whole or not at all, then evict the least recently used ones beyond the limit; a full disk only warns."""
    if path is None:
        return
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)
    try:
        files.write(path, packed.getvalue())
    except VitvizError as error:
        warnings.warn(f"A result was not cached: {error}", stacklevel=2)
        return
    key = cache_dir(), limit()
    _room[key] = _room.get(key, 0) - len(packed.getvalue())
    if _room[key] < 0:
        _room[key] = _evict(*key)


class Contents(NamedTuple):
    """What the cache holds: entries, their bytes, and the bytes of downloaded weights, which no limit touches."""

    entries: int
    size: int
    weights: int


def contents() -> Contents:
    """Number and size of what is in the cache."""
    root = cache_dir()
    sizes = [size for _, size, _ in _entries(root)]
    weights = sum(file.stat().st_size for file in (root / "weights").rglob("*") if file.is_file())
    return Contents(len(sizes), sum(sizes), weights)


def clear() -> None:
    """Remove all entries; downloaded weights stay."""
    _evict(cache_dir(), 0)


def _entries(root: Path) -> list[tuple[float, int, Path]]:
    """(last use, bytes, path) of each entry; temporary files that killed processes left are removed on the way."""
    entries = []
    for folder in root.glob("*/??"):
        files.tidy(folder)
        for path in folder.glob("*.npz"):
            with suppress(OSError):  # another process has just evicted it
                facts = path.stat()
                entries.append((facts.st_mtime, facts.st_size, path))
    return entries


def _evict(root: Path, most: int) -> float:
    """Remove the least recently used entries until nine tenths of ``most`` bytes are left, if it is more than ``most``.

    Returns:
        Bytes to be written before the next look: a tenth of ``most``, as other processes write, too.
    """
    entries = sorted(_entries(root))
    size = sum(bytes_ for _, bytes_, _ in entries)
    left = 0.9 * most if size > most else most
    for _, bytes_, path in entries:
        if size <= left:
            break
        drop(path)
        size -= bytes_
    return min(most - size, most / 10)
