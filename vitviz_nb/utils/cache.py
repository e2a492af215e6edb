"""Computed arrays on disk, found again by what they were made from: renderings, reference activations, predictions."""

import hashlib
import json
import os
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import files
from .errors import VitvizError, first_line
from .paths import cache_dir, data_dir

if TYPE_CHECKING:
    from ..models.vision_model import VisionModel

FORMAT = 2  # raise it when the same settings would make another picture
FOLDERS = ("renderings", "references", "predictions", "kinds", "selectivity", "contexts", "explained",
           "shared")  # nothing else is removed
_LARGEST = float(np.finfo(np.float32).max)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_room: dict[tuple[Path, int], float] = {}  # by folder and limit: bytes to be written before its size is looked at again


def entry(model: "VisionModel", facts: dict, folder: str) -> Path | None:
    """Path of what ``model``, in its present state, makes from ``facts`` (of JSON's types); None if the state is unknown.

    ``folder`` says what is kept: one of ``FOLDERS``.
    """
    state = model.state()
    return None if state is None else path_of({**facts, "model": state}, folder)


def made(model: "VisionModel", facts: dict, folder: str, make: Callable[[], dict[str, np.ndarray]],
         shapes: dict[str, tuple], low: float = -_LARGEST, high: float = _LARGEST) -> dict[str, np.ndarray]:
    """The arrays that ``model`` makes from ``facts``: from the cache where they fit (see ``fits``), or else by ``make()``.

    Raises:
        VitvizError: the model changed meanwhile.
    """
    path = entry(model, facts, folder)
    arrays = read(path)
    if arrays is None or not fits(arrays, shapes, low, high):
        arrays = make()
        if path != entry(model, facts, folder):
            raise VitvizError(f"{model.name} was changed (weights, hooks or contexts) while it was measured, so the numbers are "
                              f"of no single network; measure them again.")
        write(path, arrays)
    return arrays


def shipped(name: str, weights: str) -> dict[str, np.ndarray] | None:
    """What the kit ships in ``data/measured/NAME.npz`` (its README says what), if measured on the weights of this SHA-256.

    Raises:
        VitvizError: the file is damaged.
    """
    path = data_dir() / "measured" / f"{name}.npz"
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        return found if found.pop("weights").item() == weights else None
    except (OSError, ValueError, LookupError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise VitvizError(f"{path} is damaged ({first_line(error)}); run vitviz doctor.") from None


def fits(arrays: dict[str, np.ndarray], shapes: dict[str, tuple], low: float = -_LARGEST, high: float = _LARGEST) -> bool:
    """Whether arrays have these names and shapes (None: any length), all numbers from ``low`` to ``high``."""
    def fit(array: np.ndarray, shape: tuple) -> bool:
        return (array.dtype.kind in "fiub" and len(array.shape) == len(shape)
                and all(size in (None, length) for length, size in zip(array.shape, shape, strict=True))
                and bool(((low <= array) & (array <= high)).all()))  # NaN is in no range

    return arrays.keys() == shapes.keys() and all(fit(arrays[name], shape) for name, shape in shapes.items())


def path_of(facts: dict, folder: str) -> Path:
    """Path of the entry made from ``facts``, the state of a model among them."""
    text = json.dumps({**facts, "format": FORMAT}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_dir() / FOLDERS[FOLDERS.index(folder)] / name[:2] / f"{name}.npz"


def ready() -> None:
    """Make the cache folder; VitvizError if nothing can be written there, before any work is done in vain."""
    limit()
    files.ready(cache_dir(), "$VITVIZ_CACHE, the cache folder")


def limit() -> int:
    """Bytes that the cache may hold: ``$VITVIZ_CACHE_LIMIT``, such as 500MB or 2 GB; 1 GB unless set."""
    text = os.environ.get("VITVIZ_CACHE_LIMIT") or "1GB"
    match = re.fullmatch(r"(\d{1,6}(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper(), re.ASCII)
    if not match:
        raise VitvizError(f"VITVIZ_CACHE_LIMIT is a size such as 500MB or 2GB, got {text!r}.")
    return round(float(match[1]) * _UNITS[match[2]])


def read(path: Path | None, finite: bool = False) -> dict[str, np.ndarray] | None:
    """The arrays of an entry; None if there is none, or if it is corrupt (with ``finite``, NaN counts too) and so removed."""
    try:
        file = open(path or os.devnull, "rb")  # np.load(path) would leak the file of a corrupt entry
    except OSError:
        return None
    try:
        with file, np.load(file, allow_pickle=False) as stored:
            arrays = dict(stored)
        if finite and not all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind in "fc"):
            raise ValueError("not finite")
        os.utime(path)  # the last to be evicted
        return arrays
    except MemoryError:
        raise
    except Exception:  # a damaged zip fails in many ways, none of which the user need know
        with suppress(OSError, TypeError):
            os.unlink(path)
        return None


def write(path: Path | None, arrays: dict[str, np.ndarray]) -> None:
    """Write an entry whole or not at all, then keep to the limit; a full disk only warns."""
    if path is None:
        return
    packed = BytesIO()
    np.savez_compressed(packed, **arrays)
    write_packed(path, packed.getvalue())


def write_packed(path: Path, content: bytes) -> None:
    """Write an entry whose arrays are the content of an ``.npz`` file already, as ``write`` does."""
    try:
        files.write(path, content)
    except VitvizError as error:
        warnings.warn(f"A result was not cached: {error}", stacklevel=2)
        return
    key = cache_dir(), limit()
    _room[key] = _room.get(key, 0) - len(content)
    if _room[key] < 0:  # other processes write, too: look again after a tenth
        _room[key] = min(key[1] - evict(key[1]), key[1] / 10)


def evict(most: int) -> int:
    """If entries take more than ``most`` bytes, remove the least recently used until they take nine tenths of it.

    Temporary files that killed processes left go, too; downloaded weights stay. Returns the bytes that are left.
    """
    entries = sorted(contents())
    size = sum(count for _, count, _ in entries)
    goal = 0.9 * most if size > most else most
    for _, count, path in entries:
        if size > goal:
            with suppress(OSError):
                path.unlink()
            size -= count
    return size


def contents() -> list[tuple[float, int, Path]]:
    """Time of last use, bytes and path of each entry: only files named as ``path_of`` does, for the folder may be a user's."""
    entries, root = [], cache_dir()
    if root.exists() and not root.is_dir():
        raise VitvizError(f"$VITVIZ_CACHE, {root}, is no folder; name one, or unset it.")
    for folder in (sub for name in FOLDERS for sub in (root / name).glob("[0-9a-f][0-9a-f]")):
        files.tidy(folder)
        for path in folder.glob(f"{folder.name}{30 * '[0-9a-f]'}.npz"):
            with suppress(OSError):  # another process has just evicted it
                entries.append((path.stat().st_mtime, path.stat().st_size, path))
    return entries
