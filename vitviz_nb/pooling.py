"""Is the last layer a learned global pooling? What the class token gathers, and when (paper, section 5).

Every function takes any model whose answer is read from class (and distillation) tokens after its last block, and any images
with labels. Blocks are re-run on some of their tokens only; which those are is found from the sites, not from the family.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pandas as pd
import torch

from .errors import VitvizError
from .finding import Finding, share
from .models import VisionModel
from .sites import Site, sites
from .stimuli import Stimuli


def isolated_cls(model: VisionModel, images=None, n: int | None = None) -> Finding:
    """Accuracy when the class token and the patches pass through the first k blocks apart, for k = 0 (as trained) to all.

    Paper, section 5: ViT-B/16 keeps nearly all of its accuracy until the class token is kept apart for all blocks but the last.

    Args:
        images: labelled, as ``Stimuli`` takes them.
    """
    def apart(block: Callable, x: torch.Tensor, prefix: int) -> torch.Tensor:
        return torch.cat([block(x[:, :prefix]), block(x[:, prefix:])], 1)

    blocks, stimuli = _blocks(model), Stimuli(model, images, n)
    rows = [row for k in range(len(blocks) + 1) for row in
            _accuracy(model, stimuli, {"isolated blocks": k}, lambda k=k: _changed(model, blocks[:k], apart))]
    return Finding(f"{model.title}: class token apart from the patches for the first blocks ({stimuli.name})",
                   "right answers (%)", pd.DataFrame(rows))


def cls_alone(model: VisionModel, images=None, n: int | None = None) -> Finding:
    """Accuracy when the class token sees no patches from block k on, for k = 0 (never any) to all (as trained)."""
    def alone(block: Callable, x: torch.Tensor, prefix: int) -> torch.Tensor:
        return torch.cat([block(x[:, :prefix]), x[:, prefix:]], 1)

    blocks, stimuli = _blocks(model), Stimuli(model, images, n)
    rows = [row for k in range(len(blocks) + 1) for row in
            _accuracy(model, stimuli, {"class token alone from block": k}, lambda k=k: _changed(model, blocks[k:], alone))]
    return Finding(f"{model.title}: class token alone from a block on ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


def head_on_tokens(model: VisionModel, images=None, n: int | None = None) -> Finding:
    """Accuracy when the trained head reads other tokens of the last block than the class token, without further training.

    Rows: the class token; the mean and the maximum of what the head answers over all patches; one patch, on average over all.
    For a linear head the mean of its answers is its answer to the mean of the patches.
    """
    last, stimuli = _blocks(model)[-1], Stimuli(model, images, n)
    found = []
    for numbers, batch in stimuli.batches(f"{model.name}: head on patches"):
        own, each = model(batch), patch_logits(model, batch, last)
        answers = {"class token": own[:, None], "mean of patches": each.mean(1, keepdim=True),
                   "maximum of patches": each.amax(1, keepdim=True), "each patch": each}
        labels = stimuli.labels(numbers).to(own.device)
        found.append({name: _hits(logits, labels) for name, logits in answers.items()})
    rows = []
    for name in found[0]:
        hits = torch.cat([part[name] for part in found])  # (n, 1 or patches, 2)
        for j, measure in enumerate(("top-1", "top-5")):
            right = hits[..., j].float().mean(1).sum().round()  # of all patches together, counted in images
            rows.append({"the head reads": name, "measure": measure, **share(right, len(hits))})
    return Finding(f"{model.title}: the trained head on other tokens ({stimuli.name})", "right answers (%)", pd.DataFrame(rows))


@torch.inference_mode()
def patch_logits(model: VisionModel, images: torch.Tensor, last: Site | None = None) -> torch.Tensor:
    """What the head answers to each patch token of the last block in the class token's place: (N, patches, classes).

    Args:
        images: (N, 3, S, S) in [0, 1].
    """
    last = last or _blocks(model)[-1]

    def unfold(x: torch.Tensor) -> torch.Tensor:
        return x[:, last.prefix:].flatten(0, 1)[:, None].expand(-1, last.prefix, -1)

    with _after(model, last, unfold):
        found = model(images)
    return found.view(len(images), -1, found.shape[-1])


def _blocks(model: VisionModel) -> list[Site]:
    """The blocks of a model that answers from class tokens; VitvizError for one that does not."""
    blocks = sites(model).get("residual", [])
    probe = torch.rand(2, 3, model.image_size, model.image_size, generator=torch.Generator().manual_seed(0))
    if blocks and blocks[-1].prefix and blocks[-1].grid:
        # If the answer stays the same without the patches of the last block, it is read from the tokens before them.
        try:
            with torch.inference_mode(), _after(model, blocks[-1], lambda x: x[:, :blocks[-1].prefix]):
                found = model(probe)
            if torch.allclose(found, model(probe), atol=1e-4, rtol=1e-3):
                return blocks
        except (RuntimeError, ValueError):
            pass
    raise VitvizError(f"{model.name} does not read its answer from a class token of its last block (Swin and Twins average all "
                      f"patches, CNNs all places), so there is no such token to keep apart. A ViT or a DeiT has one.")


@contextmanager
def _after(model: VisionModel, place: Site, change: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """What the block at ``place`` gives out goes through ``change``."""
    with model.lock:
        handle = model.module.get_submodule(place.path).register_forward_hook(lambda module, arguments, x: change(x))
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _changed(model: VisionModel, blocks: list[Site], run: Callable) -> Iterator[None]:
    """Each of ``blocks`` that has a class token is run as ``run(block, x, number of class tokens)``."""
    with model.lock:
        modules = [model.module.get_submodule(place.path) for place in blocks if place.prefix]
        prefixes = [place.prefix for place in blocks if place.prefix]
        try:
            for module, prefix in zip(modules, prefixes, strict=True):
                module.forward = lambda x, forward=module.forward, prefix=prefix: run(forward, x, prefix)
            yield
        finally:
            for module in modules:
                module.__dict__.pop("forward", None)  # the class's own again


@torch.inference_mode()
def _accuracy(model: VisionModel, stimuli: Stimuli, of: dict, changed: Callable) -> list[dict]:
    """Two rows, top-1 and top-5, of a model that is run inside ``changed()``."""
    hits = []
    for numbers, batch in stimuli.batches(f"{model.name}: {', '.join(f'{k} {v}' for k, v in of.items())}"):
        with changed():
            found = model(batch)
        hits.append(_hits(found[:, None], stimuli.labels(numbers).to(found.device))[:, 0])
    hits = torch.cat(hits)
    return [{**of, "measure": measure, **share(hits[:, j].sum(), len(hits))} for j, measure in enumerate(("top-1", "top-5"))]


def _hits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """bool (N, m, 2): whether each of m answers (N, m, classes) has the label first, and among the first five."""
    right = logits.topk(min(5, logits.shape[-1]), -1).indices == labels[:, None, None]
    return torch.stack([right[..., 0], right.any(-1)], -1).cpu()
