"""The Explorer without a browser: what it shows and hands back, whichever way it is driven, and that it ends."""

import asyncio
import base64
import gc
import html
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from ipykernel.zmqshell import ZMQInteractiveShell
from PIL import Image
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch.utils.data import Dataset

import vitviz_nb as vv
from vitviz_nb.experiments.faithfulness import selectivity
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.visualize.scores import Scores, reference_activations, reference_set
from vitviz_nb.widgets.explorer import _OPEN
from vitviz_nb.widgets.explorer_side import _words
from vitviz_nb.widgets.finding import most_selective, showing

SIZE, PATIENCE = 16, 60.0  # s; reached only when a promise is broken
CARD = {"pictures": {"steps": 20, "copies": 1}, "recipe": {"styles": ("3d",)}}


@pytest.fixture
def model() -> VisionModel:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    return VisionModel(module, "tiny", SIZE, card=CARD)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def every_widget(parent: widgets.Widget) -> Iterator[widgets.Widget]:
    yield parent
    for child in getattr(parent, "children", ()):
        yield from every_widget(child)


def control(explorer: vv.Explorer, description: str) -> widgets.Widget:
    return next(w for w in every_widget(explorer) if getattr(w, "description", "") == description)


def part(explorer: vv.Explorer, name: str) -> widgets.Widget:
    return next(w for w in every_widget(explorer) if f"vitviz-{name}" in w._dom_classes)


def pixels(picture: widgets.Image) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(picture.value)).convert("RGB"))


def sides(explorer: vv.Explorer) -> list[widgets.Widget]:
    return [widget for widget in every_widget(explorer) if "vitviz-side" in widget._dom_classes]


def figures(scenes: widgets.HTML) -> list[tuple[str, np.ndarray]]:
    """The images of the HTML, each with its text alternative."""
    found = re.findall(r'<img alt="([^"]*)"[^>]*base64,([^"]*)"', scenes.value)
    return [(html.unescape(text), np.asarray(Image.open(BytesIO(base64.b64decode(data))))) for text, data in found]


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """Whatever a test that failed left open."""
    yield
    for explorer in [*_OPEN]:
        explorer.close()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "explorer"]


class Desk:
    """Someone at an Explorer."""

    def __init__(self, explorer: vv.Explorer):
        self.explorer, self.statuses = explorer, []
        part(explorer, "status").observe(lambda change: self.statuses.append(change["new"]), "value")

    @property
    def status(self) -> str:
        return html.unescape(part(self.explorer, "status").value)

    def set(self, description: str, value) -> None:
        control(self.explorer, description).value = value

    async def at_work(self) -> None:
        """Begin an image that takes long."""
        await self.finished()
        self.set("Recipe", "paper")
        await self.working()

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"still waiting; the status is {self.status!r}"
            await asyncio.sleep(0.005)

    async def working(self) -> None:
        await self.until(lambda: ": step " in self.status and ": step 0 " not in self.status)

    async def finished(self, neuron: int | str = r"\d+"):
        await self.until(lambda: re.search(rf"neuron {neuron}: finished", self.status))
        return self.explorer.result


Session = Callable[[Callable[[Desk], object]], None]


@pytest.fixture(params=["thread", pytest.param("slices", marks=pytest.mark.slow)])
def session(request, model, images, monkeypatch) -> Session:
    """Runs a coroutine function of a Desk at an Explorer that works in a thread, or in slices as on ipywidgets 7."""
    if request.param == "slices":
        monkeypatch.setattr(widgets, "__version__", "7.7.1")

    async def act(play):
        desk = Desk(vv.explore(model, images))
        try:
            assert len(threads()) == (request.param == "thread")
            await play(desk)
        finally:
            desk.explorer.close()

    return lambda play: asyncio.run(act(play))


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_it_begins_with_the_most_selective_neuron_of_the_last_layer_its_scores_and_top_images(session, model, images):
    known = reference_activations(model, vv.sites.find_site(model), vv.ImageSet(model, images))
    z = (known - known.mean(0)) / known.std(0, correction=0)
    neuron = z.sort(dim=0).values[-3].argmax().item()

    async def play(desk):
        result = await desk.finished()
        assert (result.kind, result.layer, result.neurons, result.seed) == ("mlp", 2, [neuron], 0)
        assert "number 1 of 64 by selectivity" in desk.status
        assert result.finished and result.recipe == vv.Recipe.quick(model)
        assert torch.equal(result.pictures, vv.Visualizer(model, images=images).render(2, neuron).pictures)
        shown = np.asarray(Image.fromarray(pixels(part(desk.explorer, "picture"))).resize((SIZE, SIZE), Image.Resampling.BOX))
        assert np.abs(shown / 255 - result.pictures[0].permute(1, 2, 0).numpy()).mean() < 0.05
        scores, words = result.scores, html.unescape(part(desk.explorer, "scores").value)
        numbers = f"percentile {scores.percentile[0]:.1f}, rank {scores.rank[0]} of 64 neurons"
        assert f"Activation {scores.activation[0]:.3g}, {numbers}" in words and f"neuron {neuron} " in words
        top = vv.top_images(model, 2, neuron, images=images)
        shown = figures(part(desk.explorer, "scenes"))
        assert [text for text, _ in shown[::2]] == [f"top image {i + 1}: image {n}" for i, n in enumerate(top.indices)]
        assert all("activation map, largest at row" in text for text, _ in shown[1::2])
        for (_, image), expected in zip(shown[::2], top.images, strict=True):
            assert np.abs(image / 255 - expected.permute(1, 2, 0).numpy()).mean() < 0.1

    session(play)


@pytest.mark.parametrize("session", ["slices"], indirect=True)
def test_every_control_changes_the_image_to_what_it_says(session, model):
    async def play(desk):
        await desk.finished()
        desk.set("Neuron", 9)
        assert (await desk.finished(9)).neurons == [9] and "by selectivity" not in desk.status
        desk.set("Seed", 5)
        await desk.until(lambda: "finished, quick recipe, seed 5" in desk.status)
        assert desk.explorer.result.seed == 5
        desk.set("Layer", 1)
        await desk.until(lambda: "layer 1, neuron 9: finished" in desk.status)
        assert desk.explorer.result.layer == 1
        desk.set("Kind", "residual")
        await desk.until(lambda: desk.explorer.result.kind == "residual")
        desk.set("Recipe", "paper")
        await desk.working()
        assert f"of {vv.Recipe.paper().steps}" in desk.status

    session(play)


def test_the_latest_of_fast_changes_wins_and_no_other_is_begun(session):
    async def play(desk):
        first = await desk.finished()
        for neuron in range(1, 20):
            desk.set("Neuron", neuron)
            await asyncio.sleep(0)
            assert desk.explorer.result is first
        result = await desk.finished(19)
        await asyncio.sleep(0.3)
        assert desk.explorer.result is result and result.neurons == [19]
        assert not any(f"neuron {n}: step" in text for text in desk.statuses for n in range(1, 19))

    session(play)


def test_a_change_ends_the_work_under_way_and_only_the_last_result_remains(session):
    async def play(desk):
        await desk.at_work()
        picture, shown = part(desk.explorer, "picture"), []
        picture.observe(lambda change: shown.append(change["new"]), "tooltip")
        desk.set("Neuron", 4)
        await desk.until(lambda: "neuron 4: step " in desk.status and ": step 0 " not in desk.status)
        desk.set("Recipe", "quick")
        result = await desk.finished(4)
        await asyncio.sleep(0.3)
        assert shown == ["feature visualization: mlp 2, neuron 4"]  # and never again the neuron before
        assert desk.explorer.result is result and result.finished
        assert not any("finished, paper" in text or "stopped" in text for text in desk.statuses)

    session(play)


def test_stop_keeps_the_image_and_says_that_it_is_unfinished(session):
    async def play(desk):
        await desk.finished()
        control(desk.explorer, "Stop").click()  # stops nothing: nothing is under way
        desk.set("Recipe", "paper")
        await desk.working()
        control(desk.explorer, "Stop").click()
        await desk.until(lambda: "stopped at step " in desk.status)
        result = desk.explorer.result
        assert 0 < result.steps[0] < 400 and not result.finished and result.scores
        assert f"stopped at step {result.steps[0]} of 400 (unfinished)" in desk.status
        await asyncio.sleep(0.1)
        assert desk.explorer.result is result
        desk.set("Recipe", "quick")  # and the next change is not stopped
        await desk.until(lambda: "finished, quick" in desk.status)
        assert desk.explorer.result.finished

    session(play)


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_an_error_is_one_escaped_sentence_in_the_status_and_the_next_change_works(session, tmp_path, monkeypatch):
    in_the_way = tmp_path / "<b>file"
    in_the_way.write_text("")
    good = str(tmp_path / "vitviz_cache")

    async def play(desk):
        first = await desk.finished()
        monkeypatch.setenv("VITVIZ_CACHE", str(in_the_way / "cache"))
        desk.set("Neuron", 1)
        await desk.until(lambda: "layer 2, neuron 1: error: " in desk.status)
        assert "cannot be written" in desk.status
        assert "&lt;b&gt;file" in part(desk.explorer, "status").value and "<b>" not in part(desk.explorer, "status").value
        assert desk.explorer.result is first
        monkeypatch.setenv("VITVIZ_CACHE", good)
        desk.set("Neuron", 2)
        assert (await desk.finished(2)).neurons == [2]

    session(play)


@pytest.mark.parametrize(("status", "percentile", "says"), [
    ("alive", 100.0, "This image activates neuron 7 more than all of 1,024 <scenes> do, so it shows something"),
    ("alive", 99.97, "This image activates neuron 7 more than 99.9 % of 1,024 <scenes> do"),
    ("weak", 12.5, "Weak: 87.5 % of 1,024 <scenes> activate neuron 7 at least as much as this image does; its top images"),
    ("dead", 0.0, "Dead: neither 1,024 <scenes> nor this image change the activation of neuron 7, so the image says nothing.")])
def test_one_sentence_says_what_the_scores_mean(status, percentile, says):
    scores = Scores([1.234], [percentile], [3], [status], "1,024 <scenes>")
    said = _words(SimpleNamespace(scores=scores), "neuron 7", 64)
    assert says in html.unescape(said) and "<scenes>" not in said
    assert f"Activation 1.23, percentile {percentile:.1f}, rank 3 of 64 neurons" in said


def test_what_was_said_of_a_neuron_goes_when_the_image_of_another_begins_and_stop_works_only_while_it_works(session):
    async def play(desk):
        await desk.finished()
        bar, stop, scenes = part(desk.explorer, "progress"), control(desk.explorer, "Stop"), part(desk.explorer, "scenes")
        assert stop.disabled and bar.layout.display == "none" and scenes.layout.visibility == "visible"
        assert part(desk.explorer, "scores").value
        desk.set("Recipe", "paper")
        assert part(desk.explorer, "scores").value == "" and scenes.layout.visibility == "hidden"
        await desk.working()
        assert not stop.disabled and bar.layout.display is None
        assert 0 < bar.value < bar.max == 400 and f"step {bar.value} of 400" in desk.status
        assert part(desk.explorer, "scores").value == ""
        stop.click()
        await desk.until(lambda: "stopped at step " in desk.status)
        assert stop.disabled and bar.layout.display == "none" and part(desk.explorer, "scores").value

    session(play)


def test_random_neuron_while_an_image_forms_ends_that_and_shows_another(session):
    async def play(desk):
        await desk.at_work()
        before = control(desk.explorer, "Neuron").value
        for _ in range(5):
            control(desk.explorer, "Random neuron").click()
        neuron = control(desk.explorer, "Neuron").value
        assert neuron != before
        desk.set("Recipe", "quick")
        assert (await desk.finished(neuron)).neurons == [neuron]

    session(play)


def test_next_goes_down_the_order_of_selectivity_from_any_neuron(session, model, images):
    known = reference_activations(model, vv.sites.find_site(model), vv.ImageSet(model, images))
    z = (known - known.mean(0)) / known.std(0, correction=0)
    order = z.sort(dim=0).values[-3].argsort(descending=True).tolist()  # three images lie above its mean, at least so far

    async def play(desk):
        await desk.finished(order[0])
        control(desk.explorer, "Next most selective").click()
        assert (await desk.finished(order[1])).neurons == [order[1]]
        assert "number 2 of 64 by selectivity" in desk.status
        desk.set("Neuron", order[-1])
        await desk.finished(order[-1])
        control(desk.explorer, "Next most selective").click()
        await desk.finished(order[0])

    session(play)


COLORS = ["red", "light green", "blue"]


class Colored(Dataset):
    """Images of classes, one color each."""

    classes = COLORS

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (SIZE, SIZE), tuple(60 + 5 * i + 100 * (i % 3 == channel) for channel in range(3))), i % 3


@pytest.mark.slow
@pytest.mark.parametrize("images", [Colored()], ids=["classes"])
def test_a_concept_is_searched_among_top_images_and_next_goes_through_the_matches(session, model):
    reference = vv.ImageSet(model, Colored())
    names = [vv.top_images(model, 2, neuron, images=reference).names for neuron in range(64)]
    counts = {neuron: shown.count("light green") for neuron, shown in enumerate(names) if "light green" in shown}

    async def play(desk):
        await desk.finished()
        assert list(control(desk.explorer, "Concept").options) == COLORS
        desk.set("Concept", "GREEN")  # a part of its name will do
        await desk.until(lambda: f"finished, quick recipe, seed 0; match 1 of {len(counts)}" in desk.status)
        first = desk.explorer.result.neurons[0]
        assert counts[first] == max(counts.values())
        assert f"{counts[first]} of its 6 top images show light green" in desk.status
        captions = re.findall("<figcaption title='([^']*)'", part(desk.explorer, "scenes").value)
        assert captions == names[first] == desk.explorer.top.names
        control(desk.explorer, "Next match").click()
        await desk.until(lambda: f"match 2 of {len(counts)}" in desk.status)
        second = desk.explorer.result.neurons[0]
        assert second != first and counts[second] <= counts[first]
        desk.set("Concept", "gren")
        await desk.until(lambda: "error: None of the 3 concepts of 12 images is called 'gren'" in desk.status)
        desk.set("Concept", "")
        control(desk.explorer, "Next most selective").click()
        await desk.until(lambda: "by selectivity" in desk.status)

    session(play)


@pytest.mark.parametrize("session", ["slices"], indirect=True)
def test_without_known_classes_a_concept_is_one_sentence_and_the_names_are_those_of_files(session, model, tmp_path):
    async def play(desk):
        await desk.finished()
        desk.set("Concept", "cat")
        await desk.until(lambda: "What the 8 images show is not known, so no concept can be searched" in desk.status)
        control(desk.explorer, "Random neuron").click()
        await desk.until(lambda: "finished" in desk.status)

    session(play)
    for name in ("<b>.png", "two.png"):
        Image.new("RGB", (SIZE, SIZE), "red").save(tmp_path / name)
    explorer = vv.explore(model, tmp_path)
    while not explorer.result:
        time.sleep(0.01)
    assert sorted(explorer.top.names) == ["<b>.png", "two.png"] and "<b>" not in part(explorer, "scenes").value
    explorer.close()


def test_of_logits_a_concept_is_a_class():
    torch.manual_seed(0)
    module = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=16, depth=1, num_heads=2, num_classes=3)
    model = VisionModel(module, "named", SIZE, class_names=COLORS, card=CARD)
    [found] = showing(model, vv.sites.find_site(model, 0, "logit"), vv.ImageSet(model, torch.rand(8, 3, SIZE, SIZE)), "Blue")
    assert (found.layer, found.neuron) == (0, 2)


def test_the_order_of_an_embedded_model_is_its_stored_selectivity_and_a_concept_is_searched_in_all_layers_of_its_atlas():
    model = vv.load("emoji-vit")
    site, reference = vv.sites.find_site(model), reference_set(model)
    stored = selectivity(model, site).strength
    found = most_selective(model, site, reference)
    assert [one.neuron for one in found[:9]] == stored.argsort(descending=True)[:9].tolist()
    matches = showing(model, site, reference, "lion")
    expected = vv.Atlas.open("emoji-vit").search("lion")
    assert [(one.layer, one.neuron) for one in matches] == list(zip(expected["layer"], expected["neuron"], strict=True))
    assert len({one.layer for one in matches}) > 1


@pytest.fixture
def other() -> VisionModel:
    torch.manual_seed(1)
    module = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=32, depth=1, num_heads=2, num_classes=4)
    return VisionModel(module, "shallow", SIZE, card=CARD)


@pytest.mark.slow
def test_compare_shows_a_second_neuron_of_the_model_beside_the_first_and_each_obeys_its_own_controls(session):
    async def play(desk):
        first = await desk.finished()
        assert desk.explorer.other is None
        control(desk.explorer, "Compare A | B").value = True
        await desk.until(lambda: desk.explorer.other)
        a, b = sides(desk.explorer)
        second = desk.explorer.other
        assert second.neurons != first.neurons and second.layer == first.layer and desk.explorer.result is first
        control(b, "Layer").value = 0
        await desk.until(lambda: desk.explorer.other.layer == 0)
        assert desk.explorer.result is first
        control(b, "Recipe").value = "paper"  # a long one, while A goes on
        await desk.until(lambda: re.search("step [1-9]", part(b, "status").value))
        desk.set("Neuron", 5)
        assert (await desk.finished(5)).neurons == [5]
        assert "step" in part(b, "status").value
        control(desk.explorer, "Compare A | B").value = False
        assert sides(desk.explorer) == [a] and not any(widget.comm for widget in every_widget(b)) and desk.explorer.other is None
        desk.set("Neuron", 6)
        await desk.finished(6)

    session(play)


def test_models_of_other_depth_and_width_are_compared_and_closed_while_both_work(model, other, images):
    explorer = vv.explore(model, images, compare=other)
    a, b = sides(explorer)
    assert [(control(side, "Layer").max, control(side, "Neuron").max) for side in (a, b)] == [(2, 63), (0, 127)]
    assert control(b, "Layer").layout.display == "none"  # of one there is nothing to choose
    while not (explorer.result and explorer.other):
        time.sleep(0.01)
    assert (explorer.result.model, explorer.other.model) == ("tiny", "shallow")
    for side in (a, b):
        control(side, "Recipe").value = "paper"
    while not all(re.search("step [1-9]", part(side, "status").value) for side in (a, b)):
        time.sleep(0.01)
    explorer.close()
    assert threads() == [] and not any(widget.comm for side in (a, b) for widget in every_widget(side))


def test_save_writes_what_is_shown_under_a_name_that_is_free_and_says_where(model, other, images, tmp_path, monkeypatch):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    monkeypatch.chdir(folder)
    explorer = vv.explore(model, images, compare=other)
    while not (explorer.result and explorer.other):
        time.sleep(0.01)
    control(explorer, "Save as PNG").click()
    [path] = folder.iterdir()
    a, b = explorer.result.neurons[0], explorer.other.neurons[0]
    assert path.name == f"tiny_mlp2_{a}_and_shallow_mlp0_{b}.png"
    assert path.name in part(explorer, "saved").value and str(folder) in part(explorer, "saved").value
    assert Image.open(path).width > 400
    again = explorer.save()
    assert again.name == path.stem + "_2.png" and again.read_bytes() == path.read_bytes()
    monkeypatch.setattr(Path, "cwd", lambda: path)  # a folder that cannot be written
    assert explorer.save() is None and "error: " in part(explorer, "saved").value
    explorer.close()


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_a_hook_that_is_not_the_kits_is_said_in_the_status(session, model):
    async def play(desk):
        await desk.finished()
        assert "othing is cached" not in desk.status
        handle = model.module.blocks[0].register_forward_hook(lambda module, inputs, output: output * 0.5)
        desk.set("Neuron", 1)
        await desk.finished(1)
        assert "othing is cached" in desk.status
        handle.remove()

    session(play)


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_forward_passes_of_other_cells_neither_change_the_image_nor_are_changed(session, model, images):
    alone, expected, passes = vv.Visualizer(model, images=images, keep=False).render(2, 3, seed=1), model(images), 0

    async def play(desk):
        nonlocal passes
        await desk.finished()
        desk.set("Neuron", 3)
        await desk.finished(3)
        desk.set("Seed", 1)
        while "finished, quick recipe, seed 1" not in desk.status:
            assert torch.equal(model(images), expected)
            passes += ": step " in desk.status
            await asyncio.sleep(0)
        assert torch.equal(desk.explorer.result.pictures, alone.pictures) and passes

    session(play)


def test_on_colab_without_an_event_loop_the_image_is_made_at_once(model, images, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    explorer = vv.explore(model, images)
    assert threads() == []
    assert explorer.result.finished
    control(explorer, "Neuron").value = 3
    assert explorer.result.neurons == [3]
    explorer.close()


def test_close_ends_the_work_and_frees_the_thread_and_every_widget(session, model):
    async def play(desk):
        await desk.at_work()
        before, of_the_explorer = desk.explorer.result, list(every_widget(desk.explorer))
        desk.explorer.close()
        assert threads() == []
        control(desk.explorer, "Neuron").value = 7  # starts nothing
        await asyncio.sleep(0.5)
        assert desk.explorer.result is before and "finished" not in desk.status
        assert not any(w.comm for w in of_the_explorer)  # what ipywidgets closed

    session(play)


@pytest.fixture
def kernel(monkeypatch) -> Iterator[Callable[[str, str, str], None]]:
    """``kernel(cell, run, code)``: from now on the kernel runs this cell. Its id is "" for front ends that send none."""
    shell = ZMQInteractiveShell.instance()
    yield lambda cell, run, code: shell.set_parent(
        {"metadata": {"cellId": cell} if cell else {}, "header": {"msg_id": run}, "content": {"code": code}})
    ZMQInteractiveShell.clear_instance()


def test_close_does_not_wait_for_another_cell_that_holds_the_model(model, images):
    explorer = vv.explore(model, images)
    with model.lock:
        time.sleep(0.5)  # until its thread wants the model
        started = time.monotonic()
        explorer.close()
        assert time.monotonic() - started < 3
    for _ in range(200):
        if not threads():
            return
        time.sleep(0.05)
    pytest.fail("the thread has not ended by itself")


@pytest.mark.parametrize("cell", ["a", ""])
def test_a_cell_that_runs_again_replaces_its_explorers_and_no_others(kernel, model, images, cell):
    kernel("other" if cell else "", "0", "other = vv.explore(model)")
    other = vv.explore(model, images)
    for run in range(4):
        kernel(cell, f"run {run}", "vv.explore(model); vv.explore(model)")
        both = [vv.explore(model, images), vv.explore(model, images)]
        assert len(threads()) == 3
    for explorer in (other, *both):
        assert explorer.comm
        explorer.close()
    gc.collect()
    assert threads() == []


PROGRAM = """
import atexit, threading, time
from timm.models.vision_transformer import VisionTransformer
import vitviz_nb as vv
from vitviz_nb.models.vision_model import VisionModel

atexit.register(lambda: print([t.name for t in threading.enumerate()]))  # registered first, so called last
module = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
card = {"pictures": {"steps": 9999, "copies": 1}, "recipe": {"styles": ("3d",)}}
explorer = vv.explore(VisionModel(module, "tiny", 16, card=card))
def parts(widget):
    return [widget, *(inner for child in getattr(widget, "children", ()) for inner in parts(child))]

[status] = [part for part in parts(explorer) if "vitviz-status" in part._dom_classes]
end = time.monotonic() + 60
while ": step " not in status.value or ": step 0 " in status.value:
    assert time.monotonic() < end, status.value
    time.sleep(0.01)
print(time.time())
"""


@pytest.mark.slow
def test_a_program_that_ends_while_an_image_forms_ends_well_and_soon():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    gone = time.time()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    ended, alive = done.stdout.splitlines()
    assert "explorer" not in alive and gone - float(ended) < 30


def test_sliders_stay_within_what_the_model_has():
    model = VisionModel(SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4,
                                        num_classes=5), "swin", 32)
    explorer = vv.explore(model, torch.rand(8, 3, 32, 32))
    while not explorer.result:
        time.sleep(0.01)
    layer, neuron = control(explorer, "Layer"), control(explorer, "Neuron")
    assert (layer.value, layer.max, neuron.max) == (3, 3, 127)
    neuron.value = 100
    layer.value = 1
    assert (neuron.value, neuron.max) == (63, 63)
    control(explorer, "Kind").value = "residual"
    assert (neuron.value, neuron.max, layer.max) == (15, 15, 3)
    explorer.close()


@pytest.mark.parametrize(("arguments", "problem"), [
    ((3,), "model"), ((None,), "model"), (("model", None, 0), "model"), (("model", 3), "[Ii]mages"),
    (("model", torch.rand(2, 3, 8, 8)), "shape"),
    (("model", torch.rand(2, 3, SIZE, SIZE) * 255), "0, 1")])
def test_an_argument_of_another_type_or_range_is_refused(arguments, problem, model):
    with pytest.raises(vv.VitvizError, match=problem):
        vv.explore(*(model if argument == "model" else argument for argument in arguments))
    assert threads() == []
