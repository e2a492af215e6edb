"""The course's experiments on every architecture family, a number each, to be compared (paper, all sections).

``data/families.csv`` has the numbers of every embedded model; ``python notebooks/families.py`` measures them.
"""

from collections.abc import Callable, Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from ..datasets.emoji_world import EmojiWorld
from ..datasets.image_set import ImageSet
from ..models.cards import read_card
from ..models.loading import load
from ..models.sites import find_site, find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import validate
from ..utils.errors import NotApplicable, VitvizError
from ..utils.paths import data_dir
from ..visualize.atlas import Atlas, embedded
from ..visualize.visualizer import Visualizer
from .background import context_consistency
from .class_token import cls_isolation, depth, head_on_tokens
from .classification import accuracy_rows, correct_predictions
from .faithfulness import evenly_spaced, recognition, selectivity
from .frequency import cutoff_needed
from .localization import locality
from .regularizers import sensitivity
from .result import NUMBERS, Result, mean_of, proportion
from .semantics import across_styles, variance_by_fact
from .units import axis_alignment

COLUMNS = ("notebook", "what", "unit", *NUMBERS, "control", "control is", "why not")
_SCENES, _NEURONS, _SELECTIVE = 512, 128, 3.0  # the last: selectivity from which on a unit has a concept to show


def measure(model: VisionModel, notebooks: list[str] | None = None) -> pd.DataFrame:
    """One number or a few of each experiment for an embedded model.

    Args:
        notebooks: such as ["04", "06"], which takes seconds; by default all ``EXPERIMENTS``, in three minutes on a CPU core.

    Returns:
        A row a number, with the columns ``COLUMNS``: value, low, high and n as in ``Result``; ``control``, the value expected if
        there were no effect, and what that is; or ``why not``, for an experiment that the architecture has no object for.
    """
    if model.card is None:
        raise VitvizError(f"All experiments together need the ground truth of Emoji World, so they are made on embedded models; "
                          f"{model.name} is none. Each by itself takes your images, as its notebook says.")
    chosen = [validate.choice("A notebook with experiments", notebook, EXPERIMENTS) for notebook in notebooks or EXPERIMENTS]
    world, rows = EmojiWorld("val", styles=("3d", "cartoon", "flat"), size=model.image_size), []  # styles that all have seen
    for notebook in tqdm(chosen, desc=f"{model.name}: experiments", unit="notebook", leave=False, delay=2):
        try:
            rows += [{"notebook": notebook, "why not": "", **row} for row in EXPERIMENTS[notebook](model, world)]
        except NotApplicable as error:  # any other error is one, and no result
            rows.append({"notebook": notebook, "what": "", "unit": "", **dict.fromkeys(NUMBERS[:3], np.nan), "n": 0,
                         "control": np.nan, "control is": "", "why not": str(error)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def stored() -> pd.DataFrame:
    """The numbers of all embedded models: rows of ``measure`` with ``model`` and ``weights``, the first of their SHA-256."""
    text, path = dict.fromkeys(("notebook", "what", "unit", "control is", "why not", "weights"), str), data_dir() / "families.csv"
    try:
        table = pd.read_csv(path, dtype=text)
        if [*table.columns] != ["model", "weights", *COLUMNS]:
            raise ValueError("it has other columns")
        return table.fillna({name: "" for name in text})
    except (OSError, ValueError) as error:  # pandas' errors of a damaged file are ValueErrors
        raise VitvizError(f"{path} is missing or damaged ({error}): `python notebooks/families.py` measures every embedded model "
                          f"and writes it.") from None


def _row(what: str, result: Result, cell: dict, control: dict | float = np.nan, control_is: str = "") -> dict:
    """The number of a result in the row with the levels of ``cell``; and its control, in the row ``control`` or as it is."""
    (row,) = result.where(**cell).table[NUMBERS].to_dict("records")
    if isinstance(control, dict):
        control = result.where(**control).table["value"].item()
    return {"what": what, "unit": result.quantity, **row, "control": control, "control is": control_is}


def _noise(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    result = sensitivity(model, world, distances=(1.0,))
    yield _row("an adversarial perturbation raises a neuron", result, {"perturbation": "adversarial"}, {"perturbation": "random"},
               "a random perturbation of that size")


def _units(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    result, _ = axis_alignment(model, world)
    for kind, what in (("mlp", "MLP units represent concepts"), ("query", "queries represent concepts")):
        yield _row(what, result, {"kind": kind, "of": "units"}, {"kind": kind, "of": "random directions"},
                   "random directions of the same space")


def _progression(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    for layer, name in ((0, "first"), (-1, "last")):
        real, shuffled = (selectivity(model, find_site(model, layer), shuffled=control).strength for control in (False, True))
        result = Result("", "selectivity (standard deviations)", [{"layer": layer, **mean_of(real)}])
        yield _row(f"units of the {name} layer are selective for concepts", result, {"layer": layer}, float(shuffled.mean()),
                   "concepts of other scenes")


def _position(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    result = locality(model, world, n=128)
    layers = list(result.table["layer"])
    for layer, name in ((layers[-2], "last layer but one"), (layers[-1], "last layer")):
        yield _row(f"a perturbation stays at its position, {name}", result, {"layer": layer}, *reversed(result.control))


def _pooling(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    isolated = cls_isolation(model, world, n=_SCENES).where(measure="top-1")
    yield _row("accuracy with CLS isolated for half of the blocks", isolated, {"isolated blocks": depth(model) // 2},
               {"isolated blocks": 0}, "as trained")
    heads = head_on_tokens(model, world, n=_SCENES).where(measure="top-1")
    yield _row("accuracy of the head on the mean of the patch tokens", heads, {"head reads": "mean of patch tokens"},
               {"head reads": "CLS"}, "as trained")


def _background(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    yield _row("background alone: the prediction is consistent with it",
               context_consistency(model, world, n=_SCENES, fill="mean"),
               {"prediction": "consistent with the context"}, {"prediction": "shuffled contexts"}, "contexts of other scenes")


def _frequency(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    whole = accuracy_rows({}, correct_predictions(model, ImageSet(model, world, _SCENES), "whole"))
    yield _row("accuracy on whole scenes", Result("", "accuracy (%)", whole), {"measure": "top-1"},
               100 / len(world.concepts), "guessing")
    yield _row("low-pass cutoff that leaves 90 % of it", cutoff_needed([model], world, n=_SCENES), {})


def _language(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    real, shuffled = (variance_by_fact(model, n=2048, shuffled=control).by_layer() for control in (False, True))
    last = {"layer": real.table["layer"].max()}
    for fact in ("concept", "style", "context"):
        control = shuffled.where(explained_by=fact, **last).table["value"].item()
        yield _row(f"variance of the last layer's units explained by {fact}", real, {"explained by": fact, **last}, control,
                   "facts of other scenes")
    yield _row("concept profiles of the last layer's units in 3D and in line drawings", across_styles(model, _SCENES),
               {"3d and": "line", **last}, {"3d and": "3d, other concepts", **last}, "other concepts")


def _trust(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    site = find_site(model)
    neurons = evenly_spaced(site.units, _NEURONS)
    rendering = Visualizer(model).render(site.layer, neurons).require_finished()
    high = sum(percentile > 99 for percentile in rendering.scores.percentile)
    preferred, recognizer = selectivity(model, site), load("emoji-vit" if site.kind == "channel" else "emoji-resnet")
    hits = recognition(rendering.pictures, preferred.concept[neurons], recognizer)[preferred.strength[neurons] >= _SELECTIVE]
    for what, numbers, *control in (
            ("visualizations above the 99th percentile of scenes", proportion(high, len(neurons)), 1.0, "a random scene"),
            ("visualizations recognized by a model of another family",
             proportion(hits.sum(), len(hits)), 500 / len(recognizer.class_names), "guessing")):
        yield _row(what, Result("", "visualizations (%)", [{"of": "all", **numbers}]), {}, *control)


EXPERIMENTS: dict[str, Callable[[VisionModel, EmojiWorld], Iterator[dict]]] = {
    "01": _noise, "02": _units, "03": _progression, "04": _position, "05": _pooling, "06": _background, "07": _frequency,
    "08": _language, "10": _trust}


def adversarially_trained(name: str) -> bool:
    """Whether an embedded model was trained on adversarial examples (see ``training.Training.radius``), too."""
    return read_card(name)["recipe"]["radius"] > 0


def family(name: str) -> str:
    """The architecture family of an embedded model, whatever its training: "vit", "swin", …"""
    return name.removeprefix("emoji-").removesuffix("-robust").removesuffix("-standard")


def panels(table: pd.DataFrame, columns: int = 4) -> Figure:
    """One panel a number of ``stored``: families from top to bottom, values with intervals, controls as crosses.

    Dots are full for models of standard training, and hollow, a little lower, for adversarially trained ones.
    """
    numbers = list(table[table["n"] > 0].groupby(["notebook", "what"], sort=False))
    families, (blue, orange) = list(dict.fromkeys(map(family, table["model"]))), sns.color_palette("colorblind", 2)
    count = -(-len(numbers) // columns)
    height = 0.9 * count + 0.24 * count * len(families)
    figure, axes = plt.subplots(count, columns, figsize=(4 * columns, height), layout="constrained", sharey=True, squeeze=False)
    for axis, ((notebook, what), rows) in zip(axes.flat, numbers, strict=False):
        for row in rows.to_dict("records"):
            hollow = adversarially_trained(row["model"])
            y = families.index(family(row["model"])) + (0.15 if hollow else -0.15)
            axis.plot([row["low"], row["high"]], [y, y], color="0.4")
            axis.plot(row["value"], y, "o", color=blue, markerfacecolor="white" if hollow else blue, markersize=5)
            axis.plot(row["control"], y, "x", color=orange, markersize=5)
        axis.set_title(f"{notebook}: {what}", fontsize="small", wrap=True)
        axis.set(xlabel=rows["unit"].iloc[0], ylim=(len(families) - 0.5, -0.5))
        axis.xaxis.label.set_fontsize("small")
        axis.set_yticks(range(len(families)), families)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(numbers):]:
        axis.axis("off")
    return figure


def wall(models: list[VisionModel], units: int = 2, consistent: int = 4) -> Image.Image:
    """A row a model: ``units`` random units of each of four layers, first to last, then the ``most_consistent`` of the last."""
    tiles, random = [], torch.Generator().manual_seed(0)
    for model in tqdm(models, desc="a wall of families", unit="model", leave=False, delay=2):
        viewer, sites = Visualizer(model), find_sites(model)[find_site(model).kind]
        for k in range(4):
            site = sites[round(k * (len(sites) - 1) / 3)]
            neurons = torch.randperm(site.units, generator=random)[:units].tolist()
            render = viewer.render if viewer.in_atlas(site.layer) else viewer.optimize  # whose scores nobody would read
            pictures = render(site.layer, neurons).require_finished().pictures
            tiles += [Tile(picture, [model.name.removeprefix("emoji-"), f"layer {site.layer}, unit {neuron}"])
                      for picture, neuron in zip(pictures, neurons, strict=True)]
        tiles += _consistent_tiles(model, consistent)
    title = (f"each row a model; from left to right {units} random units of each of four layers, first to last; then "
             f"{consistent} units of the last layer whose six top images agree most, with the concept they show")
    return contact_sheet(tiles, title, side=96, columns=4 * units + consistent)


def _consistent_tiles(model: VisionModel, count: int) -> list[Tile]:
    atlas = embedded(model.name)
    if atlas is None:
        raise VitvizError(f"No atlas of {model.name} comes with the kit; `vitviz atlas {model.name} --layers -1` makes one.")
    chosen = most_consistent(atlas).head(count)
    pictures = atlas.rendering(int(chosen["layer"].iloc[0]), chosen["neuron"].tolist()).pictures
    return [Tile(picture, [f"unit {row.neuron}:", max(row.scenes, key=row.scenes.count)[:16]])
            for picture, row in zip(pictures, chosen.itertuples(), strict=True)]


def most_consistent(atlas: Atlas) -> pd.DataFrame:
    """The alive neurons of an atlas's last layer, rows of its table, those first whose top images show the fewest concepts."""
    table = atlas.table()
    table = table[(table["layer"] == table["layer"].max()) & (table["status"] == "alive")]
    return table.assign(concepts=table["scenes"].map(lambda scenes: len(set(scenes)))).sort_values("concepts", kind="stable")
