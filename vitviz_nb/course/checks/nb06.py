"""Checks of notebook 06, Finding: background."""

import numpy as np
import torch

from ...datasets.backgrounds import CONTEXTS
from ...experiments.background import context_chance, context_selectivity
from ...plotting.prediction_bars import predict
from ...utils import validate
from . import close, color_world, parts, verdict


def exercise_1(answer, model):
    """Accuracy in percent of the best guess that knows only the context, within 0.2."""
    number, best = validate.real("A number of percent", answer, -100, 100), context_chance(color_world(model))["top-1"]
    return close(number, best, 0.2, f"{best:.2f} %: in each context the best guess is one of the concepts at home there",
                 "Of all scenes, count those that show one concept in its usual context")


def exercise_2(answer, model):
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


def exercise_3(answer, model):
    """A layer, a neuron of it, and the context for which its selectivity is at least 1.5 standard deviations."""
    layer, neuron, name = parts(answer, (0, 0, "snow"))
    validate.choice("A context", name, CONTEXTS)
    by_layer = context_selectivity(model, color_world(model))
    layer = validate.whole("A layer", layer, 0, len(by_layer) - 1)
    neuron = validate.whole("A neuron", neuron, 0, by_layer[layer].shape[1] - 1)
    value, best = by_layer[layer][:, neuron].max(0)
    return verdict(CONTEXTS[best] == name and value >= 1.5, f"neuron {neuron} of layer {layer} is most selective for "
                   f"{CONTEXTS[best]}, by {value:.2f} standard deviations", "wanted are the right name and at least 1.5")
