"""The course's website: notebooks with the outputs they store, glossary, plans and galleries, with search. Nothing is executed.

    python -m pip install -e ".[site]"
    python notebooks/teaching/website.py FOLDER

Open FOLDER/index.html, or put the folder on any web server: pages need no network but for links that lead out. A link within
the course that leads nowhere stops the build. Solutions are pages to which exercises link, in no contents and not found by the
search. It takes about a minute, half of it for galleries: ``--galleries emoji-vit`` makes only that one, ``--galleries`` none.
"""

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import unquote

from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.visualize.atlas import Atlas
from vitviz_nb.widgets.browser import export

ROOT = Path(__file__).resolve().parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")
CARRIED = (".csv", ".json", ".svg", ".png", ".webp")  # what comes along where a page links to it
GONE = re.compile(r"\[([^\[\]]*)\]\(:gone:\)")
STYLE = """
img, .cell_output img { background: #fff; border-radius: 4px; max-width: 100%; }
details { margin: 0.6rem 0; padding: 0.3rem 0.8rem; border: 1px solid var(--color-background-border); border-radius: 6px; }
summary { cursor: pointer; font-weight: 600; }
div.cell { margin: 1rem 0; }
div.cell div.cell_input, div.cell div.cell_output { padding: 0; }
article h2 { font-size: 1.6em; }
article h3 { font-size: 1.3em; }
article table { display: block; overflow-x: auto; font-size: 0.8em; }
article table.docutils :is(th, td) { padding: 0.3rem 0.5rem; text-align: left; vertical-align: top; }
article table.docutils a { overflow-wrap: anywhere; }
"""
CONTENTS = {"The course": ["[0-9][0-9]_*.ipynb"], "Look up": ["GLOSSARY.md", "galleries.md", "kit.md"],
            "Teach it": ["teaching/*.md"], "Data and models": ["data/**/*.md"]}
SETTINGS = {
    "project": "What do vision transformers learn?", "html_title": "What do vision transformers learn?", "language": "en",
    "root_doc": "README", "extensions": ["myst_nb"], "nb_execution_mode": "off", "myst_heading_anchors": 4,
    "html_theme": "furo", "html_css_files": ["course.css"], "html_static_path": ["_static"], "html_extra_path": ["_extra"],
    "html_copy_source": False, "html_use_index": False, "html_show_sphinx": False, "html_show_copyright": False,
    "suppress_warnings": ["myst.header"],  # the glossary's terms are third-level headings, right below its title
}


@cache
def pages() -> list[Path]:
    """The files of the checkout that become pages."""
    notebooks = ROOT / "notebooks"
    return [ROOT / "README.md", *sorted([*notebooks.glob("*.md"), *notebooks.glob("[0-9][0-9]_*.ipynb"),
                                         *notebooks.glob("solutions/*.ipynb"), *notebooks.glob("teaching/*.md"),
                                         *(ROOT / "data").rglob("*.md")])]


def place(path: Path) -> str | None:
    """Where a file of the checkout lies on the site; None for one that does not come along."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        return place(path / "README.md") if (path / "README.md").is_file() else None
    if name == "README.md":
        return "kit.md"
    return name.removeprefix("notebooks/") if path in pages() or path.suffix in CARRIED else None


def relinked(text: str, path: Path, linked: set[Path]) -> str:
    """Markdown of the file at ``path`` with links to where the files lie on the site, and as text where they do not come along.

    Files linked are added to ``linked``.
    """
    def one(match: re.Match) -> str:
        name, mark, anchor = match[1].partition("#")
        if mark and path.suffix == ".ipynb" and not name:
            return f"](#{anchor.lower()})"  # a notebook's anchors keep capitals, a page's do not
        target = Path(os.path.normpath(path.parent / unquote(name)))
        if not name or re.match(r"[a-z]+:", name) or not target.exists():
            return match[0]
        if not target.is_relative_to(ROOT) or not (there := place(target)):
            return "](:gone:)"
        linked.add(target)
        return f"]({os.path.relpath(there, Path(place(path)).parent)}{mark}{anchor})"
    return GONE.sub(r"\1", LINK.sub(one, text))


def staged(source: Path, galleries: list[str]) -> None:
    """Write what Sphinx reads: pages with their links, contents, and galleries."""
    linked = set()
    for path in pages():
        text = path.read_text("utf-8")
        if path.suffix == ".ipynb":
            text = json.dumps(notebook(json.loads(text), path, linked))
        else:
            text = relinked(text, path, linked)
        files.write(source / place(path), text)
    for path in linked - {*pages()}:
        if path.is_file():
            (source / place(path)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, source / place(path))
    (source / "_extra").mkdir()
    lines = ["# Galleries", "Feature visualizations made beforehand, to sort, search and open. Each gallery is one page "
             "that needs no network.", ""]
    for name in galleries:
        export(name, source / "_extra" / "galleries" / name)
        facts = Atlas.open(data_dir() / "atlas" / name).facts
        which = f"{facts['neurons']} evenly spaced" if "neurons" in facts else "all"
        layers = f"each of {len(facts['layers'])} layers" if len(facts["layers"]) > 1 else f"layer {facts['layers'][0]}"
        lines.append(f'- <a href="galleries/{name}/index.html">{escape(facts["model"])}</a>: {which} neurons of {layers}')
    files.write(source / "galleries.md", "\n".join(lines) + "\n")
    files.write(source / "_static" / "course.css", STYLE)
    contents = []
    for caption, patterns in CONTENTS.items():
        names = [p.relative_to(source).as_posix() for pattern in patterns for p in sorted(source.glob(pattern))]
        contents.append("\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *names, "```", ""]))
    with open(source / "README.md", "a", encoding="utf-8") as file:
        file.write("\n".join(contents))


def notebook(content: dict, path: Path, linked: set[Path]) -> dict:
    """A notebook as the site reads it."""
    for cell in content["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relinked("".join(cell["source"]), path, linked)
    if path.parent.name == "solutions":
        content["metadata"] |= {"orphan": True, "nosearch": True}
    return content


def build(folder: Path, galleries: list[str] | None = None) -> Path:
    """Write the site into a new or empty folder; returns its first page. VitvizError: a link within it that leads nowhere."""
    try:
        import furo  # noqa: F401
        import myst_nb  # noqa: F401
        from sphinx.application import Sphinx
        from sphinx.errors import SphinxError
    except ImportError:
        raise VitvizError('The website needs the extra "site": python -m pip install -e ".[site]"') from None
    files.ready(folder, "The folder")
    if any(folder.iterdir()):
        raise VitvizError(f"{folder} is not empty; name a new folder.")
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "source"
        atlases = sorted(path.parent.name for path in (data_dir() / "atlas").glob("*/manifest.json"))
        staged(source, atlases if galleries is None else galleries)
        try:
            app = Sphinx(source, None, folder, Path(work) / "doctrees", "html", SETTINGS, status=None, warning=sys.stderr,
                         warningiserror=True, exception_on_warning=False)
            app.build()
        except SphinxError as error:
            raise VitvizError(f"The website cannot be built: {error}") from None
    if app.statuscode:
        raise VitvizError("The website has faults: see the warnings above.")
    return shutil.copy(folder / "README.html", folder / "index.html")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    parser.add_argument("--galleries", nargs="*", metavar="ATLAS", help="atlases to show (default: all that ship)")
    options = parser.parse_args()
    try:
        print(build(options.folder, options.galleries))
    except VitvizError as error:
        sys.exit(f"website: {error}")


if __name__ == "__main__":
    main()
