"""Write badges and the Colab address of a published copy into README and notebooks.

    python notebooks/publish.py OWNER/REPO

README and the first cell of each notebook, in markdown, have the markers ``START`` and ``END``, between which the badges go.
Before publishing nothing stands there, so that no badge is dead. From the line ``REPOSITORY = ""`` of its set-up cell, a
notebook on Colab learns where to install the package from.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from urllib.parse import quote

from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError

ROOT = Path(__file__).resolve().parents[1]
BRANCH = "main"
START, END = "<!-- badges -->", "<!-- /badges -->"
REPOSITORY_LINE = re.compile(r'^REPOSITORY = "[^"\n]*"  # written by notebooks/publish\.py$', re.MULTILINE)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,38}/(?!\.{1,2}$)[A-Za-z0-9._-]{1,100}")


def publish(repository: str, root: Path = ROOT) -> list[Path]:
    """Write the badges of ``repository``, "OWNER/REPO" on GitHub, into the checkout ``root``; returns the files that changed.

    Raises:
        VitvizError: a bad name, or a file that cannot be read or lacks its markers. Nothing is written then.
    """
    if not NAME.fullmatch(repository):
        raise VitvizError(f"{repository!r} is no GitHub repository; write OWNER/REPO with letters, digits, '-', '.' or '_'.")
    notebooks = find_notebooks(root)
    if not notebooks:
        raise VitvizError(f"{root} has no notebooks; publish from a checkout.")
    texts = {}
    for path in (root / "README.md", *notebooks):
        try:
            before = path.read_text("utf-8")
            if path in notebooks:
                texts[path] = _published_notebook(before, badges(repository, path.relative_to(root)), repository)
            else:
                texts[path] = _with_badges(before, badges(repository, notebooks[0].relative_to(root)))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise VitvizError(f"{path} cannot be published ({error}); mend it and publish again.") from None
    changed = [path for path, text in texts.items() if path.read_bytes() != text.encode()]
    for path in changed:
        files.write(path, texts[path])
    return changed


def find_notebooks(root: Path = ROOT) -> list[Path]:
    """All notebooks of a checkout in reading order, without Jupyter's own copies."""
    return sorted(p for p in (root / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def badges(repository: str, notebook: Path) -> str:
    """One line of markdown: ``notebook``, a path in the checkout, in Colab, on Binder and as a static page."""
    path, logos = notebook.as_posix(), "https://raw.githubusercontent.com/jupyter/design/main/logos/Badges"
    file = f"{repository}/blob/{BRANCH}/{quote(path)}"
    return (f"[![Open {notebook.stem} in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
            f"(https://colab.research.google.com/github/{file}) "
            f"[![Launch {notebook.stem} on Binder](https://mybinder.org/badge_logo.svg)]"
            f"(https://mybinder.org/v2/gh/{repository}/{BRANCH}?labpath={quote(path, safe='')}) "
            f"[![View {notebook.stem} as a static page]({logos}/nbviewer_badge.svg)](https://nbviewer.org/github/{file})")


def _with_badges(text: str, line: str) -> str:
    """``text`` with ``line`` as what stands between its markers."""
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not end or START in rest or END in before + after:
        raise ValueError(f"it must have {START} and {END} once, in this order; a notebook has them in its first cell")
    return f"{before}{start}\n{line}\n{end}{after}"


def _published_notebook(text: str, line: str, repository: str) -> str:
    """The text of a notebook file with badges and repository written in, in the form that Jupyter itself writes."""
    notebook = json.loads(text)
    for i, cell in enumerate(notebook["cells"]):
        source = "".join(cell["source"])
        if i == 0:
            cell["source"] = _with_badges(source, line).splitlines(keepends=True)
        elif cell["cell_type"] == "code" and REPOSITORY_LINE.search(source):
            written = REPOSITORY_LINE.sub(f'REPOSITORY = "{repository}"  # written by notebooks/publish.py', source)
            cell["source"] = written.splitlines(keepends=True)
    if not notebook["cells"]:
        raise ValueError("it has no cells")
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("repository", metavar="OWNER/REPO", help="on GitHub")
    try:
        changed = publish(parser.parse_args().repository)
    except VitvizError as error:
        sys.exit(f"publish: {error}")
    print("\n".join(map(str, changed)) or "nothing to change: badges and addresses are as they should be")


if __name__ == "__main__":
    main()
