"""A slider draws what it says, and an error leaves the last picture on the page."""

from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.widgets.interactive import Slide


def shown(slide: Slide) -> Image.Image:
    return Image.open(BytesIO(slide._picture.value)).convert("RGB")


def test_it_draws_the_first_value_at_once_and_each_value_that_a_slider_is_let_go_at():
    slide = Slide(lambda red: Image.new("RGB", (4, 4), (red, 0, 0)), red=(10, 200))
    assert shown(slide).getpixel((0, 0)) == (10, 0, 0)
    slide._controls["red"].value = 77
    assert shown(slide).getpixel((0, 0)) == (77, 0, 0) and slide.values == {"red": 77}
    assert slide.result.getpixel((0, 0)) == (77, 0, 0)
    assert not slide._controls["red"].continuous_update  # a slider dragged hard draws once


@pytest.mark.parametrize(("allowed", "values"), [((0.0, 1.0, 0.25), 0.25), ([3, 5], 5), ({"three": 3, "five": 5}, 5)])
def test_numbers_get_sliders_and_lists_get_menus(allowed, values):
    slide = Slide(lambda size: Image.new("RGB", (round(8 * size) + 1, 4)), size=allowed)
    slide._controls["size"].value = values
    assert shown(slide).width == round(8 * values) + 1


def test_a_figure_is_drawn_and_closed():
    def draw(height):
        figure, axis = plt.subplots(figsize=(2, height))
        axis.plot([1, 2])
        return figure

    before = plt.get_fignums()  # those of other tests
    slide = Slide(draw, height=(1, 3))
    slide._controls["height"].value = 2
    assert shown(slide).size == (200, 200) and np.asarray(shown(slide)).std() > 0
    assert plt.get_fignums() == before


@pytest.mark.parametrize(("error", "said"), [
    (VitvizError("no such <layer>"), "error: no such &lt;layer&gt;"), (ZeroDivisionError("oh"), "error: ZeroDivisionError: oh")])
def test_an_error_is_said_and_the_last_picture_stays(error, said):
    def draw(layer):
        if layer == 1:
            raise error
        return Image.new("RGB", (layer + 2, 4))

    slide = Slide(draw, layer=(0, 2))
    slide._controls["layer"].value = 1
    assert said in slide._status.value and shown(slide).width == 2
    slide._controls["layer"].value = 2
    assert "error" not in slide._status.value and shown(slide).width == 4
