"""What every notebook begins with: is this machine ready? And ``vitviz doctor``, which also checks the kit's files."""

import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import torch

from ..models.cards import embedded_names
from ..models.loading import default_device
from ..utils import cache, files, paths
from ..utils.errors import VitvizError

# Written by: cd data; git ls-files | grep -vE '(\.md|\.py|SHA256SUMS)$' | xargs sha256sum > SHA256SUMS;
#             echo "# $(wc -l < SHA256SUMS) files" >> SHA256SUMS  (without its last line, the list is not whole)
SUMS = "SHA256SUMS"
_PROBLEM = "PROBLEM: "


def setup() -> None:
    """Print what the kit runs on, and what to do where something is missing. Safe to run twice."""
    _show(_machine())


def doctor() -> int:
    """Print what ``setup`` prints, after comparing every shipped file with its SHA-256; returns the number of problems."""
    data = paths.data_dir()
    damaged = damaged_files(data)
    texts = [f"{_PROBLEM}{line}" for line in damaged] or [f"complete and unchanged in {data}"]
    rows = [*_machine(), *(("Kit's data", text) for text in texts)]
    _show(rows)
    if damaged:
        print("Restore these files: in a checkout by git checkout -- data, else by installing the kit again with pip's "
              "--force-reinstall --no-deps.")
    return sum(_PROBLEM in text for _, text in rows)


def damaged_files(data: Path) -> list[str]:
    """The shipped files of a ``data`` folder that are missing or differ from their SHA-256, each with which of both."""
    try:
        *lines, count = (data / SUMS).read_text("utf-8").splitlines()
        expected = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        if count != f"# {len(expected)} files":
            raise ValueError("cut off")
    except (OSError, ValueError):
        return [f"{data / SUMS} is missing or damaged, so the other files cannot be checked."]
    problems = []
    for name, digest in expected.items():
        try:
            if files.sha256(data / name) != digest:
                problems.append(f"{data / name} is damaged: it is not the file that was shipped.")
        except OSError as error:
            problems.append(f"{data / name} is missing or cannot be read ({error.strerror}).")
    return problems


def _machine() -> list[tuple[str, str]]:
    """Rows of (what, its state) about this machine."""
    host = "Colab" if "google.colab" in sys.modules else "Binder" if "BINDER_SERVICE_HOST" in os.environ else "this machine"
    advice = "Runtime, Change runtime type, T4 GPU renders faster" if host == "Colab" else "enough for the embedded models"
    device = default_device()
    processor = (f"{torch.cuda.get_device_name()}, {torch.cuda.mem_get_info()[0] / 1e9:.1f} GB free" if device == "cuda" else
                 "Apple GPU" if device == "mps" else f"{os.cpu_count()} CPU cores, no GPU ({advice})")
    rows = [("Host", f"{host}, {platform.system()}, Python {platform.python_version()}"), ("Computes on", processor)]
    rows += [(package, version(package)) for package in ("torch", "timm", "ipywidgets")]
    names = embedded_names()
    rows.append(("Embedded models", f"{len(names)}, the first of vv.list_models()" if names else
                 f"{_PROBLEM}none found: the data folder {paths.data_dir()} is missing; install the kit again"))
    try:
        cache.ready()
        rows.append(("Cache", str(paths.cache_dir())))
    except VitvizError as error:
        rows.append(("Cache", f"{_PROBLEM}{error}"))
    return rows


def _show(rows: list[tuple[str, str]]) -> None:
    for what, text in rows:
        print(f"{what + ':':<17}{text}")
