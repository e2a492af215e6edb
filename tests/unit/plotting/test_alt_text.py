"""Alternative text of what notebooks display; that it reaches readers is tested in the browser."""

import base64
import io
import re
from html import unescape
from types import SimpleNamespace

import IPython
import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.formatters import DisplayFormatter
from matplotlib_inline.config import InlineBackend
from PIL import Image

from vitviz_nb.plotting.alt_text import alt_of_figure, bundle, describe_outputs, img, png
from vitviz_nb.plotting.image_grid import Tile, contact_sheet, stack


def test_an_element_holds_the_text_and_the_file_it_was_given():
    text, content = "\"a\" <b> & 'c'", png(Image.new("RGB", (3, 2), "red"))
    for element in (img(content, text), img(content, text, attributes="width=9")):
        found = re.fullmatch(r'<img alt="([^"]*)" src="data:image/(\w+);base64,([^"]+)"(?: width=9)?>', element)
        alt, kind, source = found.groups()
        assert unescape(alt) == text and "<" not in alt and kind == "png"
        assert Image.open(io.BytesIO(base64.b64decode(source))).getpixel((2, 1)) == (255, 0, 0)


def test_a_bundle_shows_the_same_image_in_every_way():
    data = bundle(Image.new("RGB", (3, 2)), "Two scenes")
    assert data["text/plain"] == "Two scenes"
    assert data["text/html"] == img(data["image/png"], "Two scenes")


def test_sheets_are_described_by_their_titles():
    first, second = (contact_sheet([Tile(torch.zeros(3, 8, 8), ["x"])], title) for title in ("Colors", "Edges"))
    assert first.info["alt"] == "Colors"
    assert stack([first, Image.new("RGB", (2, 2)), second]).info["alt"] == "Colors; Edges"


@pytest.mark.parametrize(("titles", "suptitle", "said"), [
    (["Left", "Right"], "Both", "Figure: Both; Left; Right"),
    (["Same", "Same"], "", "Figure: Same"),
    (["Of two\nlines", ""], "", "Figure: Of two lines; accuracy by layer"),
    (["", ""], "", "Figure: accuracy by layer"),
])
def test_figures_are_described_by_titles_or_else_by_what_the_axes_show(titles, suptitle, said):
    figure, axes = plt.subplots(1, 2)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel="layer", ylabel="accuracy")
    figure.suptitle(suptitle)
    assert alt_of_figure(figure) == said
    plt.close(figure)


def test_a_figure_that_says_nothing_is_still_a_figure():
    assert alt_of_figure(plt.figure()) == "Figure: no titles"
    plt.close()


@pytest.fixture
def shown(monkeypatch):
    """What a kernel would display of an object, by MIME type, where matplotlib's backend has these settings."""
    shell = SimpleNamespace(kernel=True, display_formatter=DisplayFormatter(), configurables=[])
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    describe_outputs()

    def show(item, **settings):
        shell.configurables[:] = [InlineBackend(**settings)] if settings else []
        return shell.display_formatter.format(item)[0]

    return show


def test_a_kernel_shows_images_and_figures_with_their_titles(shown):
    figure, axis = plt.subplots()
    axis.set_title("Accuracy by layer")
    assert shown(figure)["text/html"] == img(shown(figure)["image/png"], "Figure: Accuracy by layer")
    assert '<img alt="Colors"' in shown(contact_sheet([Tile(torch.zeros(3, 8, 8), [])], "Colors"))["text/html"]
    assert '<img alt="3 x 2 px"' in shown(Image.new("RGB", (3, 2)))["text/html"]
    plt.close(figure)


def test_images_that_png_does_not_hold_and_figures_without_axes_are_shown_as_before(shown, capsys):
    assert "text/html" not in shown(Image.new("F", (3, 2)))
    assert "text/html" not in shown(plt.figure())
    assert capsys.readouterr().err == ""  # where a formatter that fails prints its traceback
    plt.close()


def test_a_user_who_wants_figures_in_another_format_or_size_gets_them(shown):
    figure, _ = plt.subplots()
    assert "text/html" not in shown(figure, figure_formats={"svg"})
    assert Image.open(io.BytesIO(shown(figure, print_figure_kwargs={"dpi": 20})["image/png"])).width < 200
    plt.close(figure)
