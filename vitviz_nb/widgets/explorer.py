"""The Explorer: sliders for layer and neuron, whose images are shown as they form; on request two of them, A beside B."""

import asyncio
import atexit
import re
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from queue import SimpleQueue

import ipywidgets as widgets
from IPython import get_ipython

from ..datasets.image_set import ImageSet
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..plotting.alt_text import png
from ..plotting.image_grid import stack
from ..utils import files
from ..utils.errors import VitvizError
from ..visualize.rendering import Rendering
from ..visualize.scores import reference_set
from ..visualize.shared import check_client
from ..visualize.top_images import TopImages
from .elements import SliderNames, Status, sentence
from .explorer_side import Side

_HELP = """<details style='line-height: 1.4'><summary>What the controls mean</summary><b>Layer</b>: depth in the network; 0 is
closest to the input. <b>Neuron</b>: its index in the layer. <b>Kind</b>: which activations of the layer. <b>Recipe</b>: settings
and number of steps of the optimization. <b>Seed</b>: of the initialization and augmentations. <b>Next most selective</b>: the
neuron after this one, when a layer's are sorted by how far they distinguish some images from all others. <b>Concept</b>: finds
the neurons whose top images show it; a part of its name and Enter will do. <b>Stop</b> keeps the image as it is.
<b>Compare</b> shows a second neuron, layer, recipe or model beside the first.</details>"""
_OPEN: set["Explorer"] = set()


class Explorer(widgets.VBox):
    """Feature visualizations of a model, chosen by controls; it begins with the most selective neuron of the last layer.

    An image of the embedded atlas is shown at once, any other while it forms; the latest change wins. ``close()``, another run of
    the cell that made it, and the end of Python stop the work and free its thread and memory.

    Args:
        images: reference images for scores and top images (see ``ImageSet``); by default Emoji World.
        compare: a second model, shown beside the first as B; by default B is of the same model.
        client: from ``vv.connect``, whose workers make the images.

    Attributes:
        result, other: the last finished or stopped ``Rendering`` of A and of B, or None.
        top: the ``TopImages`` beside ``result``.

    Raises:
        VitvizError: an argument of another type; images that do not fit the model.
    """

    def __init__(self, model: VisionModel, images=None, compare: VisionModel | None = None, client=None):
        self._models, self._client = (model, model if compare is None else compare), check_client(client)
        for each in self._models:
            find_sites(each)  # refuses what is no model
        self._images = [None if images is None else reference_set(model, images)] * 2
        if images is not None and compare is not None:
            self._images[1] = ImageSet(compare, self._images[0])
        self._both = widgets.ToggleButton(description="Compare A | B", icon="columns", layout=widgets.Layout(width="136px"))
        self._save = widgets.Button(description="Save as PNG", icon="download", layout=widgets.Layout(width="128px"))
        self._saved, self._row = Status(), widgets.Box()
        self._saved.add_class("vitviz-saved")
        self.add_class("vitviz-explorer")
        tools = widgets.Box([self._both, self._save, self._saved], layout=widgets.Layout(flex_flow="row wrap"))
        super().__init__([self._row, tools, widgets.HTML(_HELP), SliderNames()])
        self._cell, self._run = _cell_and_run()
        for other in [other for other in _OPEN if other._cell == self._cell and other._run != self._run]:
            other.close()
        _OPEN.add(self)
        self._tasks: set[asyncio.Task] = set()  # an event loop keeps only weak references to its tasks
        # One thread for all requests: torch keeps a pool of threads, and memory, for each thread that it meets. On ipywidgets 7
        # (Colab), where a thread's updates do not reach the page, slices on the kernel's event loop.
        self._requests: SimpleQueue[tuple[Side, Iterator[float]] | None] = SimpleQueue()
        self._worker = None
        if int(widgets.__version__.split(".")[0]) >= 8 and "google.colab" not in sys.modules:
            self._worker = threading.Thread(target=self._serve, name="explorer", daemon=True)
            self._worker.start()
        self._sides = [Side(model, self._images[0], self._begin, "A", client)]
        self._row.children = self._sides
        self._sides[0].find(first=True)
        self._both.observe(self._toggle, "value")
        self._both.value = compare is not None
        self._save.on_click(lambda button: self.save())

    @property
    def result(self) -> Rendering | None:
        return self._sides[0].shown[0]

    @property
    def top(self) -> TopImages | None:
        return self._sides[0].shown[1]

    @property
    def other(self) -> Rendering | None:
        return self._sides[1].shown[0] if len(self._sides) > 1 else None

    def save(self) -> Path | None:
        """Write what is shown, with captions, as a PNG file into the folder of the notebook; says where, and returns its path."""
        shown = [(side.model.name, *side.shown) for side in self._sides if side.shown[0]]
        try:
            if not shown:
                raise VitvizError("There is no image to save yet; wait until one is finished, or stop it.")
            names = [f"{name}_{frame.kind}{frame.layer}_{frame.neurons[0]}" for name, frame, _ in shown]
            name = re.sub(r"[^\w.-]+", "-", "_and_".join(names))[:150]
            path = next(path for i in count(1) if not (path := Path.cwd() / f"{name}{f'_{i}' * (i > 1)}.png").exists())
            files.write(path, png(stack([sheet for _, frame, top in shown for sheet in (frame.sheet(), top.sheet(6))])))
        except Exception as error:
            self._saved.say(sentence(error))
            return None
        self._saved.say(f"Saved as {path.name} in {path.parent}, where this notebook runs.")
        return path

    def close(self) -> None:
        """Stop the work, free its thread and memory, and take the Explorer off the page; ``result`` stays."""
        if self in _OPEN:
            _OPEN.remove(self)
            self._end(wait=1.0)  # another cell may hold the model; the thread ends once it has it
            for side in self._sides:
                side.free()
            for part in (*self.children, self.layout):
                _close(part)
        super().close()

    def _end(self, wait: float) -> None:
        """Stop the work at its next step, and end its thread."""
        for side in self._sides:
            side.end()
        if self._worker:
            self._requests.put(None)
            self._worker.join(wait)

    def _toggle(self, change) -> None:
        """Open B beside A, at the neuron that is the next most selective, or close it."""
        if self._both.value:
            first, second = self._sides[0], Side(self._models[1], self._images[1], self._begin, "B", self._client)
            self._sides = [first, second]
            if self._models[0] is self._models[1]:
                second.follow(first)
            second.find(first=self._models[0] is not self._models[1])
        else:
            closed = self._sides.pop()
            closed.end()
            closed.free()
        for side in self._sides:
            side.arrange(beside=self._both.value)
        self._row.children = self._sides
        if not self._both.value:
            _close(closed)

    def _begin(self, side: Side, work: Iterator[float]) -> None:
        """Do a side's work in the thread, or where there is none in slices on the event loop, or else at once."""
        if self not in _OPEN:
            return
        if self._worker:
            self._requests.put((side, work))
            return
        try:
            task = asyncio.get_running_loop().create_task(_in_slices(work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        except RuntimeError:  # no event loop: a plain Python program
            list(work)

    def _serve(self) -> None:
        """Do the work of both sides in turn, a step of each; the latest of a side ends what it did before."""
        works: dict[Side, Iterator[float]] = {}
        while True:
            while not works or not self._requests.empty():
                request = self._requests.get()
                if request is None:
                    return
                works[request[0]] = request[1]
            for side, work in list(works.items()):
                pause = next(work, None)
                if pause is None:
                    del works[side]
                else:
                    time.sleep(pause)


async def _in_slices(work: Iterator[float]) -> None:
    for pause in work:
        await asyncio.sleep(max(0.001, pause))  # lets the kernel handle a slider or the Stop button


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
