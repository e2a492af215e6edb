"""The browser of an atlas: a widget, and the same as a page for a website. Nothing is computed: neither weights nor a model."""

import base64
import html
import json
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from string import Template

import anywidget
import numpy as np
import traitlets
from PIL import Image

from .. import __version__
from ..datasets.emoji_world import EmojiWorld
from ..datasets.photographs import Photos
from ..models.sites import KINDS
from ..models.vision_model import VisionModel
from ..plotting.image_grid import to_image
from ..utils import cache, files, validate
from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from ..visualize.atlas import Atlas, columns, embedded

_HERE = Path(__file__).parent
_MOST, _SIDE = 10e6, 112  # at most: bytes of a page that contains its images, px of a reference photograph
_CREDITS = {Photos: "photos/README.md", EmojiWorld: "emoji_world/LICENSES.md"}  # have the attribution to copy, in lines of "> "


class Browser(anywidget.AnyWidget):
    """All neurons of an atlas as thumbnails, by layer, sorted, searched by concept; a click opens one with its top images.

    Args:
        atlas: an ``Atlas``, its folder, or the name of one that ships.
        layer: the layer shown first, or "all"; by default the last, or all of them where a concept is searched.
        kind: of neurons; an atlas has one.
        concept: one that reference images show, as in ``Atlas.search``.

    Attributes, which follow the page, as the page follows them:
        layer, concept: as above; a part of a name will do.
        sort: one of ``page["orders"]``; "agreement" is how many top images show one concept.
        opened: (layer, neuron), or None.

    VitvizError: a model, or something else that is no atlas; a layer, kind, neuron or concept that it lacks.
    """

    _esm, _css = _HERE / "browser.js", _HERE / "browser.css"
    page = traitlets.Dict().tag(sync=True)
    layer = traitlets.Union([traitlets.Int(), traitlets.Enum(["all"])]).tag(sync=True)
    sort = traitlets.Unicode("number").tag(sync=True)
    concept = traitlets.Unicode("").tag(sync=True)
    opened = traitlets.Tuple(traitlets.Int(), traitlets.Int(), allow_none=True, default_value=None).tag(sync=True)

    def __init__(self, atlas: Atlas | str | Path, layer: int | str | None = None, kind: str | None = None, concept: str = ""):
        self.atlas = _checked(atlas)
        if kind is not None and validate.choice("kind", kind, KINDS) != self.atlas.facts["kind"]:
            raise VitvizError(f"This atlas has kind {self.atlas.facts['kind']}, not {kind}; vv.explore(model) shows other kinds.")
        if searched := not isinstance(concept, str) or concept != "":
            self.atlas.search(concept)
        page = contents(self.atlas)
        if layer is None:
            layer = "all" if searched else page["layers"][-1]
        elif not isinstance(layer, str) or layer != "all":
            self.atlas.numbers(layer)
        super().__init__(page=page, layer=validate.scalar(layer), concept=concept)
        self.on_msg(lambda _, content, buffers: self.send(content, [image(self.atlas, content["image"])]))

    @traitlets.validate("sort")
    def _possible(self, proposal):
        return validate.choice("sort", proposal["value"], self.page["orders"])

    @traitlets.validate("layer", "opened")
    def _exists(self, proposal):
        if (value := proposal["value"]) not in (None, "all"):
            self.atlas.strongest(*value) if proposal["trait"].name == "opened" else self.atlas.numbers(value)
        return value


browse = Browser


def _checked(atlas) -> Atlas:
    if isinstance(atlas, VisionModel):
        way = f"vv.browse({atlas.name!r}) shows the one that ships" if embedded(atlas.name) else "vv.make_atlas makes one"
        raise VitvizError(f"vv.browse shows an atlas, which has its pictures already, and got the model {atlas.name}; {way}.")
    return atlas if isinstance(atlas, Atlas) else Atlas.open(atlas)


def contents(atlas: Atlas) -> dict:
    """What ``browser.js`` reads, as JSON: the columns of the atlas's table as lists, what reference images show, and words."""
    facts, table, known = atlas.facts, atlas.table(), _reference(atlas) is not None
    neurons = table.drop(columns="scenes").to_dict("list") | {"row": [], "top": [], "values": [], "maps": []}
    sheets, grids = {}, {}
    for layer in facts["layers"]:
        numbers = atlas.numbers(layer)
        rows, maps = len(numbers["neurons"]), numbers.get("maps")
        sheets[layer], grids[layer] = len(atlas.sheets(layer)), None if maps is None else maps.shape[2:]
        neurons["row"] += range(rows)
        neurons["top"] += numbers["top"].tolist() if known else [[]] * rows
        neurons["values"] += numbers["top_activation"].tolist()
        neurons["maps"] += [None if maps is None else base64.b64encode(maps[i].astype("uint8")).decode() for i in range(rows)]
    shows = {number: concept for top, scenes in zip(neurons["top"], table["scenes"], strict=True)
             for number, concept in zip(top, scenes, strict=False)}
    whole = facts["kind"] in ("mlp", "channel") and "neurons" not in facts
    if whole and (stored := cache.shipped(f"{facts['model']}-selectivity", facts["weights"])):
        neurons["selectivity"] = [v for layer in facts["layers"] for v in stored[f"concepts{layer}"][0].tolist()]
        preferred = [i for layer in facts["layers"] for i in stored[f"concepts{layer}_of"][0].tolist()]
        neurons["preferred"] = np.array(EmojiWorld().concepts)[preferred].tolist()
    concepts, strongest = sorted(set(shows.values())), [scenes[0] for scenes in table["scenes"]]
    example = max(concepts, key=strongest.count, default="")
    each = f"{facts['neurons']} evenly spaced ones of each layer" if "neurons" in facts else "all of each layer"
    return {
        "title": facts["model"], "reference": facts["reference"].removesuffix(" of vv.photos()"), "size": facts["size"],
        "columns": columns(facts["size"]), "sheet": facts.get("sheet", len(table)), "sheets": sheets, "grids": grids,
        "layers": sorted(facts["layers"]), "neurons": neurons, "concepts": concepts,
        "orders": ["number", "percentile", "activation", *{"selectivity"} & neurons.keys(), *["agreement"] * known],
        "shows": {number: concepts.index(concept) for number, concept in shows.items()},
        "example": f"such as {example}",
        "about": f"Feature visualizations: each image was made by gradient ascent to activate one neuron as much as possible. "
                 f"Shown: {KINDS[facts['kind']]}; {each}. Open one for its scores and the images that activate it most."
                 + f" “2 × {example}”: two of these show it." * known,
        "note": "The number beside each concept is the neuron's mean activation over the image." if known else
                f"They cannot be shown: the kit does not have the {facts['reference']} that the atlas was made with."}


@lru_cache(maxsize=4)
def _reference(atlas: Atlas) -> Photos | EmojiWorld | None:
    """The data set of an atlas's reference images, if the kit has it."""
    if "photos" in atlas.facts:
        return atlas.reference_photos()
    return EmojiWorld("val", size=atlas.facts["size"]) if "Emoji World" in atlas.facts["reference"] else None


def image(atlas: Atlas, name: str) -> bytes:
    """An image of the page as WebP, by its name: "sheet 5 1", the second sprite sheet of layer 5, or "reference 17"."""
    kind, *numbers = name.split()
    if kind == "sheet":
        return list(atlas.sheets(int(numbers[0])).values())[int(numbers[1])]
    return next(_thumbnails(atlas, [int(numbers[0])]))


def _thumbnails(atlas: Atlas, numbers: list[int]) -> Iterator[bytes]:
    """Reference images as WebP; scenes are drawn 64 at once, which is eight times as fast as one by one."""
    images = _reference(atlas)
    for part in (numbers[i:i + 64] for i in range(0, len(numbers), 64)):
        photographs = isinstance(images, Photos)
        for shown in [images[number][0] for number in part] if photographs else map(to_image, images.batch(part).images):
            shown.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
            shown.save(file := BytesIO(), "WEBP", quality=80)
            yield file.getvalue()


def export(atlas: Atlas | str | Path, folder: str | Path, force: bool = False) -> Path:
    """Write the browser of an atlas as ``index.html`` into a folder: one file that needs no network and no other file.

    Where it would be larger than 10 MB, its images go beside it, into ``images/``. VitvizError: there is a file of others.
    """
    atlas, path = _checked(atlas), validate.path("--out", folder) / "index.html"
    template, style, script = ((_HERE / f"browser.{suffix}").read_text("utf-8") for suffix in ("html", "css", "js"))
    files.ready(path.parent, "The folder of the page,")
    files.check_target(path, lambda page: page.read_text("utf-8")[:80] == template[:80], force)
    page = contents(atlas)
    names = [f"sheet {layer} {i}" for layer, count in page["sheets"].items() for i in range(count)]
    made = {name: image(atlas, name) for name in names}
    made |= zip([f"reference {number}" for number in page["shows"]], _thumbnails(atlas, [*page["shows"]]), strict=True)
    images = {name: f"data:image/webp;base64,{base64.b64encode(content).decode()}" for name, content in made.items()}
    state = {"page": page, "images": images, "layer": page["layers"][-1], "sort": "number", "concept": "", "opened": None}
    if len(json.dumps(state)) + len(style) + len(script) > _MOST:
        for name, content in made.items():
            images[name] = f"images/{name.replace(' ', '_')}.webp"
            files.write(path.parent / images[name], content)
    lines = (data_dir() / _CREDITS[type(_reference(atlas))]).read_text("utf-8").splitlines() if page["concepts"] else []
    return files.write(path, Template(template).substitute(
        title=html.escape(f"Neurons of {page['title']}"), version=__version__, style=style, script=script,
        state=json.dumps(state, ensure_ascii=False).replace("<", r"\u003c"),
        credits=html.escape(" ".join(line[2:] for line in lines if line.startswith("> ")))))
