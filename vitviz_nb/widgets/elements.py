"""What the widgets share: images with a text alternative, a status line, and errors in one sentence."""

import html

import anywidget
import ipywidgets as widgets
from PIL import Image
from traitlets import Unicode

from ..plotting.alt_text import png
from ..utils.errors import VitvizError


class Picture(widgets.Image):
    """A PNG image; its text alternative is the image's ``title`` on the page (ipywidgets 8; version 7 has no place for one)."""

    description = Unicode("").tag(sync=True)  # without it, ipywidgets 8 fails on an Image that has a tooltip

    def __init__(self, **settings):
        super().__init__(format="png", **settings)
        self.show(Image.new("RGB", (2, 2), "#dddddd"), "no image yet")

    def show(self, image: Image.Image, alternative: str) -> None:
        self.value, self.tooltip = png(image), alternative


class Status(widgets.HTML):
    """A line of plain text that screen readers announce when it changes."""

    def say(self, text: str) -> None:
        self.value = f"<div role='status' style='line-height: 1.4'>{html.escape(text)}</div>"


class SliderNames(anywidget.AnyWidget):
    """Shows nothing; gives the sliders in the box around it their descriptions as names, which ipywidgets 8 leaves out."""

    _esm = """
    function render({ el }) {
      let open = true;
      const observer = new MutationObserver(() => name(el.parentElement));
      const name = (box) => {
        for (const handle of box?.querySelectorAll(".noUi-handle") ?? [])
          handle.ariaLabel = handle.closest(".jupyter-widgets")?.querySelector(".widget-label")?.textContent ?? "";
      };
      const begin = () => {
        if (!open) return;
        if (!el.parentElement) return requestAnimationFrame(begin);  // not on the page yet
        name(el.parentElement);
        observer.observe(el.parentElement, { childList: true, subtree: true });
      };
      begin();
      return () => { open = false; observer.disconnect(); };
    }
    export default { render };
    """


def sentence(error: Exception) -> str:
    """An error in one line, for a status: a kernel shows no traceback of what fails in a callback or a thread."""
    text = next(iter(str(error).splitlines()), "")
    return f"error: {text}" if isinstance(error, VitvizError) else f"error: {type(error).__name__}: {text}"
