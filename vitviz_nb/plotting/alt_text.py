"""Images as HTML with alternative text, which JupyterLab (4.6) and nbconvert drop from images that are outputs by themselves
(jupyter/enhancement-proposals#120)."""

import sys
from base64 import b64encode
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def img(content: bytes, alt: str, kind: str = "png", attributes: str = "") -> str:
    """The content of a PNG (or JPEG) file as an element of HTML, with further ``attributes`` as HTML writes them."""
    source = f"data:image/{kind};base64,{b64encode(content).decode()}"
    return f'<img alt="{escape(alt)}" src="{source}" {attributes}'.rstrip() + ">"


def bundle(image: Image.Image, alt: str) -> dict:
    """What ``_repr_mimebundle_`` returns for an image with alternative text; the PNG by itself is for exports to PDF."""
    content = png(image)
    return {"text/html": img(content, alt), "image/png": content, "text/plain": alt}


def alt_of_figure(figure: "Figure") -> str:
    """The titles of a figure and its axes, and what axes without a title show: all that can be said without looking."""
    said = [figure.get_suptitle()]
    for axis in figure.axes:
        labels = " by ".join(filter(None, (axis.get_ylabel(), axis.get_xlabel())))
        said.append(axis.get_title() or axis.get_title("left") or labels)
    return "Figure: " + ("; ".join(dict.fromkeys(" ".join(text.split()) for text in said if text)) or "no titles")


def describe_outputs() -> None:
    """In a Jupyter kernel: show matplotlib's figures and PIL's images as HTML with alternative text, made from their titles.

    Not where figures are to be in another format than PNG (``%config InlineBackend.figure_formats``): that is the user's word.
    """
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if not hasattr(shell, "kernel"):
        return
    from IPython.core.pylabtools import print_figure

    def of_figure(figure, **_):
        wanted = next((one for one in shell.configurables if type(one).__name__ == "InlineBackend"), None)
        if wanted and wanted.figure_formats != {"png"}:
            return None
        content = print_figure(figure, **(wanted.print_figure_kwargs if wanted else {}))  # None without axes
        return content and {"text/html": img(content, alt_of_figure(figure)), "image/png": content}

    def of_image(image, **_):
        try:
            return bundle(image, image.info.get("alt") or f"{image.width} x {image.height} px")
        except OSError:  # of a mode that PNG does not have: as IPython shows it
            return None

    # Not the formatter of HTML: matplotlib's backend takes its figures out of that when the first one is made.
    shell.display_formatter.mimebundle_formatter.for_type_by_name("matplotlib.figure", "Figure", of_figure)
    shell.display_formatter.mimebundle_formatter.for_type(Image.Image, of_image)
