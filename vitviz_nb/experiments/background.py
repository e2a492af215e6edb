"""What do things, and what do their surroundings, tell a model? (Paper, section 5.)"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from ..datasets.backgrounds import CONTEXTS
from ..datasets.boxes import Boxes
from ..datasets.emoji_world import P_USUAL_CONTEXT, EmojiWorld
from ..datasets.image_folder import image_folder
from ..datasets.image_set import ImageSet, default_world
from ..models.reading import activations
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.errors import VitvizError
from .classification import MEASURES, accuracy_rows, correct_predictions, top5_predictions
from .result import Result, share
from .semantics import random_contexts

SHOWN = ("whole", "foreground", "background")
FILLS = ("black", "mean")


def parts(model: VisionModel, images=None, n: int | None = None, boxes: bool = False, fill: str = "black") -> Result:
    """Accuracy on whole images, on things alone and on their surroundings alone; all that is not shown is black.

    Args:
        images: labeled, with masks or bounding boxes (``Stimuli.masks``).
        boxes: True to cut along the bounding box of each mask, as the paper does with ImageNet's boxes, instead of the mask.
        fill: "black", as in the paper, or "mean": what is not shown has the mean color of what is.
    """
    stimuli = ImageSet(model, images, n)
    found = _of_parts(model, stimuli, boxes, fill)
    rows = [row for shown, hits in found.items() for row in accuracy_rows({"shown": shown}, hits)]
    return Result(f"{model.title}: what is shown, {_how(boxes, fill)} ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def _of_parts(model: VisionModel, stimuli: ImageSet, boxes: bool, fill: str = "black") -> dict[str, torch.Tensor]:
    """For each of ``SHOWN``, the right answers (n, 2)."""
    return {shown: correct_predictions(model, stimuli, *_change(stimuli, shown, boxes, fill)) for shown in SHOWN}


def _change(stimuli: ImageSet, shown: str, boxes: bool, fill: str) -> tuple[str, Callable]:
    """What is done to images, in words and as a function, as ``best_answers`` takes them."""
    return (shown if shown == "whole" else f"{shown} alone, {_how(boxes, fill)}",
            lambda numbers, batch: cut(batch, stimuli.masks(numbers), shown, boxes, fill))


def _how(boxes: bool, fill: str) -> str:
    return f"cut along {'bounding boxes' if boxes else 'masks'}{'' if fill == 'black' else f', rest in its {fill} color'}"


def cut(images: torch.Tensor, masks: torch.Tensor, shown: str, boxes: bool = False, fill: str = "black") -> torch.Tensor:
    """Images (N, 3, S, S) with the thing ("foreground") or its surroundings ("background") alone, or "whole".

    Args:
        masks: (N, S, S) in [0, 1], 1 where the thing is.
        fill: what is not shown is "black", or has the "mean" color of what is shown.
    """
    if fill not in FILLS:
        raise VitvizError(f"What is not shown is filled with {' or '.join(FILLS)}, got {fill!r}.")
    if shown not in SHOWN:
        raise VitvizError(f"What is shown is one of {', '.join(SHOWN)}, got {shown!r}.")
    if shown == "whole":
        return images
    keep = box_of(masks) if boxes else masks
    keep = keep[:, None].to(images)
    keep = keep if shown == "foreground" else 1 - keep
    if fill == "black":
        return images * keep
    mean = (images * keep).sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp_min(1e-6)
    return images * keep + mean * (1 - keep)


def box_of(masks: torch.Tensor) -> torch.Tensor:
    """The smallest upright boxes around masks (N, S, S), as masks of 0 and 1; a pixel counts from one half on."""
    there = masks >= 0.5

    def between(line: torch.Tensor) -> torch.Tensor:  # from the first to the last
        return (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)

    return (between(there.any(2).int())[:, :, None] & between(there.any(1).int())[:, None, :]).float()


def normalized(finding: Result) -> Result:
    """The accuracies of ``parts`` as shares of that on whole images, as the paper's table gives them, in percent.

    The interval is that of the part, divided by the accuracy on whole images; the uncertainty of the latter is left out.
    """
    table = finding.table.copy()
    of = [column for column in ("model", "measure") if column in table]
    whole = table[table["shown"] == "whole"].set_index(of)["value"]
    if (whole == 0).any():
        raise VitvizError("On whole images not one answer was right, so nothing can be divided by their accuracy.")
    divisor = whole.loc[list(map(tuple, table[of].to_numpy())) if len(of) > 1 else table["measure"]].to_numpy()
    for column in ("value", "low", "high"):
        table[column] = 100 * table[column] / divisor
    table = table[table["shown"] != "whole"].reset_index(drop=True)
    return Result(f"{finding.title}, as a share of whole images", "right answers (% of those on whole images)", table)


def paper_table(models: list[VisionModel], folder: str | Path, boxes: str | Path, per_class: int | None = None) -> Result:
    """The paper's table of foreground and background, measured on images like its own: ImageNet's, with bounding boxes.

    Classes are read one after the other, so memory does not depend on how many images there are, and every class that is done
    is found in the cache by a later call.

    Args:
        folder: a subfolder a class, named by ImageNet's number (n01440764) or as the models name the class.
        boxes: CSV, as ``boxes.Boxes`` reads it; images without a box are left out.
        per_class: so many images of each class, the first by name; all of them by default.
    """
    folders = sorted(sub for sub in Path(folder).expanduser().glob("*") if sub.is_dir() and not sub.name.startswith("."))
    if not folders:
        raise VitvizError(f"{folder} has no subfolders; it should have one for each class, such as ImageNet's train/n01440764.")
    hits: dict[tuple[str, str], list[torch.Tensor]] = {}
    known, left_out = Boxes(boxes), []  # read once: ImageNet's file has half a million lines
    for sub in tqdm(folders, desc="foreground and background", unit="class"):
        for model in models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # half of ImageNet's images have no box
                try:
                    found = image_folder(sub, model.image_size, per_class, known)
                except VitvizError as error:
                    left_out.append(f"{sub.name} ({error})")
                    break
            stimuli = ImageSet(model, replace(found, labels=[sub.name] * len(found.paths)))
            for shown, right in _of_parts(model, stimuli, boxes=True).items():
                hits.setdefault((model.title, shown), []).append(right)
    if not hits:
        raise VitvizError(f"No class in {folder} has an image with a box in {boxes}. The first: {left_out[0]}")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(folders)} classes left out: {'; '.join(left_out[:3])}", stacklevel=2)
    rows = [row for (name, shown), parts_ in hits.items()
            for row in accuracy_rows({"shown": shown, "model": name}, torch.cat(parts_))]
    return Result(f"Foreground and background, cut along bounding boxes ({folder})", "right answers (%)", pd.DataFrame(rows))


def context_chance(world: EmojiWorld) -> dict[str, float]:
    """The best that guessing from the context alone can do in ``world``: percent right, top-1 and top-5.

    A concept stands in its usual context with probability 0.7, else in any other; all concepts are equally frequent.
    """
    others = (1 - P_USUAL_CONTEXT) / (len(CONTEXTS) - 1)
    usual = np.eye(len(CONTEXTS))[world.usual_context]  # (concepts, contexts)
    joint = np.sort((usual * P_USUAL_CONTEXT + (1 - usual) * others) / len(world.concepts), axis=0)[::-1]
    return {measure: 100 * float(joint[:k].sum()) for measure, k in zip(MEASURES, (1, 5), strict=True)}


def swapped(model: VisionModel, images: EmojiWorld | None = None, n: int = 1024) -> Result:
    """The same things in their usual context and in others: accuracy, and how far wrong answers go along with the context.

    Every scene is drawn twice, in its concept's usual context and in another one, drawn by lot. "Follows the context" is the
    share of wrong answers (of all scenes of that row) that name a concept at home in the context shown; its chance, beside it,
    is that share when the contexts of other scenes of the row are taken instead.
    """
    world = _own_world(model, images)
    stimuli, rows = ImageSet(model, world, n), []
    home, labels = world.usual_context, stimuli.labels(range(n))
    usual = home[world.facts(np.arange(n))["concept"]]
    lots = np.array([np.random.default_rng(i).integers(1, len(CONTEXTS)) for i in range(n)])
    for shown, here in (("usual", usual), ("another", (usual + lots) % len(CONTEXTS))):
        answered = top5_predictions(model, stimuli, f"in {shown} context", lambda numbers, _, here=here: world.batch(
            numbers, model.device, contexts=here[list(numbers)]).images)[:, 0]
        right, answered = answered == labels, answered.numpy()
        wrong = ~right.numpy()
        follows = home[answered[wrong]] == here[wrong]
        lot = home[answered[wrong]] == np.random.default_rng(0).permutation(here[wrong])
        rows += [{"context": shown, "measure": "right answers", **share(right.sum(), len(right))},
                 {"context": shown, "measure": "wrong answers that follow the context", **share(follows.sum(), wrong.sum())},
                 {"context": shown, "measure": "the same, by chance", **share(lot.sum(), wrong.sum())}]
    return Result(f"{model.title}: things in their usual context and in another ({stimuli.name})", "scenes (%)",
                   pd.DataFrame(rows))


def at_home(model: VisionModel, images: EmojiWorld | None = None, n: int = 1024, boxes: bool = True,
            fill: str = "black") -> Result:
    """Shown backgrounds alone, does a model answer with concepts that are at home in them?

    What it knows of contexts can show here although it is seldom right: of 256 concepts, about twenty share a context.
    Rows: first answers at home in the context shown; the same by chance, with the contexts of other scenes; right answers.
    """
    world = _own_world(model, images)
    stimuli = ImageSet(model, world, n)
    best = top5_predictions(model, stimuli, *_change(stimuli, "background", boxes, fill))
    contexts = world.facts(np.arange(n))["context"]
    right = best == stimuli.labels(range(n))[:, None]
    homes, lot = world.usual_context[best[:, 0].numpy()], np.random.default_rng(0).permutation(contexts)
    rows = [{"answers": "at home in the context shown", **share((homes == contexts).sum(), n)},
            {"answers": "the same, by chance", **share((homes == lot).sum(), n)},
            {"answers": "right, top-1", **share(right[:, 0].sum(), n)},
            {"answers": "right, top-5", **share(right.any(1).sum(), n)}]
    return Result(f"{model.title}: backgrounds alone, {_how(boxes, fill)} ({stimuli.name})", "backgrounds (%)",
                   pd.DataFrame(rows))


def context_selectivity(model: VisionModel, images: EmojiWorld | None = None, n: int = 2048) -> list[torch.Tensor]:
    """By how many standard deviations units answer more in each context than on average: (contexts, units), a layer each.

    Things stand in contexts drawn by lot, so that a unit which answers to a concept gains nothing from the concept's usual
    context. By chance, the largest of a unit's twelve numbers is about 0.13 for 2,048 scenes.
    """
    world = images or default_world(model)
    kind = next(iter(find_sites(model)))
    path = cache.path_of({"weights": model.weights_hash, "kind": kind, "world": f"{world!r} {world.concepts}", "n": n},
                         "contexts")
    stored = cache.read(path)
    if stored and len(stored) == len(find_sites(model)[kind]):
        return [torch.from_numpy(stored[f"layer{i}"]) for i in range(len(stored))]
    tables, count = None, torch.zeros(len(CONTEXTS))
    for numbers, _ in ImageSet(model, world, n).batches(f"{model.name}: contexts"):
        here = torch.from_numpy(random_contexts(numbers))
        found = activations(model, kind, world.batch(numbers, model.device, contexts=here.numpy()).images)
        tables = tables or [torch.zeros(2, len(CONTEXTS), layer.shape[1], dtype=torch.float64) for layer in found]
        count += torch.bincount(here, minlength=len(CONTEXTS))
        for (sums, squares), layer in zip(tables, found, strict=True):
            sums.index_add_(0, here, layer.double())
            squares.index_add_(0, here, layer.double().square())
    results = []
    for sums, squares in tables:
        mean = sums.sum(0) / n
        spread = (squares.sum(0) / n - mean**2).clamp_min(0).sqrt()
        above = (sums / count.clamp_min(1)[:, None] - mean) / spread.clamp_min(1e-12)
        results.append(torch.where((spread > 1e-6 * mean.abs()) & (count > 0)[:, None], above, 0.0).float())
    cache.write(path, {f"layer{i}": layer.numpy() for i, layer in enumerate(results)})
    return results


def _own_world(model: VisionModel, world: EmojiWorld | None) -> EmojiWorld:
    world = world or default_world(model)
    if model.class_names != world.concepts:
        raise VitvizError(f"Only in Emoji World can a thing be put elsewhere, so this needs a model of its concepts; "
                          f"{model.name} has other classes. Take an embedded model, such as vv.load('emoji-vit').")
    return world
