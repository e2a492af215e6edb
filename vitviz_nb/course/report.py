"""A folder to hand in: pictures, figures and tables with what was said of them, and a page that shows them all."""

import html
import re
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
from PIL import Image

from .. import __version__
from ..experiments.result import Result
from ..utils.errors import VitvizError
from ..visualize.rendering import Rendering


class Item(NamedTuple):
    """What was added to a report: under which heading, what is shown (None for words alone), what was said of it."""

    heading: str
    shown: Any
    text: str


class Report:
    """A report that grows item by item; each ``add`` writes its files and the page ``index.html`` anew.

    Args:
        folder: where it is written; made if missing. One that already holds a report is begun again only with ``replace``.
        title: the page's heading.
        author: who hands it in.
        replace: True to begin a report again that is already in the folder. Other files there are left alone.

    Attributes:
        items: what was added, in order.

    Raises:
        VitvizError: a folder that cannot be written, or that holds a report already.
    """

    def __init__(self, folder: str | Path, title: str, author: str = "", replace: bool = False):
        self.folder, self.title, self.author = Path(folder).expanduser(), title, author
        self.items, self._parts = [], []
        if (self.page).exists() and not replace:
            raise VitvizError(f"{self.folder} holds a report already; name another folder, or say replace=True.")
        self._write(self.page, self._html().encode())

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    def add(self, item, heading: str, text: str = "") -> "Report":
        """Add one item under a heading, with what you say of it; returns the report.

        Args:
            item: a ``Rendering`` (its pictures, scores and settings are kept), a ``Finding`` (drawn, and its table as CSV), a
                matplotlib figure, a PIL image, or anything that shows itself as a picture in a notebook; None for words alone.
        """
        if not heading.strip():
            raise VitvizError("An item of a report needs a heading.")
        name = f"{len(self._parts) + 1:02d}_{re.sub(r'[^a-z0-9]+', '_', heading.lower()).strip('_')[:40] or 'item'}"
        shown, alt, links = None, heading, []
        if isinstance(item, Rendering):
            item.save(self.folder / name)
            shown, alt, links = f"{name}/sheet.png", f"Pictures of neurons: {item.title}", [f"{name}/manifest.json"]
        elif isinstance(item, Result):
            item.save(self.folder / f"{name}.csv")
            figure = item.plot().figure
            self._figure(figure, f"{name}.png")
            plt.close(figure)
            shown, alt, links = f"{name}.png", item.title, [f"{name}.csv"]
        elif isinstance(item, plt.Figure):
            self._figure(item, f"{name}.png")
            shown = f"{name}.png"
        elif isinstance(item, Image.Image):
            self._saved(lambda path: item.save(path), f"{name}.png")
            shown = f"{name}.png"
        elif hasattr(item, "_repr_mimebundle_") and "image/png" in (found := item._repr_mimebundle_()[0]):
            self._write(self.folder / f"{name}.png", found["image/png"])
            shown, alt = f"{name}.png", found.get("text/plain", heading)
        elif item is not None:
            raise VitvizError(f"A report shows a Rendering, a Finding, a matplotlib figure or an image; {type(item).__name__} is "
                              f"none of these.")
        said = "".join(f"<p>{html.escape(part)}</p>" for part in re.split(r"\n\s*\n", text.strip()) if part)
        picture = f'<p><img src="{shown}" alt="{html.escape(alt)}"></p>' if shown else ""
        files = "".join(f' <a href="{link}">{link}</a>' for link in links)
        self._parts.append(f"<h2>{html.escape(heading)}</h2>{picture}{said}" + (f"<p>Files:{files}</p>" if files else ""))
        self.items.append(Item(heading, item, text))
        self._write(self.page, self._html().encode())
        return self

    def _html(self) -> str:
        by = f"{html.escape(self.author)}, " if self.author else ""
        style = ("body{max-width:60rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 system-ui,sans-serif;color:#1b1b1b;"
                 "background:#fff}img{max-width:100%}")
        return (f'<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>{html.escape(self.title)}</title>'
                f"<style>{style}</style><h1>{html.escape(self.title)}</h1>"
                f"<p>{by}{date.today():%Y-%m-%d}, vitviz_nb {__version__}</p>{''.join(self._parts)}</html>\n")

    def _figure(self, figure: plt.Figure, name: str) -> None:
        self._saved(lambda path: figure.savefig(path, dpi=120, facecolor="white"), name)

    def _write(self, path: Path, content: bytes) -> None:
        self._saved(lambda path: path.write_bytes(content), path.name)

    def _saved(self, save, name: str) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save(self.folder / name)
        except OSError as error:
            raise VitvizError(f"The report cannot be written to {self.folder} ({error.strerror}); name a folder you may write "
                              f"to.") from None

    def _repr_html_(self) -> str:
        return (f"<p>Report <b>{html.escape(self.title)}</b>: {len(self._parts)} items in {html.escape(str(self.folder))}; open "
                f"index.html in a browser, or hand in the folder.</p>")
