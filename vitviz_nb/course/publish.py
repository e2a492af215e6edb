"""Write badges and the Colab address, which depend on where the repository is published, into README and notebooks.

README and the first cell of each notebook, in markdown, have a pair of markers between which the badges go. Before publishing
nothing stands there, so that no badge is dead:

    <!-- badges -->
    <!-- /badges -->

The set-up cell of a notebook has the line from which Colab learns where to install the package from:

    REPOSITORY = ""  # written by vitviz publish
"""

import json
import re
import subprocess
from pathlib import Path
from urllib.parse import quote

from ..utils import files
from ..utils.errors import VitvizError

BRANCH = "main"
START, END = "<!-- badges -->", "<!-- /badges -->"
REPOSITORY_LINE = re.compile(r'^REPOSITORY = "([^"\n]*)"  # written by vitviz publish$', re.MULTILINE)

_NAME = r"(?P<owner>[A-Za-z0-9][A-Za-z0-9-]{0,38})/(?P<repo>(?!\.{1,2}$)[A-Za-z0-9._-]{1,100})"
_REMOTE = r"(?:(?:https?|ssh|git)://(?:[^@/\s]+@)?github\.com(?::\d+)?/|(?:[^@/\s]+@)?github\.com:/?)(?P<name>\S+)"


def publish(target: str | None, root: Path) -> list[Path]:
    """Write the badges of ``target`` into ``root``'s README.md and every notebook under ``root``/notebooks.

    Args:
        target: "OWNER/REPO" on GitHub; None asks git for the remote named origin.
        root: the checkout.

    Returns:
        The files that changed; none when the same target is already written everywhere.

    Raises:
        VitvizError: no or a bad target, or a file that lacks its markers. Nothing is written then.
    """
    repository = _checked(target) if target is not None else _from_git(root)
    readme, notebooks = root / "README.md", find_notebooks(root)
    if not readme.is_file() or not notebooks:
        raise VitvizError(f"{root} has no README.md or no notebooks. Run vitviz publish at the top of a checkout.")
    texts = {readme: _with_badges(_read(readme), badges(repository, notebooks[0], root), readme)}
    for path in notebooks:
        texts[path] = _published_notebook(path, repository, root)
    changed = [path for path, text in texts.items() if path.read_bytes() != text.encode()]
    for path in changed:
        files.write(path, texts[path])
    return changed


def find_notebooks(root: Path) -> list[Path]:
    """All notebooks of a checkout in reading order, without Jupyter's own copies."""
    return sorted(p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def badges(repository: str, notebook: Path, root: Path) -> str:
    """One line of markdown: Colab, Binder and a static view of ``notebook``, for ``repository`` ("OWNER/REPO")."""
    path = notebook.relative_to(root).as_posix()
    file = f"{repository}/blob/{BRANCH}/{quote(path)}"
    links = [
        (f"Open {notebook.stem} in Colab", "https://colab.research.google.com/assets/colab-badge.svg",
         f"https://colab.research.google.com/github/{file}"),
        (f"Launch {notebook.stem} on Binder", "https://mybinder.org/badge_logo.svg",
         f"https://mybinder.org/v2/gh/{repository}/{BRANCH}?labpath={quote(path, safe='')}"),
        (f"View {notebook.stem} as a static page",
         "https://raw.githubusercontent.com/jupyter/design/main/logos/Badges/nbviewer_badge.svg",
         f"https://nbviewer.org/github/{file}"),
    ]  # fmt: skip
    return " ".join(f"[![{alt}]({picture})]({address})" for alt, picture, address in links)


def _checked(target: str) -> str:
    match = re.fullmatch(_NAME, target)
    if not match:
        raise VitvizError(f"{target!r} is no GitHub repository. Write OWNER/REPO with letters, digits, '-', '.' or '_', for "
                          f"example: vitviz publish ada/vitviz")
    return f"{match['owner']}/{match['repo']}"


def _from_git(root: Path) -> str:
    command = ["git", "-C", str(root), "remote", "get-url", "origin"]
    try:
        address = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise VitvizError(f"{root} has no git remote named origin to take the repository from. Name it: "
                          f"vitviz publish OWNER/REPO") from None
    match = re.fullmatch(_REMOTE, address)
    if not match:  # the address is not shown: it may hold a password
        raise VitvizError("The git remote origin is not on github.com, where Colab and Binder look. Name the repository that is: "
                          "vitviz publish OWNER/REPO")
    return _checked(match["name"].rstrip("/").removesuffix(".git"))


def _with_badges(text: str, line: str, path: Path) -> str:
    """``text`` with ``line`` as what stands between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end or START in rest or END in before + after:
        raise VitvizError(f"{path} must have the lines {START} and {END} once, in this order, to show where its badges go (in a "
                          f"notebook: in the first cell, in markdown). Add them and publish again.")
    return f"{before}{start}\n{line}\n{end}{after}"


def _published_notebook(path: Path, repository: str, root: Path) -> str:
    """The text of a notebook file with badges and repository written in."""
    try:
        notebook = json.loads(_read(path))
        cells = [(cell, cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise VitvizError(f"{path} is no Jupyter notebook of format 4. Mend or remove it, and publish again.") from None
    line = badges(repository, path, root)
    if not cells or cells[0][1] != "markdown":
        _with_badges("", line, path)
    for i, (cell, kind, source) in enumerate(cells):
        text = (REPOSITORY_LINE.sub(f'REPOSITORY = "{repository}"  # written by vitviz publish', source) if kind == "code" else
                source if i else _with_badges(source, line, path))
        if text != source:
            cell["source"] = text.splitlines(keepends=True)
    # The form that Jupyter itself writes, so that saving a notebook there changes nothing.
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeError) as error:
        raise VitvizError(f"{path} cannot be read as UTF-8 text ({error}). Mend it, and publish again.") from None
