"""Does a model rely on the foreground or on the background? (Paper, section 5.)"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.backgrounds import CONTEXTS
from ..datasets.boxes import Boxes
from ..datasets.emoji_world import P_USUAL_CONTEXT, EmojiWorld
from ..datasets.image_folder import image_files, image_folder
from ..datasets.image_set import ImageSet, default_world
from ..models.sites import find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache, validate
from ..utils.errors import VitvizError
from .classification import MEASURES, accuracy_rows, correct_predictions, top5_predictions
from .result import Result, proportion
from .semantics import in_random_contexts, sums_by_fact

SHOWN = ("whole", "foreground", "background")
FILLS = ("black", "mean")


def foreground_background(model: VisionModel, images=None, *, n: int | None = None, boxes: bool = False,
                          fill: str = "black") -> Result:
    """Accuracy on whole images, on their foreground alone and on their background alone.

    Args:
        images: labeled, with masks or bounding boxes (``ImageSet.masks``).
        boxes: True to cut along the bounding box of each mask, as the paper does with ImageNet's boxes, instead of the mask.
        fill: "black", as in the paper, or "mean": what is not shown has the mean color of what is.
    """
    image_set = ImageSet(model, images, n)
    rows = [row for shown, correct in _correct(model, image_set, boxes, fill).items()
            for row in accuracy_rows({"shown": shown}, correct)]
    return Result(f"{model.title}: foreground and background, {_how(boxes, fill)} ({image_set.name})", "accuracy (%)", rows)


def masked(images: torch.Tensor, masks: torch.Tensor, shown: str, boxes: bool = False, fill: str = "black") -> torch.Tensor:
    """Images (N, 3, H, W) of which only the "foreground" or the "background" is shown, or the "whole".

    ``masks`` are (N, H, W) in [0, 1], 1 on the foreground; ``boxes`` and ``fill`` as in ``foreground_background``.
    """
    validate.choice("shown", shown, SHOWN)
    _how(boxes, fill)
    validate.images("images", images, (3, *getattr(images, "shape", ())[-2:]))
    if len(validate.images("masks", masks, tuple(images.shape[-2:]))) != len(images):
        raise VitvizError(f"Each image has one mask; got {len(images)} images and {len(masks)} masks.")
    if shown == "whole":
        return images
    keep = (bounding_boxes(masks) if boxes else masks)[:, None].to(images)
    keep = keep if shown == "foreground" else 1 - keep
    if fill == "black":
        return images * keep
    mean = (images * keep).sum((2, 3), keepdim=True) / keep.sum((2, 3), keepdim=True).clamp_min(1e-6)
    return images * keep + mean * (1 - keep)


def bounding_boxes(masks: torch.Tensor) -> torch.Tensor:
    """The bounding boxes of masks (N, H, W), as masks of 0 and 1; a pixel counts from one half on."""
    inside = masks >= 0.5

    def span(line: torch.Tensor) -> torch.Tensor:  # from the first to the last
        return (line.cumsum(1) > 0) & (line.flip(1).cumsum(1).flip(1) > 0)

    return (span(inside.any(2).int())[:, :, None] & span(inside.any(1).int())[:, None, :]).float()


def paper_table(models: list[VisionModel], folder: str | Path, boxes: str | Path, per_class: int | None = None) -> Result:
    """The paper's table of foreground and background, measured on images like its own: ImageNet's, with bounding boxes.

    Classes are read one after the other, to save memory, and each that is done is found in the cache by a later call.

    Args:
        folder: a subfolder a class, named by ImageNet's number (n01440764) or as the models name the class.
        boxes: CSV, as ``boxes.Boxes`` reads it; images without a box are left out.
        per_class: the first so many images of each class; by default all.
    """
    root, known, left_out = validate.path("folder", folder), Boxes(boxes), []  # ImageNet's boxes are half a million lines
    folders = sorted(sub for sub in root.glob("*") if sub.is_dir() and not sub.name.startswith("."))
    if not folders:
        raise VitvizError(f"{root} has no subfolders; it should have one for each class, such as ImageNet's train/n01440764.")
    known.check(image_files(root)[0], root)
    correct: dict[tuple[str, str], list[torch.Tensor]] = {}
    for sub in tqdm(folders, desc="foreground and background", unit="class"):
        for model in models:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # half of ImageNet's images have no box
                try:
                    images = image_folder(sub, model, per_class, known)
                except VitvizError as error:
                    left_out.append(f"{sub.name} ({error})")
                    break
            image_set = ImageSet(model, replace(images, labels=[sub.name] * len(images.paths)))
            for shown, hits in _correct(model, image_set, boxes=True).items():
                correct.setdefault((model.title, shown), []).append(hits)
    if not correct:
        raise VitvizError(f"No class in {root} has an image with a box in {boxes}. The first: {left_out[0]}")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(folders)} classes left out: {'; '.join(left_out[:3])}", stacklevel=2)
    rows = [row for (name, shown), hits in correct.items()
            for row in accuracy_rows({"shown": shown, "model": name}, torch.cat(hits))]
    return Result(f"Foreground and background, cut along bounding boxes ({root})", "accuracy (%)", rows)


def context_chance(world: EmojiWorld) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent of the best guess from the context alone in ``world``.

    All concepts are equally frequent, each in its usual context with probability 0.7.
    """
    others = (1 - P_USUAL_CONTEXT) / (len(CONTEXTS) - 1)
    usual = np.eye(len(CONTEXTS))[world.usual_context]  # (concepts, contexts)
    joint = np.sort((usual * P_USUAL_CONTEXT + (1 - usual) * others) / len(world.concepts), axis=0)[::-1]
    return {measure: 100 * float(joint[:k].sum()) for measure, k in zip(MEASURES, (1, 5), strict=True)}


def context_swap(model: VisionModel, images: EmojiWorld | None = None, *, n: int = 1024) -> Result:
    """Accuracy on the same objects in their usual and in another, random context, and how many of the errors follow the context.

    Those name a concept whose usual context is the one shown; control: the contexts of other scenes.
    """
    world = _own_world(model, images)
    image_set, rows = ImageSet(model, world, n), []
    n, usual_of, labels = image_set.n, world.usual_context, image_set.labels(range(image_set.n))
    usual = usual_of[world.facts(np.arange(n))["concept"]]
    shifts = np.array([np.random.default_rng(i).integers(1, len(CONTEXTS)) for i in range(n)])
    for context, here in (("usual", usual), ("another", (usual + shifts) % len(CONTEXTS))):
        predictions = top5_predictions(model, image_set, f"in {context} context", lambda numbers, _, here=here: world.batch(
            numbers, model.device, contexts=here[list(numbers)]).images)[:, 0]
        correct, wrong = predictions == labels, (predictions != labels).numpy()
        followed = usual_of[predictions.numpy()[wrong]]
        control = np.random.default_rng(0).permutation(here[wrong])
        rows += [{"context": context, "measure": "accuracy", **proportion(correct.sum(), n)},
                 {"context": context, "measure": "errors that follow the context",
                  **proportion((followed == here[wrong]).sum(), wrong.sum())},
                 {"context": context, "measure": "shuffled contexts", **proportion((followed == control).sum(), wrong.sum())}]
    return Result(f"{model.title}: objects in their usual and in another context ({image_set.name})", "scenes (%)", rows)


def context_consistency(model: VisionModel, images: EmojiWorld | None = None, *, n: int = 1024, boxes: bool = True,
                        fill: str = "black") -> Result:
    """How often the prediction on a background alone is a concept whose usual context it is; control: other scenes' contexts.

    It shows what a model knows of contexts although it is seldom correct: of 256 concepts, about twenty share a context.
    """
    world = _own_world(model, images)
    image_set = ImageSet(model, world, n)
    predictions = top5_predictions(model, image_set, *_change(image_set, "background", boxes, fill))
    numbers = np.arange(image_set.n)
    contexts, correct = world.facts(numbers)["context"], predictions == image_set.labels(numbers)[:, None]
    usual, control = world.usual_context[predictions[:, 0].numpy()], np.random.default_rng(0).permutation(contexts)
    rows = [{"prediction": name, **proportion(hits.sum(), image_set.n)} for name, hits in (
        ("consistent with the context", usual == contexts), ("shuffled contexts", usual == control),
        ("correct, top-1", correct[:, 0]), ("correct, top-5", correct.any(1)))]
    return Result(f"{model.title}: background alone, {_how(boxes, fill)} ({image_set.name})", "backgrounds (%)", rows)


def context_selectivity(model: VisionModel, images: EmojiWorld | None = None, *, kind: str | None = None,
                        n: int = 2048) -> list[torch.Tensor]:
    """Selectivity of every unit for each context, in standard deviations: a layer each (contexts, units).

    Contexts are random here, so that a unit selective for a concept gains nothing from the concept's usual context. By chance,
    the largest of a unit's twelve numbers is about 0.13 for 2,048 scenes.
    """
    world = default_world(model) if images is None else images
    if not isinstance(world, EmojiWorld):
        raise VitvizError(f"Only of Emoji World are contexts known, so images is an EmojiWorld, got {validate.shown(images)}.")
    image_set, kind = ImageSet(model, world, n), find_site(model, kind=kind).kind

    def measure() -> dict[str, np.ndarray]:
        batches = in_random_contexts(model, world, range(image_set.n), "contexts", lambda s: {"context": s.context.cpu()})
        sums = sums_by_fact(model, kind, batches, len(CONTEXTS))
        return {f"layer{i}": of_layer["context"].selectivity().numpy() for i, of_layer in enumerate(sums)}

    facts = {"kind": kind, "world": image_set.key, "n": image_set.n}
    shapes = {f"layer{site.layer}": (len(CONTEXTS), site.units) for site in find_sites(model)[kind]}
    stored = cache.made(model, facts, "contexts", measure, shapes, low=-np.inf)  # of contexts of too few scenes
    return [torch.from_numpy(stored[name]) for name in shapes]


def _correct(model: VisionModel, images: ImageSet, boxes: bool, fill: str = "black") -> dict[str, torch.Tensor]:
    """For each of ``SHOWN``, whether predictions are correct: bool (n, 2)."""
    return {shown: correct_predictions(model, images, *_change(images, shown, boxes, fill)) for shown in SHOWN}


def _change(images: ImageSet, shown: str, boxes: bool, fill: str) -> tuple[str, Callable]:
    """What is done to images, in words and as a function, as ``top5_predictions`` takes them."""
    return (shown if shown == "whole" else f"{shown} alone, {_how(boxes, fill)}",
            lambda numbers, batch: masked(batch, images.masks(numbers), shown, boxes, fill))


def _how(boxes: bool, fill: str) -> str:
    if not isinstance(boxes, bool):
        raise VitvizError(f"boxes is True (cut along bounding boxes) or False (along masks), got {boxes!r}. A file of boxes "
                          f"belongs to the images: vv.image_folder(path, model, boxes='boxes.csv').")
    rest = "" if validate.choice("fill", fill, FILLS) == "black" else ", rest in its mean color"
    return f"cut along {'bounding boxes' if boxes else 'masks'}{rest}"


def _own_world(model: VisionModel, world: EmojiWorld | None) -> EmojiWorld:
    world = default_world(model) if world is None else world
    if not isinstance(world, EmojiWorld) or model.class_names != world.concepts:
        raise VitvizError(f"Only in Emoji World are contexts known, so this needs its scenes and a model of its concepts; "
                          f"{model.name} has other classes. Take an embedded model, such as vv.load('emoji-vit').")
    return world
