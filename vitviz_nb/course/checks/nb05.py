"""Checks of notebook 05, Finding: the last layer pools."""

from collections.abc import Iterable

import torch

from ...experiments.class_token import depth
from ...models.hooks import hooked
from ...utils import validate
from ...utils.errors import NotApplicable
from . import close, color_world, implementation, verdict

_SCENES = 256


def isolate(attention: torch.Tensor, token: int) -> torch.Tensor:
    """Attention weights (..., tokens, tokens) without attention between ``token`` and all others; rows sum to 1."""
    cut = _cut(attention, token)
    return cut / cut.sum(-1, keepdim=True)


def _cut(attention: torch.Tensor, token: int, row: bool = True, column: bool = True) -> torch.Tensor:
    mask = torch.ones_like(attention)
    if row:
        mask[..., token, :] = 0
    if column:
        mask[..., token] = 0
    mask[..., token, token] = 1
    return attention * mask


def accuracy(model, token: int, blocks: Iterable[int]) -> float:
    """Top-1 accuracy in percent on the notebook's 256 scenes with ``token`` isolated in these blocks of a timm ViT."""
    parts = [model.module.blocks[k].attn for k in blocks] if hasattr(model.module, "blocks") else []
    if not all(hasattr(part, "attn_drop") and hasattr(part, "fused_attn") for part in parts):
        raise NotApplicable(f"The attention of {model.name} is not that of timm's ViT, so this exercise cannot read it. Take "
                            f"emoji-vit-standard.")
    scenes, fused = color_world(model).batch(range(_SCENES), model.device), [part.fused_attn for part in parts]
    with model.lock, torch.inference_mode(), hooked({str(k): part.attn_drop for k, part in enumerate(parts)},
                                                    after=lambda path, module, inputs, weights: isolate(weights, token)):
        try:
            for part in parts:
                part.fused_attn = False  # the fused kernel never stores the weights
            predicted = torch.cat([model(part).argmax(1) for part in scenes.images.split(64)])
            return 100 * (predicted == scenes.concept.to(model.device)).double().mean().item()
        finally:
            for part, before in zip(parts, fused, strict=True):
                part.fused_attn = before


def exercise_1(answer, model=None):
    """A function that isolates a token in attention weights after the softmax."""
    generator = torch.Generator().manual_seed(5)
    inputs = [(torch.randn(shape, generator=generator).softmax(-1), token)
              for shape, token in (((2, 3, 5, 5), 0), ((1, 2, 9, 9), 4), ((3, 1, 6, 6), 5))]

    def normalized(cut):
        return cut / cut.sum(-1, keepdim=True)

    return implementation(answer, isolate, inputs, {
        "nothing is cut yet": lambda a, token: a,
        "the rows no longer sum to 1: divide each by its sum": _cut,
        "the weights are those after the softmax, so divide each row by its sum instead of a second softmax":
            lambda a, token: a.masked_fill(_cut(torch.ones_like(a), token) == 0, -torch.inf).softmax(-1),
        "the other tokens still read the token: cut its column, too": lambda a, token: normalized(_cut(a, token, column=False)),
        "the token still reads the others: cut its row, too": lambda a, token: normalized(_cut(a, token, row=False)),
        "only CLS is isolated: the token is an argument": lambda a, token: isolate(a, 0),
    })


def exercise_2(answer, model):
    """The block in which isolating CLS, in it alone, costs the most accuracy, within a point."""
    blocks = depth(model)
    number = validate.whole("A block", answer, 0, blocks - 1)
    single, trained = [accuracy(model, 0, [k]) for k in range(blocks)], accuracy(model, 0, [])
    return verdict(single[number] <= min(single) + 1, f"with CLS isolated in block {number} alone the accuracy is "
                   f"{single[number]:.1f} %, as trained {trained:.1f} %", "another block alone costs more")


def exercise_3(answer, model):
    """Accuracy in percent with a patch token, the control, isolated in all blocks but the last, within 3 points."""
    number, blocks = validate.real("A number of percent", answer, 0, 100), range(depth(model) - 1)
    control, cls = accuracy(model, 28, blocks), accuracy(model, 0, blocks)
    return close(number, control, 3, f"with one patch isolated it is {control:.1f} %, with CLS {cls:.1f} %: a cut of that size "
                 f"is harmless, unless it is CLS that is cut", "Isolate another token than CLS in the same blocks")
