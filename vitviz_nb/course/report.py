"""A folder to hand in: pictures, figures and tables with the author's comments, and a page that shows them all."""

import re
from base64 import b64decode
from datetime import date
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from IPython.core.formatters import DisplayFormatter
from PIL import Image

from .. import __version__
from ..datasets.preprocessing import rgb
from ..experiments.result import Result
from ..utils import files, validate
from ..utils.errors import VitvizError
from ..visualize.rendering import Rendering

_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_STYLE = ("<style>body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color:#1b1b1b;"
          "background:#fff}img{max-width:100%}</style>")


class Item(NamedTuple):
    """One item of a report: its heading, what is shown (None for words only), and the comment."""

    heading: str
    shown: Any
    text: str


class Report:
    """A report that grows item by item (``items``); each ``add`` writes its files and the page ``index.html`` anew.

    Args:
        folder: where it is written; made if missing.
        force: True to overwrite an earlier report and its files.

    Raises:
        VitvizError: a folder that cannot be written, or that holds a report already.
    """

    def __init__(self, folder: str | Path, title: str, author: str = "", force: bool = False):
        self.folder, self.title, self.author = validate.path("folder", folder), _text("title", title), _text("author", author)
        self.items, self._parts, self._force = [], [], force
        if self.page.exists() and not force:
            raise VitvizError(f"{self.folder} holds a report already; name another folder, or say force=True to begin it again.")
        self._write_page()

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def add(self, item, heading: str, text: str = "") -> "Report":
        """Add one item under a heading, with a comment; returns the report.

        Args:
            item: a ``Rendering`` (its pictures, scores and settings are kept), a ``Result`` (plotted, and its table as CSV), a
                matplotlib figure, a PIL image, or anything that shows itself as a picture in a notebook; None for words only.
            text: the comment; an empty line begins a new paragraph.
        """
        if not _text("heading", heading).strip():
            raise VitvizError("An item of a report needs a heading.")
        name = f"{len(self.items) + 1:02d}_{re.sub(r'[^a-z0-9]+', '_', heading.lower()).strip('_')[:40] or 'item'}"
        paragraphs = re.split(r"\n\s*\n", _text("text", text).strip())
        content, picture, alt, link = None, f"{name}.png", heading, ""
        if isinstance(item, Rendering):
            item.save(self.folder / name, force=self._force)
            picture, alt, link = f"{name}/sheet.png", f"Pictures of neurons: {item.title}", f"{name}/manifest.json"
        elif isinstance(item, Result):
            link, alt = f"{name}.csv", item.title
            item.save(self.folder / link, force=self._force)
            figure = item.plot().figure
            content = _png(figure)
            plt.close(figure)
        elif isinstance(item, (plt.Figure, Image.Image)):
            content = _png(item)
        elif item is None:
            picture = ""
        elif "image/png" in (shown := DisplayFormatter().format(item)[0]):  # as a notebook would show it
            content, alt = shown["image/png"], shown.get("text/plain", heading)
            content = b64decode(content) if isinstance(content, str) else content  # both are what Jupyter takes
        else:
            raise VitvizError(f"A report shows a Rendering, a Result, a matplotlib figure or an image; {type(item).__name__} is "
                              f"none of these.")
        if content:
            files.write(self.folder / picture, content, ours=lambda path: False, force=self._force)
        self._parts += [f"<h2>{escape(heading)}</h2>", f'<p><img src="{picture}" alt="{escape(alt)}"></p>' if picture else "",
                        *(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs if paragraph),
                        f'<p>Files: <a href="{link}">{link}</a></p>' if link else ""]
        self.items.append(Item(heading, item, text))
        self._write_page()
        return self

    def _write_page(self) -> None:
        title, by = escape(self.title), f"{escape(self.author)}, " if self.author else ""
        files.write(self.page, "\n".join([
            f'<!DOCTYPE html><html lang="en"><meta charset="utf-8">{_STYLE}<title>{title}</title><h1>{title}</h1>',
            f"<p>{by}{date.today():%Y-%m-%d}, vitviz_nb {__version__}</p>", *self._parts, "</html>\n"]))

    def _repr_html_(self) -> str:
        return (f"<p>Report <b>{escape(self.title)}</b>: {len(self.items)} items in {escape(str(self.folder))}; open index.html "
                f"in a browser, or hand in the folder.</p>")


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise VitvizError(f"The {name} of a report is text, got {type(value).__name__}.")
    return value


def _png(picture: plt.Figure | Image.Image) -> bytes:
    """A figure or an image, of any mode, as a PNG file."""
    content = BytesIO()
    try:
        if isinstance(picture, plt.Figure):
            picture.savefig(content, format="png", dpi=120, facecolor="white")
        else:
            (picture if picture.mode in _PNG_MODES else rgb(picture)).save(content, "PNG")
    except VitvizError:
        raise
    except (OSError, ValueError) as error:  # a file cut short, or closed; a mode without colors
        raise VitvizError(f"This {type(picture).__name__} cannot be written as PNG ({error}); give it as an RGB image.") from None
    return content.getvalue()
