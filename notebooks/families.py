"""Measure every experiment of the course on the embedded models, and write ``data/families.csv``.

    python notebooks/families.py                          # the models whose weights are new since they were measured
    python notebooks/families.py emoji-swin emoji-pit     # these

About three minutes of a CPU core a model.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
from tqdm import tqdm

import vitviz_nb as vv
from vitviz_nb.experiments.background import context_consistency
from vitviz_nb.experiments.class_token import cls_isolation, depth, head_on_tokens
from vitviz_nb.experiments.classification import accuracy_rows, correct_predictions
from vitviz_nb.experiments.faithfulness import recognition, selectivity
from vitviz_nb.experiments.families import COLUMNS, stored
from vitviz_nb.experiments.frequency import cutoff_needed
from vitviz_nb.experiments.localization import locality
from vitviz_nb.experiments.regularizers import sensitivity
from vitviz_nb.experiments.result import NUMBERS, Result, mean_of, proportion
from vitviz_nb.experiments.semantics import across_styles, variance_by_fact
from vitviz_nb.experiments.units import axis_alignment
from vitviz_nb.models.cards import embedded_names, read_card
from vitviz_nb.models.sites import find_site
from vitviz_nb.utils import files, validate
from vitviz_nb.utils.errors import NotApplicable, VitvizError
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.visualize.atlas import evenly_spaced

_SCENES, _NEURONS, _SELECTIVE = 512, 128, 3.0  # the last: selectivity from which on a unit has a concept to show


def measure(model: vv.VisionModel, notebooks: list[str] | None = None) -> pd.DataFrame:
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
    world, rows = vv.EmojiWorld("val", styles=("3d", "cartoon", "flat"), size=model.image_size), []  # styles that all have seen
    for notebook in tqdm(chosen, desc=f"{model.name}: experiments", unit="notebook", leave=False, delay=2):
        try:
            rows += [{"notebook": notebook, "why not": "", **row} for row in EXPERIMENTS[notebook](model, world)]
        except NotApplicable as error:  # any other error is one, and no result
            rows.append({"notebook": notebook, "what": "", "unit": "", **dict.fromkeys(NUMBERS[:3], np.nan), "n": 0,
                         "control": np.nan, "control is": "", "why not": str(error)})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(what: str, result: Result, cell: dict, control: dict | float = np.nan, control_is: str = "") -> dict:
    """The number of a result in the row with the levels of ``cell``; and its control, in the row ``control`` or as it is."""
    (row,) = result.where(**cell).table[NUMBERS].to_dict("records")
    if isinstance(control, dict):
        control = result.where(**control).table["value"].item()
    return {"what": what, "unit": result.quantity, **row, "control": control, "control is": control_is}


def _noise(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    result = sensitivity(model, world, distances=(1.0,))
    yield _row("an adversarial perturbation raises a neuron", result, {"perturbation": "adversarial"}, {"perturbation": "random"},
               "a random perturbation of that size")


def _units(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    result, _ = axis_alignment(model, world)
    for kind, what in (("mlp", "MLP units represent concepts"), ("query", "queries represent concepts")):
        yield _row(what, result, {"kind": kind, "of": "units"}, {"kind": kind, "of": "random directions"},
                   "random directions of the same space")


def _progression(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    for layer, name in ((0, "first"), (-1, "last")):
        real, shuffled = (selectivity(model, find_site(model, layer), shuffled=control).strength for control in (False, True))
        result = Result("", "selectivity (standard deviations)", [{"layer": layer, **mean_of(real)}])
        yield _row(f"units of the {name} layer are selective for concepts", result, {"layer": layer}, float(shuffled.mean()),
                   "concepts of other scenes")


def _position(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    result = locality(model, world, n=128)
    layers = list(result.table["layer"])
    for layer, name in ((layers[-2], "last layer but one"), (layers[-1], "last layer")):
        yield _row(f"a perturbation stays at its position, {name}", result, {"layer": layer}, *reversed(result.control))


def _pooling(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    isolated = cls_isolation(model, world, n=_SCENES).where(measure="top-1")
    yield _row("accuracy with CLS isolated for half of the blocks", isolated, {"isolated blocks": depth(model) // 2},
               {"isolated blocks": 0}, "as trained")
    heads = head_on_tokens(model, world, n=_SCENES).where(measure="top-1")
    yield _row("accuracy of the head on the mean of the patch tokens", heads, {"head reads": "mean of patch tokens"},
               {"head reads": "CLS"}, "as trained")


def _background(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    yield _row("background alone: the prediction is consistent with it",
               context_consistency(model, world, n=_SCENES, fill="mean"),
               {"prediction": "consistent with the context"}, {"prediction": "shuffled contexts"}, "contexts of other scenes")


def _frequency(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    whole = accuracy_rows({}, correct_predictions(model, vv.ImageSet(model, world, _SCENES), "whole"))
    yield _row("accuracy on whole scenes", Result("", "accuracy (%)", whole), {"measure": "top-1"},
               100 / len(world.concepts), "guessing")
    yield _row("low-pass cutoff that leaves 90 % of it", cutoff_needed([model], world, n=_SCENES), {})


def _language(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    real, shuffled = (variance_by_fact(model, n=2048, shuffled=control).by_layer() for control in (False, True))
    last = {"layer": real.table["layer"].max()}
    for fact in ("concept", "style", "context"):
        control = shuffled.where(explained_by=fact, **last).table["value"].item()
        yield _row(f"variance of the last layer's units explained by {fact}", real, {"explained by": fact, **last}, control,
                   "facts of other scenes")
    yield _row("concept profiles of the last layer's units in 3D and in line drawings", across_styles(model, _SCENES),
               {"3d and": "line", **last}, {"3d and": "3d, other concepts", **last}, "other concepts")


def _trust(model: vv.VisionModel, world: vv.EmojiWorld) -> Iterator[dict]:
    site = find_site(model)
    neurons = evenly_spaced(site.units, _NEURONS)
    rendering = vv.Visualizer(model).render(site.layer, neurons).require_finished()
    high = sum(percentile > 99 for percentile in rendering.scores.percentile)
    preferred, recognizer = selectivity(model, site), vv.load("emoji-vit" if site.kind == "channel" else "emoji-resnet")
    hits = recognition(rendering.pictures, preferred.concept[neurons], recognizer)[preferred.strength[neurons] >= _SELECTIVE]
    for what, numbers, *control in (
            ("visualizations above the 99th percentile of scenes", proportion(high, len(neurons)), 1.0, "a random scene"),
            ("visualizations recognized by a model of another family",
             proportion(hits.sum(), len(hits)), 500 / len(recognizer.class_names), "guessing")):
        row = _row(what, Result("", "visualizations (%)", [{"of": "all", **numbers}]), {}, *control)
        if not numbers["n"]:
            row["why not"] = f"No neuron of {model.name}'s last layer is selective enough ({_SELECTIVE:g} standard deviations)."
        yield row


EXPERIMENTS: dict[str, Callable[[vv.VisionModel, vv.EmojiWorld], Iterator[dict]]] = {
    "01": _noise, "02": _units, "03": _progression, "04": _position, "05": _pooling, "06": _background, "07": _frequency,
    "08": _language, "10": _trust}


def weights(name: str) -> str:
    """The beginning of the hash of a model's weights."""
    return read_card(name)["sha256"][:12]


def stale(table: pd.DataFrame) -> list[str]:
    """The models that ship whose weights are not those that were measured, and those measured that ship no more."""
    known, shipped = dict(zip(table["model"], table["weights"], strict=True)), {name: weights(name) for name in embedded_names()}
    return sorted(name for name in known.keys() | shipped.keys() if known.get(name) != shipped.get(name))


def main(names: list[str]) -> None:
    path = data_dir() / "families.csv"
    table = stored() if path.exists() else pd.DataFrame(columns=["model", "weights"])
    shipped = embedded_names()
    if unknown := set(names) - set(shipped):
        sys.exit(f"No embedded model is called {', '.join(sorted(unknown))}; there are {', '.join(shipped)}.")
    table = table[table["model"].isin(shipped)]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITVIZ_CACHE"] = folder  # measured now, not found in a cache
        for name in names or [name for name in stale(table) if name in shipped]:
            print(name, file=sys.stderr, flush=True)
            fresh = measure(vv.load(name, device="cpu"))
            fresh.insert(0, "model", name)
            fresh.insert(1, "weights", weights(name))
            table = pd.concat([table[table["model"] != name], fresh], ignore_index=True)
            order = table["model"].map(shipped.index)
            table = table.assign(order=order).sort_values("order", kind="stable").drop(columns="order")
            files.write(path, table.to_csv(index=False, float_format="%.6g"))  # after each, so that an interrupted run goes on


if __name__ == "__main__":
    main(sys.argv[1:])
