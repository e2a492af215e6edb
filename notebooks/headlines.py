"""The headline numbers of the course: measured here, and written beside the published ones into this folder's README.

    python notebooks/headlines.py           # all of them
    python notebooks/headlines.py 03 05     # those of these notebooks; the others stay as they are

headlines.csv keeps what was measured, with the call and the weights that made it and the seconds of processor time the call
took; the table between the markers in README.md is made from it. A new headline is one more line in ``ROWS``.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

import vitviz_nb as vv
from vitviz_nb.datasets.emoji_world import STYLES
from vitviz_nb.datasets.image_set import default_world
from vitviz_nb.experiments import (
    background,
    class_token,
    faithfulness,
    frequency,
    localization,
    progression,
    published,
    regularizers,
    semantics,
    units,
)
from vitviz_nb.experiments.result import NUMBERS, Result
from vitviz_nb.models.cards import read_card
from vitviz_nb.models.sites import find_site, find_sites
from vitviz_nb.utils import files
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.widgets.two_alternative import Task, model_player

HERE = Path(__file__).resolve().parent
START, END = "<!-- headlines -->", "<!-- /headlines -->"
COLORS = ("3d", "cartoon", "flat")


@dataclass(frozen=True)
class Call:
    """A measurement, which may make several numbers.

    Attributes:
        function: from models, images and ``arguments`` to a ``Result``, or to several.
        models: embedded models, in the order in which ``function`` takes them; the numbers are of the first.
        counted: what the result's ``n`` counts.
        styles: of the validation scenes; None leaves images to ``function``, which takes the styles the model was trained on.
    """

    function: Callable[..., Result | tuple[Result, ...]]
    models: tuple[str, ...]
    counted: str = "scenes"
    styles: tuple[str, ...] | None = None
    arguments: dict = field(default_factory=dict)

    def __str__(self) -> str:
        styles = {"styles": "+".join(self.styles)} if self.styles else {}
        return f"{self.function.__name__}({', '.join([*self.models, *_written(styles | self.arguments)])})"

    @property
    def weights(self) -> str:
        """The beginnings of the SHA-256 of its models' weights, as they ship."""
        return " ".join(read_card(name)["sha256"][:12] for name in self.models)

    def run(self) -> tuple[tuple[Result, ...], float]:
        """Its results, and the seconds of processor time that they took."""
        models = [vv.load(name, device="cpu") for name in self.models]
        images = {"images": vv.EmojiWorld("val", styles=self.styles, size=models[0].image_size)} if self.styles else {}
        began = time.process_time()
        results = self.function(*models, **images, **self.arguments)
        return results if isinstance(results, tuple) else (results,), round(time.process_time() - began, 1)


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes:
        notebook: "03".
        what: the number in words, without its unit, which the result knows.
        published: the paper's number with its source, or that there is none.
        call: what measures it.
        cell: which row of the result's table it is: the levels of all factors; and "quantity", where several results of the
            call have such factors.
    """

    notebook: str
    what: str
    published: str
    call: Call
    cell: dict

    @property
    def made(self) -> tuple[str, str, str]:
        """What its number depends on, as headlines.csv keeps it: the call, the cell and the weights."""
        return str(self.call), ", ".join(_written(self.cell)), self.call.weights


def _written(values: dict) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def paper(table: str, model: str = "ViT-B/16", measure: str = "top-1", **levels) -> str:
    """An accuracy in percent from the paper's tables (``data/paper``), with its source; factors have _ for spaces."""
    value = published.accuracy(table).where(model=model, measure=measure, **levels).table["value"].item()
    of = ", ".join([model, *(f"{name.replace('_', ' ')} {level}" for name, level in levels.items())])
    return f"{value:.1f} ({of}; [{table}.csv](../data/paper/{table}.csv))"


def mean_frequency(model: vv.VisionModel) -> Result:
    """Spatial frequency of the visualizations of every fourth neuron, by layer, as notebook 03 measures it."""
    sites, viewer = find_sites(model)[find_site(model).kind], vv.Visualizer(model)
    pictures = {site.layer: viewer.render(site.layer, range(0, site.units, 4)) for site in sites}
    return progression.frequency_and_color(pictures, model.title)[0]


def selectivity_by_layer(model: vv.VisionModel) -> Result:
    """Concept selectivity by layer, as notebook 03 has it; measured, though of some models it is stored (data/measured)."""
    return progression.selectivity_by_layer(model, default_world(model))


def variance_by_fact(model: vv.VisionModel, shuffled: bool = False) -> Result:
    """Variance of neurons explained by facts, by layer, as notebook 08 has it; measured, though of these models it is stored."""
    world = vv.EmojiWorld("val", size=model.image_size)
    return semantics.variance_by_fact(model, world, n=semantics.STORED, shuffled=shuffled).by_layer()


def excess(model: vv.VisionModel) -> Result:
    """Visualizations that activate their neuron more than every scene, by layer, as notebook 10 measures it."""
    return faithfulness.excess_by_layer(vv.Visualizer(model), 128)


def recognition(model: vv.VisionModel, recognizer: vv.VisionModel) -> Result:
    """Cross-model recognition of visualizations, by layer, as notebook 10 measures it."""
    return faithfulness.recognition_by_layer(vv.Visualizer(model), recognizer, 128)


def two_alternative(model: vv.VisionModel, player: vv.VisionModel) -> Result:
    """The two-alternative forced-choice task of notebook 10, with another model as the player."""
    return Task(model, 400, seed=1).play(model_player(player), player.name)


def similarity_on_photographs(model: vv.VisionModel) -> Result:
    """Cosine similarity of tokens on the kit's photographs, as notebook 11 measures it."""
    return localization.token_similarity(model, vv.image_folder(data_dir() / "photos", model))


VIT, STANDARD, CNN, CLIP = ("emoji-vit",), ("emoji-vit-standard",), ("emoji-resnet",), ("emoji-clip",)
DEEP = ("emoji-vit-deep",)

RISE, RISE_STANDARD = Call(regularizers.sensitivity, VIT), Call(regularizers.sensitivity, STANDARD, styles=COLORS)
ALIGNMENT_QUERIES, ALIGNMENT_NEURONS, ALIGNMENT_RANDOM = (Call(units.axis_alignment, VIT, counted)
                                                          for counted in ("queries", "neurons", "directions"))
DIMENSION = Call(units.effective_dimension, VIT)
BY_KIND = Call(units.recognition_by_kind, VIT + CNN, "visualizations of each kind", arguments={"neurons": 64})
FREQUENCY = Call(mean_frequency, VIT, "visualizations")
SELECTIVE, SELECTIVE_CNN = Call(selectivity_by_layer, VIT, "neurons"), Call(selectivity_by_layer, CNN, "channels")
FAMILIES = {"DeiT": ("emoji-deit", 5), "CoaT": ("emoji-coat", 6), "ConViT": ("emoji-convit", 5), "PiT": ("emoji-pit", 4),
            "Swin": ("emoji-swin", 5), "Twins": ("emoji-twins", 4)}  # and the last layer of each
SELECTIVE_IN = {family: Call(selectivity_by_layer, (name,), "neurons") for family, (name, _) in FAMILIES.items()}
LOCALITY, POINTING = Call(localization.locality, VIT), Call(localization.pointing_game, VIT, "neurons")
POINTING_DEEP, POINTING_STANDARD = (Call(localization.pointing_game, models, "neurons", COLORS) for models in (DEEP, STANDARD))
PROBES = Call(localization.linear_probes, VIT, arguments={"n": 384})
ISOLATED, ISOLATED_VIT, ISOLATED_DEEP = (Call(class_token.cls_isolation, models, styles=COLORS, arguments={"n": 768})
                                         for models in (STANDARD, VIT, DEEP))
HEAD, HEAD_VIT = (Call(class_token.head_on_tokens, models, styles=COLORS, arguments={"n": 768}) for models in (STANDARD, VIT))
CLS_ONLY = Call(class_token.cls_only_from, STANDARD, styles=COLORS, arguments={"n": 768})
SIMILAR, SIMILAR_VIT = (Call(localization.token_similarity, models, styles=COLORS) for models in (STANDARD, VIT))
CONTEXT, CONTEXT_CNN = (Call(background.context_consistency, models, "backgrounds", COLORS, {"n": 512, "fill": "mean"})
                        for models in (STANDARD, CNN))
LOW, LOW_CNN = (Call(frequency.accuracy_by_cutoff, models, styles=COLORS, arguments={"n": 512}) for models in (STANDARD, CNN))
FACTS, FACTS_LABELS = (Call(variance_by_fact, models, "neurons") for models in (CLIP, DEEP))
FACTS_SHUFFLED = Call(variance_by_fact, CLIP, "neurons", arguments={"shuffled": True})
ACROSS = [Call(semantics.across_styles, models, "neurons", arguments={"n": 640}) for models in (CLIP, DEEP)]
CATEGORY = {token: [Call(semantics.profiles_by_category, models, "neurons", arguments={"n": 640, "token": token})
                    for models in (CLIP, DEEP)] for token in semantics.TOKENS}
CAPTIONS = Call(semantics.caption_matching, CLIP)
EXCESS, RECOGNIZED = Call(excess, VIT, "visualizations"), Call(recognition, VIT + CNN, "visualizations")
CHOICE = Call(two_alternative, VIT + CNN, "questions")
PHOTOS = Call(similarity_on_photographs, VIT, "photographs")

FIGURES, SECTION_2, SECTION_3, SECTION_4, SECTION_5 = (
    f"no number ({where})" for where in ("pictures, figures 1 and 4", "section 2", "section 3", "section 4", "section 5"))
SECTION_6 = "no number (pictures, section 6)"
OURS = "–"  # a control, or a question that the paper does not ask
ADVERSARIAL, RANDOM = ({"L2 norm": 1.0, "perturbation": name} for name in ("adversarial", "random"))
EFFECTIVE = {"counted": "effective dimension"}
UNITS, DIRECTIONS = ({"of": of, "quantity": "selectivity (standard deviations)"} for of in ("units", "random directions"))
KNOWN = "recognized by emoji-resnet"
TOP1, PATCHES = {"measure": "top-1"}, {"tokens": "patches"}
REAL, SHUFFLED = {"labels": "concepts"}, {"labels": "shuffled"}
OWN, OTHER = {"mask": "of the image"}, {"mask": "of another image"}
CONSISTENT, TOP5 = {"prediction": "consistent with the context"}, {"prediction": "correct, top-5"}
ALL, COARSE = ({frequency.CUTOFF: cutoff, "measure": "top-1"} for cutoff in (45, 8))
POSITION, COLOR = {"probe": "position"}, {"probe": "color"}
SELF, ANOTHER = ({"the picture is of": of} for of in ("the neuron itself", "another neuron"))
PREFERRED, FOREIGN = ({"preferred concept of": of} for of in ("the neuron itself", "another neuron"))
PLAYER = {"player": "emoji-resnet"}

ROWS = (
    Row("01", "adversarial perturbation, standard training", SECTION_2, RISE_STANDARD, ADVERSARIAL),
    Row("01", "control: a random perturbation of that size", OURS, RISE_STANDARD, RANDOM),
    Row("01", "adversarial perturbation, adversarially trained", OURS, RISE, ADVERSARIAL),
    Row("02", "queries of the last layer", SECTION_3, ALIGNMENT_QUERIES, {"kind": "query", **UNITS}),
    Row("02", "control: random directions among queries", OURS, ALIGNMENT_RANDOM, {"kind": "query", **DIRECTIONS}),
    Row("02", "MLP neurons of the last layer", SECTION_3, ALIGNMENT_NEURONS, {"kind": "mlp", **UNITS}),
    Row("02", "control: random directions among MLP neurons", OURS, ALIGNMENT_RANDOM, {"kind": "mlp", **DIRECTIONS}),
    Row("02", "effective dimension, 128 queries of the last layer", SECTION_3, DIMENSION, {"kind": "query", **EFFECTIVE}),
    Row("02", "effective dimension, 512 MLP neurons of the last layer", SECTION_3, DIMENSION, {"kind": "mlp", **EFFECTIVE}),
    Row("02", "effective dimension, MLP neurons before their activation function", OURS, DIMENSION,
        {"kind": "before", **EFFECTIVE}),
    *(Row("02", f"visualizations of {called}, recognized by the CNN", SECTION_3, BY_KIND, {"kind": kind, "pictures": KNOWN})
      for kind, called in (("query", "queries"), ("key", "keys"), ("value", "values"), ("mlp", "MLP neurons"))),
    Row("02", "control: visualizations of random directions among MLP neurons, recognized by the CNN", OURS, BY_KIND,
        {"kind": "mlp directions", "pictures": KNOWN}),
    Row("03", "visualizations of layer 0", FIGURES, FREQUENCY, {"layer": 0}),
    Row("03", "visualizations of layer 5, the last", FIGURES, FREQUENCY, {"layer": 5}),
    Row("03", "neurons of layer 0", SECTION_3, SELECTIVE, {"layer": 0, **REAL}),
    Row("03", "neurons of layer 5", SECTION_3, SELECTIVE, {"layer": 5, **REAL}),
    Row("03", "control: neurons of layer 5, shuffled labels", OURS, SELECTIVE, {"layer": 5, **SHUFFLED}),
    Row("03", "CNN, channels of layer 0", SECTION_3, SELECTIVE_CNN, {"layer": 0, **REAL}),
    Row("03", "CNN, channels of layer 12, the last", SECTION_3, SELECTIVE_CNN, {"layer": 12, **REAL}),
    Row("04", "one patch of the scene replaced, layer 0", SECTION_4, LOCALITY, {"layer": 0}),
    Row("04", "one patch of the scene replaced, layer 4, the last but one", SECTION_4, LOCALITY, {"layer": 4}),
    Row("04", "one patch of the scene replaced, layer 5, the last", SECTION_4, LOCALITY, {"layer": 5}),
    Row("04", "pointing game, layer 0", SECTION_4, POINTING, {"layer": 0, **OWN}),
    Row("04", "pointing game, layer 4, the last but one", SECTION_4, POINTING, {"layer": 4, **OWN}),
    Row("04", "control: layer 4, mask of another image", OURS, POINTING, {"layer": 4, **OTHER}),
    Row("04", "pointing game, layer 5, the last", SECTION_4, POINTING, {"layer": 5, **OWN}),
    Row("04", "control: layer 5, mask of another image", OURS, POINTING, {"layer": 5, **OTHER}),
    Row("04", "pointing game, standard training, layer 4, the last but one", SECTION_4, POINTING_STANDARD, {"layer": 4, **OWN}),
    Row("04", "control: standard training, layer 4, mask of another image", OURS, POINTING_STANDARD, {"layer": 4, **OTHER}),
    Row("04", "pointing game, twelve blocks, layer 10, the last but one", SECTION_4, POINTING_DEEP, {"layer": 10, **OWN}),
    Row("04", "control: twelve blocks, layer 10, mask of another image", OURS, POINTING_DEEP, {"layer": 10, **OTHER}),
    Row("04", "probe of a patch token's position, layer 4", SECTION_4, PROBES, {"layer": 4, **POSITION}),
    Row("04", "probe of a patch token's position, layer 5", SECTION_4, PROBES, {"layer": 5, **POSITION}),
    Row("04", "probe of a patch's color, layer 4", SECTION_4, PROBES, {"layer": 4, **COLOR}),
    Row("04", "probe of a patch's color, layer 5", SECTION_4, PROBES, {"layer": 5, **COLOR}),
    Row("05", "as trained", paper("isolated_cls", isolated_blocks=0), ISOLATED, {"isolated blocks": 0, **TOP1}),
    Row("05", "CLS isolated in the first half of the blocks", paper("isolated_cls", isolated_blocks=6), ISOLATED,
        {"isolated blocks": 3, **TOP1}),
    Row("05", "CLS isolated in all blocks but the last", paper("isolated_cls", isolated_blocks=11), ISOLATED,
        {"isolated blocks": 5, **TOP1}),
    Row("05", "CLS isolated in all blocks but the last, twelve blocks", OURS, ISOLATED_DEEP, {"isolated blocks": 11, **TOP1}),
    Row("05", "CLS-only in the last block", paper("cls_only_from_block", **{"CLS-only_from_block": 11}), CLS_ONLY,
        {"CLS-only from block": 5, **TOP1}),
    Row("05", "the head reads the mean of the patch tokens", paper("token_head", head_reads="mean of patch tokens"), HEAD,
        {"head reads": "mean of patch tokens", **TOP1}),
    Row("05", "the head reads one patch token", paper("token_head", head_reads="patch 120 alone"), HEAD,
        {"head reads": "each patch token", **TOP1}),
    Row("05", "CLS isolated in the first half, dense supervision", OURS, ISOLATED_VIT, {"isolated blocks": 3, **TOP1}),
    Row("05", "the head reads one patch token, dense supervision", OURS, HEAD_VIT, {"head reads": "each patch token", **TOP1}),
    Row("05", "patch tokens of the last layer", SECTION_4, SIMILAR, {"layer": 5, **PATCHES}),
    Row("05", "patch tokens of the last layer, dense supervision", OURS, SIMILAR_VIT, {"layer": 5, **PATCHES}),
    Row("06", "ViT, foreground under a box, correct in top-5",
        paper("foreground_background", measure="top-5", shown="background"), CONTEXT, TOP5),
    Row("06", "CNN, foreground under a box, correct in top-5",
        paper("foreground_background", "ResNet-50", "top-5", shown="background"), CONTEXT_CNN, TOP5),
    Row("06", "ViT, prediction consistent with the background", OURS, CONTEXT, CONSISTENT),
    Row("06", "CNN, prediction consistent with the background", OURS, CONTEXT_CNN, CONSISTENT),
    Row("07", "ViT, all frequencies", SECTION_5, LOW, ALL),
    Row("07", "ViT, low-pass of 8 cycles per image", SECTION_5, LOW, COARSE),
    Row("07", "CNN, all frequencies", SECTION_5, LOW_CNN, ALL),
    Row("07", "CNN, low-pass of 8 cycles per image", SECTION_5, LOW_CNN, COARSE),
    Row("08", "captions, last layer: explained by the concept", SECTION_6, FACTS, {"layer": 11, "explained by": "concept"}),
    Row("08", "labels, last layer: explained by the concept", SECTION_6, FACTS_LABELS, {"layer": 11, "explained by": "concept"}),
    Row("08", "control: captions, concepts of other scenes", OURS, FACTS_SHUFFLED, {"layer": 11, "explained by": "concept"}),
    Row("08", "captions, last layer: explained by the context", OURS, FACTS, {"layer": 11, "explained by": "context"}),
    Row("08", "labels, last layer: explained by the context", OURS, FACTS_LABELS, {"layer": 11, "explained by": "context"}),
    *(Row("08", f"{name}, style {style}, {semantics.TOKENS[token]}", SECTION_6, call,
          {"layer": 11, "style": style, "categories": "own"})
      for token, calls in CATEGORY.items() for style in STYLES for name, call in zip(("captions", "labels"), calls, strict=True)),
    *(Row("08", f"control: captions, style 3d, {semantics.TOKENS[token]}, shuffled categories", OURS, calls[0],
          {"layer": 11, "style": "3d", "categories": "shuffled"}) for token, calls in CATEGORY.items()),
    *(Row("08", f"{name}, concept profiles in 3D and in {what}", SECTION_6, call, {"layer": 11, "3d and": style})
      for style, what in (("flat", "flat icons"), ("word", "written words"))
      for name, call in zip(("captions", "labels"), ACROSS, strict=True)),
    Row("08", "control: captions, other concepts", OURS, ACROSS[0], {"layer": 11, "3d and": "3d, other concepts"}),
    Row("08", "choosing among twelve captions that differ in the background", OURS, CAPTIONS,
        {"captions differ in": "context", "nearest to": "its own image"}),
    Row("08", "control: with another scene's image", OURS, CAPTIONS,
        {"captions differ in": "context", "nearest to": "another scene's image"}),
    *(Row("09", f"{family}, neurons of layer {last}, the last", SECTION_3, SELECTIVE_IN[family], {"layer": last, **REAL})
      for family, (_, last) in FAMILIES.items()),
    Row("09", "control: Swin, shuffled labels", OURS, SELECTIVE_IN["Swin"], {"layer": 5, **SHUFFLED}),
    Row("10", "visualizations of layer 0 that activate their neuron more than every scene", OURS, EXCESS, {"layer": 0, **SELF}),
    Row("10", "visualizations of layer 5, the last, that activate their neuron more than every scene", OURS, EXCESS,
        {"layer": 5, **SELF}),
    Row("10", "control: layer 5, visualizations of another neuron", OURS, EXCESS, {"layer": 5, **ANOTHER}),
    Row("10", "visualizations of layer 5 recognized by a CNN", OURS, RECOGNIZED, {"layer": 5, **PREFERRED}),
    Row("10", "control: layer 5, another neuron's preferred concept", OURS, RECOGNIZED, {"layer": 5, **FOREIGN}),
    Row("10", "two-alternative task, a CNN with visualizations as hints", OURS, CHOICE,
        {"hint": "feature visualization", **PLAYER}),
    Row("10", "two-alternative task, a CNN with top images as hints", OURS, CHOICE, {"hint": "top images", **PLAYER}),
    Row("11", "patch tokens of the last layer, photographs, dense supervision", OURS, PHOTOS, {"layer": 5, **PATCHES}),
)


def measure(rows) -> pd.DataFrame:
    """Make each call of ``rows`` once: a table of one line a row, as headlines.csv has it."""
    calls, records = {}, []
    for row in rows:
        call, cell, weights = row.made
        if call not in calls:
            print(call, file=sys.stderr, flush=True)
            calls[call] = row.call.run()
        quantity, numbers = pick(calls[call][0], row.cell)
        records.append({"notebook": row.notebook, "what": row.what, "call": call, "cell": cell, "weights": weights,
                        "quantity": quantity, **numbers, "seconds": calls[call][1]})
    return pd.DataFrame(records)


def pick(results: tuple[Result, ...], cell: dict) -> tuple[str, dict[str, float]]:
    """The quantity and the numbers of the one row of all results that has the factors and levels of ``cell``."""
    fits, factors = [], [name for name in cell if name != "quantity"]
    for result in results:
        if set(result.factors) == set(factors) and cell.get("quantity", result.quantity) == result.quantity:
            rows = result.table[(result.table[factors] == [cell[name] for name in factors]).all(axis=1)]
            fits += [(result.quantity, row) for row in rows[NUMBERS].to_dict("records")]
    if len(fits) != 1:
        raise ValueError(f"{len(fits)} rows have {cell}; name one row of {[result.factors for result in results]}.")
    quantity, numbers = fits.pop()
    return quantity, {name: int(value) if name == "n" else float(f"{value:.6g}") for name, value in numbers.items()}


def read(path: Path = HERE / "headlines.csv") -> pd.DataFrame:
    """What was measured, as committed."""
    return pd.read_csv(path, dtype={"notebook": str, "weights": str})


def stale(rows, records: pd.DataFrame) -> list[str]:
    """Which ``rows`` were not measured by their own call on the weights that ship, and which records belong to no row."""
    changed, wanted = [], {(row.notebook, row.what): row.made for row in rows}
    known = {(r.notebook, r.what): (r.call, r.cell, r.weights) for r in records.itertuples()}
    for key in wanted.keys() | known.keys():
        if wanted.get(key) != known.get(key):
            changed.append(f"{' '.join(key)}: measured by {known.get(key)}, the table wants {wanted.get(key)}; "
                           f"run python notebooks/headlines.py {key[0]}")
    return sorted(changed)


def cheapest(rows, records: pd.DataFrame, seconds: float = 60) -> list[Row]:
    """The rows of each notebook's cheapest call, and of further calls, the cheapest first, while all take so many seconds."""
    calls = records.drop_duplicates("call").sort_values("seconds", kind="stable")
    chosen = calls.drop_duplicates("notebook")
    others = calls.drop(chosen.index)
    chosen = pd.concat([chosen, others[chosen["seconds"].sum() + others["seconds"].cumsum() <= seconds]])
    return [row for row in rows if str(row.call) in set(chosen["call"])]


def table(rows, records: pd.DataFrame) -> str:
    """The table of the README, in markdown: published and measured here in columns of their own."""
    known = {(r.notebook, r.what): r for r in records.itertuples()}
    lines = ["| notebook | what | published | measured here (95 % interval) | model | on |", "|---|---|---|---|---|---|"]
    for row in rows:
        record = known[row.notebook, row.what]
        places = 1 if "%" in record.quantity else 2
        value, low, high = (f"{number:.{places}f}" for number in (record.value, record.low, record.high))
        lines.append(f"| {row.notebook} | {row.what}: {record.quantity} | {row.published} | "
                     f"{value} ({low} to {high}) | `{row.call.models[0]}` | {record.n:,} {row.call.counted} |")
    return "\n".join(lines)


def with_table(readme: str, made: str) -> str:
    """The README's text with this table between its markers."""
    before, rest = readme.split(START)
    return f"{before}{START}\n{made}\n{END}{rest.split(END)[1]}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", metavar="NN", help="only the rows of these notebooks, such as 03")
    only = set(parser.parse_args().notebooks)
    if unknown := only - {row.notebook for row in ROWS}:
        parser.error(f"no rows of notebook {', '.join(sorted(unknown))}; there are {sorted({row.notebook for row in ROWS})}")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["VITVIZ_CACHE"] = folder  # measured now, not found in a cache
        fresh = measure([row for row in ROWS if not only or row.notebook in only])
    others = read()[lambda records: ~records["notebook"].isin(only)] if only else None
    records = pd.concat([others, fresh], ignore_index=True).sort_values("notebook", kind="stable")
    files.write(HERE / "headlines.csv", records.to_csv(index=False))
    if changed := stale(ROWS, records):
        sys.exit("\n".join(["The README stays as it is:", *changed]))
    readme = HERE / "README.md"
    files.write(readme, with_table(readme.read_text("utf-8"), table(ROWS, records)))


if __name__ == "__main__":
    main()
