"""What students' notebooks record of the checks of their exercises; nothing of theirs is executed."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from ..utils.errors import VitvizError
from .checks import exercises

COLUMNS = ["file", "exercise", "result"]
RESULTS = ("right", "not yet", "unclear", "error", "not run", "missing")  # of several for one exercise the first of these counts
_CALL = re.compile(r"""^[^#\n]*?\bcheck\(\s*["'](\d\d\.\d+)["']""", re.MULTILINE)
_VERDICT = re.compile(r"^(Right|Not yet): ", re.MULTILINE)


def grade(folder: Path) -> tuple[pd.DataFrame, list[str]]:
    """The recorded result of each exercise in the notebooks below a folder, and a sentence on each file that records none.

    Columns ``file``, ``exercise`` and ``result``, as spreadsheets take them for text, not for a formula or a date. A result is
    one of ``RESULTS``; "unclear": a cell of several checks with another number of verdicts; "missing": an exercise of the
    notebook whose check is not in the file. VitvizError: a folder without notebooks.
    """
    rows, remarks, known = [], [], exercises()
    paths = [path for path in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
    if not paths:
        raise VitvizError(f"There is no notebook (.ipynb) in {folder}; name the folder of what students handed in.")
    for path in paths:
        name, results = path.relative_to(folder).as_posix(), {}
        try:
            found = [(e, result) for e, result in _recorded(json.loads(path.read_text("utf-8"))) if e in known]
        except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):  # it may hold anything
            remarks.append(f"{name} cannot be read as a notebook (nbformat 4); ask for it again.")
            continue
        for exercise, result in [*found, *((e, "missing") for e in known if any(e[:2] == other[:2] for other, _ in found))]:
            results[exercise] = min(result, results.get(exercise, "missing"), key=RESULTS.index)
        if not set(results.values()) - {"not run", "missing"}:
            remarks.append(f"{name} records no result: it has no check of this course, or was saved without having run them.")
        rows += [(f"'{name}" if name[0] in "=+-@\t\r" else name, f"exercise {e}", results[e]) for e in known if e in results]
    return pd.DataFrame(rows, columns=COLUMNS), remarks


def _recorded(notebook: dict) -> Iterator[tuple[str, str]]:
    """The exercise and the result of each check in a notebook's cells."""
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        called = _CALL.findall("".join(cell["source"]))
        text = "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")
        printed = [verdict.lower() for verdict in _VERDICT.findall(text)]
        failed = any(output["output_type"] == "error" for output in cell["outputs"])
        if len(set(called)) == 1:  # one exercise, tried as often as there are verdicts
            called *= max(1, len(printed))
        elif len(printed) > len(called) or 0 < len(printed) < len(called) and not failed:
            printed = ["unclear"] * len(called)
        yield from zip(called, [*printed, *["error" if failed else "not run"] * len(called)], strict=False)
