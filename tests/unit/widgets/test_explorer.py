"""The Explorer without a browser: what it shows and hands back, whichever way it is driven, and that it ends."""

import asyncio
import gc
import html
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from types import ModuleType

import ipywidgets as widgets
import numpy as np
import pytest
import torch
from ipykernel.zmqshell import ZMQInteractiveShell
from PIL import Image
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import vitviz_nb as vv
from vitviz_nb.models.vision_model import VisionModel

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

    async def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < end, f"still waiting; the status is {self.status!r}"
            await asyncio.sleep(0.005)

    async def working(self) -> None:
        await self.until(lambda: ": step " in self.status and ": step 0 " not in self.status)

    async def finished(self, neuron: int):
        await self.until(lambda: f"neuron {neuron}: finished" in self.status)
        return self.explorer.result


Session = Callable[[Callable[[Desk], object]], None]


@pytest.fixture(params=["thread", "slices"])
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
def test_it_begins_with_a_neuron_of_the_last_layer_its_scores_and_top_images(session, model, images):
    async def play(desk):
        result = await desk.finished(0)
        assert (result.kind, result.layer, result.neurons, result.seed) == ("mlp", 2, [0], 0)
        assert result.finished and result.recipe == vv.Recipe.quick(model)
        assert torch.equal(result.pictures, vv.Visualizer(model, images=images).render(2, 0).pictures)
        shown = np.asarray(Image.fromarray(pixels(part(desk.explorer, "picture"))).resize((SIZE, SIZE), Image.Resampling.BOX))
        assert np.abs(shown / 255 - result.pictures[0].permute(1, 2, 0).numpy()).mean() < 0.05
        scores = html.unescape(part(desk.explorer, "scores").value)
        assert f"Activation {result.scores.activation[0]:.3g}" in scores
        assert f"above that of {result.scores.percentile[0]:.1f} % of 8 images" in scores
        expected = np.asarray(vv.top_images(model, 2, 0, images=images).sheet())
        await desk.until(lambda: np.array_equal(pixels(part(desk.explorer, "scenes")), expected))

    session(play)


@pytest.mark.parametrize("session", ["slices"], indirect=True)
def test_every_control_changes_the_image_to_what_it_says(session, model):
    async def play(desk):
        await desk.finished(0)
        desk.set("Neuron", 9)
        assert (await desk.finished(9)).neurons == [9]
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
        first = await desk.finished(0)
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
        desk.set("Recipe", "paper")
        await desk.working()
        desk.set("Neuron", 4)
        await desk.until(lambda: "neuron 4: step " in desk.status and ": step 0 " not in desk.status)
        desk.set("Recipe", "quick")
        result = await desk.finished(4)
        await asyncio.sleep(0.3)
        assert desk.explorer.result is result and result.finished
        assert not any("finished, paper" in text or "stopped" in text for text in desk.statuses)

    session(play)


def test_stop_keeps_the_image_and_says_that_it_is_unfinished(session):
    async def play(desk):
        await desk.finished(0)
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
        assert (await desk.finished(0)).finished

    session(play)


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_an_error_is_one_escaped_sentence_in_the_status_and_the_next_change_works(session, tmp_path, monkeypatch):
    in_the_way = tmp_path / "<b>file"
    in_the_way.write_text("")
    good = str(tmp_path / "vitviz_cache")

    async def play(desk):
        await desk.finished(0)
        monkeypatch.setenv("VITVIZ_CACHE", str(in_the_way / "cache"))
        desk.set("Neuron", 1)
        await desk.until(lambda: "layer 2, neuron 1: error: " in desk.status)
        assert "cannot be written" in desk.status
        assert "&lt;b&gt;file" in part(desk.explorer, "status").value and "<b>" not in part(desk.explorer, "status").value
        assert desk.explorer.result.neurons == [0]
        monkeypatch.setenv("VITVIZ_CACHE", good)
        desk.set("Neuron", 2)
        assert (await desk.finished(2)).neurons == [2]

    session(play)


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_a_hook_that_is_not_the_kits_is_said_in_the_status(session, model):
    async def play(desk):
        await desk.finished(0)
        assert "othing is cached" not in desk.status
        handle = model.module.blocks[0].register_forward_hook(lambda module, inputs, output: output * 0.5)
        desk.set("Neuron", 1)
        await desk.finished(1)
        assert "othing is cached" in desk.status
        handle.remove()

    session(play)


@pytest.mark.parametrize("session", ["thread"], indirect=True)
def test_forward_passes_of_other_cells_neither_change_the_image_nor_are_changed(session, model, images):
    alone, expected, passes = vv.Visualizer(model, images=images, keep=False).render(2, 0, seed=1), model(images), 0

    async def play(desk):
        nonlocal passes
        await desk.finished(0)
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
        desk.set("Recipe", "paper")
        await desk.working()
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
status = explorer.children[0].children[1].children[1]
end = time.monotonic() + 60
while ": step " not in status.value or ": step 0 " in status.value:
    assert time.monotonic() < end, status.value
    time.sleep(0.01)
print(time.time())
"""


def test_a_program_that_ends_while_an_image_forms_ends_well_and_soon():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    gone = time.time()
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    ended, alive = done.stdout.splitlines()
    assert "explorer" not in alive and gone - float(ended) < 30


def test_sliders_stay_within_what_the_model_has():
    model = VisionModel(SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4,
                                        num_classes=5), "swin", 32)
    explorer = vv.explore(model)
    layer, neuron = control(explorer, "Layer"), control(explorer, "Neuron")
    assert (layer.value, layer.max, neuron.max) == (3, 3, 127)
    neuron.value = 100
    layer.value = 1
    assert (neuron.value, neuron.max) == (63, 63)
    control(explorer, "Kind").value = "residual"
    assert (neuron.value, neuron.max, layer.max) == (15, 15, 3)
    explorer.close()


@pytest.mark.parametrize(("arguments", "problem"), [
    ((3,), "model"), ((None,), "model"), (("model", 3), "[Ii]mages"), (("model", torch.rand(2, 3, 8, 8)), "shape"),
    (("model", torch.rand(2, 3, SIZE, SIZE) * 255), "0, 1")])
def test_an_argument_of_another_type_or_range_is_refused(arguments, problem, model):
    with pytest.raises(vv.VitvizError, match=problem):
        vv.explore(*(model if argument == "model" else argument for argument in arguments))
    assert threads() == []
