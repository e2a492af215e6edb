"""Checks of notebook 05, Finding: pooling."""

from ...experiments.class_token import cls_only, depth, isolate_cls, patch_hits, top1
from . import close, exercise, real, verdict, whole


@exercise("05.1")
def half_gone(answer, model):
    """The fewest blocks with isolated CLS that cost the model half of its accuracy."""
    blocks = depth(model)
    number, whole_accuracy = whole(answer, "a number of blocks", blocks), top1(model)
    accuracy = [top1(model, isolate_cls(model, k)) for k in range(blocks + 1)]
    first = next((k for k in range(blocks + 1) if accuracy[k] < whole_accuracy / 2), None)  # None for one that is never right
    return verdict(number == first, f"with CLS isolated in {number} blocks the accuracy is {accuracy[number]:.1f} %, as trained "
                   f"{whole_accuracy:.1f} %", "look for the first that is below half of it")


@exercise("05.2")
def last_attention(answer, model):
    """Percentage points of accuracy that attention of CLS to the patches in the last block is worth, within 3."""
    number, worth = real(answer, "a number of percentage points"), top1(model) - top1(model, cls_only(model, depth(model) - 1))
    return close(number, worth, 3, f"it is {worth:.1f} points", "Compare all blocks with CLS-only from the last block on")


@exercise("05.3")
def best_patch(answer, model):
    """A patch from whose token the head is at least three quarters as accurate as from the best patch's."""
    hits, n = patch_hits(model)
    patch = whole(answer, "a patch", len(hits) - 1)
    own, best = hits[patch].item(), hits.max().item()
    right = own >= 0.75 * best
    return verdict(right, f"from patch {patch} the head's accuracy is {100 * own / n:.1f} %"
                   + (f", from the best {100 * best / n:.1f} %" if right else ""), "there are better ones")
