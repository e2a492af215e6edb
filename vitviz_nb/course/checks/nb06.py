"""Checks of notebook 06, Finding: background."""

import numpy as np
import torch

from ...datasets.backgrounds import CONTEXTS
from ...experiments.background import context_chance, context_selectivity, masked
from ...plotting.prediction_bars import predict
from ...utils import validate
from . import close, color_world, implementation, parts, verdict


def exercise_1(answer, model=None):
    """A function that makes images of the background alone with mean fill."""
    generator = torch.Generator().manual_seed(6)
    inputs = [(torch.rand(n, 3, height, width, generator=generator),
               (torch.rand(n, height, width, generator=generator) < share).float())
              for n, height, width, share in ((2, 6, 6, 0.3), (3, 5, 8, 0.6))]

    def filled(images: torch.Tensor, masks: torch.Tensor, color: torch.Tensor) -> torch.Tensor:
        return images * (1 - masks)[:, None] + color * masks[:, None]

    def mean_fill(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        return masked(images, masks, "background", fill="mean")

    return implementation(answer, mean_fill, inputs, {
        "the object is black: give it the mean color of the background": lambda x, m: filled(x, m, torch.zeros(1)),
        "nothing is removed yet": lambda x, m: x,
        "the foreground is kept: the object is what goes": lambda x, m: masked(x, m, "foreground", fill="mean"),
        "the mean is over the whole image, so the object's own color leaks into it":
            lambda x, m: filled(x, m, x.mean((2, 3), keepdim=True)),
        "divide the sum over the background by the number of its own pixels, not of all":
            lambda x, m: filled(x, m, (x * (1 - m)[:, None]).mean((2, 3), keepdim=True)),
        "each image has its own mean color, this one is over all images": lambda x, m: filled(
            x, m, ((x * (1 - m)[:, None]).sum((0, 2, 3)) / (1 - m).sum())[:, None, None]),
        "each color channel has its own mean": lambda x, m: filled(x, m, mean_gray(x, m)),
    })


def mean_gray(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The mean of the background's values over all channels, (N, 1, 1, 1)."""
    keep = (1 - masks)[:, None].expand_as(images)
    return (images * keep).sum((1, 2, 3), keepdim=True) / keep.sum((1, 2, 3), keepdim=True)


def exercise_2(answer, model):
    """Accuracy in percent of the best guess that knows only the context, within 0.2."""
    number, best = validate.real("A number of percent", answer, -100, 100), context_chance(color_world(model))["top-1"]
    return close(number, best, 0.2, f"{best:.2f} %: in each context the best guess is one of the concepts at home there",
                 "Of all scenes, count those that show one concept in its usual context")


def exercise_3(answer, model):
    """A scene, and an unusual context for it, in which the model is wrong about what it recognizes in the usual one."""
    scene, name = parts(answer, (0, "snow"))
    there = CONTEXTS.index(validate.choice("A context", name, CONTEXTS))
    scene, world = validate.whole("A scene", scene, 0, 10_000), color_world(model)
    concept = world.facts(np.array([scene]))["concept"][0]
    home, truth = world.usual_context[concept], world.concepts[concept]
    if there == home:
        return False, f"{CONTEXTS[home]} is where {truth} usually stands; put it elsewhere."
    images = torch.cat([world.batch([scene], contexts=[context]).images for context in (home, there)])
    usual, unusual = predict(model, images, truth)
    measured = f"on {CONTEXTS[home]} {truth} is called {usual.label}, on {name} {unusual.label}"
    if usual.rank > 1:
        return False, f"{measured}; in the usual context it must be right first."
    return verdict(unusual.rank > 1, measured, "it does not rely on the context")


def exercise_4(answer, model):
    """A layer, a neuron of it, and the context for which its selectivity is at least 1.5 standard deviations."""
    layer, neuron, name = parts(answer, (0, 0, "snow"))
    validate.choice("A context", name, CONTEXTS)
    by_layer = context_selectivity(model, color_world(model))
    layer = validate.whole("A layer", layer, 0, len(by_layer) - 1)
    neuron = validate.whole("A neuron", neuron, 0, by_layer[layer].shape[1] - 1)
    value, best = by_layer[layer][:, neuron].max(0)
    return verdict(CONTEXTS[best] == name and value >= 1.5, f"neuron {neuron} of layer {layer} is most selective for "
                   f"{CONTEXTS[best]}, by {value:.2f} standard deviations", "wanted are the right name and at least 1.5")
