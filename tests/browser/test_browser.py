"""The browser of an atlas, as a reader of a website and a learner in JupyterLab meet it: by keyboard, light and dark."""

import json
from pathlib import Path

import pytest
from lab import complaints

import vitviz_nb as vv
from vitviz_nb.widgets.browser import export

ATLAS = "vit-small-dinov2-saliency"
IMAGES = "[...document.querySelectorAll('.vitviz-browser img')]"
SHOWN = f"() => {IMAGES}.every(img => !img.checkVisibility() || img.complete && img.naturalWidth > 1)"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return export(ATLAS, tmp_path_factory.mktemp("site"))


@pytest.fixture(params=["light", "dark"])
def page(request, chromium, site):
    """The exported page, opened from its file at 1,000 px."""
    context = chromium.browser.new_context(viewport={"width": 1000, "height": 800}, color_scheme=request.param)
    page, asked, errors = context.new_page(), [], []
    page.set_default_timeout(120_000)  # a busy machine is no failure
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(site.as_uri())
    yield page
    context.close()
    assert [url for url in asked if not url.startswith(("file:", "blob:", "data:"))] == [] and errors == []


def numbers(page) -> list[str]:
    return page.locator(".grid .caption b").all_text_contents()  # of thumbnails below the window, too


def focused(page) -> str:
    return page.evaluate("document.activeElement.textContent || document.activeElement.placeholder || ''")


def test_search_and_open_a_neuron_by_keyboard(page):
    atlas = vv.Atlas.open(ATLAS)
    last = max(atlas.facts["layers"])
    page.wait_for_function(SHOWN)
    assert numbers(page) == [str(neuron) for neuron in atlas.neurons(last)]
    assert page.evaluate("document.documentElement.scrollWidth") <= 1000
    page.get_by_role("radio", name="all").focus()
    page.keyboard.press("Space")
    for _ in range(2):
        page.keyboard.press("Tab")
    wanted = atlas.table()["scenes"][0][0]
    assert focused(page).startswith("such as")
    page.keyboard.type(wanted)
    found = atlas.search(wanted)
    page.wait_for_function("() => document.querySelector('.status').innerText.includes('best match first')")
    assert numbers(page) == [f"{row.layer}:{row.neuron}" for row in found.itertuples()]

    page.keyboard.press("Tab")
    page.keyboard.press("End")  # a single stop for all thumbnails, and arrows between them
    page.keyboard.press("Home")
    assert focused(page).startswith(numbers(page)[0])
    page.keyboard.press("Enter")
    row, dialog = found.iloc[0], page.get_by_role("dialog")
    assert dialog.get_by_role("heading", level=2).inner_text() == f"Layer {row.layer}, neuron {row.neuron}"
    assert page.url.endswith(f"#{row.layer}:{row.neuron}")  # a link to this neuron
    page.wait_for_function(SHOWN)
    alts = [img.get_attribute("alt") for img in dialog.locator("img").all()]
    assert alts[0] == f"Feature visualization of layer {row.layer}, neuron {row.neuron}"
    assert alts[1::2] == list(row.scenes) and all("activation map, largest at" in alt for alt in alts[2::2])
    if len(found) > 1:
        page.keyboard.press("ArrowRight")
        assert page.url.endswith(f"#{found.iloc[1].layer}:{found.iloc[1].neuron}")
        page.keyboard.press("ArrowLeft")
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and focused(page).startswith(numbers(page)[0])


def test_the_rules_of_axe_hold_for_thumbnails_and_for_a_neuron(page):
    assert complaints(page) == []
    page.locator(".grid button").first.click()
    page.wait_for_function(SHOWN)
    assert complaints(page) == []


def test_a_link_opens_its_neuron_and_every_image_has_a_text(chromium, site):
    page = chromium.browser.new_page()
    page.goto(f"{site.as_uri()}#0:0", timeout=120_000)
    assert page.get_by_role("heading", level=2).inner_text() == "Layer 0, neuron 0"
    assert page.evaluate(f"{IMAGES}.map(img => img.alt)").count("") == 0
    page.close()


def test_the_widget_shows_in_jupyterlab_and_python_and_page_follow_each_other(lab, open_notebook):
    cell = {"cell_type": "code", "id": "browse", "metadata": {}, "outputs": [], "execution_count": None,
            "source": f"import vitviz_nb as vv\nbrowser = vv.browse({ATLAS!r})\nbrowser"}
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    notebook = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    (lab.root / "browse.ipynb").write_text(json.dumps(notebook))
    nb = open_notebook("browse.ipynb", size=(1000, 900), timeout=180)
    nb.page.set_default_timeout(120_000)  # a busy machine is no failure
    nb.run_all()
    nb.page.locator(".vitviz-browser .grid button").first.wait_for()
    nb.page.wait_for_function(SHOWN)
    assert nb.page.evaluate(f"{IMAGES}.map(img => img.alt)").count("") == 0
    nb.page.locator(".vitviz-browser .grid button").first.focus()
    nb.page.keyboard.press("ArrowRight")  # which JupyterLab would take to go to another cell
    nb.page.keyboard.press("Enter")
    nb.page.get_by_role("dialog").wait_for()
    nb.page.wait_for_function(SHOWN)
    atlas = vv.Atlas.open(ATLAS)
    last = max(atlas.facts["layers"])
    assert nb.python("print(browser.opened)").strip() == str((last, atlas.neurons(last)[1]))
    nb.page.keyboard.press("Escape")
    nb.python("browser.layer = 0")
    nb.page.wait_for_function("() => document.querySelector('.vitviz-browser .status').innerText.includes('of layer 0,')")
    assert nb.python("print(browser.opened)").strip() == "None"
    assert nb.outside == [] and nb.page_errors == []
