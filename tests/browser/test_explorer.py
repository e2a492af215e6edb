"""The Explorer of notebook 00, as a learner meets it: in JupyterLab, in a browser, by mouse and by keyboard.

One page and one kernel serve the module; every test leaves the Explorer at rest. Times are printed at the end of the
run ("measured in the browser") and never decide a test.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lab import complaints
from nbconvert import HTMLExporter

ROOT = Path(__file__).parents[2]
NOTEBOOK = "notebooks/00_start_here.ipynb"
STATUS, PICTURE, SCORES, SCENES = ".vitviz-status", ".vitviz-picture", ".vitviz-scores", ".vitviz-scenes"
FIGURES, ALTS = ".jp-OutputArea-output.jp-RenderedHTML img", "all => all.map(one => one.alt)"
AT_REST = r": finished|: stopped at step"
RUN = 60  # the longest wait for a quick picture, in seconds; a slow machine is not a failure


@pytest.fixture(scope="module")
def opened(open_notebook):
    return open_notebook(NOTEBOOK)


@pytest.fixture(scope="module")
def stored(opened):
    """The alt texts of the figures as they come with the notebook."""
    return opened.page.locator(FIGURES).evaluate_all(ALTS)


@pytest.fixture(scope="module")
def nb(opened, stored, measured):
    notebook = opened
    measured("notebook 00, all cells", notebook.run_all())
    notebook.wait_text(STATUS, AT_REST, timeout=RUN)
    yield notebook
    measured("notebook 00, resident memory of the kernel, now", notebook.kernel_memory(), "GB")
    measured("notebook 00, resident memory of the kernel, peak", notebook.kernel_memory(peak=True), "GB")


@pytest.fixture(autouse=True)
def at_rest(nb):
    """Begin when nothing runs, so that every change after an action is that action's."""
    if not re.search(AT_REST, nb.text(STATUS)):
        nb.wait_text(STATUS, AT_REST, after=nb.texts(STATUS)[-1].t, timeout=RUN)
    nb.page.wait_for_timeout(300)


def name(layer, neuron):
    return rf"\blayer {layer:.0f}, neuron {neuron:.0f}\b"


def finished(nb, layer, neuron, after):
    """Wait until this neuron's picture is done; nothing of another request may come once it has begun."""
    done = nb.wait_text(STATUS, name(layer, neuron) + ": finished", after=after, timeout=RUN)
    begun = False
    for text in nb.texts(STATUS, after=after):
        mine = re.search(name(layer, neuron), text.text)
        stale = begun and not mine and "layer" in text.text
        assert not stale, f"{text.text!r} after the request for layer {layer:.0f}, neuron {neuron:.0f}"
        begun = begun or bool(mine)
    return done


def difference(a, b):
    """Mean absolute difference of two pictures, in 1/255."""
    assert a.shape == b.shape
    return abs(a.astype(float) - b.astype(float)).mean()


def at(nb):
    return nb.slider("Layer").value, nb.slider("Neuron").value


def moved(nb, slider, action, measured, how):
    """Do ``action`` on a slider; the picture must change and end as that of the layer and neuron shown."""
    before, old = nb.pixels(PICTURE), slider.value
    released = action()
    preview = nb.next_picture(PICTURE, after=released, timeout=RUN)
    assert slider.value != old
    done = finished(nb, *at(nb), after=released)
    measured(f"{how}: release to first preview", (preview.t - released) / 1000)
    measured(f"{how}: release to finished", (done.t - released) / 1000)
    assert difference(nb.pixels(PICTURE), before) > 4
    return released


def another(slider, value=None):
    """A value of the slider well away from the given one (its own)."""
    value = slider.value if value is None else value
    low, high = slider.min, slider.max
    return round(low + (value - low + (high - low + 1) // 2) % (high - low + 1))


def test_first_picture_scores_and_scenes_are_there(nb):
    assert nb.pixels(PICTURE).std() > 5, "the first picture is gray"
    assert re.search(name(*at(nb)), nb.text(STATUS))
    nb.wait_text(SCORES, r"This image activates neuron \d+ more than .* of 1,024 Emoji World scenes do", timeout=RUN)
    assert "number 1 of 512 by selectivity" in nb.text(STATUS)  # not neuron 0, but the most selective one
    assert "feature visualization: mlp" in nb.page.locator(PICTURE).first.get_attribute("title")  # its text alternative
    top = scenes(nb)
    assert [text.split(":")[0] for text in top[::2]] == [f"top image {i}" for i in range(1, 7)]
    assert all("activation map, largest at row" in text for text in top[1::2])


def scenes(nb):
    """The text alternatives of the top images, which are loaded and have a size."""
    images = nb.page.evaluate(f"""() => [...document.querySelectorAll('{SCENES} img')].filter(img => img.checkVisibility(
        {{ visibilityProperty: true }})).map(img => [img.alt, img.complete && img.naturalWidth])""")
    assert all(width > 1 for _, width in images)
    return [text for text, _ in images]


def test_works_offline_and_without_page_errors(nb):
    assert nb.outside == [], "the notebook asks other hosts"
    assert nb.page_errors == []


def test_every_control_is_described_and_reached_by_keyboard(nb):
    described = nb.descriptions(".vitviz-explorer")
    assert "" not in described
    controls = {"Layer", "Neuron", "Kind", "Recipe", "Seed", "Random neuron", "Next most selective", "Concept", "Compare A | B",
                "Save as PNG"}
    assert controls | {"Stop"} <= set(described)
    assert controls <= set(nb.tab_stops(".vitviz-explorer"))
    assert not nb.button("Stop").enabled  # nothing is under way


def test_typing_in_the_readouts(nb, measured):
    layer, neuron = nb.slider("Layer"), nb.slider("Neuron")
    to = another(layer)
    moved(nb, layer, lambda: layer.type(to), measured, "layer typed")
    assert layer.value == to
    before, to = scenes(nb), another(neuron)
    moved(nb, neuron, lambda: neuron.type(to), measured, "neuron typed")
    assert neuron.value == to
    nb.page.wait_for_timeout(300)
    assert len(scenes(nb)) == 12 and scenes(nb) != before
    assert f"neuron {to} " in nb.text(SCORES)


def test_arrow_keys_on_the_handle(nb, measured):
    neuron = nb.slider("Neuron")
    old = neuron.value
    key, sign = ("ArrowRight", 1) if old + 3 <= neuron.max else ("ArrowLeft", -1)
    moved(nb, neuron, lambda: neuron.press(key, 3), measured, "neuron by three arrow keys")
    assert neuron.value == old + 3 * sign


def test_dragging_with_the_mouse(nb, measured):
    layer = nb.slider("Layer")
    if layer.value == layer.max:
        released = layer.type(round(layer.min))
        finished(nb, *at(nb), after=released)
    moved(nb, layer, lambda: layer.drag(layer.max), measured, "last layer dragged")
    assert layer.value == layer.max


def test_only_the_last_of_many_fast_drags_remains(nb, measured):
    layer, neuron = nb.slider("Layer"), nb.slider("Neuron")
    low, span = neuron.min, neuron.max - neuron.min
    values = [low + span * ((7 * i + 3) % 20) / 20 for i in range(19)]
    began = nb.now()
    released = neuron.shake([*values, low + span * 0.37])
    target = at(nb)
    measured("20 drags", (released - began) / 1000)
    done = finished(nb, *target, after=released)
    measured("20 drags: last release to finished", (done.t - released) / 1000)

    nb.page.wait_for_timeout(2000)  # time for a forgotten job to spoil it
    assert re.search(name(*target) + ": finished", nb.text(STATUS))
    assert nb.pictures(PICTURE, after=done.t + 500) == []
    shown = nb.pixels(PICTURE)

    elsewhere = another(neuron)
    finished(nb, layer.value, elsewhere, after=neuron.type(elsewhere))
    assert difference(nb.pixels(PICTURE), shown) > 4
    finished(nb, *target, after=neuron.type(round(target[1])))
    nb.page.wait_for_timeout(300)
    assert difference(nb.pixels(PICTURE), shown) < 2, "what remained was not the picture of the last request"


def test_seed_and_kind(nb, measured):
    layer = nb.slider("Layer")
    layer.type(layer.min)
    released = layer.type(layer.max)
    finished(nb, *at(nb), after=released)
    before = nb.pixels(PICTURE)
    seed = nb.number("Seed")
    old = int(seed.value)
    released = seed.type(old + 1)  # of which the atlas has no picture
    measured("another seed typed, last layer: first live picture", (nb.next_picture(PICTURE, after=released).t - released) / 1000)
    made = nb.wait_text(STATUS, "scoring it against", after=released, timeout=RUN)
    measured("another seed typed, last layer: finished", (made.t - released) / 1000)
    done = finished(nb, *at(nb), after=released)
    measured("another seed typed, last layer: finished and scored", (done.t - released) / 1000)
    assert difference(nb.pixels(PICTURE), before) > 1
    finished(nb, *at(nb), after=seed.type(old))
    nb.page.wait_for_timeout(300)
    assert difference(nb.pixels(PICTURE), before) < 2, "the same seed does not give the same picture"

    kind = nb.dropdown("Kind")
    usual = kind.value
    others = [option for option in kind.options if option != usual]
    if others:
        changed = kind.choose(others[0])
        nb.wait_text(STATUS, ": finished", after=changed, timeout=RUN)
        nb.wait_text(STATUS, ": finished", after=kind.choose(usual), timeout=RUN)


def test_stop_keeps_the_picture_and_the_next_move_runs(nb, measured):
    recipe, layer, neuron = nb.dropdown("Recipe"), nb.slider("Layer"), nb.slider("Neuron")
    usual = recipe.value
    paper = next(option for option in recipe.options if "paper" in option.lower())
    changed = recipe.choose(paper)
    try:
        nb.next_picture(PICTURE, after=changed, timeout=RUN)
        nb.wait_text(STATUS, name(*at(nb)) + r": step [1-9]\d* of \d+", after=changed, timeout=RUN)
        pressed = nb.button("Stop").click()
        stopped = nb.wait_text(STATUS, name(*at(nb)) + r": stopped at step \d+", after=pressed, timeout=RUN)
        measured("Stop clicked to stopped", (stopped.t - pressed) / 1000)

        nb.page.wait_for_timeout(300)
        kept = nb.picture(PICTURE)
        assert kept.t > changed and kept.sha not in {old.sha for old in nb.pictures(PICTURE) if old.t <= changed}
        assert nb.pixels(PICTURE).std() > 5, "the picture so far was not kept"
        nb.page.wait_for_timeout(1500)
        assert nb.picture(PICTURE) == kept, "it goes on after Stop"
        assert re.search(r": stopped at step \d+", nb.text(STATUS))

        # Stop ended one run, not the Explorer; and it works from the keyboard.
        moved_at = neuron.press("ArrowRight" if neuron.value < neuron.max else "ArrowLeft")
        nb.next_picture(PICTURE, after=moved_at, timeout=RUN)
        nb.wait_text(STATUS, name(*at(nb)) + r": step [1-9]\d* of \d+", after=moved_at, timeout=RUN)
        pressed = nb.button("Stop").press("Enter")
        nb.wait_text(STATUS, name(*at(nb)) + r": stopped at step \d+", after=pressed, timeout=RUN)
    finally:
        changed = recipe.choose(usual)
    finished(nb, layer.value, neuron.value, after=changed)


def test_random_next_and_concept_from_the_keyboard(nb):
    neuron = nb.slider("Neuron")
    old = neuron.value
    pressed = nb.button("Random neuron").press()
    nb.wait_text(STATUS, ": finished", after=pressed, timeout=RUN)
    assert neuron.value != old
    pressed = nb.button("Next most selective").press()
    nb.wait_text(STATUS, r": finished.* number \d+ of 512 by selectivity", after=pressed, timeout=RUN)
    pressed = nb.number("Concept").type("lion")
    nb.wait_text(STATUS, r": finished.* match 1 of \d+: \d of its 6 top images show lion", after=pressed, timeout=RUN)
    nb.page.wait_for_timeout(300)
    assert sum(": lion" in text for text in scenes(nb)) > 1
    pressed = nb.button("Next match").press()
    nb.wait_text(STATUS, ": finished.* match 2 of", after=pressed, timeout=RUN)
    pressed = nb.number("Concept").type("lino")
    nb.wait_text(STATUS, "error: None of the 256 concepts .* is called 'lino'", after=pressed, timeout=RUN)
    nb.number("Concept").type("")
    layer = nb.slider("Layer")
    finished(nb, layer.min, neuron.value, after=layer.type(round(layer.min)))
    finished(nb, layer.max, neuron.value, after=layer.type(round(layer.max)))


def test_save_writes_a_file_into_the_folder_of_the_notebook(nb, lab):
    pressed = nb.button("Save as PNG").press()
    said = nb.wait_text(".vitviz-saved", r"Saved as (\S+\.png) in ", after=pressed).text
    saved = (lab.root / NOTEBOOK).parent / re.search(r"\S+\.png", said)[0]
    assert saved.read_bytes().startswith(b"\x89PNG")
    saved.unlink()


def rows(nb, selector):
    """Of each row of controls of a side, how many lines they take."""
    return nb.page.evaluate(
        """selector => [...document.querySelectorAll(selector + ' .vitviz-side > .widget-box')].slice(0, 4).map(row =>
           new Set([...row.children].filter(e => e.offsetParent).map(e => Math.round(
             (e.getBoundingClientRect().top + e.getBoundingClientRect().bottom) / 20))).size)""", selector)


def test_at_1000_px_it_fits_in_one_view_without_wrapping_and_two_sides_fit_beside_each_other(nb):
    size, panel = nb.page.viewport_size, ".jp-NotebookPanel:not(.lm-mod-hidden)"
    nb.page.set_viewport_size({"width": 1000, "height": 900})
    fold = "() => window.jupyterapp.commands.execute('application:toggle-left-area')"
    nb.page.evaluate(fold)  # the list of files
    try:
        nb.page.wait_for_timeout(500)
        box = nb.page.locator(f"{panel} .vitviz-explorer").first
        fits = "e => e.scrollWidth <= e.clientWidth"
        assert box.evaluate(fits) and box.evaluate("e => e.clientHeight") < 700
        assert rows(nb, panel) == [1, 1, 1, 1]
        picture, top = (nb.page.locator(f"{panel} {name}").first.bounding_box() for name in (PICTURE, SCENES))
        assert abs(picture["y"] - top["y"]) < 5 and top["x"] > picture["x"] + picture["width"]  # beside it
        pressed = nb.button("Compare A | B").click()
        nb.page.locator(f"{panel} .vitviz-side").nth(1).wait_for()
        nb.page.wait_for_function("() => document.querySelectorAll('.vitviz-status')[1]?.innerText.includes(': finished')")
        nb.page.wait_for_timeout(500)
        a, b = (nb.page.locator(f"{panel} .vitviz-side").nth(i).bounding_box() for i in (0, 1))
        assert abs(a["y"] - b["y"]) < 2 and b["x"] >= a["x"] + a["width"] - 1 and abs(a["width"] - b["width"]) < 20
        assert box.evaluate(fits) and nb.texts(STATUS, after=pressed)
        nb.button("Compare A | B").click()
        nb.page.wait_for_function("() => document.querySelectorAll('.vitviz-side').length === 1")
    finally:
        nb.page.evaluate(fold)
        nb.page.set_viewport_size(size)
    assert nb.page_errors == []


def test_memory_of_the_kernel(nb):
    """Beyond torch and timm, which take 0.3 GB of Binder's 2 with a CPU build of torch, three times that with a CUDA build."""
    measure = "import torch, timm, resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    imports = float(subprocess.check_output([sys.executable, "-c", measure], text=True)) * 1024 / 1e9
    assert nb.kernel_memory() - imports <= 0.5


def test_running_the_cells_again_replaces_the_explorer_and_its_thread(nb):
    nb.run_all()
    nb.wait_text(STATUS, AT_REST, timeout=RUN)
    names = nb.python("import threading; print([thread.name for thread in threading.enumerate()])")
    assert names.count("'explorer'") == 1


def test_the_rules_of_axe_hold_for_the_explorer(nb):
    nb.slider("Layer")  # scrolls it into view
    assert complaints(nb.page, ".vitviz-explorer") == []
    names = nb.page.locator(".vitviz-explorer .noUi-handle").evaluate_all("all => all.map(one => one.ariaLabel)")
    assert names == ["Layer", "Neuron"]


def test_the_rules_of_axe_hold_for_the_texts_of_the_notebook(nb):
    assert complaints(nb.page, ".jp-RenderedMarkdown") == []


def described():
    """The alt texts that the notebook stores, one for each figure."""
    cells = json.loads((ROOT / NOTEBOOK).read_text("utf-8"))["cells"]
    return [cell["metadata"]["alt"] for cell in cells for _ in cell.get("outputs", [])]


def test_stored_figures_have_their_alt_texts_before_anything_is_run(stored):
    assert len(stored) >= 5 and stored == described()


def test_figures_have_alt_texts_after_their_cells_were_run(nb):
    alts = nb.page.locator(FIGURES).evaluate_all(ALTS)
    print(alts)
    assert len(alts) >= len(described()) and all(alts)
    assert any("neuron" in alt for alt in alts) and any(alt.startswith("Figure: ") for alt in alts)  # of PIL, of matplotlib
    assert complaints(nb.page, FIGURES.split()[0]) == []
    assert nb.page.locator(".jp-OutputArea-output.jp-RenderedImage").count() == 0  # to which JupyterLab gives none


def test_stored_figures_have_their_alt_texts_in_the_html_of_nbconvert(chromium, tmp_path):
    file = tmp_path / "00.html"
    file.write_text(HTMLExporter().from_filename(ROOT / NOTEBOOK)[0], encoding="utf-8")
    page = chromium.browser.new_page()
    page.goto(file.as_uri(), wait_until="domcontentloaded")
    assert page.locator(FIGURES).evaluate_all(ALTS) == described()
    assert complaints(page, FIGURES.split()[0]) == []
    page.close()
