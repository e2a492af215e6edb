"""Checks of notebook 00, Start here."""

from ...datasets.backgrounds import CONTEXTS
from ...models.sites import find_site
from ...utils import validate
from ...visualize.scores import reference_set
from ...visualize.top_images import top_images
from . import verdict


def exercise_1(answer, model):
    """A neuron of the last layer, at least 5 of whose 6 top scenes have the same context."""
    neuron = validate.whole("A neuron", answer, 0, find_site(model).units - 1)
    contexts = reference_set(model).source.batch(top_images(model, -1, neuron).indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    same = contexts.count(most)
    return verdict(same >= 5, f"{same} of the {len(contexts)} top scenes of neuron {neuron} are on {CONTEXTS[most]}",
                   "at least 5 are needed")
