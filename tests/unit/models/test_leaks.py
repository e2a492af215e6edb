"""The sixtieth rendering costs what the first did: nothing of a rendering stays behind once it has been handed over."""

import gc
from collections.abc import Callable

import pytest
import torch

from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

NEURONS = range(4)


def hooks(model: VisionModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.module.modules())


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())  # isinstance would wake lazy modules


WAYS: dict[str, Callable[[Visualizer, int], object]] = {
    "optimize": lambda viewer, seed: viewer.optimize(-1, NEURONS, seed=seed),
    "scored and cached": lambda viewer, seed: viewer.render(-1, 0, seed=seed),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_twenty_renderings_leave_no_hook_no_tensor_and_no_pass_behind(tiny_vit, passes, way):
    viewer = Visualizer(tiny_vit, Recipe(steps=1, copies=1), torch.rand(3, 3, 32, 32), keep=way != "optimize")
    seen = {}
    for seed in range(20):
        WAYS[way](viewer, seed)
        if seed in (4, 19):
            seen[seed] = tensors(), len(passes)
    assert seen[19][0] <= seen[4][0] and hooks(tiny_vit) == 0
    assert seen[19][1] == 20 and seen[4][1] == 5  # one pass each, the last as the first
