"""Sliders over anything that draws: one function, a control for each of its arguments, one picture."""

import html
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..plotting.image_grid import png
from ..utils.errors import VitvizError


class Slide(widgets.VBox):
    """Shows ``draw(**values)`` and draws anew when a control is let go.

    Args:
        draw: from the controls' values to a PIL image, a matplotlib figure, or anything with a ``sheet()`` that is one.
        controls: for each argument of ``draw`` what it may be: ``(least, most)`` or ``(least, most, step)`` for numbers, a list
            of values or a dict of names and values for a menu.

    Attributes:
        result: what ``draw`` returned last.
        values: what it was called with.
    """

    def __init__(self, draw: Callable, **controls):
        self._draw, self.result, self.values = draw, None, {}
        self._controls = {name: _control(name, allowed) for name, allowed in controls.items()}
        self._picture, self._status = widgets.Image(format="png", layout=widgets.Layout(max_width="100%")), widgets.HTML()
        self._picture.add_class("vitviz-slide")
        for control in self._controls.values():
            control.observe(lambda change: self._redraw(), "value")
        super().__init__([*self._controls.values(), self._status, self._picture])
        self._redraw()

    def _redraw(self) -> None:
        self.values = {name: control.value for name, control in self._controls.items()}
        self._say("drawing")
        try:
            self.result = self._draw(**self.values)
            image = _image(self.result)
        except VitvizError as error:  # the picture before it stays
            self._say(f"error: {error}")
            return
        except Exception as error:  # a callback's error would be lost: show it where the learner looks
            self._say(f"error: {type(error).__name__}: {error}")
            return
        self._picture.value = png(image)
        self._picture.width = str(image.width)
        self._say("")

    def _say(self, text: str) -> None:
        values = ", ".join(f"{name} {value}" for name, value in self.values.items())
        self._status.value = f"<span role='status'>{html.escape(f'{values}: {text}' if text else values)}</span>"


def _control(name: str, allowed) -> widgets.Widget:
    label = name.replace("_", " ")
    if isinstance(allowed, tuple):
        kind = widgets.FloatSlider if any(isinstance(value, float) for value in allowed) else widgets.IntSlider
        step = {"step": allowed[2]} if len(allowed) == 3 else {}
        return kind(value=allowed[0], min=allowed[0], max=allowed[1], description=label, continuous_update=False, **step,
                    layout=widgets.Layout(width="420px"), style={"description_width": "initial"})
    options = list(allowed.items()) if isinstance(allowed, dict) else list(allowed)
    return widgets.Dropdown(options=options, description=label, style={"description_width": "initial"})


def _image(drawn) -> Image.Image:
    if isinstance(drawn, Figure):
        drawn.canvas.draw()
        image = Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())).convert("RGB")
        plt.close(drawn)
        return image
    return drawn if isinstance(drawn, Image.Image) else drawn.sheet()
