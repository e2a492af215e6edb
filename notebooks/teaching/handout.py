"""Two versions of the course from one source, the notebooks and their solutions. Nothing is executed.

    python notebooks/teaching/handout.py FOLDER               for students
    python notebooks/teaching/handout.py FOLDER --solutions   for teachers

Students get the notebooks without hints, solutions and answers to the quizzes, and with no recorded result of a check. Teachers
get the same with all of them, and with the cells of solutions/NN_solutions.ipynb below each exercise. Figures stay. Both
folders are complete: figures and the glossary come along, and a link to anything else becomes plain text.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from urllib.parse import unquote

from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError

NOTEBOOKS = Path(__file__).resolve().parents[1]
FOLDS = re.compile(r"\n*<details><summary>(?:Hint|Second hint|Solution|Answers)</summary>.*?</details>", re.DOTALL)
BADGES = re.compile(r"(<!-- badges -->).*?(<!-- /badges -->)", re.DOTALL)  # they open the repository's notebook, not this one
CHECK = re.compile(r'^vv\.check\("(\d\d\.\d+)"', re.MULTILINE)
SECTION = re.compile(r"^## (\d\d\.\d+)\n*", re.MULTILINE)
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")  # picture or not, text, file, anchor
INSTALL = re.compile(r"\A.*\{REPOSITORY\}\n+", re.DOTALL)  # of a set-up cell: what the notebook's own has done
CONTENTS = re.compile(r" · Contents: \[README\]\(README\.md\)|Contents: \[README\]\(README\.md\) · ")  # it is for teachers, too
TAG = "solution"  # on the cells that only teachers get


def source(cell: dict) -> str:
    return "".join(cell["source"])


def linked(path: Path) -> set[str]:
    """The files in notebooks/ that a notebook shows or links to, solutions and other notebooks apart."""
    texts = [CONTENTS.sub("", FOLDS.sub("", source(cell))) for cell in read(path)["cells"] if cell["cell_type"] == "markdown"]
    names = {unquote(m[3]) for text in texts for m in LINK.finditer(text)}
    return {name for name in names if not re.match(r"[a-z]+:|\.\./|solutions/", name) and not name.endswith(".ipynb")}


def read(path: Path) -> dict:
    return json.loads(path.read_text("utf-8"))


def solution_cells(number: str) -> dict[str, list[dict]]:
    """The cells of solutions/NN_solutions.ipynb by exercise; the first exercise also gets its imports and models."""
    first, *rest = read(NOTEBOOKS / "solutions" / f"{number}_solutions.ipynb")["cells"][2:]
    exercise, found = "", {}
    for cell in rest:
        if cell["cell_type"] == "code":
            found[exercise].append(new("code", source(cell), cell, exercise))
            continue
        before, *parts = SECTION.split(source(cell))  # a cell may close one section and open the next
        opened = [(name, f"**Solution of exercise {name}.** {text}") for name, text in zip(*[iter(parts)] * 2, strict=True)]
        for name, text in [(exercise, before), *opened]:
            if text.strip():
                found.setdefault(name, []).append(new("markdown", text.strip(), cell, name))
            exercise = name
    found[f"{number}.1"].insert(1, new("code", INSTALL.sub("", source(first)), first, f"{number}.1"))
    return found


def new(kind: str, text: str, like: dict, exercise: str) -> dict:
    """A cell that only teachers get."""
    metadata = like["metadata"] | {"tags": [*like["metadata"].get("tags", []), TAG]}
    cell = {"cell_type": kind, "id": f"{TAG}-{exercise.replace('.', '-')}-{like['id']}", "metadata": metadata, "source": text}
    return cell | ({"execution_count": None, "outputs": figures(like)} if kind == "code" else {})


def figures(cell: dict) -> list[dict]:
    """A cell's stored pictures; printed text, and with it the verdict of a check, goes."""
    kept = [o for o in cell["outputs"] if "<img " in "".join(o.get("data", {}).get("text/html", ""))]
    return [] if CHECK.search(source(cell)) else kept


def version(path: Path, carried: set[str], solutions: bool) -> dict:
    """The notebook at ``path`` for students, or for teachers."""
    notebook, cells = read(path), []
    solved = solution_cells(path.stem[:2]) if solutions else {}
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] == "markdown":
            text = CONTENTS.sub("", BADGES.sub(r"\1\n\2", text if solutions else FOLDS.sub("", text)))
            cells.append(cell | {"source": flat(text, carried)})
            continue
        cells.append(cell | {"source": text, "execution_count": None, "outputs": figures(cell)})
        for exercise in CHECK.findall(text):
            cells += solved.get(exercise, [])
    return notebook | {"cells": cells}


def flat(text: str, carried: set[str]) -> str:
    """``text`` with links to files that do not come along as plain text."""
    def one(match: re.Match) -> str:
        name = unquote(match[3])
        return match[0] if re.match(r"[a-z]+:", name) or name in carried else match[2]
    return LINK.sub(one, text)


def handout(folder: Path, solutions: bool = False) -> list[Path]:
    """Write the course into an empty or a new folder; returns the files. VitvizError: the folder holds anything."""
    files.ready(folder, "The folder")
    if any(folder.iterdir()):
        raise VitvizError(f"{folder} is not empty; name a new folder.")
    paths = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    others = {name for path in paths for name in linked(path)}
    carried = others | {path.name for path in paths}
    written = []
    for path in paths:
        text = json.dumps(version(path, carried, solutions), indent=1, ensure_ascii=False, sort_keys=True) + "\n"
        written.append(files.write(folder / path.name, text))
    for name in sorted(others):
        content = (NOTEBOOKS / name).read_bytes()
        if name.endswith(".md"):  # its links are relative to its own folder
            content = flat(content.decode("utf-8"), {os.path.relpath(other, Path(name).parent) for other in carried})
        written.append(files.write(folder / name, content))
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--solutions", action="store_true", help="for teachers: with hints, solutions and answers")
    options = parser.parse_args()
    try:
        written = handout(options.folder, options.solutions)
    except VitvizError as error:
        sys.exit(f"handout: {error}")
    print(f"{len(written)} files in {options.folder}, {sum(path.stat().st_size for path in written) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
