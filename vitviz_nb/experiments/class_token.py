"""Is the last layer a learned global pooling? What the CLS token gathers from the patches, and in which block (paper, section 4).

For any model that classifies from CLS (and distillation) tokens after its last block.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from ..datasets.image_set import ImageSet
from ..models.hooks import hooked
from ..models.sites import Site, find_sites
from ..models.vision_model import VisionModel
from ..utils import validate
from ..utils.errors import NotApplicable
from .classification import MEASURES, accuracy_rows, are_correct, correct_predictions
from .result import Result, proportion


def cls_isolation(model: VisionModel, images=None, *, n: int | None = None) -> Result:
    """Accuracy on labeled images with CLS isolated from the patches in the first k blocks, for k = 0 (as trained) to all blocks.

    Paper, section 4: ViT-B/16 keeps nearly all of its accuracy until CLS is isolated in all blocks but the last.
    """
    return _by_block(model, ImageSet(model, images, n), "isolated blocks", isolate_cls, "isolated CLS for the first blocks")


def cls_only_from(model: VisionModel, images=None, *, n: int | None = None) -> Result:
    """Accuracy if CLS attends only to itself from block k on, for k = 0 (it never sees a patch) to all blocks (as trained)."""
    return _by_block(model, ImageSet(model, images, n), "CLS-only from block", cls_only, "CLS-only from a block on")


def _by_block(model: VisionModel, images: ImageSet, factor: str, change: Callable, what: str) -> Result:
    rows = []
    for k in range(depth(model) + 1):
        with change(model, k):
            rows += accuracy_rows({factor: k}, correct_predictions(model, images, f"{factor} {k}"))
    return Result(f"{model.title}: {what} ({images.name})", "accuracy (%)", rows)


def isolate_cls(model: VisionModel, blocks: int) -> AbstractContextManager[None]:
    """Inside ``with isolate_cls(model, k):`` CLS and the patches do not attend to each other in the first k blocks."""
    k = validate.whole("A number of blocks", blocks, 0, depth(model))
    return _split(model, f"CLS isolated for {k} blocks", _blocks(model)[:k], freeze_patches=False)


def cls_only(model: VisionModel, block: int) -> AbstractContextManager[None]:
    """Inside ``with cls_only(model, k):`` only CLS passes through the blocks from k on; the patch tokens stay as they are."""
    k = validate.whole("The number of a block", block, 0, depth(model))
    return _split(model, f"CLS-only from block {k}", _blocks(model)[k:], freeze_patches=True)


def head_on_tokens(model: VisionModel, images=None, *, n: int | None = None) -> Result:
    """Accuracy when the trained head reads other tokens of the last block than CLS, without further training.

    Rows: CLS; the mean and the maximum over the patch tokens of the head's logits; each patch token, averaged over all of them.
    """
    _blocks(model)
    image_set, parts = ImageSet(model, images, n), []
    for numbers, batch in image_set.batches(f"{model.name}: head on patch tokens"):
        from_cls, from_patches = model(batch), patch_logits(model, batch)
        logits = {"CLS": from_cls[:, None], "mean of patch tokens": from_patches.mean(1, keepdim=True),
                  "maximum of patch tokens": from_patches.amax(1, keepdim=True), "each patch token": from_patches}
        labels = image_set.labels(numbers)
        parts.append({token: are_correct(values, labels) for token, values in logits.items()})
    rows = []
    for token in parts[0]:
        correct = torch.cat([part[token] for part in parts])  # (n, 1 or patches, 2)
        for j, measure in enumerate(MEASURES):
            hits = correct[..., j].float().mean(1).sum().round()  # of all patches together, counted in images
            rows.append({"head reads": token, "measure": measure, **proportion(hits, len(correct))})
    return Result(f"{model.title}: the trained head on other tokens ({image_set.name})", "accuracy (%)", rows)


def top1(model: VisionModel, changed: AbstractContextManager | None = None, *, n: int = 512) -> float:
    """Top-1 accuracy in percent on the first ``n`` default images, inside ``changed``, such as ``isolate_cls(model, 2)``."""
    with changed or nullcontext():
        return accuracy_rows({}, correct_predictions(model, ImageSet(model, None, n), "as it is"))[0]["value"]


@torch.inference_mode()
def patch_logits(model: VisionModel, images: torch.Tensor) -> torch.Tensor:
    """Logits of the trained head on each patch token of the last block in CLS's position: (N, patches, classes)."""
    last = _blocks(model)[-1]
    first, patches = last.prefix, last.grid[0] * last.grid[1]
    if _head_input(model) == "CLS":
        with _after(model, last, lambda x: x[:, first:].flatten(0, 1)[:, None].expand(-1, first, -1)):
            return model(images).view(len(images), patches, -1)
    logits = []
    for patch in range(first, first + patches):  # PiT wants as many images and patches as went in
        with _after(model, last, lambda x, patch=patch: torch.cat([x[:, [patch] * first], x[:, first:]], 1)):
            logits.append(model(images))
    return torch.stack(logits, 1)


def depth(model: VisionModel) -> int:
    """Number of blocks; ``NotApplicable`` for a model that does not classify from CLS."""
    return len(_blocks(model))


def _blocks(model: VisionModel) -> list[Site]:
    if not _head_input(model):
        raise NotApplicable(f"{model.name} does not classify from a CLS token of its last block (Swin, Twins and CNNs average "
                            f"all positions), so there is no such token to isolate. A ViT or a DeiT has one.")
    return find_sites(model)["residual"]


def _head_input(model: VisionModel) -> str | None:
    find_sites(model)  # refuses what is no VisionModel
    return model.remember("head input", lambda: _probe_head(model))


@torch.inference_mode()
def _probe_head(model: VisionModel) -> str | None:
    """What the head needs of the last block: "CLS" alone, or CLS and "any patches", whichever; None where it reads more."""
    blocks = find_sites(model).get("residual", [])
    if not (blocks and blocks[-1].prefix and blocks[-1].grid):
        return None
    last, prefix = blocks[-1], blocks[-1].prefix
    images = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))

    def same(change: Callable) -> bool:
        with _after(model, last, change):
            return torch.allclose(model(images), logits, atol=1e-4, rtol=1e-3)

    logits = model(images)
    try:
        if same(lambda x: x[:, :prefix]):
            return "CLS"
    except (RuntimeError, ValueError, AssertionError):  # PiT folds its patch tokens into an image; what else fails, fails below
        pass
    return "any patches" if same(lambda x: torch.cat([x[:, :prefix], x[:, prefix:].roll(1, 0)], 1)) else None


@contextmanager
def _after(model: VisionModel, site: Site, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """While it is open, the output of the block at ``site`` goes through ``change``."""
    block = {site.path: model.module.get_submodule(site.path)}
    with model.lock, hooked(block, after=lambda path, module, arguments, output: change(output)):
        yield


@contextmanager
def _split(model: VisionModel, name: str, blocks: list[Site], freeze_patches: bool) -> Iterator[None]:
    """While it is open, each of ``blocks`` that has CLS is run on CLS and patch tokens separately; it nests."""
    before = []
    with model.changed(name):
        try:
            for site in (site for site in blocks if site.prefix):
                block = model.module.get_submodule(site.path)
                outer = block.__dict__.get("forward")
                before.append((block, outer))
                split = isinstance(outer, _SplitForward)
                block.forward = _SplitForward(outer.whole if split else block.forward, site.prefix,
                                              freeze_patches or (split and outer.freeze_patches), model.name)
            yield
        finally:
            for block, outer in before:
                if outer is None:
                    del block.forward  # the class's own again
                else:
                    block.forward = outer


class _SplitForward:
    """The forward of a block (``whole``) on its prefix and its patch tokens separately, in the thread that made it."""

    def __init__(self, whole: Callable, prefix: int, freeze_patches: bool, name: str):
        self.whole, self.prefix, self.freeze_patches, self.name = whole, prefix, freeze_patches, name
        self.thread = threading.get_ident()

    def __call__(self, x: torch.Tensor, *more, **named) -> torch.Tensor:
        if threading.get_ident() != self.thread:
            return self.whole(x, *more, **named)
        if any(isinstance(value, torch.Tensor) for value in (*more, *named.values())):
            raise NotApplicable(f"The blocks of {self.name} are given the positions of their tokens (rotary or relative), so "
                                f"they cannot be run on some of the tokens. A plain ViT's can.")
        patches = x[:, self.prefix:]
        return torch.cat([self.whole(x[:, :self.prefix], *more, **named),
                          patches if self.freeze_patches else self.whole(patches, *more, **named)], 1)
