"""An interactive figure draws what its controls say, and an error leaves the last image on the page."""

import html
from io import BytesIO

import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

import vitviz_nb as vv


def control(figure: vv.interactive, description: str) -> widgets.Widget:
    return next(child for child in figure.children if child.description == description)


def shown(figure: vv.interactive) -> Image.Image:
    (picture,) = (child for child in figure.children if isinstance(child, widgets.Image))
    return Image.open(BytesIO(picture.value)).convert("RGB")


def status(figure: vv.interactive) -> str:
    return next(child.value for child in figure.children if isinstance(child, widgets.HTML))


def test_it_draws_at_once_and_whenever_a_control_is_released():
    figure = vv.interactive(lambda red: Image.new("RGB", (4, 4), (red, 0, 0)), red=(10, 200))
    assert shown(figure).getpixel((0, 0)) == (10, 0, 0)  # a slider begins at its minimum
    control(figure, "red").value = 77
    assert shown(figure).getpixel((0, 0)) == (77, 0, 0) == figure.result.getpixel((0, 0)) and figure.kwargs == {"red": 77}
    assert not control(figure, "red").continuous_update  # dragging draws once


@pytest.mark.parametrize(("allowed", "value"), [
    ((0.0, 1.0, 0.25), 0.25), ([3, 5], 5), ({"three": 3, "five": 5}, 5), ((np.int64(1), np.int64(5)), 4)])
def test_controls_are_the_abbreviations_of_ipywidgets(allowed, value):
    figure = vv.interactive(lambda its_size: Image.new("RGB", (round(8 * its_size) + 1, 4)), its_size=allowed)
    control(figure, "its size").value = value
    assert shown(figure).width == round(8 * value) + 1


def test_a_slider_begins_at_the_arguments_default():
    assert vv.interactive(lambda size=5: Image.new("RGB", (size, 4)), size=(1, 9)).kwargs == {"size": 5}


def test_a_figure_is_drawn_and_closed_and_a_sheet_is_drawn():
    def draw(height):
        figure, axis = plt.subplots(figsize=(2, height))
        axis.plot([1, 2])
        return figure

    before = plt.get_fignums()  # those of other tests
    figure = vv.interactive(draw, height=(1, 3))
    control(figure, "height").value = 2
    assert shown(figure).size == (200, 200) and np.asarray(shown(figure)).std() > 0
    assert plt.get_fignums() == before

    class Sheet:
        def sheet(self):
            return Image.new("RGB", (7, 3))

    assert shown(vv.interactive(lambda n: Sheet(), n=[1])).size == (7, 3)


@pytest.mark.parametrize(("error", "said"), [
    (vv.VitvizError("no such <layer>"), "error: no such &lt;layer&gt;<"),
    (ZeroDivisionError("oh\nat line 3 of"), "error: ZeroDivisionError: oh<")])
def test_an_error_is_one_escaped_sentence_and_the_last_image_stays(error, said):
    def draw(layer):
        if layer == 1:
            raise error
        return Image.new("RGB", (layer + 2, 4))

    figure = vv.interactive(draw, layer=(0, 2))
    control(figure, "layer").value = 1
    assert said in status(figure) and "role='status'" in status(figure) and shown(figure).width == 2
    control(figure, "layer").value = 2
    assert "error" not in status(figure) and shown(figure).width == 4


def test_values_are_escaped_and_the_image_has_a_text_alternative():
    figure = vv.interactive(lambda folder: Image.new("RGB", (4, 4)), folder=["<img src=x onerror=alert(1)>"])
    assert "<img" not in status(figure) and "folder &lt;img" in status(figure)
    (picture,) = (child for child in figure.children if isinstance(child, widgets.Image))
    assert picture.get_state()["tooltip"] == "folder <img src=x onerror=alert(1)>"  # an attribute, set as text


@pytest.mark.parametrize(("mode", "size", "said"), [("CMYK", (4, 4), ""), ("F", (4, 4), "of mode"),
                                                    ("RGB", (0, 0), "0 x 0 px")])
def test_an_image_of_any_mode_is_shown_or_said_to_have_no_range_or_pixels(mode, size, said):
    figure = vv.interactive(lambda x: Image.new(mode, size), x=(0, 1))
    assert said in status(figure) and ("error" in status(figure)) == bool(said)
    assert shown(figure).size == ((2, 2) if said else size)


def test_a_function_that_returns_no_image_is_said_in_the_status():
    assert "a PIL image, a matplotlib figure" in html.unescape(status(vv.interactive(lambda n: 3, n=[1])))


@pytest.mark.parametrize(("draw", "controls", "problem"), [
    (3, {}, "takes a function .* got int"),
    (lambda x: None, {}, "abbreviation for argument: 'x'"),
    (lambda x: None, {"x": object()}, "cannot be transformed"),
    (lambda x: None, {"x": []}, "nothing to choose from for x"),
    (lambda x: None, {"x": (5, 1)}, "min=5"),
    (lambda x: None, {"x": (1, 2), "y": 3}, "no argument 'y'"),
    (lambda x: None, {"x": (0, 10**400)}, "too large"),
    (lambda x: None, {"x": (0, 1, 0)}, "step"),
])
def test_what_is_no_function_or_no_control_is_refused(draw, controls, problem):
    with pytest.raises(vv.VitvizError, match=problem):
        vv.interactive(draw, **controls)
