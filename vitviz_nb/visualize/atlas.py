"""Pictures made beforehand, whole layers at a time, so that sliders answer at once. Reading them needs no model.

An atlas is a folder: ``manifest.json``, and for each layer a table of numbers (``mlp_05.npz``) and its pictures on one sprite
sheet (``mlp_05.webp``) or more (``mlp_05_512.webp`` begins with neuron 512). The sheets are lossy, so scores are measured on
the pictures as they are stored. ``atlas_maker`` makes atlases.
"""

import json
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import torch
from PIL import Image

from ..datasets.emoji_world import EmojiWorld
from ..models.cards import embedded_names
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils.cache import FORMAT
from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from .recipe import Recipe
from .rendering import Rendering
from .scores import STATUS, Scores

STRONGEST = 6  # scenes a neuron is stored with
QUALITY = 80  # of WebP, in percent
_COLUMNS = 32
_LARGEST = 16383  # px a side, WebP's limit
_SHEET = 512 * 64 * 64  # px of a sheet at most, if one row is not more: to see one picture, its whole sheet is decoded


@dataclass(frozen=True, eq=False)
class Atlas:
    """Finished pictures of every neuron of some layers of a model.

    Attributes:
        folder: where it lies.
        facts: its manifest: ``model``, ``weights`` (their hash), ``kind``, ``layers`` (those that are complete), ``recipe``,
            ``seed``, ``size`` (px of a picture), ``reference`` (what percentiles refer to), ``version``; and how it is cut:
            ``sheet`` (pictures on a sheet at most; if it is not there, a layer has one sheet) and ``chunk`` (neurons that were
            made together).
    """

    folder: Path
    facts: dict

    @classmethod
    def open(cls, folder: str | Path) -> "Atlas":
        """The atlas in a folder; VitvizError if there is none."""
        try:
            facts = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
            Recipe(**facts["recipe"])
            missing = {"model", "weights", "kind", "layers", "seed", "size", "reference", "format"} - facts.keys()
            if missing:
                raise ValueError(f"its manifest lacks {', '.join(sorted(missing))}")
            return cls(Path(folder), facts)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise VitvizError(f"{folder} holds no atlas ({error}); `vitviz atlas MODEL --out {folder}` makes one.") from None

    def covers(self, model: VisionModel, kind: str, layer: int) -> bool:
        """Whether it has this layer of these weights."""
        facts = self.facts
        return kind == facts["kind"] and layer in facts["layers"] and model.weights_hash == facts["weights"]

    def holds(self, model: VisionModel, kind: str, layer: int, recipe: Recipe, seed: int) -> bool:
        """Whether it has these very pictures: of this layer of these weights, made so."""
        made = self.facts["format"], Recipe(**self.facts["recipe"]), self.facts["seed"]
        return made == (FORMAT, recipe, seed) and self.covers(model, kind, layer)

    def rendering(self, layer: int, neurons: list[int]) -> Rendering:
        """The pictures of ``neurons`` with their scores, as ``Visualizer.render`` would return them."""
        facts, table = self.facts, self._numbers(layer)
        recipe, units = Recipe(**facts["recipe"]), len(table["activation"])
        sheet = facts.get("sheet", units)
        if not neurons or not 0 <= min(neurons) <= max(neurons) < units:
            raise VitvizError(f"Layer {layer} of the atlas has neurons 0 to {units - 1}, got {neurons}.")
        sheets = [cut(self.folder / file_name(facts["kind"], layer, "webp", n - n % sheet), facts["size"]) for n in neurons]
        pictures = torch.stack([here[n % sheet] for here, n in zip(sheets, neurons, strict=True)]).float() / 255
        scores = Scores(table["activation"][neurons].tolist(), table["percentile"][neurons].tolist(),
                        table["rank"][neurons].tolist(), [STATUS[i] for i in table["status"][neurons]], facts["reference"])
        return Rendering(facts["model"], facts["kind"], layer, list(neurons), pictures, [recipe.steps] * len(neurons),
                         table["curve_steps"].tolist(), torch.from_numpy(table["curves"][neurons]), recipe, facts["seed"], scores)

    def strongest(self, layer: int, neuron: int) -> tuple[list[int], list[float]]:
        """The reference scenes that raise a neuron most, the strongest first: their numbers and activations."""
        table = self._numbers(layer)
        return table["top"][neuron].tolist(), table["top_activation"][neuron].tolist()

    def table(self) -> pd.DataFrame:
        """All neurons, a row each, to sort and choose from: ``atlas.table().sort_values("percentile")``.

        Columns ``layer``, ``neuron``, ``activation``, ``percentile``, ``rank`` and ``status`` as in ``Scores``, and ``scenes``:
        what the reference scenes show that raise the neuron most, a tuple of concepts, the strongest first.
        """
        world, layers = EmojiWorld("val", size=self.facts["size"]), []
        for layer in self.facts["layers"]:
            numbers = self._numbers(layer)
            shown = world.facts(numbers["top"].ravel())["concept"].reshape(numbers["top"].shape)
            layers.append(pd.DataFrame({
                "layer": layer, "neuron": np.arange(len(shown)), "activation": numbers["activation"],
                "percentile": numbers["percentile"], "rank": numbers["rank"], "status": [STATUS[i] for i in numbers["status"]],
                "scenes": [tuple(world.concepts[i] for i in row) for row in shown]}))
        if not layers:
            raise VitvizError(f"No layer of the atlas in {self.folder} is complete yet; the command that makes it goes on.")
        return pd.concat(layers, ignore_index=True)

    def search(self, concept: str) -> pd.DataFrame:
        """The neurons that scenes of ``concept`` raise most: rows of ``table`` with ``count``, how many of ``scenes`` show it.

        Sorted by count, then by the place of the concept's first scene among them, then by the percentile of the picture.
        VitvizError for a concept that no scene shows, with the nearest names.
        """
        concepts = EmojiWorld("val", size=self.facts["size"]).concepts
        if concept not in concepts:
            raise VitvizError(f"No reference scene shows {concept!r}; they show {len(concepts)} concepts, such as "
                              f"{concepts[0]!r}.{nearest(concept, concepts)}")
        table = self.table()
        table["count"] = [scenes.count(concept) for scenes in table["scenes"]]
        table = table[table["count"] > 0]
        first = pd.Series([scenes.index(concept) for scenes in table["scenes"]], table.index, dtype=int)
        order = np.lexsort([-table["percentile"], first, -table["count"]])
        return table.iloc[order].reset_index(drop=True)

    def sheet(self, rows: pd.DataFrame, columns: int = 8) -> Image.Image:
        """The pictures of some rows of ``table`` or ``search``, each with its neuron and what its strongest scenes show most."""
        if not len(rows):
            raise VitvizError(f"There is no neuron to show of the atlas in {self.folder}; choose other rows of its table.")
        tiles = []
        for row in rows.itertuples():
            most = max(row.scenes, key=row.scenes.count)
            tiles.append(Tile(self.rendering(row.layer, [row.neuron]).pictures[0],
                              [f"{row.layer}:{row.neuron}, above {row.percentile:.1f} %",
                               f"{row.scenes.count(most)} x {most}"[:19]],
                              row.status == "alive"))
        title = (f"{self.facts['model']}: layer:neuron and the share of scenes that excite it less than its picture does; below, "
                 f"how many of its {STRONGEST} strongest scenes show what they show most")
        return contact_sheet(tiles, title, side=112, columns=columns)

    def _numbers(self, layer: int) -> dict[str, np.ndarray]:
        if layer not in self.facts["layers"]:
            has = ", ".join(map(str, self.facts["layers"])) or "no complete layer yet"
            raise VitvizError(f"The atlas in {self.folder} lacks layer {layer}; its layers: {has}.")
        return _table(self.folder / file_name(self.facts["kind"], layer, "npz"))


def embedded(name: str) -> Atlas | None:
    """The atlas that ships for a model, if there is one."""
    return _embedded(data_dir() / "atlas" / name)


def embedded_atlases() -> list[str]:
    """The models whose atlas ships, the default one first."""
    return [name for name in embedded_names() if embedded(name)]


@cache
def _embedded(folder: Path) -> Atlas | None:
    return Atlas.open(folder) if (folder / "manifest.json").exists() else None


def forget() -> None:
    """Read anew what has changed on disk."""
    for known in (_embedded, cut, _table):
        known.cache_clear()


def file_name(kind: str, layer: int, suffix: str, first: int = 0) -> str:
    """Of a layer's table, or of the sheet that begins with neuron ``first``."""
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
def cut(path: Path, size: int) -> torch.Tensor:
    """The pictures of a sheet, uint8 (K, 3, size, size), with gray ones at the end of the last row."""
    try:
        sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    except OSError as error:
        raise _damaged(path, error) from None
    rows, wide = len(sheet) // size, columns(size)
    return sheet.view(rows, size, wide, size, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, size, size)


@lru_cache(maxsize=32)
def _table(path: Path) -> dict[str, np.ndarray]:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, BadZipFile) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> VitvizError:
    return VitvizError(f"{path} of the atlas is damaged or missing ({error}). Restore it, or delete the folder {path.parent}: "
                       f"its pictures are then made when they are asked for.")
