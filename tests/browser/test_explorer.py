"""The Explorer of notebook 00, as a learner meets it: in JupyterLab, in a browser, by mouse and by keyboard.

One page and one kernel serve the module; every test leaves the Explorer at rest. Times are printed at the end of the
run ("measured in the browser") and never decide a test.
"""

import re
import subprocess
import sys

import pytest

NOTEBOOK = "notebooks/00_start_here.ipynb"
STATUS, PICTURE, SCORES, SCENES = ".vitviz-status", ".vitviz-picture", ".vitviz-scores", ".vitviz-scenes"
AT_REST = r": finished|: stopped at step"
RUN = 60  # the longest wait for a quick picture, in seconds; a slow machine is not a failure


@pytest.fixture(scope="module")
def nb(open_notebook, measured):
    notebook = open_notebook(NOTEBOOK)
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
    nb.wait_text(SCORES, r"\d", timeout=RUN)
    nb.next_picture(SCENES, timeout=RUN)
    assert nb.pixels(SCENES).std() > 5
    for picture, words in ((PICTURE, "feature visualization: mlp"), (SCENES, "strongest of")):
        assert words in nb.page.locator(picture).first.get_attribute("title")  # its text alternative


def test_works_offline_and_without_page_errors(nb):
    assert nb.outside == [], "the notebook asks other hosts"
    assert nb.page_errors == []


def test_every_control_is_described_and_reached_by_keyboard(nb):
    described = nb.descriptions(".vitviz-explorer")
    assert "" not in described
    assert {"Layer", "Neuron", "Kind", "Recipe", "Seed", "Stop"} <= set(described)
    stops = nb.tab_stops(".vitviz-explorer")
    assert {"Layer", "Neuron", "Kind", "Recipe", "Seed"} <= set(stops)


def test_typing_in_the_readouts(nb, measured):
    layer, neuron = nb.slider("Layer"), nb.slider("Neuron")
    scenes = nb.picture(SCENES).sha
    to = another(layer)
    moved(nb, layer, lambda: layer.type(to), measured, "layer typed")
    assert layer.value == to
    to = another(neuron)
    moved(nb, neuron, lambda: neuron.type(to), measured, "neuron typed")
    assert neuron.value == to
    if nb.picture(SCENES).sha == scenes:  # they may come a little after the picture
        nb.next_picture(SCENES, after=nb.now(), timeout=RUN)
    nb.wait_text(SCORES, r"\d")


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
