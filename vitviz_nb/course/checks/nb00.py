"""Checks of notebook 00, Start here."""

from ...datasets.backgrounds import CONTEXTS
from ...models.sites import find_site
from ...visualize.scores import reference_set
from ...visualize.top_images import top_images
from . import exercise, verdict, whole


@exercise("00.1")
def shared_context(answer, model):
    """A neuron of the last layer, at least 5 of whose 6 top scenes have the same context."""
    site = find_site(model)
    neuron = whole(answer, "the number of a neuron", site.units - 1)
    top = top_images(model, site.layer, neuron, site.kind)
    contexts = reference_set(model).source.batch(top.indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    same = contexts.count(most)
    return verdict(same >= 5, f"{same} of the {len(contexts)} top scenes of neuron {neuron} are on {CONTEXTS[most]}",
                   "at least 5 are needed")
