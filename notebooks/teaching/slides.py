"""Slides of notebooks 00, 03, 05, 06 and 10, with speaker notes, that run offline: HTML (reveal.js) and PDF.

    python -m pip install -e ".[site]"
    python notebooks/teaching/slides.py FOLDER

A deck is slides/NN.md: slides are separated by lines of three dashes, and what follows a line ``Note:`` is for the speaker (in
the browser key S, in NN_notes.pdf a page after each slide). ``[figure: CELL](../../NOTEBOOK.ipynb)`` is the picture stored in
that cell, taken when the deck is built; ``[figure: CELL, width 0-50, height 5-100](…)`` is a part of it, in percent. Two widths
are set side by side: the axis of a figure's first panel, say, and its second panel.
PDFs are printed by Chromium, where there is one.
"""

import argparse
import html
import json
import re
import shutil
import sys
from base64 import b64decode
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError

DECKS = Path(__file__).resolve().parent / "slides"
FIGURE = re.compile(r"^\[figure: ([\w-]+)((?:, (?:width|height) [\d.]+-[\d.]+)*)\]\(([^)]+)\)$", re.MULTILINE)
PART = re.compile(r"(width|height) ([\d.]+)-([\d.]+)")
SPACE = re.compile(r" (?=[%±])|(?<=±) ")  # which must not break a line
STORED = re.compile(r'<img [^>]*src="data:image/(\w+);base64,([^"]+)"')
PICTURE = re.compile(r"^!\[([^\]]+)\]\(([^)]+)\)$", re.MULTILINE)
# In JavaScript. While Reveal moves slides onto pages, there are for a moment none of either.
LAID_OUT = "Reveal.isReady() && document.querySelectorAll('.pdf-page').length == (Reveal.getTotalSlides() || -1)"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


def figure(notebook: Path, cell_id: str) -> tuple[Image.Image, str, str]:
    """The first picture stored in a cell, its alt text, and the ending of its file name."""
    for cell in json.loads(notebook.read_text("utf-8"))["cells"]:
        for output in cell.get("outputs", []) if cell["id"] == cell_id else ():
            if found := STORED.search("".join(output.get("data", {}).get("text/html", ""))):
                return Image.open(BytesIO(b64decode(found[2]))), cell["metadata"]["alt"], found[1]
    raise VitvizError(f"{notebook.name} has no cell {cell_id} with a stored picture; name one that has.")


def part(picture: Image.Image, side: str, ranges: list[tuple[float, float]]) -> Image.Image:
    """Ranges of a picture's width or height, in percent, one beside or below the other; without ranges the picture."""
    if not ranges:
        return picture
    cuts = [[round(getattr(picture, side) * at / 100) for at in one] for one in ranges]
    pieces = [picture.crop((a, 0, b, picture.height) if side == "width" else (0, a, picture.width, b)) for a, b in cuts]
    length, joined, at = sum(b - a for a, b in cuts), [*picture.size], 0
    joined[side == "height"] = length
    whole = Image.new(picture.mode, joined)
    for piece in pieces:
        whole.paste(piece, (at, 0) if side == "width" else (0, at))
        at += getattr(piece, side)
    return whole


def cells(deck: Path, pictures: Path) -> list[dict]:
    """A deck's slides and notes as markdown cells with slide types; the pictures that it shows are written to a folder."""
    def stored(match: re.Match) -> str:
        cell, parts, link = match.groups()
        notebook = (deck.parent / unquote(link)).resolve()
        picture, alt, ending = figure(notebook, cell)
        for side in ("width", "height"):
            picture = part(picture, side, [(float(low), float(high)) for one, low, high in PART.findall(parts) if one == side])
        name = f"{notebook.stem[:2]}_{'_'.join(re.findall(r'[a-z0-9]+', cell + parts))}.{ending}"
        picture.save(pictures / name, **({"quality": 92} if ending == "jpeg" else {}))
        return shown(name, alt)

    def copied(match: re.Match) -> str:
        shutil.copy(deck.parent / match[2], pictures)
        return shown(Path(match[2]).name, match[1])

    def shown(name: str, alt: str) -> str:
        return f'<figure><img src="{pictures.name}/{name}" alt="{html.escape(alt)}"></figure>'

    made = []
    for slide in re.split(r"^---$", deck.read_text("utf-8"), flags=re.MULTILINE):
        text, _, note = slide.partition("\nNote:\n")
        text = SPACE.sub("\u00a0", PICTURE.sub(copied, FIGURE.sub(stored, text)).strip())
        for kind, source in (("slide", f'<div class="slide">\n\n{text}\n\n</div>'), ("notes", note.strip())):
            if source:
                made.append({"cell_type": "markdown", "id": f"cell-{len(made)}", "source": source,
                             "metadata": {"slideshow": {"slide_type": kind}}})
    return made


def build(folder: Path) -> list[Path]:
    """Write every deck into a new or empty folder; returns the pages and, where there is a browser, their PDFs."""
    try:
        import nbformat
        from nbconvert import SlidesExporter
        reveal = Path(find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs"
    except (ImportError, AttributeError):
        raise VitvizError('Slides need the extra "site": python -m pip install -e ".[site]"') from None
    files.ready(folder, "The folder")
    if any(folder.iterdir()):
        raise VitvizError(f"{folder} is not empty; name a new folder.")
    (folder / "figures").mkdir()
    for part in ("dist", "plugin/notes", "LICENSE"):
        copy = shutil.copytree if (reveal / part).is_dir() else shutil.copy
        (folder / "reveal.js" / part).parent.mkdir(parents=True, exist_ok=True)
        copy(reveal / part, folder / "reveal.js" / part)
    exporter = SlidesExporter(raw_template=(DECKS / "deck.html.j2").read_text("utf-8"), reveal_url_prefix="reveal.js",
                              exclude_anchor_links=True)
    pages = []
    for deck in sorted(DECKS.glob("[0-9][0-9].md")):
        notebook = {"cells": cells(deck, folder / "figures"), "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
        page, _ = exporter.from_notebook_node(nbformat.from_dict(notebook), {"metadata": {"name": f"Notebook {deck.stem}"}})
        pages.append(files.write(folder / f"{deck.stem}.html", page))
    return pages + printed(pages)


def printed(pages: list[Path]) -> list[Path]:
    """Two PDFs of each page, without and with the speaker notes; none where there is no browser."""
    from playwright.sync_api import sync_playwright

    browser, made = next(filter(None, map(shutil.which, BROWSERS)), None), []
    with sync_playwright() as playwright:
        tab = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page() if browser else None
        for page in pages if browser else ():
            for ending, query in (("", ""), ("_notes", "&showNotes=separate-page")):
                tab.goto(f"{page.resolve().as_uri()}?print-pdf{query}")
                tab.wait_for_function(LAID_OUT)
                made.append(page.with_name(f"{page.stem}{ending}.pdf"))
                tab.pdf(path=made[-1], prefer_css_page_size=True, print_background=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="new or empty")
    try:
        made = build(parser.parse_args().folder)
    except VitvizError as error:
        sys.exit(f"slides: {error}")
    print("\n".join(map(str, made)))
    if not any(path.suffix == ".pdf" for path in made):
        print("No PDF: there is no Chromium. In a browser, open a deck with ?print-pdf behind its address and print it.")


if __name__ == "__main__":
    main()
