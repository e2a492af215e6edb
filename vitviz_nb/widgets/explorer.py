"""The Explorer: sliders for layer and neuron over one Visualizer, whose images are shown as they form."""

import asyncio
import atexit
import math
import sys
import threading
import time
from collections.abc import Iterator
from queue import SimpleQueue

import ipywidgets as widgets
from IPython import get_ipython

from ..models.sites import KINDS, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import to_image
from ..visualize.recipe import RECIPES, Recipe
from ..visualize.scores import reference_set
from ..visualize.top_images import top_images
from ..visualize.visualizer import Visualizer
from .elements import Picture, Status, sentence

_SIDE = 288  # px of the image on the page
_DEBOUNCE = 0.2  # s without a further change before work begins
_BETWEEN = 0.2  # s between two previews: fast steps do not wait for the page, nor the page for slow steps
_HELP = ("<b>Layer</b>: depth in the network; 0 is closest to the input. <b>Neuron</b>: its index in the layer. <b>Kind</b>: "
         "which activations of the layer. <b>Recipe</b>: settings and number of steps of the optimization. <b>Seed</b>: of the "
         "initialization and augmentations. <b>Stop</b> keeps the image as it is.")
_VERDICT = {"weak": " A weak image: many reference images activate the neuron more.",
            "dead": " A dead neuron: its activation does not vary over the reference images."}
_OPEN: set["Explorer"] = set()


class Explorer(widgets.VBox):
    """Feature visualizations of a model, chosen by sliders.

    An image of the embedded atlas is shown at once, any other while it forms; the latest change wins. ``close()``, another run of
    the cell that made it, and the end of Python stop the work and free its thread and memory.

    Args:
        images: reference images for scores and top images (see ``ImageSet``); by default Emoji World.

    Attributes:
        result: the last finished or stopped ``Rendering``, or None.

    Raises:
        VitvizError: an argument of another type; images that do not fit the model.
    """

    def __init__(self, model: VisionModel, images=None):
        kinds = find_sites(model)
        layers = next(iter(kinds.values()))
        self.model, self.result = model, None
        self._images = None if images is None else reference_set(model, images)
        self._visualizers: dict[Recipe, Visualizer] = {}
        self._request, self._stopped = 0, False
        wide = widgets.Layout(width="420px")
        slider = {"continuous_update": False, "layout": wide}
        self._kind = widgets.Dropdown(description="Kind", options=[(f"{k}: {KINDS[k]}", k) for k in kinds], layout=wide)
        self._layer = widgets.IntSlider(description="Layer", max=len(layers) - 1, value=len(layers) - 1, **slider)
        self._neuron = widgets.IntSlider(description="Neuron", max=layers[-1].units - 1, **slider)
        options = [(f"{name}: {Recipe.named(name, model).work}", name) for name in RECIPES]
        self._recipe = widgets.Dropdown(description="Recipe", options=options, layout=wide)
        self._seed = widgets.BoundedIntText(description="Seed", min=0, max=2**31 - 1, layout=widgets.Layout(width="200px"))
        self._stop = widgets.Button(description="Stop", icon="stop", layout=widgets.Layout(width="100px"))
        self._picture = Picture(width=_SIDE, height=_SIDE)
        self._scenes = Picture(layout=widgets.Layout(min_height="300px", max_width="560px"))
        self._status, self._scores = Status(), Status()
        for widget, name in ((self._picture, "picture"), (self._scenes, "scenes"), (self._status, "status"),
                             (self._scores, "scores"), (self, "explorer")):
            widget.add_class(f"vitviz-{name}")
        self._kind.observe(self._on_site, "value")
        self._layer.observe(self._on_site, "value")
        for control in (self._neuron, self._recipe, self._seed):
            control.observe(lambda change: self._start(), "value")
        self._stop.on_click(lambda button: setattr(self, "_stopped", True))
        advice = widgets.HTML(f"<div style='line-height: 1.4'><small>{_HELP}</small></div>", layout=wide)
        controls = widgets.VBox([self._kind, self._layer, self._neuron, self._recipe, widgets.HBox([self._seed, self._stop]),
                                 advice])
        tall = widgets.Layout(width="320px", min_height="380px")  # fixed, so that the page does not jump
        picture = widgets.VBox([self._picture, self._status, self._scores], layout=tall)
        super().__init__([widgets.HBox([controls, picture, self._scenes], layout=widgets.Layout(flex_flow="row wrap"))])
        self._cell, self._run = _cell_and_run()
        for other in [other for other in _OPEN if other._cell == self._cell and other._run != self._run]:
            other.close()
        _OPEN.add(self)
        self._tasks: set[asyncio.Task] = set()  # an event loop keeps only weak references to its tasks
        # One thread for all requests: torch keeps a pool of threads, and memory, for each thread that it meets. On ipywidgets 7
        # (Colab), where a thread's updates do not reach the page, slices on the kernel's event loop.
        self._requests: SimpleQueue[int | None] = SimpleQueue()
        self._worker = None
        if int(widgets.__version__.split(".")[0]) >= 8 and "google.colab" not in sys.modules:
            self._worker = threading.Thread(target=self._serve, name="explorer", daemon=True)
            self._worker.start()
        self._start()

    def close(self) -> None:
        """Stop the work, free its thread and memory, and take the Explorer off the page; ``result`` stays."""
        if self in _OPEN:
            _OPEN.remove(self)
            self._end(wait=1.0)  # another cell may hold the model; the thread ends once it has it
            self._visualizers.clear()
            for part in (*self.children, self.layout):
                _close(part)
        super().close()

    def _end(self, wait: float) -> None:
        """Stop the work at its next step, and end its thread."""
        self._request += 1
        if self._worker:
            self._requests.put(None)
            self._worker.join(wait)

    def _on_site(self, change) -> None:
        self._layer.max = len(find_sites(self.model)[self._kind.value]) - 1
        self._neuron.max = find_site(self.model, self._layer.value, self._kind.value).units - 1
        self._start()

    def _start(self) -> None:
        """Make the image the controls ask for, unless they change again at once."""
        if self not in _OPEN:
            return
        self._request += 1
        self._stopped = False
        self._say("waiting", self._request)
        if self._worker:
            self._requests.put(self._request)
            return
        try:
            task = asyncio.get_running_loop().create_task(self._run_in_slices(self._request))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        except RuntimeError:  # no event loop: a plain Python program
            list(self._work(self._request))

    def _serve(self) -> None:
        for request in iter(self._requests.get, None):
            for pause in self._work(request):  # ends at its next step once it is out of date
                time.sleep(pause)

    async def _run_in_slices(self, request: int) -> None:
        for pause in self._work(request):
            await asyncio.sleep(max(0.001, pause))  # lets the kernel handle a slider or the Stop button

    def _work(self, request: int) -> Iterator[float]:
        """One request from first to last preview, yielding pauses in s; ends early when a later one has come."""
        kind, layer, neuron, seed = self._kind.value, self._layer.value, self._neuron.value, self._seed.value
        try:
            if request != self._request:
                return
            recipe = Recipe.named(self._recipe.value, self.model)
            visualizer = self._visualizers.setdefault(recipe, Visualizer(self.model, recipe, self._images))
            yield 0 if visualizer.in_atlas(layer, kind, seed) else _DEBOUNCE
            previewed, title = -math.inf, f"{kind} {layer}, neuron {neuron}"
            if request != self._request:
                return
            for frame in visualizer.stream(layer, neuron, kind, seed, every=1):
                if request != self._request:
                    return
                stopped = self._stopped and not frame.scores
                if not (frame.finished or stopped or time.monotonic() >= previewed + _BETWEEN):
                    yield 0
                    continue
                self._picture.show(to_image(frame.pictures[0], _SIDE), f"feature visualization: {title}")
                frame = visualizer.score(frame) if stopped else frame
                if frame.scores:
                    break
                step = f"step {frame.steps[0]} of {recipe.steps}"
                self._say(f"{step}, scoring it against {visualizer.reference.name}" if frame.finished else step, request)
                previewed = time.monotonic()
                yield 0
            if request != self._request:
                return
            self.result, scores = frame, frame.scores
            done = "finished" if frame.finished else f"stopped at step {frame.steps[0]} of {recipe.steps} (unfinished)"
            self._scores.say(f"Activation {scores.activation[0]:.3g}, above that of {scores.percentile[0]:.1f} % of "
                             f"{scores.reference}; rank {scores.rank[0]} among the layer's standardized activations."
                             f"{_VERDICT.get(scores.status[0], '')}")
            note = f". {visualizer.note}" if visualizer.note else ""
            self._say(f"{done}, {self._recipe.value} recipe, seed {seed}{note}", request)
            top = top_images(self.model, layer, neuron, kind, visualizer.reference)
            if request == self._request:
                self._scenes.show(top.sheet(), top.title)
        except Exception as error:
            self._say(sentence(error), request)

    def _say(self, text: str, request: int) -> None:
        """Show the state of a request; one that is out of date shows nothing."""
        if request == self._request:
            self._status.say(f"layer {self._layer.value}, neuron {self._neuron.value}: {text}")


explore = Explorer


@atexit.register
def _end_all() -> None:
    for explorer in _OPEN:
        explorer._end(wait=0)
    for thread in threading.enumerate():  # one whose Explorer was closed may be in its last step
        if thread.name == "explorer":
            thread.join(5)  # a thread inside torch would crash Python as it ends


def _cell_and_run() -> tuple:
    """What names the cell that runs now, and its run. A front end that sends no cell id is taken to repeat a cell by its code."""
    message = getattr(get_ipython(), "get_parent", dict)()  # of Jupyter's kernel
    cell = message.get("metadata", {}).get("cellId") or message.get("content", {}).get("code") or object()
    return cell, message.get("header", {}).get("msg_id")


def _close(widget: widgets.Widget) -> None:
    """Close a widget and all that belongs to it, each of which ipywidgets keeps in memory."""
    for part in (*getattr(widget, "children", ()), *(getattr(widget, name, None) for name in ("layout", "style"))):
        if part is not None:
            _close(part)
    widget.close()
