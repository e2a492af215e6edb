"""Interactive figures: a function that draws, and a control for each of its arguments."""

from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ..datasets.preprocessing import rgb
from ..utils.errors import VitvizError
from ..utils.validate import scalar
from .elements import Picture, SliderNames, Status, sentence


class interactive(widgets.interactive):  # noqa: N801, the name that ipywidgets gives it
    """``ipywidgets.interactive`` for functions that return an image: drawn again when a control is released.

    If the function fails, the status line says why and the last image stays.

    Args:
        draw: from the controls' values to a PIL image, a matplotlib figure or an object with a ``sheet()``.
        controls: for each argument of ``draw`` ``(min, max)`` or ``(min, max, step)`` for a slider, which begins at the
            argument's default or at ``min``; a list or a dict of names and values for a menu.

    Attributes:
        result: what ``draw`` returned last, with ``kwargs``.

    Raises:
        VitvizError: an argument of ``draw`` without a control, or a control that it has no argument for or that is none.
    """

    def __init__(self, draw: Callable, **controls):
        allowed = "vv.interactive takes a function and for each of its arguments (min, max), (min, max, step), a list or a dict"
        if not callable(draw):
            raise VitvizError(f"{allowed}; got {type(draw).__name__}.")
        if empty := [name for name, control in controls.items() if isinstance(control, list | dict) and not control]:
            raise VitvizError(f"{allowed}; got nothing to choose from for {empty[0]}.")
        controls = {name: tuple(map(scalar, c)) if isinstance(c, tuple) else c for name, c in controls.items()}
        self._picture, self._status = Picture(layout=widgets.Layout(max_width="100%")), Status()
        self._picture.add_class("vitviz-interactive")
        try:
            super().__init__(draw, **controls)
        except Exception as error:  # of many types; those of ``draw`` end up in the status
            raise VitvizError(f"{allowed}; {error}.") from None
        if unknown := set(controls) - {control._kwarg for control in self.kwargs_widgets}:
            raise VitvizError(f"{allowed}; the function has no argument {min(unknown)!r}.")
        shown = [control for control in self.kwargs_widgets if isinstance(control, widgets.DOMWidget)]
        for control in shown:
            control.description = control.description.replace("_", " ")
            control.continuous_update = False
            control.layout.width, control.style.description_width = "420px", "initial"
        self.children = [*shown, self._status, self._picture, SliderNames()]

    @staticmethod
    def widget_from_tuple(o: tuple) -> widgets.Widget | None:
        """ipywidgets' slider, but at ``min`` instead of in the middle; None for a tuple that is no slider."""
        slider = widgets.interactive.widget_from_tuple(o)
        if slider is not None:
            slider.value = slider.min
        return slider

    def update(self, *change) -> None:
        """Draw with the controls' values; ipywidgets calls it when one of them changes."""
        self.kwargs = {control._kwarg: control.get_interact_value() for control in self.kwargs_widgets}
        values = ", ".join(f"{control._kwarg} {getattr(control, 'label', control.value)}" for control in self.kwargs_widgets)
        self._status.say(f"{values}: drawing")
        try:
            self.result = self.f(**self.kwargs)
            image = _image(self.result)
        except Exception as error:
            self._status.say(f"{values}: {sentence(error)}")
            return
        self._picture.show(image, values)
        self._picture.width = str(image.width)
        self._status.say(values)


def _image(drawn) -> Image.Image:
    if isinstance(drawn, Figure):
        drawn.canvas.draw()
        image = Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())).convert("RGB")
        plt.close(drawn)
        return image
    image = drawn.sheet() if hasattr(drawn, "sheet") else drawn
    if not isinstance(image, Image.Image):
        raise VitvizError("The function returns a PIL image, a matplotlib figure or an object whose sheet() is an image, "
                          f"got {type(image).__name__}.")
    return rgb(image)
