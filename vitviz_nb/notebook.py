"""What every notebook begins and ends with: is this machine ready, and is this answer right?"""

import os
import platform
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral
from pathlib import Path

import torch

from . import cache
from .contexts import CONTEXTS
from .errors import VitvizError
from .models import VisionModel, check_embedded, default_device, embedded_names
from .paths import cache_dir
from .scores import default_reference
from .sites import sites
from .top import top_images


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


def check(exercise: str, answer, model: VisionModel) -> None:
    """Say whether an answer to an exercise is right, with the number that decides.

    Raises:
        VitvizError: no such exercise, or an answer of the wrong kind.
    """
    if exercise not in _EXERCISES:
        raise VitvizError(f"There is no exercise {exercise!r}; there are {', '.join(_EXERCISES)}.")
    if not isinstance(model, VisionModel):
        raise VitvizError(f"The check needs the model as its third argument, as in vv.check({exercise!r}, answer, model).")
    right, why = _EXERCISES[exercise](answer, model)
    print(f"{'Right' if right else 'Not yet'}: {why}")


def _shared_context(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 00.1: a neuron of the last MLP layer, at least 5 of whose 6 strongest scenes lie in one context."""
    places = sites(model).get("mlp") or next(iter(sites(model).values()))
    if isinstance(answer, bool) or not isinstance(answer, Integral):
        raise VitvizError(f"Exercise 00.1 wants the number of a neuron, 0 to {places[-1].units - 1}, got {answer!r}.")
    best = top_images(model, places[-1].layer, answer, places[-1].kind)
    contexts = default_reference(model).source.batch(best.indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    found = f"{contexts.count(most)} of the {len(contexts)} strongest scenes of neuron {answer} are on {CONTEXTS[most]}"
    return contexts.count(most) >= 5, found if contexts.count(most) >= 5 else f"{found}; at least 5 are needed."


_EXERCISES: dict[str, Callable] = {"00.1": _shared_context}
