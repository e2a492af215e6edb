"""What every notebook begins with: is this machine ready?"""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..models.cards import check_embedded, embedded_names
from ..models.vision_model import default_device
from ..utils import cache
from ..utils.errors import VitvizError
from ..utils.paths import cache_dir


def _status() -> list[tuple[str, str]]:
    """Rows of (what, how it stands) about this machine."""
    host = "Colab" if "google.colab" in sys.modules else "Binder" if "BINDER_SERVICE_HOST" in os.environ else "this machine"
    device = default_device()
    if device == "cuda":
        unit = f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free"
    elif device == "mps":
        unit = "Apple GPU"
    else:
        advice = {"Colab": "Runtime, Change runtime type, T4 GPU makes pictures faster"}.get(
            host, "enough for the embedded models")
        unit = f"{os.cpu_count()} CPU cores, no GPU ({advice})"
    rows = [("Host", f"{host}, {platform.system()}, Python {platform.python_version()}"), ("Computes on", unit)]
    memory = _memory()
    if memory:
        rows.append(("Memory", f"{memory:.1f} GB free"))
    for package in ("torch", "timm", "ipywidgets"):
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, f"missing: python -m pip install {package}"))
    for name in embedded_names():
        rows.append(("Embedded model", _sentence(lambda name=name: check_embedded(name)) or name))
    if not embedded_names():
        rows.append(("Embedded models", "none found: the data folder is missing; install the kit again"))
    rows.append(("Cache", _sentence(cache.ready) or str(cache_dir())))
    return rows


def _sentence(attempt: Callable) -> str | None:
    """What is wrong with it, or None."""
    try:
        attempt()
    except VitvizError as error:
        return f"PROBLEM: {error}"


def setup() -> None:
    """Print what the kit runs on, and what to do where something is missing. Safe to run twice; ``vitviz doctor``."""
    for what, how in _status():
        print(f"{what + ':':<17}{how}")


def _memory() -> float | None:
    """Free memory in GB, where Linux tells."""
    try:
        text = Path("/proc/meminfo").read_text()
        return int(text.split("MemAvailable:")[1].split()[0]) / 1e6
    except (OSError, IndexError, ValueError):
        return None
