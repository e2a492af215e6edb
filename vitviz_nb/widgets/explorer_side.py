"""One side of the Explorer: a model's neuron chosen by controls, its image as it forms, what the scores say, its top images."""

import html
import math
import random
import time
from collections.abc import Callable, Iterator
from functools import partial

import ipywidgets as widgets
from PIL import Image

from ..datasets.image_set import ImageSet
from ..models.sites import KINDS, find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.alt_text import img, png
from ..plotting.image_grid import to_image, with_map
from ..visualize.atlas import STRONGEST
from ..visualize.recipe import RECIPES, Recipe
from ..visualize.rendering import Rendering
from ..visualize.scores import reference_set
from ..visualize.top_images import TopImages, top_images
from ..visualize.visualizer import Visualizer
from .elements import Picture, Status, sentence
from .finding import most_selective, showing, stored_image

_SIDE, _SMALL, _STORED = 232, 84, 112  # px on the page: of the image, of a top image; of what is sent of that, at most
_DEBOUNCE = 0.2  # s without a further change before work begins
_BETWEEN = 0.2  # s between two previews: fast steps do not wait for the page, nor the page for slow steps
_FIRST = 32  # reference images that choose the neuron shown first, where nothing is stored: more would keep a learner waiting


class Side(widgets.VBox):
    """The controls, image, words and top images of one neuron.

    Args:
        images: the model's reference images, or None.
        begin: does the work of a side, an iterator of pauses in s, until it is exhausted or other work of that side begins.
        letter: "A" or "B".

    Attributes:
        shown: the last finished or stopped ``Rendering`` and the ``TopImages`` of its neuron, or None for both.
    """

    def __init__(self, model: VisionModel, images: ImageSet | None,
                 begin: Callable[["Side", Iterator[float]], None], letter: str, client=None):
        kinds = find_sites(model)
        layers = next(iter(kinds.values()))
        self.model, self.shown, self._client = model, (None, None), client
        self.images, self._begin, self._letter = images, begin, letter
        self._visualizers: dict[Recipe, Visualizer] = {}
        self._request, self._stopped, self._moving, self._found = 0, False, False, ""
        slider = partial(widgets.IntSlider, continuous_update=False, **_flexible("1 1 250px"))
        self._layer = slider(description="Layer", max=len(layers) - 1, value=len(layers) - 1)
        self._neuron = slider(description="Neuron", max=layers[-1].units - 1)
        self._kind = widgets.Dropdown(description="Kind", options=[(f"{k}: {KINDS[k]}", k) for k in kinds],
                                      **_flexible("2 1 140px"))
        options = [(f"{name}: {Recipe.named(name, model).work}", name) for name in RECIPES]
        self._recipe = widgets.Dropdown(description="Recipe", options=options, **_flexible("1 1 130px"))
        self._seed = widgets.BoundedIntText(description="Seed", min=0, max=2**31 - 1, **_flexible("0 0 96px"))
        self._random, self._next, self._stop = (widgets.Button(description=name, icon=icon, layout=widgets.Layout(width=width))
                                                for name, icon, width in (("Random neuron", "random", "148px"), ("", "", "176px"),
                                                                          ("Stop", "stop", "76px")))
        self._concept = widgets.Combobox(description="Concept", placeholder="search top images", continuous_update=False,
                                         **_flexible("1 1 170px"))
        self._bar = widgets.IntProgress(layout=widgets.Layout(width="100px"))
        self._picture = Picture(width=_SIDE, height=_SIDE)
        self._status, self._scores, self._scenes = Status(layout=widgets.Layout(flex="1 1 150px")), widgets.HTML(), widgets.HTML()
        self._title = widgets.HTML(f"<b>{letter}</b>: {html.escape(model.title)}")
        for widget, name in ((self._picture, "picture"), (self._scenes, "scenes"), (self._status, "status"),
                             (self._scores, "scores"), (self._bar, "progress"), (self, "side")):
            widget.add_class(f"vitviz-{name}")
        for control in (self._kind, self._layer, self._neuron, self._recipe, self._seed):
            control.observe(self._changed, "value")
        self._concept.observe(lambda change: self._offer() or change["new"] and self.find(first=True), "value")
        self._random.on_click(lambda button: self._go(self._layer.value, self._another()))
        self._next.on_click(lambda button: self.find())
        self._stop.on_click(lambda button: setattr(self, "_stopped", True))
        self._shown = widgets.Box([self._picture, self._scores])
        self._body = widgets.Box([self._shown, self._scenes])
        super().__init__([self._title, _row(self._layer, self._neuron), _row(self._kind, self._recipe, self._seed),
                          _row(self._random, self._next, self._concept), _row(self._stop, self._bar, self._status), self._body])
        self._offer()
        self._fit()
        self.rest()
        self.arrange(False)

    def arrange(self, beside: bool) -> None:
        """Lay out the side for half of the width, beside the other, or for all of it."""
        self._most, self._title.layout.display = 4 if beside else STRONGEST, None if beside else "none"
        self._show_top()
        self.layout.flex, self.layout.width, self.layout.min_width = "1 1 50%", "auto", "0"
        self._body.layout.flex_flow = "column" if beside else "row wrap"
        self._shown.layout.flex_flow = "row wrap" if beside else "column"
        self._shown.layout.flex, self._shown.layout.min_height = (None, None) if beside else (f"0 0 {_SIDE + 8}px", "330px")
        self._scores.layout.flex = "1 1 140px" if beside else None
        self._scenes.layout.flex = None if beside else "1 1 280px"

    def follow(self, side: "Side") -> None:
        """Take what another side of the same model is set to."""
        self._moving = True
        try:
            for name in ("_kind", "_layer", "_neuron", "_recipe", "_seed"):
                getattr(self, name).value = getattr(side, name).value
        finally:
            self._moving = False

    def end(self) -> None:
        """Let the work under way end at its next step."""
        self._request += 1

    def free(self) -> None:
        """Drop what can be made again."""
        self._visualizers.clear()

    def start(self) -> None:
        """Make the image that the controls ask for, unless they change again at once."""
        self._request += 1
        self._stopped = False
        self._scores.value = ""
        self._scenes.layout.visibility = "hidden"  # those of the neuron before; hidden, they keep their place
        self._say("waiting", self._request)
        self._begin(self, self._make(self._request))

    def find(self, first: bool = False) -> None:
        """Go on to the next neuron that shows the concept, or is the next most selective of its layer; or to the ``first``."""
        self._request += 1
        self._begin(self, self._search(self._request, first))

    def rest(self) -> None:
        """Nothing is under way: there is nothing to stop, and no progress."""
        self._stop.disabled, self._bar.layout.display = True, "none"

    def _busy(self, done: int, of: int) -> None:
        self._stop.disabled, self._bar.layout.display = False, None
        self._bar.max, self._bar.value = of, done

    def _another(self) -> int:
        """A random neuron of the layer, and not this one where there are several."""
        return (self._neuron.value + random.randint(min(1, self._neuron.max), self._neuron.max)) % (self._neuron.max + 1)

    def _offer(self) -> None:
        self._next.description, self._next.icon = (("Next match", "search") if self._concept.value else
                                                   ("Next most selective", "arrow-right"))

    def _changed(self, change) -> None:
        self._fit()
        if not self._moving:
            self._found = ""
            self.start()

    def _fit(self) -> None:
        """Limit the sliders to what the kind has, without one where it has one."""
        last = len(find_sites(self.model)[self._kind.value]) - 1
        self._layer.max, self._layer.layout.display = last, None if last else "none"
        self._neuron.max = find_site(self.model, self._layer.value, self._kind.value).units - 1

    def _go(self, layer: int, neuron: int, found: str = "") -> None:
        """Move the sliders to a neuron, which is one request, and not one for each."""
        self._moving = True
        try:
            self._layer.value = layer
            self._neuron.value = neuron
        finally:
            self._moving = False
        self._found = found
        self.start()

    def _search(self, request: int, first: bool) -> Iterator[float]:
        try:
            if request != self._request:
                return
            concept = self._concept.value
            self._say(f"searching {concept}" if concept else "comparing how selective the layer's neurons are", request)
            yield 0
            site = find_site(self.model, self._layer.value, self._kind.value)
            reference = reference_set(self.model, self.images)
            self._concept.options = tuple(reference.classes)
            if concept:
                found = showing(self.model, site, reference, concept)
            else:
                found = most_selective(self.model, site, reference, _FIRST if first else None)
            here = [i for i, one in enumerate(found) if (one.layer, one.neuron) == (site.layer, self._neuron.value)]
            after = found[0 if first or not here else (here[0] + 1) % len(found)]
            if request == self._request:
                self._go(after.layer, after.neuron, after.why)
        except Exception as error:
            self._say(sentence(error), request)
            self.rest()

    def _make(self, request: int) -> Iterator[float]:
        """One request from first to last preview, yielding pauses in s; ends early when a later one has come."""
        kind, layer, neuron, seed = self._kind.value, self._layer.value, self._neuron.value, self._seed.value
        try:
            if request != self._request:
                return
            recipe = Recipe.named(self._recipe.value, self.model)
            visualizer = self._visualizers.setdefault(recipe, Visualizer(self.model, recipe, self.images, client=self._client))
            site = find_site(self.model, layer, kind)
            stored = stored_image(self.model, site, neuron, visualizer.reference, recipe, seed)
            yield 0 if stored else _DEBOUNCE
            previewed, title = -math.inf, f"{kind} {layer}, neuron {neuron}"
            if request != self._request:
                return
            for frame in stored[:1] if stored else visualizer.stream(layer, neuron, kind, seed, every=1):
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
                self._busy(frame.steps[0], recipe.steps)
                step = f"step {frame.steps[0]} of {recipe.steps}"
                self._say(f"{step}, scoring it against {visualizer.reference.name}" if frame.finished else step, request)
                previewed = time.monotonic()
                yield 0
            if request != self._request:
                return
            top = stored[1] if stored else top_images(self.model, layer, neuron, kind, visualizer.reference, client=self._client)
            note = f". {visualizer.note}" if visualizer.note else ""
            self._finish(request, frame, top, f"{self._recipe.value} recipe, seed {seed}{note}")
        except Exception as error:
            self._say(sentence(error), request)
        finally:
            if request == self._request:
                self.rest()

    def _finish(self, request: int, frame: Rendering, top: TopImages, how: str) -> None:
        if request != self._request:
            return
        self.shown = frame, top
        self._scores.value = _words(frame, self._called(frame), self._neuron.max + 1)
        self._show_top()
        done = "finished" if frame.finished else f"stopped at step {frame.steps[0]} of {frame.recipe.steps} (unfinished)"
        self._say(f"{done}, {how}" + (f"; {self._found}" if self._found else ""), request)

    def _show_top(self) -> None:
        frame, top = self.shown
        if top:
            self._scenes.value = _figures(top, self._most, frame.scores.reference)
            self._scenes.layout.visibility = "visible"

    def _called(self, frame: Rendering) -> str:
        return f"neuron {frame.neurons[0]}" + (f" ({frame.labels[0]})" if frame.labels else "")

    def _say(self, text: str, request: int) -> None:
        """Show the state of a request; one that is out of date shows nothing."""
        if request == self._request:
            self._status.say(f"layer {self._layer.value}, neuron {self._neuron.value}: {text}")


def _flexible(flex: str) -> dict:
    """Settings of a control that shares its row's width."""
    return {"layout": widgets.Layout(flex=flex, width="auto", min_width="0"), "style": {"description_width": "initial"}}


def _row(*controls: widgets.Widget) -> widgets.Box:
    return widgets.Box(controls, layout=widgets.Layout(flex_flow="row wrap", align_items="center"))


def _words(frame: Rendering, neuron: str, units: int) -> str:
    """What the scores of an image say, in one sentence, and the scores, as HTML."""
    scores = frame.scores
    [activation], [percentile], [rank], [status], reference = *(getattr(scores, name) for name in (
        "activation", "percentile", "rank", "status")), scores.reference
    if status == "dead":
        says = f"Dead: neither {reference} nor this image change the activation of {neuron}, so the image says nothing."
    elif status == "weak":
        says = (f"Weak: {100 - percentile:.1f} % of {reference} activate {neuron} at least as much as this image does; its top "
                f"images say more about it.")
    else:
        most = "all" if percentile == 100 else f"{min(percentile, 99.9):.1f} %"
        says = f"This image activates {neuron} more than {most} of {reference} do, so it shows something that it responds to."
    numbers = f"Activation {activation:.3g}, percentile {percentile:.1f}, rank {rank} of {units} neurons"
    return (f"<div style='line-height: 1.35'>{html.escape(says)}<br><small>{html.escape(numbers)}</small></div>")


def _figures(top: TopImages, most: int, reference: str) -> str:
    """The top images, each with what it shows and its activation map, as HTML, whose images have their text in any front end."""
    figures, shows = [], max(top.names, key=top.names.count)
    for i, said in enumerate(top.names[:most]):
        name, images = html.escape(said), [_img(to_image(top.images[i]), f"top image {i + 1}: {said}")]
        if top.maps is not None:
            row, column = divmod(int(top.maps[i].argmax()), top.maps.shape[-1])
            images.append(_img(to_image(with_map(top.images[i], top.maps[i])),
                               f"activation map, largest at row {row + 1}, column {column + 1}"))
        figures.append(f"<figure style='margin: 0; width: {_SMALL}px'>{''.join(images)}<figcaption title='{name}' style='"
                       f"font-size: 12px; line-height: 1.3; max-height: 3.9em; overflow: hidden; overflow-wrap: anywhere'>{name}"
                       f"<br>{top.activations[i]:.3g}</figcaption></figure>")
    several = f"; {top.names.count(shows)} of {len(top.names)} show {shows}" if top.names.count(shows) > 1 else ""
    maps = " Yellow: where it is most active." if top.maps is not None else ""
    says = html.escape(f"What activates it most among {reference}{several}.{maps}")
    return (f"<div style='line-height: 1.35'>{says}</div><div style='display: flex; flex-wrap: wrap; gap: 6px; margin-top: 4px'>"
            f"{''.join(figures)}</div>")


def _img(image: Image.Image, alternative: str) -> str:
    """An image as an element of HTML."""
    image.thumbnail((_STORED, _STORED))
    return img(png(image), alternative, attributes=f"width={_SMALL} height={_SMALL} style='display: block; margin-bottom: 2px'")
