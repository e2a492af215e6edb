"""What do things, and what do their surroundings, tell a model? (Paper, section 5.)"""

import numpy as np
import pandas as pd
import torch

from .answers import MEASURES, accuracy_rows, right_answers
from .contexts import CONTEXTS
from .emoji_world import P_USUAL_CONTEXT, EmojiWorld
from .errors import VitvizError
from .finding import Finding, share
from .models import VisionModel
from .stimuli import Stimuli, default_world

SHOWN = ("whole", "foreground", "background")


def parts(model: VisionModel, images=None, n: int | None = None, boxes: bool = False) -> Finding:
    """Accuracy on whole images, on things alone and on their surroundings alone; all that is not shown is black.

    Args:
        images: labelled, with masks or bounding boxes (``Stimuli.masks``).
        boxes: True to cut along the bounding box of each mask, as the paper does with ImageNet's boxes, instead of the mask.
    """
    stimuli, rows = Stimuli(model, images, n), []
    for shown in SHOWN:
        hits = right_answers(model, stimuli, f"{shown} alone",
                             lambda numbers, batch, shown=shown: cut(batch, stimuli.masks(numbers), shown, boxes))
        rows += accuracy_rows({"shown": shown}, hits)
    how = "bounding boxes" if boxes else "masks"
    return Finding(f"{model.title}: what is shown, cut along {how} ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


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
    whole = table[table["shown"] == "whole"].groupby("measure")["value"].mean()
    if (whole == 0).any():
        raise VitvizError("On whole images not one answer was right, so nothing can be divided by their accuracy.")
    for column in ("value", "low", "high"):
        table[column] = 100 * table[column] / table["measure"].map(whole)
    table = table[table["shown"] != "whole"].reset_index(drop=True)
    return Finding(f"{finding.title}, as a share of whole images", "right answers (% of those on whole images)", table)


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
