"""Checks of notebook 05, Finding: pooling."""

from ...experiments.class_token import cls_only, depth, isolate_cls, patch_hits, top1
from ...utils import validate
from . import close, verdict


def exercise_1(answer, model):
    """The fewest blocks with isolated CLS that cost the model half of its accuracy."""
    blocks = depth(model)
    number, whole = validate.whole("A number of blocks", answer, 0, blocks), top1(model)
    accuracy = [top1(model, isolate_cls(model, k)) for k in range(blocks + 1)]
    first = next((k for k in range(blocks + 1) if accuracy[k] < whole / 2), None)  # None for one that is never right
    return verdict(number == first, f"with CLS isolated in {number} blocks the accuracy is {accuracy[number]:.1f} %, as trained "
                   f"{whole:.1f} %", "look for the first that is below half of it")


def exercise_2(answer, model):
    """Percentage points of accuracy that attention of CLS to the patches in the last block is worth, within 3."""
    number, last = validate.real("A number of percentage points", answer, -100, 100), depth(model) - 1
    worth = top1(model) - top1(model, cls_only(model, last))
    return close(number, worth, 3, f"it is {worth:.1f} points", "Compare all blocks with CLS-only from the last block on")


def exercise_3(answer, model):
    """A patch from whose token the head is at least three quarters as accurate as from the best patch's."""
    hits, n = patch_hits(model)
    patch = validate.whole("A patch", answer, 0, len(hits) - 1)
    own, best = hits[patch].item(), hits.max().item()
    right = own >= 0.75 * best
    return verdict(right, f"from patch {patch} the head's accuracy is {100 * own / n:.1f} %"
                   + (f", from the best {100 * best / n:.1f} %" if right else ""), "there are better ones")
