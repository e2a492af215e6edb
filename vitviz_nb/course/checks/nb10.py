"""Checks of notebook 10, Can you trust a picture?"""

from collections.abc import Callable

import torch

from ...experiments.faithfulness import recognition, selectivity
from ...experiments.fooling_circuit import FoolingCircuit
from ...experiments.result import Result
from ...models.loading import load
from ...models.sites import find_site
from ...utils import validate
from ...utils.errors import VitvizError, first_line
from ...utils.statistics import wilson
from ...visualize.visualizer import Visualizer
from ...widgets.two_alternative import Task, TaskWidget, model_player
from . import close, verdict


def _play(model, player: Callable, n: int, seed: int) -> Result | str:
    """The player's score on ``n`` questions about the model's last layer, or the error that it raised, in words."""
    try:
        return Task(model, n, seed=seed).play(player, "you")
    except VitvizError:
        raise  # about the model, or a choice that is neither 0 nor 1
    except Exception as error:  # a learner's function may raise anything
        return f"your player raised {type(error).__name__}: {first_line(error)}"


def exercise_1(answer, model):
    """A player (a function, on 200 hidden questions), or a score, whose interval over both kinds of hint lies above chance."""
    score = answer.score if isinstance(answer, TaskWidget) else answer
    if callable(score):
        score = _play(model, score, 200, 10)
        if isinstance(score, str):
            return False, score
    if not isinstance(score, Result) or "hint" not in score.table:
        raise VitvizError(f"The answer is a player, itself and without calling it, or a game's score; got "
                          f"{validate.shown(answer)}.")
    table = score.table[score.table["n"] > 0]
    n, hits = int(table["n"].sum()), round((table["value"] * table["n"]).sum() / 100)
    low, high = wilson(hits, n)
    return verdict(low > 0.5, f"{hits} of {n} choices are correct; the 95 % interval is {100 * low:.1f} to {100 * high:.1f} %",
                   "worse than chance: a player returns 0 for the left image and 1 for the right one" if high < 0.5 else
                   "so it could be chance (50 %)")


def exercise_2(answer, model):
    """The neuron of a model with a fooling circuit whose visualization is another's."""
    circuit = model.module
    if not isinstance(circuit, FoolingCircuit):
        raise VitvizError(f"Exercise 10.2 is about a model with a fooling circuit, and {model.name} has none; pass suspect.")
    neuron = validate.whole("A neuron", answer, 0, circuit.width - 1)
    right = neuron == circuit.neuron
    return right, (f"neuron {neuron} shows the visualization of neuron {circuit.shown}." if right else
                   f"neuron {neuron} is unchanged. Whose visualization has nothing in common with its top scenes?")


def exercise_3(answer, model):
    """Points between recognition from a selectivity of 4 and below 3, last layer, within 3."""
    number, site = validate.real("A number of percentage points", answer, -100, 100), find_site(model)
    recognizer = load("emoji-resnet" if model.name != "emoji-resnet" else "emoji-vit")
    if model.class_names != recognizer.class_names:
        raise VitvizError(f"Exercise 10.3 needs a model of Emoji World, whose concepts {recognizer.name} knows; pass one.")
    selective, viewer, hits = selectivity(model, site), Visualizer(model), []
    for part in torch.arange(site.units).split(64):  # all pictures at once would take the notebook past 1.2 GB
        pictures = viewer.render(site.layer, part.tolist(), site.kind).require_finished().pictures
        hits.append(recognition(pictures, selective.concept[part], recognizer).float())
    hits, strength = torch.cat(hits), selective.strength
    high, low = (100 * hits[part].mean().item() for part in (strength >= 4, strength < 3))
    hint = ("Subtract the lower share from the higher one" if abs(number + high - low) <= 3 else
            "The difference of the two shares is meant, in percentage points, over all neurons of the last layer")
    return close(number, high - low, 3, f"{high:.1f} against {low:.1f} %: {high - low:.1f} points", hint)


def exercise_4(answer, model):
    """Accuracy in percent of emoji-resnet as a player, from feature visualizations, all images in gray, within 3."""
    number, player = validate.real("A number of percent", answer, 0, 100), model_player(load("emoji-resnet"))

    def in_gray(hint: torch.Tensor, images: torch.Tensor) -> int:
        return player(*(part.mean(1, keepdim=True).expand_as(part) for part in (hint, images)))

    value = _play(model, in_gray, 400, 1).table["value"].iloc[0]
    return close(number, value, 3, f"{value:.1f} %", "Take the accuracy from visualizations on the 400 questions of trials, hint "
                 "and scenes in gray, the mean of the channels")
