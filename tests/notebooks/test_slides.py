"""``python notebooks/teaching/slides.py FOLDER``: decks that are lessons, from the notebooks' own figures, that run offline."""

import importlib.util
import re
import shutil
from pathlib import Path

import nbformat
import numpy as np
import pytest

from vitviz_nb.utils.errors import VitvizError

from .test_lint import COURSE, PRIVATE_WORDS, ROOT, link_problems

SPEC = importlib.util.spec_from_file_location("slides_command", ROOT / "notebooks" / "teaching" / "slides.py")
command = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(command)
DECKS = sorted((ROOT / "notebooks" / "teaching" / "slides").glob("*.md"))
NUMBER = re.compile(r"(?<![\w.:-])\d[\d.,]*\d|(?<![\w.-])\d(?![\w.])")


def parts(deck: Path) -> list[tuple[str, str]]:
    """The text and the notes of each slide."""
    slides = re.split(r"^---$", deck.read_text("utf-8"), flags=re.MULTILINE)
    return [(text.strip(), note.strip()) for text, _, note in (slide.partition("\nNote:\n") for slide in slides)]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    pytest.importorskip("sphinx_revealjs", reason='needs the extra "site"')
    command.build(tmp_path_factory.mktemp("slides"))
    return tmp_path_factory.getbasetemp() / "slides0"


@pytest.fixture(scope="module")
def tab():
    browser = next(filter(None, map(shutil.which, command.BROWSERS)), None)
    if not browser:
        pytest.skip("needs Chromium")
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page()


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
def test_no_figure_is_cut_through_its_title(deck):
    for cell, parts, link in command.FIGURE.findall(deck.read_text("utf-8")):
        ranges = {side: [(float(a), float(b)) for one, a, b in command.PART.findall(parts) if one == side]
                  for side in ("width", "height")}
        if not ranges["height"] or ranges["height"][0][0] > 20:  # below that it is cut between rows of images
            continue
        picture = command.part(command.figure((deck.parent / link).resolve(), cell)[0], "width", ranges["width"][-1:])
        ink = np.asarray(picture.convert("L"))[:, picture.width // 8 :] < 200  # without labels of the axis beside the title
        cut = round(picture.height * ranges["height"][0][0] / 100)
        assert not ink[cut - 1 : cut + 1].any(1).all(), f"{deck.name}: {cell} is cut at {ranges['height'][0][0]} %"


def test_there_is_a_deck_for_each_notebook_that_the_plans_project():
    assert [deck.stem for deck in DECKS] == ["00", "03", "05", "06", "10"]


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
def test_a_deck_is_a_lesson(deck):
    slides = parts(deck)
    assert 8 <= len(slides) <= 14
    assert all(note for _, note in slides), "a slide has no speaker notes"
    texts = [text for text, _ in slides]
    assert texts[0].startswith("# ") and all(text.startswith("## ") for text in texts[1:])
    assert "?" in texts[1], "the second slide asks no question"
    everything = deck.read_text("utf-8")
    assert len(re.findall("[Pp]redict|[Vv]ote", everything)) >= 3 and "ontrol" in everything
    assert texts[-1].startswith(("## What it does not show", "## What to remember"))
    assert len(PRIVATE_WORDS.findall(everything)) <= 2
    assert link_problems(everything, deck.parent) == []


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
def test_numbers_on_slides_are_the_notebooks(deck):
    notebook = nbformat.read(next(path for path in COURSE if path.name.startswith(deck.stem)), as_version=4)
    known = " ".join(cell.source + cell.metadata.get("alt", "") for cell in notebook.cells).replace("\u2212", "-")
    text = re.sub(r"About \d+ minutes|```.*?```", "", command.FIGURE.sub("", deck.read_text("utf-8")), flags=re.DOTALL)
    numbers = {number.strip(".,") for number in NUMBER.findall(text)}
    assert len(numbers) > 10
    assert not [number for number in numbers if not re.search(rf"(?<![\d.]){re.escape(number)}(?!\d|\.\d)", known)]


def test_a_figure_that_the_notebook_does_not_store_is_named(tmp_path):
    with pytest.raises(VitvizError, match="no cell nowhere with a stored picture"):
        command.figure(COURSE[0], "nowhere")


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
def test_a_page_needs_no_network_and_its_pictures_have_alt_texts(deck, built):
    page = (built / f"{deck.stem}.html").read_text("utf-8")
    loaded = re.findall(r"""<(?:script|img|link)\b[^>]*?(?:src|href)=["']([^"']+)""", page)
    assert loaded and all((built / name).is_file() for name in loaded)
    shown = len(command.FIGURE.findall(deck.read_text("utf-8"))) + len(command.PICTURE.findall(deck.read_text("utf-8")))
    assert len(re.findall(r'<img alt="[^"]{20,}" src="figures/[^"]+"/>', page)) == page.count("<img") == shown > 3
    assert page.count('<aside class="notes">') == len(parts(deck))


@pytest.mark.parametrize("deck", DECKS, ids=lambda deck: deck.stem)
def test_text_fits_its_slide_and_a_pdf_has_every_slide(deck, built, tab):
    for ending, pages in (("", 1), ("_notes", 2)):
        pdf = (built / f"{deck.stem}{ending}.pdf").read_bytes()
        assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == pages * len(parts(deck))
    tab.goto(f"{(built / deck.stem).as_uri()}.html?print-pdf")
    tab.wait_for_function(command.LAID_OUT)
    over = "s => [s.scrollHeight - s.clientHeight, s.scrollWidth - s.clientWidth"
    sizes = tab.evaluate(f"[...document.querySelectorAll('.slide')].map({over}, "
                         "...[...s.querySelectorAll('figure')].map(f => 250 - f.clientHeight)])")  # of 720
    assert len(sizes) == len(parts(deck)) and all(pixels <= 0 for size in sizes for pixels in size)
    tab.goto(f"{(built / deck.stem).as_uri()}.html#/2")  # as it is projected
    tab.wait_for_function("Reveal.isReady()")
    height = tab.evaluate("document.querySelector('.present .slide').getBoundingClientRect().height")
    assert height > 0.8 * tab.viewport_size["height"]
