"""Finished pictures on disk, found again by what they were made from."""

import hashlib
import json
import os
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np

from .errors import VitvizError
from .paths import cache_dir

FORMAT = 2  # raise it when the same settings would make another picture


def ready() -> None:
    """Make the cache folder; VitvizError if nothing can be written there, before any work is done in vain."""
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise VitvizError(f"The cache folder {folder} cannot be written ({error.strerror}); make it writable, or set the "
                          f"environment variable VITVIZ_CACHE to a folder that is.") from None


def path_of(facts: dict, folder: str) -> Path:
    """Where the entry made from ``facts`` (anything JSON can hold) lies."""
    text = json.dumps({**facts, "format": FORMAT}, sort_keys=True)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    return cache_dir() / folder / name[:2] / f"{name}.npz"


def read(path: Path) -> dict[str, np.ndarray] | None:
    """The arrays of an entry; None if there is none, or if it is corrupt: then it is dropped, to be made again."""
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:  # np.load(path) leaks a corrupt file open
            return dict(arrays)
    except Exception:  # a damaged zip fails in many ways, none of which the user need know
        drop(path)
        return None


def drop(path: Path) -> None:
    """Remove an entry that is no good, as far as that is possible."""
    with suppress(OSError):
        path.unlink()


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an entry whole or not at all; a full disk warns and loses nothing but the entry."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        warnings.warn(f"This picture was not cached: {path} cannot be written ({error.strerror}).", stacklevel=2)
