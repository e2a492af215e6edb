"""Checks of notebook 00, Start here."""

from dataclasses import replace

import torch

from ...datasets.backgrounds import CONTEXTS
from ...models.sites import find_site
from ...utils import validate
from ...visualize.scores import reference_set
from ...visualize.top_images import top_images
from ...visualize.visualizer import Visualizer
from . import implementation, verdict


def exercise_1(answer, model):
    """A neuron of the last layer, at least 5 of whose 6 top scenes have the same context."""
    neuron = validate.whole("A neuron", answer, 0, find_site(model).units - 1)
    contexts = reference_set(model).source.batch(top_images(model, -1, neuron).indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    same = contexts.count(most)
    return verdict(same >= 5, f"{same} of the {len(contexts)} top scenes of neuron {neuron} are on {CONTEXTS[most]}",
                   "at least 5 are needed")


def exercise_2(answer, model=None):
    """From hidden activations (N, tokens, units), CLS first, and a neuron's number to its mean over patch tokens (N,)."""
    random = torch.Generator().manual_seed(0)
    inputs = [(torch.randn(*shape, generator=random), neuron) for shape, neuron in (((2, 65, 40), 7), ((5, 17, 8), 0))]
    return implementation(answer, lambda hidden, neuron: hidden[:, 1:, neuron].mean(1), inputs, {
        "this is the activation at the CLS token, which has no position in the image": lambda hidden, n: hidden[:, 0, n],
        "the CLS token is in the mean; leave token 0 out": lambda hidden, n: hidden[..., n].mean(1),
        "the last patch is missing instead of CLS; CLS is token 0": lambda hidden, n: hidden[:, :-1, n].mean(1),
        "this is the sum over patch tokens; take the mean": lambda hidden, n: hidden[:, 1:, n].sum(1),
        "this is the strongest patch; the objective is the mean over patches": lambda hidden, n: hidden[:, 1:, n].amax(1),
    })


def exercise_3(answer, model):
    """How many visualizations of neurons 0 to 7 of the last layer are above the 99th percentile of the neuron after theirs."""
    number, viewer = validate.whole("A number of images", answer, 0, 8), Visualizer(model)
    made = viewer.render(-1, range(8)).require_finished()
    other = viewer.score(replace(made, neurons=made.neurons[1:] + made.neurons[:1])).scores.percentile
    above = sum(percentile > 99 for percentile in other)
    return number == above, (f"{above} of 8 are above the 99th percentile of another neuron; the highest is at "
                             f"{max(other):.0f} %." if number == above else
                             f"not {number}{': that many are for the neurons they were made for' if number == 8 else ''}. "
                             f"Score the same images for other neurons: replace(late, neurons=…).")
