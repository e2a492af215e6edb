"""Checks of notebook 03, Finding: progression."""

from ...datasets.image_set import default_world
from ...experiments.faithfulness import selectivity
from ...models.reading import activations
from ...models.sites import find_site, find_sites
from ...utils.errors import VitvizError, nearest
from ...utils.statistics import pearson
from ...visualize.scores import reference_set
from . import exercise, several, unsuitable, verdict, whole


@exercise("03.1")
def turning_point(answer, model):
    """The first layer whose units are, on average, at least 1.5 times as selective as those of layer 0."""
    sites = find_sites(model)[find_site(model).kind]
    layer = whole(answer, "a layer", len(sites) - 1)
    strength = [selectivity(model, site).strength.mean().item() for site in sites]
    first = next((i for i, value in enumerate(strength) if value >= 1.5 * strength[0]), None)
    return verdict(layer == first, f"selectivity is {strength[layer]:.2f} in layer {layer}, {strength[0]:.2f} in layer 0",
                   f"look for the first of at least {1.5 * strength[0]:.2f}")


@exercise("03.2")
def preferred_concept(answer, model):
    """A neuron of the last layer and a concept that is among its five preferred ones."""
    what, site = "a neuron and a name, such as (0, 'lion')", find_site(model)
    number, name = several(answer, 2, what)
    if not isinstance(name, str):
        raise unsuitable(what, answer)
    neuron, concepts = whole(number, "a neuron", site.units - 1), default_world(model).concepts
    names = [concept.casefold() for concept in concepts]
    if name.casefold() not in names:
        raise VitvizError(f"No concept is called {name!r}.{nearest(name, concepts)} vv.EmojiWorld().concepts lists all.")
    top5 = selectivity(model, site).by_concept[:, neuron].topk(5).indices.tolist()
    right = names.index(name.casefold()) in top5
    return right, (f"the preferred concepts of neuron {neuron} are {', '.join(concepts[i] for i in top5)}." if right else
                   f"{name} is not among the five preferred concepts of neuron {neuron}; look at its top scenes, too.")


@exercise("03.3")
def period(answer, model):
    """The shift in pixels, 1 to 12, to which layer 0 is most invariant."""
    shift = whole(answer, "a shift in pixels", 12, 1)
    images = reference_set(model).batch(range(32))  # few, as all their tokens are in memory at once
    plain = activations(model, None, images)[0]
    invariance = {k: pearson(plain, activations(model, None, images.roll((k, k), (2, 3)))[0]).mean().item() for k in range(1, 13)}
    return verdict(shift == max(invariance, key=invariance.__getitem__), f"after a shift of {shift} px, activations of layer 0 "
                   f"correlate with those before by {invariance[shift]:.3f}", "another shift from 1 to 12 changes it less")
