"""The experiments of the course on every family of models, a number each, laid side by side (paper, all sections).

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
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils.errors import VitvizError
from ..utils.paths import data_dir
from ..visualize.atlas import Atlas, embedded
from ..visualize.visualizer import Visualizer
from .background import at_home
from .class_token import cls_isolation, depth, head_on_tokens
from .classification import accuracy_rows, correct_predictions
from .faithfulness import recognition, selectivity
from .frequency import radius_needed
from .localization import locality
from .regularizers import sensitivity
from .result import NUMBERS, Result, mean, share
from .semantics import across_styles, variance_by_fact
from .units import axis_alignment

COLUMNS = ("notebook", "what", "unit", *NUMBERS, "control", "control is", "why not")
_SCENES, _NEURONS, _CLEAR = 512, 128, 3.0  # the last: standard deviations from which on a unit has a concept to show


def measure(model: VisionModel, notebooks: list[str] | None = None) -> pd.DataFrame:
    """One number or a few of each experiment for an embedded model.

    Args:
        notebooks: of which notebooks, such as ["04", "06"], which takes seconds; by default of all of ``EXPERIMENTS``, in about
            three minutes on a CPU core.

    Returns:
        A row a number, with the columns ``COLUMNS``: value, low, high and n as in ``Finding``; ``control``, the value expected if
        there were no effect, and in ``control is`` what that is; for an experiment that cannot be made on this architecture no
        numbers, and ``why not``.
    """
    if model.card is None:
        raise VitvizError(f"All experiments together need to know what scenes show, so they are made on embedded models; "
                          f"{model.name} is none. Each by itself takes your images, as its notebook says.")
    unknown = [notebook for notebook in notebooks or [] if notebook not in EXPERIMENTS]
    if unknown:
        raise VitvizError(f"No experiment here is of notebook {unknown[0]!r}; there are some of {', '.join(EXPERIMENTS)}.")
    rows = []
    for notebook in tqdm(notebooks or EXPERIMENTS, desc=f"{model.name}: experiments", unit="notebook", leave=False, delay=2):
        try:
            rows += [{"notebook": notebook, "why not": "", **row} for row in EXPERIMENTS[notebook](model, _pictured(model))]
        except VitvizError as error:
            rows.append({"notebook": notebook, "what": "", "unit": "", **dict.fromkeys(NUMBERS[:3], np.nan), "n": 0,
                         "control": np.nan, "control is": "", "why not": str(error)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def stored() -> pd.DataFrame:
    """What was measured of the embedded models: ``measure``'s rows, with ``model`` and ``weights``, the first of their hash."""
    text, path = dict.fromkeys(("notebook", "what", "unit", "control is", "why not", "weights"), str), data_dir() / "families.csv"
    if not path.exists():
        raise VitvizError(f"{path} is missing: `python notebooks/families.py` measures every embedded model and writes it.")
    return pd.read_csv(path, dtype=text).fillna({name: "" for name in text})


def _pictured(model: VisionModel) -> EmojiWorld:
    """Validation scenes in the three styles that every embedded model was trained on."""
    return EmojiWorld("val", styles=("3d", "cartoon", "flat"), size=model.image_size)


def _row(what: str, finding: Result, cell: dict, control: dict | float | None = None, control_is: str = "") -> dict:
    """A number of a finding, the row whose columns have the values of ``cell``; and its control, of the row ``control``."""
    def pick(cell: dict) -> dict:
        (row,) = finding.table[(finding.table[[*cell]] == [*cell.values()]).all(axis=1)][NUMBERS].to_dict("records")
        return row

    beside = pick(control)["value"] if isinstance(control, dict) else np.nan if control is None else control
    return {"what": what, "unit": finding.quantity, **pick(cell), "control": beside, "control is": control_is}


def _noise(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    found, size = sensitivity(model, world, distances=(1.0,)), {"L2 norm": 1.0}
    adversarial, random = ({**size, "perturbation": name} for name in ("adversarial", "random"))
    yield _row("an invisible change raises a neuron", found, adversarial, random,
               "a random change of that size")


def _kinds(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    found, _ = axis_alignment(model, world)
    for kind, what in (("mlp", "MLP units stand for concepts"), ("query", "queries stand for concepts")):
        yield _row(what, found, {"kind": kind, "of": "units"}, {"kind": kind, "of": "random directions"},
                   "random directions of the same space")


def _depth(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    sites = next(iter(find_sites(model).values()))
    for site, where in ((sites[0], "first"), (sites[-1], "last")):
        real, shuffled = (selectivity(model, site, shuffled=s).strength.numpy() for s in (False, True))
        found = Result("", "selectivity (standard deviations)", pd.DataFrame([{"layer": site.layer, **mean(real)}]))
        yield _row(f"units of the {where} layer tell concepts", found, {"layer": site.layer}, float(shuffled.mean()),
                   "concepts of other scenes")


def _position(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    found = locality(model, world, 128)
    layers = list(found.table["layer"])
    for layer, where in ((layers[-2], "last layer but one"), (layers[-1], "last layer")):
        yield _row(f"a change stays at its place, {where}", found, {"layer": layer}, found.control[1], found.control[0])


def _pooling(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    apart, top1 = cls_isolation(model, world, _SCENES), {"measure": "top-1"}
    trained = {"isolated blocks": 0, **top1}
    yield _row("right answers, class token apart for half of the blocks", apart,
               {"isolated blocks": depth(model) // 2, **top1}, trained, "as trained")
    heads = head_on_tokens(model, world, _SCENES)
    yield _row("right answers, the head reads the mean of the patches", heads, {"the head reads": "mean of patches", **top1},
               {"the head reads": "class token", **top1}, "as trained")


def _background(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    yield _row("backgrounds alone: the answer is at home there", at_home(model, world, _SCENES, fill="mean"),
               {"answers": "at home in the context shown"}, {"answers": "the same, by chance"}, "contexts of other scenes")


def _frequency(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    whole = accuracy_rows({}, correct_predictions(model, ImageSet(model, world, _SCENES), "whole"))
    yield _row("right answers on whole scenes", Result("", "right answers (%)", pd.DataFrame(whole)), {"measure": "top-1"},
               100 / len(world.concepts), "guessing")
    found = radius_needed([model], world, _SCENES)
    yield _row("low-pass that leaves 90 % of them", found, {"model": model.title})


def _language(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    real, shuffled = (variance_by_fact(model, n=2048, shuffled=s).by_layer() for s in (False, True))
    last = real.table["layer"].max()
    for fact in ("concept", "style", "context"):
        cell = {"layer": last, "explained by": fact}
        control = shuffled.table[(shuffled.table[[*cell]] == [*cell.values()]).all(axis=1)]["value"].item()
        yield _row(f"units of the last layer, explained by {fact}", real, cell, control, "facts of other scenes")
    found = across_styles(model, _SCENES)
    yield _row("a unit's concepts in 3D models and in line drawings", found, {"layer": last, "3d and": "line"},
               {"layer": last, "3d and": "3d, other concepts"}, "other concepts")


def _trust(model: VisionModel, world: EmojiWorld) -> Iterator[dict]:
    site = next(iter(find_sites(model).values()))[-1]
    neurons = torch.linspace(0, site.units - 1, min(_NEURONS, site.units)).round().long().tolist()
    made = Visualizer(model).render(site.layer, neurons, site.kind)
    high = sum(percentile > 99 for percentile in made.scores.percentile)
    chosen, judge = selectivity(model, site), load("emoji-vit" if site.kind == "channel" else "emoji-resnet")
    seen = recognition(made.pictures, chosen.concept[neurons], chosen.strength[neurons], judge, _CLEAR)
    for what, numbers, control, is_ in (
            ("pictures above the 99th percentile of scenes", share(high, len(neurons)), 1.0, "a scene by lot"),
            ("pictures that a judge of another kind names", share(seen.hits[seen.counted].sum(), int(seen.counted.sum())),
             100 * seen.chance, "guessing")):
        yield _row(what, Result("", "pictures (%)", pd.DataFrame([{"of": "all", **numbers}])), {"of": "all"}, control, is_)


EXPERIMENTS: dict[str, Callable[[VisionModel, EmojiWorld], Iterator[dict]]] = {
    "01": _noise, "02": _kinds, "03": _depth, "04": _position, "05": _pooling, "06": _background, "07": _frequency,
    "08": _language, "10": _trust}


def under_attack(name: str) -> bool:
    """Whether an embedded model was trained on under attack (see ``training.Training.radius``) and not in the usual way alone."""
    return read_card(name)["recipe"]["radius"] > 0


def family(name: str) -> str:
    """What an embedded model and its twin of another training are both called: "vit", "swin", …"""
    return name.removeprefix("emoji-").removesuffix("-robust").removesuffix("-standard")


def panels(table: pd.DataFrame, columns: int = 4) -> Figure:
    """One panel a number: families from top to bottom, values with intervals, and the controls as crosses.

    Dots are full for models that were trained in the usual way, and hollow, a little lower, for those trained on under attack.
    """
    numbers = list(table[table["n"] > 0].groupby(["notebook", "what"], sort=False))
    families, (blue, orange) = list(dict.fromkeys(map(family, table["model"]))), sns.color_palette("colorblind", 2)
    rows = -(-len(numbers) // columns)
    height = 0.9 * rows + 0.24 * rows * len(families)
    figure, axes = plt.subplots(rows, columns, figsize=(4 * columns, height), layout="constrained", sharey=True, squeeze=False)
    for axis, ((notebook, what), here) in zip(axes.flat, numbers, strict=False):
        for row in here.to_dict("records"):
            hollow = under_attack(row["model"])
            y = families.index(family(row["model"])) + (0.15 if hollow else -0.15)
            axis.plot([row["low"], row["high"]], [y, y], color="0.4")
            axis.plot(row["value"], y, "o", color=blue, markerfacecolor="white" if hollow else blue, markersize=5)
            axis.plot(row["control"], y, "x", color=orange, markersize=5)
        axis.set_title(f"{notebook}: {what}", fontsize="small", wrap=True)
        axis.set(xlabel=here["unit"].iloc[0], ylim=(len(families) - 0.5, -0.5))
        axis.xaxis.label.set_fontsize("small")
        axis.set_yticks(range(len(families)), families)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(numbers):]:
        axis.axis("off")
    return figure


def wall(models: list[VisionModel], units: int = 2, best: int = 4) -> Image.Image:
    """A row a model: ``units`` units drawn by lot of four layers from first to last, then ``best`` of the last layer.

    The best are those whose six strongest scenes show the fewest different concepts, as the model's atlas knows them.
    """
    tiles, lot = [], torch.Generator().manual_seed(0)
    for model in tqdm(models, desc="a wall of families", unit="model", leave=False, delay=2):
        viewer, (kind, sites) = Visualizer(model), next(iter(find_sites(model).items()))
        for k in range(4):
            site = sites[round(k * (len(sites) - 1) / 3)]
            some = torch.randperm(site.units, generator=lot)[:units].tolist()
            make = viewer.render if viewer.in_atlas(site.layer, kind) else viewer.optimize  # whose scores nobody would read
            made = make(site.layer, some, kind).pictures
            tiles += [Tile(picture, [model.name.removeprefix("emoji-"), f"layer {site.layer}, unit {neuron}"])
                      for picture, neuron in zip(made, some, strict=True)]
        tiles += _telling(model, best)
    title = (f"each row a model; from left to right {units} units by lot of each of four layers, first to last; then {best} "
             f"units of the last layer, those whose six strongest scenes agree most, with what they show")
    return contact_sheet(tiles, title, side=96, columns=4 * units + best)


def _telling(model: VisionModel, count: int) -> list[Tile]:
    """Pictures of the units of the last layer whose strongest scenes agree most."""
    atlas = embedded(model.name)
    if atlas is None:
        raise VitvizError(f"No atlas of {model.name} comes with the kit; `vitviz atlas {model.name} --layers -1` makes one.")
    chosen = agreeing(atlas).head(count)
    pictures = atlas.rendering(int(chosen["layer"].iloc[0]), chosen["neuron"].tolist()).pictures
    return [Tile(picture, [f"unit {row.neuron}:", max(row.scenes, key=row.scenes.count)[:16]])
            for picture, row in zip(pictures, chosen.itertuples(), strict=True)]


def agreeing(atlas: Atlas) -> pd.DataFrame:
    """The living neurons of an atlas's last layer, rows of its table, those first whose strongest scenes show fewest concepts."""
    table = atlas.table()
    table = table[(table["layer"] == table["layer"].max()) & (table["status"] == "alive")]
    return table.assign(concepts=table["scenes"].map(lambda scenes: len(set(scenes)))).sort_values("concepts", kind="stable")
