"""What do things, and what do their surroundings, tell a model? (Paper, section 5.)"""

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .answers import MEASURES, accuracy_rows, right_answers
from .contexts import CONTEXTS
from .emoji_world import P_USUAL_CONTEXT, EmojiWorld
from .errors import VitvizError
from .finding import Finding, share
from .images import image_folder
from .models import VisionModel
from .stimuli import Stimuli, default_world

SHOWN = ("whole", "foreground", "background")


def parts(model: VisionModel, images=None, n: int | None = None, boxes: bool = False) -> Finding:
    """Accuracy on whole images, on things alone and on their surroundings alone; all that is not shown is black.

    Args:
        images: labelled, with masks or bounding boxes (``Stimuli.masks``).
        boxes: True to cut along the bounding box of each mask, as the paper does with ImageNet's boxes, instead of the mask.
    """
    stimuli = Stimuli(model, images, n)
    rows = [row for shown, hits in _of_parts(model, stimuli, boxes).items() for row in accuracy_rows({"shown": shown}, hits)]
    how = "bounding boxes" if boxes else "masks"
    return Finding(f"{model.title}: what is shown, cut along {how} ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def _of_parts(model: VisionModel, stimuli: Stimuli, boxes: bool) -> dict[str, torch.Tensor]:
    """For each of ``SHOWN``, the right answers (n, 2)."""
    how = "boxes" if boxes else "masks"
    return {shown: right_answers(model, stimuli, shown if shown == "whole" else f"{shown} alone, by {how}",
                                 lambda numbers, batch, shown=shown: cut(batch, stimuli.masks(numbers), shown, boxes))
            for shown in SHOWN}


def cut(images: torch.Tensor, masks: torch.Tensor, shown: str, boxes: bool = False) -> torch.Tensor:
    """Images (N, 3, S, S) with the thing ("foreground") or its surroundings ("background") alone, the rest black; or "whole".

    Args:
        masks: (N, S, S) in [0, 1], 1 where the thing is.
    """
    if shown not in SHOWN:
        raise VitvizError(f"What is shown is one of {', '.join(SHOWN)}, got {shown!r}.")
    if shown == "whole":
        return images
    keep = box_of(masks) if boxes else masks
    keep = keep[:, None].to(images)
    return images * (keep if shown == "foreground" else 1 - keep)


def box_of(masks: torch.Tensor) -> torch.Tensor:
    """The smallest upright boxes around masks (N, S, S), as masks of 0 and 1; a pixel counts from one half on."""
    there = masks >= 0.5

    def between(line: torch.Tensor) -> torch.Tensor:  # from the first to the last
        return (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)

    return (between(there.any(2).int())[:, :, None] & between(there.any(1).int())[:, None, :]).float()


def normalized(finding: Finding) -> Finding:
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
    return Finding(f"{finding.title}, as a share of whole images", "right answers (% of those on whole images)", table)


def paper_table(models: list[VisionModel], folder: str | Path, boxes: str | Path, per_class: int | None = None) -> Finding:
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
    left_out = []
    for sub in tqdm(folders, desc="foreground and background", unit="class"):
        for model in models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # half of ImageNet's images have no box
                try:
                    found = image_folder(sub, model.image_size, per_class, boxes)
                except VitvizError as error:
                    left_out.append(f"{sub.name} ({error})")
                    break
            stimuli = Stimuli(model, replace(found, labels=[sub.name] * len(found.paths)))
            for shown, right in _of_parts(model, stimuli, boxes=True).items():
                hits.setdefault((model.title, shown), []).append(right)
    if not hits:
        raise VitvizError(f"No class in {folder} has an image with a box in {boxes}. The first: {left_out[0]}")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(folders)} classes left out: {'; '.join(left_out[:3])}", stacklevel=2)
    rows = [row for (name, shown), parts_ in hits.items()
            for row in accuracy_rows({"shown": shown, "model": name}, torch.cat(parts_))]
    return Finding(f"Foreground and background, cut along bounding boxes ({folder})", "right answers (%)", pd.DataFrame(rows))


def context_chance(world: EmojiWorld) -> dict[str, float]:
    """The best that guessing from the context alone can do in ``world``: percent right, top-1 and top-5.

    A concept stands in its usual context with probability 0.7, else in any other; all concepts are equally frequent.
    """
    others = (1 - P_USUAL_CONTEXT) / (len(CONTEXTS) - 1)
    usual = np.eye(len(CONTEXTS))[world.usual_context]  # (concepts, contexts)
    joint = np.sort((usual * P_USUAL_CONTEXT + (1 - usual) * others) / len(world.concepts), axis=0)[::-1]
    return {measure: 100 * float(joint[:k].sum()) for measure, k in zip(MEASURES, (1, 5), strict=True)}


def swapped(model: VisionModel, world: EmojiWorld | None = None, n: int = 1024) -> Finding:
    """The same things in their usual context and in others: accuracy, and how far wrong answers go along with the context.

    Every scene is drawn twice, in its concept's usual context and in another one, drawn by lot. "Follows the context" is the
    share of wrong answers (of all scenes of that row) that name a concept at home in the context shown; its chance, beside it,
    is that share when the contexts of other scenes of the row are taken instead.
    """
    world = world or default_world(model)
    if model.class_names != world.concepts:
        raise VitvizError(f"Only in Emoji World can a thing be put elsewhere, so this needs a model of its concepts; "
                          f"{model.name} has other classes. Take an embedded model, such as vv.load('emoji-vit').")
    stimuli, rows = Stimuli(model, world, n), []
    home = world.usual_context
    for shown in ("usual", "another"):
        right, answered, contexts = [], [], []
        for numbers, _ in stimuli.batches(f"{model.name}: {shown} context"):
            usual = home[world.facts(np.asarray(numbers))["concept"]]
            lot = np.random.default_rng(numbers[0]).integers(1, len(CONTEXTS), len(usual))
            here = usual if shown == "usual" else (usual + lot) % len(CONTEXTS)
            with torch.inference_mode():
                best = model(world.batch(numbers, model.device, contexts=here).images).argmax(1).cpu()
            right.append(best == stimuli.labels(numbers))
            answered.append(best.numpy())
            contexts.append(here)
        right, answered, here = torch.cat(right), np.concatenate(answered), np.concatenate(contexts)
        wrong = ~right.numpy()
        follows = home[answered[wrong]] == here[wrong]
        lot = home[answered[wrong]] == np.random.default_rng(0).permutation(here[wrong])
        rows += [{"context": shown, "measure": "right answers", **share(right.sum(), len(right))},
                 {"context": shown, "measure": "wrong answers that follow the context", **share(follows.sum(), wrong.sum())},
                 {"context": shown, "measure": "the same, by chance", **share(lot.sum(), wrong.sum())}]
    return Finding(f"{model.title}: things in their usual context and in another ({stimuli.name})", "scenes (%)",
                   pd.DataFrame(rows))
