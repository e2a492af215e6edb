"""Pictures made beforehand, whole layers at a time, so that sliders answer at once.

An atlas is a folder: ``manifest.json``, and for each layer a sprite sheet (``mlp_05.webp``) and a table of numbers
(``mlp_05.npz``). The sheets are lossy, so scores are measured on the pictures as they are stored.
"""

import json
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image

from . import __version__
from .cache import FORMAT
from .errors import VitvizError
from .models import VisionModel
from .paths import data_dir
from .recipe import Recipe
from .rendering import Rendering
from .scores import STATUS, Scores, reference_activations
from .sites import sites

STRONGEST = 6  # scenes a neuron is stored with
_COLUMNS, _QUALITY = 32, 80
_LARGEST = 16383  # px a side, WebP's limit


@dataclass(frozen=True, eq=False)
class Atlas:
    """Finished pictures of every neuron of some layers of a model.

    Attributes:
        folder: where it lies.
        facts: its manifest: ``model``, ``weights`` (their hash), ``kind``, ``layers``, ``recipe``, ``seed``, ``size`` (px of
            a picture), ``reference`` (what percentiles refer to), ``version``.
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
        made = self.facts["format"], self.facts["recipe"], self.facts["seed"]
        return made == (FORMAT, recipe.as_dict(), seed) and self.covers(model, kind, layer)

    def rendering(self, layer: int, neurons: list[int]) -> Rendering:
        """The pictures of ``neurons`` with their scores, as ``Visualizer.render`` would return them."""
        facts, table = self.facts, _table(self.folder / _name(self.facts["kind"], layer, "npz"))
        recipe = Recipe(**facts["recipe"])
        pictures = _cut(self.folder / _name(facts["kind"], layer, "webp"), facts["size"])[neurons].float() / 255
        scores = Scores(table["activation"][neurons].tolist(), table["percentile"][neurons].tolist(),
                        table["rank"][neurons].tolist(), [STATUS[i] for i in table["status"][neurons]], facts["reference"])
        return Rendering(facts["model"], facts["kind"], layer, list(neurons), pictures, [recipe.steps] * len(neurons),
                         table["curve_steps"].tolist(), torch.from_numpy(table["curves"][neurons]), recipe, facts["seed"], scores)

    def strongest(self, layer: int, neuron: int) -> tuple[list[int], list[float]]:
        """The reference scenes that raise a neuron most, the strongest first: their numbers and activations."""
        table = _table(self.folder / _name(self.facts["kind"], layer, "npz"))
        return table["top"][neuron].tolist(), table["top_activation"][neuron].tolist()


def embedded(name: str) -> Atlas | None:
    """The atlas that ships for a model, if there is one."""
    return _embedded(data_dir() / "atlas" / name)


@cache
def _embedded(folder: Path) -> Atlas | None:
    return Atlas.open(folder) if (folder / "manifest.json").exists() else None


def make_atlas(model: VisionModel, layers: list[int], folder: str | Path, recipe: Recipe | None = None) -> Atlas:
    """Render every neuron of ``layers``, of the model's first kind (``mlp``, or ``channel`` of a CNN), into ``folder``.

    Finished pictures are kept in the cache as they come, so an interrupted call goes on where it stopped. An atlas that was
    in the folder is replaced.

    Raises:
        VitvizError: a folder that cannot be written; a layer too wide for a sheet; interrupted before the end.
    """
    from .visualizer import Visualizer  # which reads atlases

    folder, (kind, places) = Path(folder), next(iter(sites(model).items()))
    layers = sorted(set(layers))
    for layer in layers:
        side = max(_COLUMNS, -(-places[layer].units // _COLUMNS)) * model.image_size
        if side > _LARGEST:
            raise VitvizError(f"The pictures of layer {layer} of {model.name} would make a sheet of {side:,} px; a sheet has at "
                              f"most {_LARGEST:,} px a side. Render such layers with vitviz render.")
    visualizer = Visualizer(model, recipe, atlas=False)
    recipe = visualizer.recipe
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "manifest.json").unlink(missing_ok=True)  # written last: a folder without it is no atlas
        for layer in layers:
            rendering = visualizer.render(layer, range(places[layer].units), kind)
            if not rendering.finished:
                raise VitvizError(f"Stopped in layer {layer}; the same command goes on from there.")
            _paste(rendering.pictures).save(folder / _name(kind, layer, "webp"), quality=_QUALITY, method=6)
            stored = _cut.__wrapped__(folder / _name(kind, layer, "webp"), model.image_size)
            stored = stored[: places[layer].units].float() / 255
            rendering = visualizer.score(replace(rendering, pictures=stored))
            best = reference_activations(model, places[layer], visualizer.reference).topk(STRONGEST, dim=0)
            scores = rendering.scores
            np.savez_compressed(
                folder / _name(kind, layer, "npz"), activation=np.float32(scores.activation),
                percentile=np.float32(scores.percentile), rank=np.int32(scores.rank),
                status=np.uint8([STATUS.index(s) for s in scores.status]), curve_steps=np.int32(rendering.curve_steps),
                curves=rendering.curves.numpy(), top=best.indices.T.to(torch.int32).numpy(),
                top_activation=best.values.T.numpy())
        facts = {"model": model.title, "weights": model.weights_hash, "kind": kind, "layers": layers,
                 "recipe": recipe.as_dict(), "seed": 0, "size": model.image_size, "reference": visualizer.reference.name,
                 "format": FORMAT, "version": __version__}
        (folder / "manifest.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise VitvizError(f"The atlas cannot be written to {folder} ({error.strerror}); name a folder you may write to. "
                          f"Finished pictures stay in the cache.") from None
    for known in (_embedded, _cut, _table):
        known.cache_clear()
    return Atlas.open(folder)


def _name(kind: str, layer: int, suffix: str) -> str:
    return f"{kind}_{layer:02d}.{suffix}"


def _paste(pictures: torch.Tensor) -> Image.Image:
    """Pictures (K, 3, S, S) in [0, 1] side by side, 32 to a row."""
    k, _, size, _ = pictures.shape
    rows = -(-k // _COLUMNS)
    sheet = torch.full((rows * _COLUMNS, 3, size, size), 0.5)
    sheet[:k] = pictures
    sheet = sheet.view(rows, _COLUMNS, 3, size, size).permute(0, 3, 1, 4, 2).reshape(rows * size, _COLUMNS * size, 3)
    return Image.fromarray((sheet * 255).round().byte().numpy())


@lru_cache(maxsize=8)  # a sheet of 512 pictures takes 6 MB
def _cut(path: Path, size: int) -> torch.Tensor:
    """The pictures of a sheet, uint8 (K, 3, size, size)."""
    try:
        sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())
    except OSError as error:
        raise _damaged(path, error) from None
    rows = len(sheet) // size
    return sheet.view(rows, size, _COLUMNS, size, 3).permute(0, 2, 4, 1, 3).reshape(-1, 3, size, size)


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
