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
from vitviz_nb.datasets.image_folder import image_folder
from vitviz_nb.experiments.background import at_home
from vitviz_nb.experiments.class_token import cls_isolation, cls_only_from, head_on_tokens
from vitviz_nb.experiments.faithfulness import excess_by_layer, recognition_by_layer
from vitviz_nb.experiments.frequency import RADIUS, by_frequency
from vitviz_nb.experiments.localization import locality, pointing_game, probes, token_similarity
from vitviz_nb.experiments.progression import by_depth, selectivity_by_depth
from vitviz_nb.experiments.published import published
from vitviz_nb.experiments.regularizers import sensitivity
from vitviz_nb.experiments.result import NUMBERS, Result
from vitviz_nb.experiments.semantics import across_styles, caption_matching, variance_by_fact
from vitviz_nb.experiments.units import axis_alignment, effective_dimension
from vitviz_nb.models.cards import read_card
from vitviz_nb.models.sites import find_sites
from vitviz_nb.utils.paths import data_dir
from vitviz_nb.widgets.two_alternative import Task, model_player

HERE = Path(__file__).resolve().parent
START, END = "<!-- headlines -->", "<!-- /headlines -->"
COLORS = ("3d", "cartoon", "flat")


@dataclass(frozen=True)
class Call:
    """A measurement, which may make several numbers.

    Attributes:
        function: from models, images and ``arguments`` to a ``Finding``, or to several.
        models: embedded models, in the order in which ``function`` takes them; the numbers are of the first.
        counted: what the finding's ``n`` counts.
        styles: of the validation scenes; None leaves images to ``function``, which takes the styles the model was trained on.
    """

    function: Callable[..., Result | tuple[Result, ...]]
    models: tuple[str, ...]
    counted: str = "scenes"
    styles: tuple[str, ...] | None = None
    arguments: dict = field(default_factory=dict)

    def __str__(self) -> str:
        styles = {"styles": "+".join(self.styles)} if self.styles else {}
        return f"{self.function.__name__}({', '.join([*self.models, *_said(styles | self.arguments)])})"

    @property
    def weights(self) -> str:
        """The beginnings of the SHA-256 of its models' weights, as they ship."""
        return " ".join(read_card(name)["sha256"][:12] for name in self.models)

    def run(self) -> tuple[tuple[Result, ...], float]:
        """What it finds, and how many seconds of processor time that took."""
        models = [vv.load(name, device="cpu") for name in self.models]
        images = {"images": vv.EmojiWorld("val", styles=self.styles, size=models[0].image_size)} if self.styles else {}
        began = time.process_time()
        found = self.function(*models, **images, **self.arguments)
        return found if isinstance(found, tuple) else (found,), round(time.process_time() - began, 1)


@dataclass(frozen=True)
class Row:
    """One number of the table.

    Attributes:
        notebook: "03".
        what: the number in words, without its unit, which the finding knows.
        published: the paper's number with its source, or that there is none.
        call: what measures it.
        cell: which row of the finding's table it is: the values of all columns but the numbers; and "quantity", where several
            findings of the call have such columns.
    """

    notebook: str
    what: str
    published: str
    call: Call
    cell: dict

    @property
    def made(self) -> tuple[str, str, str]:
        """What its number depends on, as headlines.csv keeps it: the call, the cell and the weights."""
        return str(self.call), ", ".join(_said(self.cell)), self.call.weights


def _said(values: dict) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def paper(table: str, model: str = "ViT-B/16", measure: str = "top-1", **cell) -> str:
    """An accuracy in percent from the paper's tables (``data/paper``), with its source; names have _ for spaces."""
    found = published(table).table.query("measure == @measure and model == @model")
    for name, value in cell.items():
        found = found[found[name.replace("_", " ")] == value]
    (value,) = found["value"]
    of = ", ".join([model, *(f"{name.replace('_', ' ')} {value}" for name, value in cell.items())])
    return f"{value:.1f} ({of}; [{table}.csv](../data/paper/{table}.csv))"


def fineness(model: vv.VisionModel) -> Result:
    """Mean frequency of the pictures of every fourth unit, by layer, as notebook 03 measures it."""
    (kind, places), viewer = next(iter(find_sites(model).items())), vv.Visualizer(model)
    return by_depth({p.layer: viewer.render(p.layer, range(0, p.units, 4), kind).pictures for p in places}, model.title)[0]


def kept_facts(model: vv.VisionModel, shuffled: bool = False) -> Result:
    """What explains units' answers, by layer and fact, as notebook 08 measures it."""
    return variance_by_fact(model, n=2048, shuffled=shuffled).by_layer()


def beat_scenes(model: vv.VisionModel) -> Result:
    """Pictures that excite their neuron more than every scene, by layer, as notebook 10 measures it."""
    return excess_by_layer(vv.Visualizer(model), 128)


def seen_by(model: vv.VisionModel, judge: vv.VisionModel) -> Result:
    """Pictures that the judge names as their neuron's favorite, by layer, as notebook 10 measures it."""
    return recognition_by_layer(vv.Visualizer(model), judge, 128)


def plays(model: vv.VisionModel, player: vv.VisionModel) -> Result:
    """The two-alternative forced-choice task of notebook 10, with another model as the player."""
    return Task(model, 400, seed=1).play(model_player(player), player.name)


def alike_on_photographs(model: vv.VisionModel) -> Result:
    """How alike tokens are on the kit's photographs, as notebook 11 measures it."""
    return token_similarity(model, image_folder(data_dir() / "photos", model))


VIT, USUAL, CNN, CLIP = ("emoji-vit",), ("emoji-vit-standard",), ("emoji-resnet",), ("emoji-clip",)

RISE, RISE_USUAL = Call(sensitivity, VIT), Call(sensitivity, USUAL, styles=COLORS)
AXES, WIDTH = Call(axis_alignment, VIT, "units"), Call(effective_dimension, VIT)
FINE = Call(fineness, VIT, "pictures")
SELECTIVE, SELECTIVE_CNN = (Call(selectivity_by_depth, models, "units") for models in (VIT, CNN))
FAMILIES = {"DeiT": ("emoji-deit", 5), "CoaT": ("emoji-coat", 6), "ConViT": ("emoji-convit", 5), "PiT": ("emoji-pit", 4),
            "Swin": ("emoji-swin", 5), "Twins": ("emoji-twins", 4)}  # and the last layer of each
SELECTIVE_IN = {family: Call(selectivity_by_depth, (name,), "units") for family, (name, _) in FAMILIES.items()}
STAYS, PEAKS, PROBES = Call(locality, VIT), Call(pointing_game, VIT, "neurons"), Call(probes, VIT, arguments={"n": 384})
APART, APART_VIT = (Call(cls_isolation, models, styles=COLORS, arguments={"n": 768}) for models in (USUAL, VIT))
HEAD, HEAD_VIT = (Call(head_on_tokens, models, styles=COLORS, arguments={"n": 768}) for models in (USUAL, VIT))
ALONE = Call(cls_only_from, USUAL, styles=COLORS, arguments={"n": 768})
ALIKE, ALIKE_VIT = (Call(token_similarity, models, styles=COLORS) for models in (USUAL, VIT))
FILLED, FILLED_CNN = (Call(at_home, models, "backgrounds", COLORS, {"n": 512, "fill": "mean"}) for models in (USUAL, CNN))
COARSE, COARSE_CNN = (Call(by_frequency, models, styles=COLORS, arguments={"n": 512}) for models in (USUAL, CNN))
TOLD, SHOWN = (Call(kept_facts, models, "units") for models in (CLIP, USUAL))
MIXED = Call(kept_facts, CLIP, "units", arguments={"shuffled": True})
ACROSS, ACROSS_USUAL = (Call(across_styles, models, "units", arguments={"n": 768}) for models in (CLIP, USUAL))
WORDS = Call(caption_matching, CLIP)
BEAT, NAMED, PLAYS = Call(beat_scenes, VIT, "pictures"), Call(seen_by, VIT + CNN, "pictures"), Call(plays, VIT + CNN, "questions")
PHOTOS = Call(alike_on_photographs, VIT, "photographs")

FIGURES, SECTION_2, SECTION_3, SECTION_4, SECTION_5 = (
    f"no number ({where})" for where in ("pictures, figures 1 and 4", "section 2", "section 3", "section 4", "section 5"))
SECTION_6 = "no number (pictures, section 6)"
OURS = "–"  # a control, or a question that the paper does not ask
UNSEEN = {"L2 norm": 1.0}
WORST, RANDOM = {**UNSEEN, "perturbation": "adversarial"}, {**UNSEEN, "perturbation": "random"}
EFFECTIVE = {"counted": "effective dimension"}
STANDS_OUT = {"quantity": "selectivity (standard deviations)"}
UNITS, TURNED = {"of": "units", **STANDS_OUT}, {"of": "random directions", **STANDS_OUT}
TOP1, PATCHES = {"measure": "top-1"}, {"between": "patches of an image"}
REAL, SHUFFLED = {"selective for": "concepts"}, {"selective for": "shuffled labels"}
OWN, OTHER = {"the mask is of": "its own scene"}, {"the mask is of": "another scene"}
HOME, TOP5, KEPT = {"answers": "at home in the context shown"}, {"answers": "right, top-5"}, {RADIUS: 8, "measure": "top-1"}
PLACE, COLOR = {"read from the token": "its place"}, {"read from the token": "its color"}
SELF, ANOTHER = {"the picture is of": "the neuron itself"}, {"the picture is of": "another neuron"}
EYE = {"player": "emoji-resnet"}
FAVOURITE, FOREIGN = {"preferred concept of": "the neuron itself"}, {"preferred concept of": "another neuron"}

ROWS = (
    Row("01", "an invisible change, usual training", SECTION_2, RISE_USUAL, WORST),
    Row("01", "control: a random change of that size", OURS, RISE_USUAL, RANDOM),
    Row("01", "an invisible change, trained under attack", OURS, RISE, WORST),
    Row("02", "queries of the last layer", SECTION_3, AXES, {"kind": "query", **UNITS}),
    Row("02", "control: random directions among queries", OURS, AXES, {"kind": "query", **TURNED}),
    Row("02", "MLP units of the last layer", SECTION_3, AXES, {"kind": "mlp", **UNITS}),
    Row("02", "control: random directions among MLP units", OURS, AXES, {"kind": "mlp", **TURNED}),
    Row("02", "effective number, 128 queries of the last layer", SECTION_3, WIDTH, {"kind": "query", **EFFECTIVE}),
    Row("02", "effective number, 512 MLP units of the last layer", SECTION_3, WIDTH, {"kind": "mlp", **EFFECTIVE}),
    Row("02", "effective number, MLP units before their activation function", OURS, WIDTH, {"kind": "before", **EFFECTIVE}),
    Row("03", "pictures of layer 0", FIGURES, FINE, {"layer": 0}),
    Row("03", "pictures of layer 5, the last", FIGURES, FINE, {"layer": 5}),
    Row("03", "units of layer 0", SECTION_3, SELECTIVE, {"layer": 0, **REAL}),
    Row("03", "units of layer 5", SECTION_3, SELECTIVE, {"layer": 5, **REAL}),
    Row("03", "control: units of layer 5, concepts exchanged among scenes", OURS, SELECTIVE, {"layer": 5, **SHUFFLED}),
    Row("03", "CNN, units of layer 0", SECTION_3, SELECTIVE_CNN, {"layer": 0, **REAL}),
    Row("03", "CNN, units of layer 12, the last", SECTION_3, SELECTIVE_CNN, {"layer": 12, **REAL}),
    Row("04", "one square of the scene changed, layer 0", SECTION_4, STAYS, {"layer": 0}),
    Row("04", "one square of the scene changed, layer 4, the last but one", SECTION_4, STAYS, {"layer": 4}),
    Row("04", "one square of the scene changed, layer 5, the last", SECTION_4, STAYS, {"layer": 5}),
    Row("04", "neurons of layer 0", SECTION_4, PEAKS, {"layer": 0, **OWN}),
    Row("04", "neurons of layer 4, the last but one", SECTION_4, PEAKS, {"layer": 4, **OWN}),
    Row("04", "control: layer 4, mask of another scene", OURS, PEAKS, {"layer": 4, **OTHER}),
    Row("04", "neurons of layer 5, the last", SECTION_4, PEAKS, {"layer": 5, **OWN}),
    Row("04", "control: layer 5, mask of another scene", OURS, PEAKS, {"layer": 5, **OTHER}),
    Row("04", "a patch's place from its token, layer 4", SECTION_4, PROBES, {"layer": 4, **PLACE}),
    Row("04", "a patch's place from its token, layer 5", SECTION_4, PROBES, {"layer": 5, **PLACE}),
    Row("04", "a patch's color from its token, layer 4", SECTION_4, PROBES, {"layer": 4, **COLOR}),
    Row("04", "a patch's color from its token, layer 5", SECTION_4, PROBES, {"layer": 5, **COLOR}),
    Row("05", "as trained", paper("isolated_cls", isolated_blocks=0), APART, {"isolated blocks": 0, **TOP1}),
    Row("05", "class token apart for the first half of the blocks", paper("isolated_cls", isolated_blocks=6), APART,
        {"isolated blocks": 3, **TOP1}),
    Row("05", "class token apart for all blocks but the last", paper("isolated_cls", isolated_blocks=11), APART,
        {"isolated blocks": 5, **TOP1}),
    Row("05", "class token alone in the last block", paper("cls_only_from_block", class_token_alone_from_block=11), ALONE,
        {"class token alone from block": 5, **TOP1}),
    Row("05", "the head reads the mean of the patches", paper("token_head", the_head_reads="mean of patch tokens"), HEAD,
        {"the head reads": "mean of patches", **TOP1}),
    Row("05", "the head reads one patch", paper("token_head", the_head_reads="patch 120 alone"), HEAD,
        {"the head reads": "each patch", **TOP1}),
    Row("05", "apart for the first half, every patch trained to answer", OURS, APART_VIT, {"isolated blocks": 3, **TOP1}),
    Row("05", "the head reads one patch, trained to answer", OURS, HEAD_VIT, {"the head reads": "each patch", **TOP1}),
    Row("05", "patch tokens of the last layer", SECTION_4, ALIKE, {"layer": 5, **PATCHES}),
    Row("05", "patch tokens of the last layer, trained to answer", OURS, ALIKE_VIT, {"layer": 5, **PATCHES}),
    Row("06", "ViT, thing covered by a box, right in top-5", paper("foreground_background", measure="top-5", shown="background"),
        FILLED, TOP5),
    Row("06", "CNN, thing covered by a box, right in top-5",
        paper("foreground_background", "ResNet-50", "top-5", shown="background"), FILLED_CNN, TOP5),
    Row("06", "ViT, first answer at home in the background shown", OURS, FILLED, HOME),
    Row("06", "CNN, first answer at home in the background shown", OURS, FILLED_CNN, HOME),
    Row("07", "ViT, all waves", SECTION_5, COARSE, {**KEPT, RADIUS: 45}),
    Row("07", "ViT, waves up to 8 cycles a side", SECTION_5, COARSE, KEPT),
    Row("07", "CNN, all waves", SECTION_5, COARSE_CNN, {**KEPT, RADIUS: 45}),
    Row("07", "CNN, waves up to 8 cycles a side", SECTION_5, COARSE_CNN, KEPT),
    Row("08", "captions, last layer: explained by the concept", SECTION_6, TOLD, {"layer": 5, "explained by": "concept"}),
    Row("08", "labels, last layer: explained by the concept", SECTION_6, SHOWN, {"layer": 5, "explained by": "concept"}),
    Row("08", "control: captions, concepts of other scenes", OURS, MIXED, {"layer": 5, "explained by": "concept"}),
    Row("08", "captions, last layer: explained by the context", OURS, TOLD, {"layer": 5, "explained by": "context"}),
    Row("08", "labels, last layer: explained by the context", OURS, SHOWN, {"layer": 5, "explained by": "context"}),
    Row("08", "captions, a unit's concepts in 3D models and in flat icons", SECTION_6, ACROSS, {"layer": 5, "3d and": "flat"}),
    Row("08", "labels, a unit's concepts in 3D models and in flat icons", OURS, ACROSS_USUAL, {"layer": 5, "3d and": "flat"}),
    Row("08", "captions, a unit's concepts in 3D models and in written words", SECTION_6, ACROSS, {"layer": 5, "3d and": "word"}),
    Row("08", "labels, a unit's concepts in 3D models and in written words", OURS, ACROSS_USUAL, {"layer": 5, "3d and": "word"}),
    Row("08", "control: captions, other concepts", OURS, ACROSS, {"layer": 5, "3d and": "3d, other concepts"}),
    Row("08", "the right one of captions that differ in the ground, among twelve", OURS, WORDS,
        {"captions differ in": "context", "nearest to": "its own image"}),
    Row("08", "control: with another scene's picture", OURS, WORDS,
        {"captions differ in": "context", "nearest to": "another scene's image"}),
    *(Row("09", f"{family}, units of layer {last}, the last", SECTION_3, SELECTIVE_IN[family], {"layer": last, **REAL})
      for family, (_, last) in FAMILIES.items()),
    Row("09", "control: Swin, concepts exchanged among scenes", OURS, SELECTIVE_IN["Swin"], {"layer": 5, **SHUFFLED}),
    Row("10", "pictures of layer 0 that excite their neuron more than every scene", OURS, BEAT, {"layer": 0, **SELF}),
    Row("10", "pictures of layer 5, the last, that excite their neuron more than every scene", OURS, BEAT, {"layer": 5, **SELF}),
    Row("10", "control: layer 5, pictures of another neuron", OURS, BEAT, {"layer": 5, **ANOTHER}),
    Row("10", "pictures of layer 5 that a CNN names as their neuron's favorite", OURS, NAMED, {"layer": 5, **FAVOURITE}),
    Row("10", "control: layer 5, another neuron's favorite", OURS, NAMED, {"layer": 5, **FOREIGN}),
    Row("10", "which scene excites a neuron, told by a CNN from the picture", OURS, PLAYS,
        {"hint": "feature visualization", **EYE}),
    Row("10", "which scene excites a neuron, told by a CNN from top scenes", OURS, PLAYS,
        {"hint": "top images", **EYE}),
    Row("11", "patch tokens of the last layer, photographs, trained to answer", OURS, PHOTOS, {"layer": 5, **PATCHES}),
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


def pick(findings: tuple[Result, ...], cell: dict) -> tuple[str, dict[str, float]]:
    """The quantity and the numbers of the one row of all findings that has the columns and values of ``cell``."""
    fits, columns = [], [name for name in cell if name != "quantity"]
    for finding in findings:
        named = {c for c in finding.table.columns if c not in NUMBERS} == set(columns)
        if named and cell.get("quantity", finding.quantity) == finding.quantity:
            rows = finding.table[(finding.table[columns] == [cell[name] for name in columns]).all(axis=1)]
            fits += [(finding.quantity, row) for row in rows[NUMBERS].to_dict("records")]
    if len(fits) != 1:
        raise ValueError(f"{len(fits)} rows have {cell}; name one row of {[list(f.table.columns) for f in findings]}.")
    quantity, numbers = fits.pop()
    return quantity, {name: int(value) if name == "n" else float(f"{value:.6g}") for name, value in numbers.items()}


def read(path: Path = HERE / "headlines.csv") -> pd.DataFrame:
    """What was measured, as committed."""
    return pd.read_csv(path, dtype={"notebook": str, "weights": str})


def stale(rows, records: pd.DataFrame) -> list[str]:
    """Which ``rows`` were not measured by their own call on the weights that ship, and which records belong to no row."""
    found, wanted = [], {(row.notebook, row.what): row.made for row in rows}
    known = {(r.notebook, r.what): (r.call, r.cell, r.weights) for r in records.itertuples()}
    for key in wanted.keys() | known.keys():
        if wanted.get(key) != known.get(key):
            found.append(f"{' '.join(key)}: measured by {known.get(key)}, the table wants {wanted.get(key)}; "
                         f"run python notebooks/headlines.py {key[0]}")
    return sorted(found)


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
    kept = read()[lambda records: ~records["notebook"].isin(only)] if only else None
    records = pd.concat([kept, fresh], ignore_index=True).sort_values("notebook", kind="stable")
    records.to_csv(HERE / "headlines.csv", index=False)
    if found := stale(ROWS, records):
        sys.exit("\n".join(["The README stays as it is:", *found]))
    readme = HERE / "README.md"
    readme.write_text(with_table(readme.read_text("utf-8"), table(ROWS, records)), "utf-8")


if __name__ == "__main__":
    main()
