"""The Explorer without a browser: both of its drivers keep the same promises."""

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ipywidgets as widgets
import pytest
import torch
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer

import vitviz_nb as vv
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.visualize import visualizer as visualizer_module
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.rendering import Rendering
from vitviz_nb.visualize.visualizer import Visualizer
from vitviz_nb.widgets import explorer as explorer_module
from vitviz_nb.widgets.explorer import Explorer

SIZE, PATIENCE = 16, 60.0  # s; reached only when a promise is broken
SHORT, ENDLESS = Recipe(steps=20, copies=1), Recipe(steps=20_000, copies=1)
DRIVERS = ["thread", "slices, ipywidgets 7", "slices, Colab"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "vitviz_cache"))


@pytest.fixture(autouse=True)
def recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recipe, "named", lambda name, model=None: {"quick": SHORT, "paper": ENDLESS}[name])


@pytest.fixture
def model() -> VisionModel:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
    return VisionModel(module, "tiny", SIZE)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


class Desk:
    """Someone at an Explorer, whichever way it is driven."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.said: list[str] = []  # everything the status has shown
        explorer._status.observe(lambda change: self.said.append(change["new"]), "value")

    async def until(self, what: Callable[[], object]) -> None:
        end = time.monotonic() + PATIENCE
        while not what():
            assert time.monotonic() < end, f"still waiting; the status is {self.status!r}"
            await asyncio.sleep(0.005)

    async def rest(self) -> None:
        """Wait until any picture under way is over."""
        await self.until(lambda: "waiting" not in self.status and "of " not in self.status or "stopped" in self.status)

    async def working(self, layer: int | None = None) -> None:
        await self.until(lambda: ": step " in self.status and ": step 0 " not in self.status)

    async def finished(self, neuron: int) -> Rendering:
        await self.until(lambda: f"neuron {neuron}: finished" in self.status)
        return self.explorer.result

    @property
    def status(self) -> str:
        return self.explorer._status.value

    async def quiet(self, scenes_before: bytes) -> None:
        await self.until(lambda: self.explorer._scenes.value != scenes_before)


Session = Callable[[Callable[[Desk], object]], None]


@pytest.fixture(params=DRIVERS)
def session(request, model, images, monkeypatch) -> Iterator[Session]:
    """Runs a coroutine function of a Desk on an Explorer that is driven in one of the three ways."""
    if request.param == "slices, ipywidgets 7":
        monkeypatch.setattr(widgets, "__version__", "7.7.1")
    elif request.param == "slices, Colab":
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    elif int(widgets.__version__.split(".")[0]) < 8:
        pytest.skip("threads are for ipywidgets 8")
    desks = []

    async def act(play):
        desk = Desk(vv.explore(model, images))
        desks.append(desk)
        assert desk.explorer._threaded == (request.param == "thread")
        await play(desk)
        await leave(desk.explorer)

    yield lambda play: asyncio.run(act(play))
    for desk in desks:  # after a failure, too, nothing may go on working
        asyncio.run(leave(desk.explorer))


async def leave(explorer: Explorer) -> None:
    explorer._stopped = True
    explorer._leave()


def test_explorer_starts_with_a_picture_of_the_last_layer(session):
    async def play(desk):
        result = await desk.finished(0)
        assert (result.kind, result.layer, result.neurons, result.seed) == ("mlp", 2, [0], 0)
        assert result.finished and result.recipe == SHORT and result.scores.reference == "8 images"
        assert "<span role='status'>layer 2, neuron 0: finished, quick recipe, seed 0</span>" in desk.status
        assert any(": waiting" in text for text in desk.said) or ": waiting" not in desk.status
        assert any("step 1 of 20" in text for text in desk.said)
        assert any("step 20 of 20, measuring it against 8 images" in text for text in desk.said)

    session(play)


def test_picture_of_the_atlas_does_not_wait_for_further_changes(session, model, images, monkeypatch):
    ready = Visualizer(model, SHORT, images).render(1, 0)
    atlas = SimpleNamespace(holds=lambda model, kind, layer, recipe, seed: layer == 1, rendering=lambda layer, neurons: ready)

    async def play(desk):
        await desk.finished(0)
        monkeypatch.setattr(explorer_module, "_DEBOUNCE", 100 * PATIENCE)
        desk.explorer._visualizer()._atlas = atlas
        desk.explorer._layer.value = 1
        assert await desk.finished(0) is ready

    session(play)


def test_atlas_that_cannot_be_read_is_said_in_the_status(session, monkeypatch):
    async def play(desk):
        await desk.finished(0)

        def damaged(self):
            raise vv.VitvizError("the atlas is damaged")

        monkeypatch.setattr(Explorer, "_visualizer", damaged)
        desk.explorer._neuron.value = 3
        await desk.until(lambda: "error: the atlas is damaged" in desk.status)

    session(play)


def test_picture_scores_and_scenes_are_those_of_the_neuron(session, model, images):
    async def play(desk):
        explorer = desk.explorer
        blank = explorer._scenes.value
        result = await desk.finished(0)
        await desk.quiet(blank)
        assert explorer._picture.value == explorer_module.png(explorer_module.to_image(result.pictures[0], 288))
        assert explorer._scenes.value == explorer_module.png(vv.top_images(model, 2, 0, images=images).sheet())
        assert f"Activation {result.scores.activation[0]:.3g}: above {result.scores.percentile[0]:.1f} % of 8 images" in (
            explorer._scores.value)
        before = explorer._scenes.value
        explorer._neuron.value = 9
        assert (await desk.finished(9)).neurons == [9]
        await desk.quiet(before)
        assert explorer._scenes.value == explorer_module.png(vv.top_images(model, 2, 9, images=images).sheet())
        alone = Visualizer(model, SHORT, images).render(2, 9)
        assert torch.equal(explorer.result.pictures, alone.pictures)

    session(play)


def test_every_control_changes_the_picture_to_what_it_says(session):
    async def play(desk):
        explorer = desk.explorer
        await desk.finished(0)
        explorer._seed.value = 5
        await desk.until(lambda: "finished, quick recipe, seed 5" in desk.status)
        assert explorer.result.seed == 5
        explorer._layer.value = 1
        await desk.until(lambda: "layer 1, neuron 0: finished" in desk.status)
        assert explorer.result.layer == 1
        explorer._kind.value = "residual"
        await desk.until(lambda: explorer.result.kind == "residual")
        assert explorer.result.layer == 1 and explorer._neuron.max == 15
        explorer._recipe.value = "paper"
        await desk.until(lambda: re.search(r"step [1-9]\d* of 20000", desk.status))

    session(play)


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, range(21)), (3600.0, (0, 1, 20))])
def test_previews_begin_with_the_first_step_and_keep_their_distance(session, monkeypatch, seconds, steps):
    monkeypatch.setattr(explorer_module, "_BETWEEN", seconds)

    async def play(desk):
        await desk.finished(0)
        desk.said.clear()
        desk.explorer._seed.value = 5
        await desk.until(lambda: "finished, quick recipe, seed 5" in desk.status)
        said = [int(found[1]) for text in desk.said if (found := re.search(r"step (\d+) of 20", text))]
        assert said == list(steps)

    session(play)


def test_latest_of_fast_changes_wins_and_the_others_are_never_begun(session, monkeypatch):
    begun, results = [], []
    stream = Visualizer.stream
    monkeypatch.setattr(Visualizer, "stream", lambda self, layer, neurons, *a, **k: begun.append(neurons) or stream(
        self, layer, neurons, *a, **k))

    async def play(desk):
        await desk.finished(0)
        begun.clear()
        for neuron in range(1, 20):
            desk.explorer._neuron.value = neuron
            await asyncio.sleep(0)
            results.append(desk.explorer.result.neurons)
        result = await desk.finished(19)
        await asyncio.sleep(0.3)
        assert result.neurons == desk.explorer.result.neurons == [19] and begun == [19]
        assert results == [[0]] * 19

    session(play)


def test_change_during_work_ends_it_and_only_the_last_result_remains(session):
    async def play(desk):
        explorer = desk.explorer
        explorer._recipe.value = "paper"
        await desk.working()
        for neuron in (3, 4):
            explorer._neuron.value = neuron
            await desk.until(lambda n=neuron: f"neuron {n}: step" in desk.status and ": step 0 " not in desk.status)
        explorer._recipe.value = "quick"
        result = await desk.finished(4)
        await asyncio.sleep(0.3)
        assert result is explorer.result and result.neurons == [4] and result.recipe == SHORT
        assert "neuron 4: finished, quick recipe" in desk.status
        assert not any("finished, paper" in text or "stopped" in text for text in desk.said)

    session(play)


def test_stop_keeps_the_picture_as_it_is(session):
    async def play(desk):
        explorer = desk.explorer
        explorer._recipe.value = "paper"
        await desk.working()
        explorer._stop.click()
        await desk.until(lambda: "stopped at step " in desk.status)
        result = explorer.result
        assert 0 < result.steps[0] < 20_000 and not result.finished and result.scores
        assert f"stopped at step {result.steps[0]} of 20000" in desk.status
        assert explorer._picture.value == explorer_module.png(explorer_module.to_image(result.pictures[0], 288))
        await asyncio.sleep(0.1)
        assert explorer.result is result
        explorer._recipe.value = "quick"  # and the next change is not stopped
        assert (await desk.finished(0)).finished

    session(play)


def test_stop_when_nothing_works_does_nothing(session):
    async def play(desk):
        result = await desk.finished(0)
        desk.explorer._stop.click()
        await asyncio.sleep(0.05)
        assert desk.explorer.result is result
        desk.explorer._neuron.value = 2
        assert (await desk.finished(2)).finished

    session(play)


@pytest.mark.parametrize("error", [vv.VitvizError("use fewer copies"), RuntimeError("shapes <2> & <3> differ")])
def test_error_appears_in_the_status_and_the_next_change_works(session, monkeypatch, error):
    async def play(desk):
        await desk.finished(0)
        good = visualizer_module.tokens

        def bad(*arguments):
            raise error

        monkeypatch.setattr(visualizer_module, "tokens", bad)
        desk.explorer._neuron.value = 1
        await desk.until(lambda: "error: " in desk.status)
        assert "layer 2, neuron 1: error: " in desk.status
        expected = "error: use fewer copies" if isinstance(error, vv.VitvizError) else (
            "error: RuntimeError: shapes &lt;2&gt; &amp; &lt;3&gt; differ")
        assert expected in desk.status
        assert desk.explorer.result.neurons == [0]
        monkeypatch.setattr(visualizer_module, "tokens", good)
        desk.explorer._neuron.value = 2
        assert (await desk.finished(2)).neurons == [2]

    session(play)


def test_cache_that_cannot_be_written_is_said_in_the_status(session, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file" / "cache"))

    async def play(desk):
        await desk.until(lambda: "error: The cache folder" in desk.status)
        assert desk.explorer.result is None

    session(play)


def test_the_kernel_stays_free_while_a_picture_forms(session):
    async def play(desk):
        desk.explorer._recipe.value = "paper"
        await desk.working()
        seen, others = set(), 0
        while len(seen) < 4:
            await asyncio.sleep(0)
            others += 1
            seen.add(desk.status)
        assert others > 4

    session(play)


def test_without_an_event_loop_the_picture_is_made_at_once(model, images, monkeypatch):
    monkeypatch.setattr(widgets, "__version__", "7.7.1")
    explorer = Explorer(model, images)
    assert explorer.result.finished and "finished" in explorer._status.value
    explorer._neuron.value = 3
    assert explorer.result.neurons == [3]


PROGRAM = """
import atexit, time
from timm.models.vision_transformer import VisionTransformer
import vitviz_nb as vv
from vitviz_nb.models.vision_model import VisionModel

vv.Recipe.named = lambda name, model=None: vv.Recipe(steps=10**5, copies=1)
atexit.register(lambda: print(explorer._worker.is_alive()))  # registered first, so called last
module = VisionTransformer(img_size=16, patch_size=8, embed_dim=16, depth=3, num_heads=2, num_classes=4)
explorer = vv.explore(VisionModel(module, "tiny", 16))
end = time.monotonic() + 60
while ": step " not in explorer._status.value or ": step 0 " in explorer._status.value:
    assert time.monotonic() < end, explorer._status.value
    time.sleep(0.01)
print(time.time())
"""


@pytest.mark.skipif(int(widgets.__version__.split(".")[0]) < 8, reason="threads are for ipywidgets 8")
def test_a_program_that_ends_while_a_picture_forms_ends_well_and_soon():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    gone = time.time()
    assert done.returncode == 0, done.stderr
    left, working = done.stdout.split()
    assert working == "False" and gone - float(left) < 10


# Controls; none of this depends on the driver, so work is left out


@pytest.fixture
def idle(monkeypatch) -> None:
    monkeypatch.setattr(Explorer, "_start", lambda self: None)


def every_widget(parent) -> Iterator[widgets.Widget]:
    yield parent
    for child in getattr(parent, "children", ()):
        yield from every_widget(child)


def test_every_control_is_described_and_waits_for_its_release(model, images, idle):
    controls = [w for w in every_widget(Explorer(model, images))
                if isinstance(w, widgets.Button | widgets.Dropdown | widgets.IntSlider | widgets.BoundedIntText)]
    assert [w.description for w in controls] == ["Kind", "Layer", "Neuron", "Recipe", "Seed", "Stop"]
    assert not any(getattr(w, "continuous_update", False) for w in controls)
    assert not any(w.disabled for w in controls)
    texts = " ".join(w.value for w in every_widget(Explorer(model, images)) if isinstance(w, widgets.HTML))
    for control in controls:
        assert f"<b>{control.description}</b>" in texts


def test_sliders_stay_within_what_the_model_has(idle):
    model = VisionModel(SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4,
                                        num_classes=5), "swin", 32)
    explorer = Explorer(model)
    assert (explorer._layer.value, explorer._layer.max, explorer._neuron.max) == (3, 3, 127)
    explorer._neuron.value = 100
    explorer._layer.value = 1
    assert (explorer._neuron.value, explorer._neuron.max) == (63, 63)
    explorer._layer.value = 2
    assert (explorer._neuron.value, explorer._neuron.max) == (63, 127)
    explorer._kind.value = "residual"
    assert (explorer._neuron.value, explorer._neuron.max, explorer._layer.max) == (31, 31, 3)


def test_fewer_layers_of_a_kind_clamp_the_layer(model, idle, monkeypatch):
    found = explorer_module.sites(model)
    monkeypatch.setitem(found, "residual", found["residual"][:2])
    explorer = Explorer(model)
    explorer._kind.value = "residual"
    assert (explorer._layer.value, explorer._layer.max, explorer._neuron.max) == (1, 1, 15)
    explorer._kind.value = "mlp"
    assert (explorer._layer.value, explorer._layer.max, explorer._neuron.max) == (1, 2, 63)


def test_clamping_asks_for_one_picture_within_range(session):
    async def play(desk):
        await desk.finished(0)
        desk.explorer._neuron.value = 60
        await desk.finished(60)
        desk.explorer._kind.value = "residual"  # of 16 units
        result = await desk.finished(15)
        assert (result.kind, result.layer, result.neurons) == ("residual", 2, [15])
        assert not any("error" in text for text in desk.said)

    session(play)


def test_tuned_regularizers_begin_where_the_recipe_has_them_and_make_its_own_pictures(model, images, idle):
    explorer = Explorer(model, images, tune=True)
    assert {name: control.value for name, control in explorer._tuned.items()} == {
        name: getattr(SHORT, name) for name in ("tv", "jitter", "color", "noise", "blur", "copies")}
    assert explorer._visualizer().recipe == SHORT
    explorer._tuned["tv"].value = 0.0
    explorer._tuned["copies"].value = 8
    assert explorer._visualizer().recipe == replace(SHORT, tv=0.0, copies=8)
    texts = " ".join(w.value for w in every_widget(explorer) if isinstance(w, widgets.HTML))
    assert all(f"<b>{name}</b>" in texts for name in explorer._tuned)


def test_another_recipe_puts_the_regularizers_back_and_asks_for_one_picture(model, images, monkeypatch):
    monkeypatch.setattr(Explorer, "_work", lambda self, request: ())
    explorer = Explorer(model, images, tune=True)
    explorer._tuned["color"].value = 0.0
    before = explorer._request
    explorer._recipe.value = "paper"
    assert explorer._request == before + 1 and explorer._visualizer().recipe == ENDLESS
