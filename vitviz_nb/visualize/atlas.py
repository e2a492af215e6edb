"""Atlases: precomputed feature visualizations of whole layers, so that sliders respond at once. Reading one needs no model.

An atlas is a folder: ``manifest.json``, and for each layer a table of numbers (``mlp_05.npz``) and its pictures on one sprite
sheet (``mlp_05.webp``) or more (``mlp_05_512.webp`` begins with neuron 512), lossy. ``atlas_maker`` makes atlases.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from io import BytesIO
from numbers import Integral
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..datasets.emoji_world import EmojiWorld
from ..datasets.photographs import Photos
from ..models.cards import embedded_names
from ..models.sites import KINDS, Site, check_neurons
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import validate
from ..utils.cache import FORMAT, fits
from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from .recipe import MOST_STEPS, Recipe
from .rendering import Rendering
from .scores import STATUS, Scores

STRONGEST = 6  # scenes a neuron is stored with
_SCENES = 1024  # of the reference, at most
_FLOAT = float(np.finfo(np.float32).max)
QUALITY = 80  # of WebP, in percent
_COLUMNS = 32
_LARGEST = 16383  # px a side, WebP's limit
_SHEET = 512 * 64 * 64  # px of a sheet at most, if one row is not more: to see one picture, its whole sheet is decoded


@dataclass(frozen=True, eq=False)
class Atlas:
    """Finished pictures of every neuron, or of some evenly spaced ones, of some layers of a model.

    Attributes:
        folder: where it lies.
        facts: its manifest: ``model``, ``weights`` (their hash), ``kind``, ``layers`` (those that are complete), ``recipe``,
            ``seed``, ``size`` (px of a picture), ``reference`` (what percentiles refer to), ``version``, ``chunk`` (neurons that
            were optimized together); not in older atlases: ``sheet`` (pictures on a sheet at most; else a layer has one sheet)
            and ``files``, the SHA-256 of each, verified when it is read. ``neurons``: how many evenly spaced ones of each layer,
            if not all; ``photos``: the SHA-256 of ``vv.photos()``, if these are the reference and not Emoji World.
    """

    folder: Path
    facts: dict

    @classmethod
    def open(cls, folder: str | Path) -> "Atlas":
        """The atlas in a folder, or one that ships, by its name in ``data/atlas``; VitvizError if there is none."""
        given = validate.path("An atlas", folder)
        folder = given if given.exists() or len(given.parts) != 1 else data_dir() / "atlas" / given
        try:
            facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            Recipe(**facts["recipe"])
            missing = {"model", "weights", "kind", "layers", "seed", "size", "reference", "format"} - facts.keys()
            if missing:
                raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
            validate.choice("kind", facts["kind"], KINDS)
            validate.whole("size", facts["size"], 1)
            validate.whole("sheet", facts.get("sheet", 1), 1)
            for layer in facts["layers"]:
                validate.whole("layer", layer)
            if not isinstance(listed := facts.get("files", {}), dict) or not all(isinstance(s, str) for s in listed.values()):
                raise ValueError("its files are not listed with the SHA-256 of each")
            return cls(folder, facts)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            shipped = [path.parent.name for path in sorted((data_dir() / "atlas").glob("*/manifest.json"))]
            reason = "it has no manifest.json" if isinstance(error, FileNotFoundError) else error
            raise VitvizError(f"{given} holds no atlas ({reason}); `vitviz atlas MODEL --out {given}` makes one, and "
                              f"{len(shipped)} ship, such as emoji-vit.{nearest(given.name, shipped)}") from None

    def covers(self, model: VisionModel, kind: str, layer: int) -> bool:
        """Whether it has a whole layer of this model as it is now: the same weights, and no hooks or changes in force."""
        facts = self.facts
        size = Recipe(**facts["recipe"]).side(model.image_size)
        return (not {"neurons", "photos"} & facts.keys() and kind == facts["kind"] and layer in facts["layers"]
                and facts["size"] == size and model.unchanged and model.weights_hash == facts["weights"])

    def holds(self, model: VisionModel, kind: str, layer: int, recipe: Recipe, seed: int) -> bool:
        """Whether it has these very pictures: of a layer of this model as it is now, by this recipe and seed."""
        made = self.facts["format"], Recipe(**self.facts["recipe"]), self.facts["seed"]
        return made == (FORMAT, recipe, seed) and self.covers(model, kind, layer)

    def rendering(self, layer: int, neurons) -> Rendering:
        """The pictures of ``neurons`` (a number, or several) with their scores, as ``Visualizer.render`` would return them."""
        facts, table, recipe = self.facts, self.numbers(layer), Recipe(**self.facts["recipe"])
        layer, (neurons, rows) = int(validate.scalar(layer)), self._rows(layer, neurons)
        pictures = torch.stack([self._picture(layer, row, len(table["activation"])) for row in rows])
        scores = Scores(*(table[name][rows].tolist() for name in ("activation", "percentile", "rank")),
                        [STATUS[i] for i in table["status"][rows]], facts["reference"])
        return Rendering(facts["model"], facts["kind"], layer, neurons, pictures.float() / 255, [recipe.steps] * len(neurons),
                         table["curve_steps"].tolist(), torch.from_numpy(table["curves"][rows]), recipe, facts["seed"], scores)

    def neurons(self, layer: int) -> list[int]:
        """The neurons of a layer whose pictures it has."""
        return self.numbers(layer)["neurons"].tolist()

    def strongest(self, layer: int, neuron: int) -> tuple[list[int], list[float]]:
        """The numbers of the reference scenes that activate a neuron most, the strongest first, and its activations for them."""
        _, [row] = self._rows(layer, validate.whole("neuron", neuron, 0))
        return tuple(self.numbers(layer)[name][row].tolist() for name in ("top", "top_activation"))

    def maps(self, layer: int, neuron: int) -> torch.Tensor | None:
        """The neuron's activation at every patch of its strongest reference images, each from 0 (its least) to 1; if stored."""
        _, [row] = self._rows(layer, validate.whole("neuron", neuron, 0))
        stored = self.numbers(layer).get("maps")
        return None if stored is None else torch.from_numpy(stored[row]).float() / 255

    def numbers(self, layer: int) -> dict[str, np.ndarray]:
        """The table of a layer as arrays with a row for each of its ``neurons``, which are numbers of its ``units``."""
        layer = validate.scalar(layer)
        if isinstance(layer, bool) or not isinstance(layer, Integral) or layer not in self.facts["layers"]:
            has = ", ".join(map(str, self.facts["layers"])) or "no complete layer yet"
            raise VitvizError(f"The atlas in {self.folder} lacks layer {validate.shown(layer)}; its layers: {has}.")
        name = file_name(self.facts["kind"], layer, "npz")
        return _table(self.folder / name, self.facts.get("files", {}).get(name))

    def sheets(self, layer: int) -> dict[str, bytes]:
        """The sprite sheets of a layer, WebP, by file name: ``columns(size)`` pictures a row, at most ``facts["sheet"]`` each."""
        rows = len(self.numbers(layer)["neurons"])
        names = [file_name(self.facts["kind"], layer, "webp", i) for i in range(0, rows, self.facts.get("sheet", rows))]
        sheets = {}
        for name in names:
            with _verified(self.folder / name, self.facts.get("files", {}).get(name)) as content:
                sheets[name] = content.getvalue()
        return sheets

    def table(self) -> pd.DataFrame:
        """Its neurons, a row each.

        Columns ``layer``, ``neuron``, ``activation``, ``percentile``, ``rank`` and ``status`` as in ``Scores``, and ``scenes``:
        the concepts of the reference images that activate the neuron most, a tuple, the strongest first.
        """
        (concepts, shows), layers = self._concepts(), []
        for layer in self.facts["layers"]:
            numbers = self.numbers(layer)
            shown = shows(numbers["top"].ravel()).reshape(numbers["top"].shape)
            layers.append(pd.DataFrame({
                "layer": layer, "neuron": numbers["neurons"], "activation": numbers["activation"],
                "percentile": numbers["percentile"], "rank": numbers["rank"], "status": [STATUS[i] for i in numbers["status"]],
                "scenes": [tuple(concepts[i] for i in row) for row in shown]}))
        if not layers:
            raise VitvizError(f"No layer of the atlas in {self.folder} is complete yet; the command that makes it goes on.")
        return pd.concat(layers, ignore_index=True)

    def search(self, concept: str) -> pd.DataFrame:
        """The neurons that images of ``concept`` activate most: rows of ``table`` with ``count``, how many of ``scenes`` show it.

        Sorted by count, then by the rank of the concept's first scene among them, then by the percentile of the picture.
        """
        concepts, _ = self._concepts()
        if not isinstance(concept, str) or concept not in concepts:
            hint = nearest(concept, concepts) if isinstance(concept, str) else ""
            raise VitvizError(f"No reference scene shows {validate.shown(concept)}; they show {len(concepts)} concepts, such as "
                              f"{concepts[0]!r}.{hint}")
        table = self.table()
        table["count"] = [scenes.count(concept) for scenes in table["scenes"]]
        table = table[table["count"] > 0]
        first = [scenes.index(concept) for scenes in table["scenes"]]
        order = np.lexsort([-table["percentile"], first, -table["count"]])
        return table.iloc[order].reset_index(drop=True)

    def sheet(self, rows: pd.DataFrame, columns: int = 8) -> Image.Image:
        """The pictures of some rows of ``table`` or ``search``, each with the most frequent concept of its strongest scenes."""
        columns = validate.whole("columns", columns, 1, 1000)
        if not isinstance(rows, pd.DataFrame) or not {"layer", "neuron", "percentile", "status", "scenes"} <= {*rows.columns}:
            raise VitvizError(f"A sheet shows rows of an atlas's table or search, got {validate.shown(rows)}.")
        if not len(rows):
            raise VitvizError(f"There is no neuron to show of the atlas in {self.folder}; choose other rows of its table.")
        tiles = []
        for row in rows.itertuples():
            most = max(row.scenes, key=row.scenes.count)
            lines = [f"{row.layer}:{row.neuron}, above {row.percentile:.1f} %", f"{row.scenes.count(most)} x {most}"[:19]]
            tiles.append(Tile(self.rendering(row.layer, row.neuron).pictures[0], lines, row.status == "alive"))
        title = (f"{self.facts['model']}: layer:neuron and the percentage of scenes that activate it less than its picture does; "
                 f"below, the most frequent concept of its {STRONGEST} strongest scenes")
        return contact_sheet(tiles, title, side=112, columns=columns)

    def reference_photos(self) -> Photos:
        """The reference images, where these are ``vv.photos()``; VitvizError if they are others, or have changed since."""
        photos = Photos()
        if self.facts.get("photos") != photos.sha256:
            raise VitvizError(f"The reference images of the atlas in {self.folder} ({self.facts['reference']}) are not the "
                              f"photographs that vv.photos() gives; load its model, and ask it with the images themselves.")
        return photos

    def _concepts(self) -> tuple[list[str], Callable[[np.ndarray], np.ndarray]]:
        """The concepts that reference images show, and which of them the images of given numbers do."""
        if "photos" in self.facts:
            photos = self.reference_photos()
            return photos.classes, np.array([photos.classes.index(label) for label in photos.labels]).__getitem__
        world = EmojiWorld("val", size=self.facts["size"])
        return world.concepts, lambda numbers: world.facts(numbers)["concept"]

    def _rows(self, layer: int, neurons) -> tuple[list[int], list[int]]:
        """Neurons, checked, and the row of each in the layer's table."""
        table = self.numbers(layer)
        neurons = check_neurons(Site(self.facts["kind"], layer, int(table["units"]), 0, None, "", 0), neurons)
        row = {neuron: i for i, neuron in enumerate(table["neurons"].tolist())}
        if missing := [neuron for neuron in neurons if neuron not in row]:
            raise VitvizError(f"The atlas in {self.folder} has {len(row)} of the {table['units']} neurons of layer {layer} "
                              f"({', '.join(map(str, [*row][:3]))}, …), and not {missing[0]}; atlas.neurons({layer}) lists them.")
        return neurons, [row[neuron] for neuron in neurons]

    def _picture(self, layer: int, row: int, rows: int) -> torch.Tensor:
        sheet = self.facts.get("sheet", rows)
        first = row - row % sheet
        name = file_name(self.facts["kind"], layer, "webp", first)
        sha256 = self.facts.get("files", {}).get(name)
        return cut(self.folder / name, self.facts["size"], min(sheet, rows - first), sha256)[row - first]


def embedded(name: str) -> Atlas | None:
    """The atlas that ships for a model, if there is one."""
    folder = data_dir() / "atlas" / name
    return _open_once(folder) if (folder / "manifest.json").exists() else None


_open_once = cache(Atlas.open)


def embedded_atlases() -> list[str]:
    """The models whose atlas ships, the default one first."""
    return [name for name in embedded_names() if embedded(name)]


def evenly_spaced(units: int, n: int) -> list[int]:
    """``n`` of the neurons 0 to ``units`` - 1, or all if there are fewer, evenly spaced: a choice that nobody can tune."""
    return torch.linspace(0, units - 1, min(validate.whole("A number of neurons", n, 1), units)).round().long().tolist()


def file_name(kind: str, layer: int, suffix: str, first: int = 0) -> str:
    """Of a layer's table, or of the sheet that begins with its row ``first``."""
    return f"{kind}_{layer:02d}{f'_{first}' if first else ''}.{suffix}"


def columns(size: int) -> int:
    """Pictures of ``size`` px in a row of a sheet."""
    return max(1, min(_COLUMNS, _LARGEST // size))


def per_sheet(size: int) -> int:
    """Pictures on a sheet at most: 512 of 64 px, 32 of 224."""
    return columns(size) * max(1, _SHEET // (columns(size) * size * size))


def paste(pictures: torch.Tensor) -> Image.Image:
    """Pictures, uint8 (K, 3, S, S), side by side, 32 to a row."""
    k, _, size, _ = pictures.shape
    wide = columns(size)
    rows = -(-k // wide)
    sheet = torch.full((rows * wide, 3, size, size), 128, dtype=torch.uint8)
    sheet[:k] = pictures
    sheet = sheet.view(rows, wide, 3, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, wide * size, 3)
    return Image.fromarray(sheet.numpy())


@lru_cache(maxsize=8)  # a sheet takes 6 MB
def cut(path: Path, size: int, count: int, sha256: str | None = None) -> torch.Tensor:
    """The first ``count`` pictures of a sheet, uint8 (count, 3, size, size); VitvizError if the file is damaged."""
    wide, rows = columns(size), -(-count // columns(size))
    with _verified(path, sha256) as content:
        sheet = torch.from_numpy(np.asarray(Image.open(content).convert("RGB")).copy())
        if sheet.shape != (rows * size, wide * size, 3):
            raise ValueError(f"{sheet.shape[1]} x {sheet.shape[0]} px instead of {wide * size} x {rows * size}")
    return sheet.view(rows, size, wide, size, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, size, size)[:count]


@lru_cache(maxsize=32)
def _table(path: Path, sha256: str | None = None) -> dict[str, np.ndarray]:
    with _verified(path, sha256) as content, np.load(content, allow_pickle=False) as arrays:
        table = dict(arrays)
        n, points = len(table["activation"]), len(table["curve_steps"])
        table = {"units": np.int64(n), "neurons": np.arange(n)} | table  # of every neuron, unless it says which
        units = int(table["units"])
        shapes = {"activation": (n,), "percentile": (n,), "rank": (n,), "status": (n,), "curve_steps": (points,),
                  "curves": (n, points), "top": (n, STRONGEST), "top_activation": (n, STRONGEST), "units": (), "neurons": (n,)}
        shapes |= {"maps": (n, STRONGEST, None, None)} if "maps" in table else {}
        whole = {"rank": (1, units), "status": (0, len(STATUS) - 1), "curve_steps": (0, MOST_STEPS), "top": (0, _SCENES - 1),
                 "units": (n, 10**9), "neurons": (0, units - 1), "maps": (0, 255)}
        for name, shape in shapes.items():
            low, high = {**whole, "percentile": (0, 100)}.get(name, (-_FLOAT, _FLOAT))
            if not fits({name: table[name]}, {name: shape}, low, high) or name in whole and table[name].dtype.kind not in "iu":
                raise ValueError(f"{name} has shape {table[name].shape} instead of {shape}, or NaN, or other values than "
                                 f"{'whole ' * (name in whole)}numbers from {low:g} to {high:g}")
    return table


@contextmanager
def _verified(path: Path, sha256: str | None) -> Iterator[BytesIO]:
    """A file's content, of the manifest's SHA-256 where it has one; VitvizError, naming the file, whatever fails with it."""
    try:
        content = path.read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError("its SHA-256 is not the manifest's")
        yield BytesIO(content)
    except Exception as error:
        raise VitvizError(f"{path} of the atlas is damaged or missing ({error or type(error).__name__}). Restore it, or delete "
                          f"the folder {path.parent}: its pictures are then made when they are asked for.") from None
