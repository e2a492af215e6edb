"""Sliders for layer and neuron that drive one visualizer and show its pictures as they form."""

import asyncio
import atexit
import html
import math
import sys
import time
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread

import ipywidgets as widgets
from PIL import Image

from ..models.sites import KINDS, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import png, to_image
from ..utils.errors import VitvizError
from ..visualize.recipe import RECIPES, Recipe
from ..visualize.rendering import Rendering
from ..visualize.top_images import top_images
from ..visualize.visualizer import Visualizer

_SIDE = 288  # px of the picture on the page
_DEBOUNCE = 0.2  # s without a further change before work begins
_BETWEEN = 0.2  # s from one preview to the next, so that quick steps do not wait for the page, nor the page for slow ones
_REGULARIZERS = {"tv": (0.0, 0.001, 0.003, 0.01, 0.03, 0.1), "jitter": (0.0, 0.03, 0.0625, 0.125, 0.25),
                 "color": (0.0, 0.1, 0.3, 1.0), "noise": (0.0, 0.05, 0.2, 0.5),
                 "blur": (0.0, 0.05, 0.1, 0.2), "copies": (1, 2, 4, 8)}
_TEXT = "<div style='line-height: 1.4'>{}</div>"  # the widget's own lines stand as far apart as sliders
_HELP = ("<b>Layer</b>: depth in the network, 0 is next to the image. <b>Neuron</b>: one unit of that layer. <b>Kind</b>: which "
         "units of the layer. <b>Recipe</b>: how long the picture is worked on. <b>Seed</b>: another start, another picture of "
         "the same neuron. <b>Stop</b> keeps the picture as it is. All of them work with Tab and the arrow keys.")
_HELP_TUNE = (" <b>tv</b>: how much roughness costs. <b>jitter</b>: how far copies are shifted, as a share of the side. "
              "<b>color</b>: how far their colors are changed. <b>noise</b>: of random color added at first. <b>blur</b>: "
              "how wide slopes are blurred at first, as a share of the side, so that large forms come first. <b>copies</b>: seen "
              "in each step.")


class Explorer(widgets.VBox):
    """The visualizer behind sliders.

    A change shows a picture of the embedded atlas at once, and starts any other after 0.2 s of rest; the latest request wins and
    earlier ones stop. The picture forms in place; when it is finished its scores and the scenes that raise the neuron most
    appear, with activation maps under them. ``result`` hands the last picture back to Python.

    On ipywidgets 8 the work runs in a thread, so the page stays live while other cells run. On ipywidgets 7 (Colab), where
    a thread's updates do not reach the page, it runs in slices on the kernel's own event loop.

    Args:
        model: whose neurons to show.
        images: what scores and scenes are taken from (see ``stimuli.Stimuli``); by default Emoji World.
        tune: True for sliders that change the recipe's regularizers.

    Attributes:
        result: the last finished or stopped ``Rendering``, or None.
    """

    def __init__(self, model: VisionModel, images=None, tune: bool = False):
        if not isinstance(model, VisionModel):
            raise VitvizError(f"The Explorer takes a model, as in vv.explore(vv.load('emoji-vit')), got {model!r}.")
        self.model, self.images, self.result = model, images, None
        self._visualizers: dict[Recipe, Visualizer] = {}
        self._request, self._stopped, self._settling = 0, False, False
        # One thread for all requests: each new one would cost torch a pool of threads, and memory that never comes back.
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._worker = Thread(target=self._serve, name="explorer", daemon=True)
        self._worker.start()
        atexit.register(self._leave)
        self._threaded = int(widgets.__version__.split(".")[0]) >= 8 and "google.colab" not in sys.modules
        kinds = list(find_sites(model))
        last = len(find_sites(model)[kinds[0]]) - 1
        site = find_site(model, last, kinds[0])
        wide = widgets.Layout(width="420px")
        self._kind = widgets.Dropdown(description="Kind", options=[(f"{k}: {KINDS[k]}", k) for k in kinds], layout=wide)
        self._layer = widgets.IntSlider(description="Layer", max=last, value=last, continuous_update=False, layout=wide)
        self._neuron = widgets.IntSlider(description="Neuron", max=site.units - 1, continuous_update=False, layout=wide)
        made = {name: Recipe.named(name, model) for name in RECIPES}
        recipes = [(f"{name}: {recipe.work}", name) for name, recipe in made.items()]
        self._recipe = widgets.Dropdown(description="Recipe", options=recipes, layout=wide)
        self._tuned = {name: self._regularizer(name, values, made) for name, values in _REGULARIZERS.items()} if tune else {}
        self._seed = widgets.BoundedIntText(description="Seed", min=0, max=2**31 - 1, layout=widgets.Layout(width="200px"))
        self._stop = widgets.Button(description="Stop", icon="stop", layout=widgets.Layout(width="100px"))
        blank = png(Image.new("RGB", (2, 2), "#dddddd"))
        self._picture = widgets.Image(value=blank, format="png", width=_SIDE, height=_SIDE)
        self._scenes = widgets.Image(value=blank, format="png", layout=widgets.Layout(min_height="300px", max_width="560px"))
        self._status, self._scores = widgets.HTML("ready"), widgets.HTML()
        for widget, name in ((self._picture, "picture"), (self._scenes, "scenes"), (self._status, "status"),
                             (self._scores, "scores"), (self, "explorer")):
            widget.add_class(f"vitviz-{name}")
        self._kind.observe(self._on_site, "value")
        self._layer.observe(self._on_site, "value")
        self._recipe.observe(self._on_recipe, "value")
        for control in (self._neuron, self._seed, *self._tuned.values()):
            control.observe(lambda change: self._start(), "value")
        self._stop.on_click(self._on_stop)
        advice = widgets.HTML(_TEXT.format(f"<small>{_HELP}{_HELP_TUNE * tune}</small>"), layout=wide)
        controls = widgets.VBox([self._kind, self._layer, self._neuron, self._recipe, *self._tuned.values(),
                                 widgets.HBox([self._seed, self._stop]), advice])
        tall = widgets.Layout(width="320px", min_height="380px")  # fixed, so that the page does not jump
        picture = widgets.VBox([self._picture, self._status, self._scores], layout=tall)
        super().__init__([widgets.HBox([controls, picture, self._scenes], layout=widgets.Layout(flex_flow="row wrap"))])
        self._start()

    @staticmethod
    def _regularizer(name: str, values: tuple, recipes: dict[str, Recipe]) -> widgets.SelectionSlider:
        """A slider over ``values`` and those of the recipes, which it can be put back to."""
        options = sorted({*values, *(getattr(recipe, name) for recipe in recipes.values())})
        return widgets.SelectionSlider(options=[(f"{v:.3g}", v) for v in options], value=getattr(recipes["quick"], name),
                                       description=name, continuous_update=False, layout=widgets.Layout(width="420px"))

    def _on_site(self, change) -> None:
        """Keep the sliders within what the model has at the new kind and layer."""
        self._layer.max = len(find_sites(self.model)[self._kind.value]) - 1
        self._neuron.max = find_site(self.model, self._layer.value, self._kind.value).units - 1
        self._start()

    def _on_recipe(self, change) -> None:
        """Put the regularizers where the chosen recipe has them."""
        self._settling = True
        chosen = Recipe.named(self._recipe.value, self.model)
        for name, control in self._tuned.items():
            control.value = getattr(chosen, name)
        self._settling = False
        self._start()

    def _on_stop(self, button) -> None:
        self._stopped = True

    def _start(self) -> None:
        """Make the picture the controls ask for, unless they change again at once."""
        if self._settling:
            return
        self._request += 1
        self._stopped = False
        self._say("waiting")
        if self._threaded:
            self._requests.put(self._request)
            return
        try:
            asyncio.get_running_loop().create_task(self._run_in_slices(self._request))
        except RuntimeError:  # no event loop: a plain Python program
            for _ in self._work(self._request):
                pass

    def _serve(self) -> None:
        """The worker thread: requests in the order they came, until ``None``."""
        for request in iter(self._requests.get, None):
            if request == self._request and not self._at_hand():
                time.sleep(_DEBOUNCE)
            for _ in self._work(request):  # ends at its next preview once it is out of date
                pass

    def _leave(self) -> None:
        """End the worker before Python ends: a thread inside torch then would crash it."""
        self._request += 1
        self._requests.put(None)
        self._worker.join(timeout=5)

    async def _run_in_slices(self, request: int) -> None:
        await asyncio.sleep(0 if self._at_hand() else _DEBOUNCE)
        for _ in self._work(request):
            await asyncio.sleep(0.001)  # lets the kernel handle a slider or the Stop button

    def _work(self, request: int):
        """One request from first to last preview; ends early when a later one has come. Errors end up in the status."""
        if request != self._request:
            return
        kind, layer, neuron, seed = self._kind.value, self._layer.value, self._neuron.value, self._seed.value
        try:
            visualizer = self._visualizer()
            self._say(f"step 0 of {visualizer.recipe.steps}", request)
            shown = -math.inf
            for frame in visualizer.stream(layer, neuron, kind, seed, every=1):
                if request != self._request:
                    return
                if not (frame.finished or self._stopped) and time.monotonic() < shown + _BETWEEN:
                    yield
                    continue
                self._picture.value = png(to_image(frame.pictures[0], _SIDE))
                if frame.scores:
                    break
                if self._stopped:
                    frame = visualizer.score(frame)
                    break
                step = f"step {frame.steps[0]} of {frame.recipe.steps}"
                self._say(f"{step}, measuring it against {visualizer.reference.name}" if frame.finished else step, request)
                shown = time.monotonic()
                yield
            if request != self._request:
                return
            self.result = frame
            self._show(frame, request)
            best = top_images(self.model, layer, neuron, kind, visualizer.reference)
            if request == self._request:
                self._scenes.value = png(best.sheet())
        except VitvizError as error:
            self._say(f"error: {error}", request)
        except Exception as error:  # a thread's error would be lost: show it where the learner looks
            self._say(f"error: {type(error).__name__}: {error}", request)

    def _at_hand(self) -> bool:
        """Whether what the controls ask for costs next to nothing, so that there is no need to wait for further changes."""
        try:
            return self._visualizer().at_hand(self._layer.value, self._kind.value, self._seed.value)
        except Exception:  # which ``_work`` will meet again, and say
            return False

    def _visualizer(self) -> Visualizer:
        tuned = {name: control.value for name, control in self._tuned.items()}
        recipe = replace(Recipe.named(self._recipe.value, self.model), **tuned)
        if recipe not in self._visualizers:
            self._visualizers[recipe] = Visualizer(self.model, recipe, self.images)
        return self._visualizers[recipe]

    def _say(self, text: str, request: int | None = None) -> None:
        """Show the state of a request, by default the latest; a request out of date says nothing."""
        if request is not None and request != self._request:
            return
        where = f"layer {self._layer.value}, neuron {self._neuron.value}"
        self._status.value = _TEXT.format(f"<span role='status'>{html.escape(f'{where}: {text}')}</span>")

    def _show(self, frame: Rendering, request: int) -> None:
        scores = frame.scores
        done = "finished" if frame.finished else f"stopped at step {frame.steps[0]} of {frame.recipe.steps}"
        verdict = {"alive": "", "weak": " A weak picture: many scenes do better.",
                   "dead": " A dead neuron: nothing in the scenes moves it."}[scores.status[0]]
        self._scores.value = _TEXT.format(
            f"Activation {scores.activation[0]:.3g}: above {scores.percentile[0]:.1f} % of {scores.reference}; its neuron is "
            f"number {scores.rank[0]} of the layer's units by how far the picture raises them.{verdict}")
        self._say(f"{done}, {self._recipe.value} recipe, seed {frame.seed}", request)


def explore(model: VisionModel, images=None, tune: bool = False) -> Explorer:
    """Sliders for layer and neuron over ``model``; see ``Explorer``."""
    return Explorer(model, images, tune)
