"""Is the last layer a learned global pooling? What the class token gathers, and when (paper, section 4).

Every function takes any model whose answer is read from class (and distillation) tokens after its last block, and any images
with labels. Blocks are re-run on some of their tokens only; which those are is found from the sites, not from the family.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import pandas as pd
import torch

from ..datasets.image_set import ImageSet
from ..models.sites import Site, find_sites
from ..models.vision_model import VisionModel
from ..utils.errors import VitvizError
from .classification import MEASURES, accuracy_rows, are_correct, correct_predictions
from .result import Result, share


def cls_isolation(model: VisionModel, images=None, n: int | None = None) -> Result:
    """Accuracy when the class token and the patches pass through the first k blocks apart, for k = 0 (as trained) to all.

    Paper, section 4: ViT-B/16 keeps nearly all of its accuracy until the class token is kept apart for all blocks but the last.

    Args:
        images: labeled, as ``Stimuli`` takes them.
    """
    stimuli = ImageSet(model, images, n)
    rows = [row for k in range(depth(model) + 1) for row in
            _accuracy(model, stimuli, {"isolated blocks": k}, isolate_cls(model, k))]
    return Result(f"{model.title}: class token apart from the patches for the first blocks ({stimuli.name})",
                   "right answers (%)", pd.DataFrame(rows))


def cls_only_from(model: VisionModel, images=None, n: int | None = None) -> Result:
    """Accuracy when the class token sees no patches from block k on, for k = 0 (never any) to all (as trained)."""
    stimuli = ImageSet(model, images, n)
    rows = [row for k in range(depth(model) + 1) for row in
            _accuracy(model, stimuli, {"class token alone from block": k}, cls_only(model, k))]
    return Result(f"{model.title}: class token alone from a block on ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def isolate_cls(model: VisionModel, blocks: int) -> AbstractContextManager[None]:
    """Inside ``with isolated(model, k):`` the class token and the patches pass through the first k blocks apart."""
    return _changed(model, f"class token apart for {blocks} blocks", _blocks(model)[:_within(model, blocks)],
                    lambda block, x, prefix: torch.cat([block(x[:, :prefix]), block(x[:, prefix:])], 1))


def cls_only(model: VisionModel, block: int) -> AbstractContextManager[None]:
    """Inside ``with alone(model, k):`` the class token sees no patches from block k on."""
    return _changed(model, f"class token alone from block {block}", _blocks(model)[_within(model, block):],
                    lambda run, x, prefix: torch.cat([run(x[:, :prefix]), x[:, prefix:]], 1))


def head_on_tokens(model: VisionModel, images=None, n: int | None = None) -> Result:
    """Accuracy when the trained head reads other tokens of the last block than the class token, without further training.

    Rows: the class token; the mean and the maximum of what the head answers over all patches; one patch, on average over all.
    For a linear head the mean of its answers is its answer to the mean of the patches.
    """
    _blocks(model)
    stimuli, found = ImageSet(model, images, n), []
    for numbers, batch in stimuli.batches(f"{model.name}: head on patches"):
        own, each = model(batch), patch_logits(model, batch)
        answers = {"class token": own[:, None], "mean of patches": each.mean(1, keepdim=True),
                   "maximum of patches": each.amax(1, keepdim=True), "each patch": each}
        labels = stimuli.labels(numbers).to(own.device)
        found.append({name: are_correct(logits, labels) for name, logits in answers.items()})
    rows = []
    for name in found[0]:
        hits = torch.cat([part[name] for part in found])  # (n, 1 or patches, 2)
        for j, measure in enumerate(MEASURES):
            right = hits[..., j].float().mean(1).sum().round()  # of all patches together, counted in images
            rows.append({"the head reads": name, "measure": measure, **share(right, len(hits))})
    return Result(f"{model.title}: the trained head on other tokens ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def top1(model: VisionModel, changed: AbstractContextManager | None = None, n: int = 512) -> float:
    """Right answers in percent on the first ``n`` default images, inside ``changed``, such as ``isolated(model, 2)``."""
    return _accuracy(model, ImageSet(model, None, n), {}, changed)[0]["value"]


@torch.inference_mode()
def patch_hits(model: VisionModel, images=None, n: int = 512) -> tuple[torch.Tensor, int]:
    """On how many images the head is right from each patch of the last block alone: int64 (patches,); and of how many."""
    stimuli, hits = ImageSet(model, images, n), 0
    for numbers, batch in stimuli.batches(f"{model.name}: head on each patch"):
        each = patch_logits(model, batch)
        hits = hits + are_correct(each, stimuli.labels(numbers).to(each.device))[..., 0].sum(0)
    return hits, stimuli.n


@torch.inference_mode()
def patch_logits(model: VisionModel, images: torch.Tensor) -> torch.Tensor:
    """What the head answers to each patch token of the last block in the class token's place: (N, patches, classes).

    Args:
        images: (N, 3, S, S) in [0, 1].
    """
    last = _blocks(model)[-1]
    first, patches = last.prefix, last.grid[0] * last.grid[1]

    def unfold(x: torch.Tensor) -> torch.Tensor:
        return x[:, first:].flatten(0, 1)[:, None].expand(-1, first, -1)

    if model.memo["class token"] == "alone":
        with _after(model, last, unfold):
            found = model(images)
        return found.view(len(images), patches, -1)
    found = []
    for patch in range(first, first + patches):  # PiT wants as many images and patches as went in
        with _after(model, last, lambda x, patch=patch: torch.cat([x[:, [patch] * first], x[:, first:]], 1)):
            found.append(model(images))
    return torch.stack(found, 1)


def _blocks(model: VisionModel) -> list[Site]:
    """The blocks of a model that answers from class tokens; VitvizError for one that does not."""
    blocks = find_sites(model).get("residual", [])
    if "class token" not in model.memo:
        model.memo["class token"] = _reads_class_token(model, blocks)
    if not model.memo["class token"]:
        raise VitvizError(f"{model.name} does not read its answer from a class token of its last block (Swin and Twins average "
                          f"all patches, CNNs all places), so there is no such token to keep apart. A ViT or a DeiT has one.")
    return blocks


@torch.inference_mode()
def _reads_class_token(model: VisionModel, blocks: list[Site]) -> str | None:
    """Whether the answer stays the same when the last block gives out its class tokens "alone", or with "other" patches."""
    if not (blocks and blocks[-1].prefix and blocks[-1].grid):
        return None
    prefix = blocks[-1].prefix
    images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    changes = {"alone": lambda x: x[:, :prefix], "other": lambda x: torch.cat([x[:, :prefix], x[:, prefix:].roll(1, 0)], 1)}
    whole = model(images)
    for name, change in changes.items():
        try:
            with _after(model, blocks[-1], change):
                found = model(images)
        except (RuntimeError, ValueError, AssertionError):  # PiT folds its patches back into an image
            continue
        if torch.allclose(found, whole, atol=1e-4, rtol=1e-3):
            return name
    return None


def depth(model: VisionModel) -> int:
    """How many blocks it has; VitvizError for a model that does not answer from class tokens."""
    return len(_blocks(model))


def _within(model: VisionModel, blocks: int) -> int:
    if not 0 <= blocks <= depth(model):
        raise VitvizError(f"{model.name} has {depth(model)} blocks, so 0 to {depth(model)} can be chosen; got {blocks}.")
    return blocks


@contextmanager
def _after(model: VisionModel, site: Site, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """What the block at ``place`` gives out goes through ``change``."""
    with model.lock:
        handle = model.module.get_submodule(site.path).register_forward_hook(lambda module, arguments, x: change(x))
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _changed(model: VisionModel, name: str, blocks: list[Site], run: Callable) -> Iterator[None]:
    """Each of ``blocks`` that has a class token is run as ``run(block, x, number of class tokens)``."""
    with model.lock:
        changes = model.memo.setdefault("changes", [])  # answers are kept by it (answers.py): changed, the model is another one
        modules = [model.module.get_submodule(site.path) for site in blocks if site.prefix]
        prefixes = [site.prefix for site in blocks if site.prefix]
        changes.append(name)
        try:
            for module, prefix in zip(modules, prefixes, strict=True):
                module.forward = _on_some(model, module.forward, run, prefix)
            yield
        finally:
            changes.pop()
            for module in modules:
                module.__dict__.pop("forward", None)  # the class's own again


def _on_some(model: VisionModel, forward: Callable, run: Callable, prefix: int) -> Callable:
    """The ``forward`` of a block, run as ``run`` says."""
    def changed(x: torch.Tensor, *more, **named) -> torch.Tensor:
        if any(isinstance(value, torch.Tensor) for value in (*more, *named.values())):
            raise VitvizError(f"The blocks of {model.name} are told where their tokens lie (rotary or relative positions), so "
                              f"they cannot be run on some of them. A plain ViT's can.")
        return run(lambda tokens: forward(tokens, *more, **named), x, prefix)

    return changed


def _accuracy(model: VisionModel, stimuli: ImageSet, of: dict, changed: AbstractContextManager | None = None) -> list[dict]:
    """Two rows, top-1 and top-5, of a model that is run inside ``changed``."""
    with changed or nullcontext():
        return accuracy_rows(of, correct_predictions(model, stimuli, ", ".join(f"{k} {v}" for k, v in of.items())))
