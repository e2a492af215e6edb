"""The 200th rendering costs what the first did: nothing of a rendering stays behind once it has been handed over."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

NEURONS = range(4)  # whose pictures, with Adam's means, are 4 * 3 * 12 KiB


def hooks(model: VisionModel) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.module.modules())


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())  # isinstance would wake lazy modules


def resident() -> float:
    """MiB of memory this process holds; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


WAYS: dict[str, Callable[[Visualizer, int], object]] = {
    "optimize": lambda viewer, seed: viewer.optimize(-1, NEURONS, seed=seed),
    "scored and cached": lambda viewer, seed: viewer.render(-1, 0, seed=seed),
}


@pytest.mark.parametrize("way", WAYS)
def test_two_hundred_renderings_leave_no_hook_no_tensor_no_memory_and_no_pass_behind(tiny_vit, passes, way):
    viewer = Visualizer(tiny_vit, Recipe(steps=1, copies=1), torch.rand(3, 3, 32, 32), keep=way != "optimize")
    seen = {}
    for seed in range(200):
        WAYS[way](viewer, seed)
        if seed in (19, 199):
            seen[seed] = tensors(), hooks(tiny_vit), len(viewer._unfinished), len(passes), resident()
    assert seen[199][0] <= seen[19][0] and seen[199][1] == seen[199][2] == 0
    assert seen[199][3] == 200 and seen[19][3] == 20  # one pass each, the last as the first
    assert seen[199][4] - seen[19][4] < 16  # had four pictures' states stayed each time, 25
