"""Checks of notebook 03, Finding: progression."""

from ...datasets.image_set import default_world
from ...experiments.faithfulness import selectivity
from ...models.reading import activations
from ...models.sites import find_site, find_sites
from ...utils import validate
from ...utils.statistics import pearson
from ...visualize.scores import reference_set
from . import parts, verdict


def exercise_1(answer, model):
    """The first layer whose units are, on average, at least 1.5 times as selective as those of layer 0."""
    sites = find_sites(model)[find_site(model).kind]
    layer = validate.whole("A layer", answer, 0, len(sites) - 1)
    strength = [selectivity(model, site).strength.mean().item() for site in sites]
    first = next((i for i, value in enumerate(strength) if value >= 1.5 * strength[0]), None)
    return verdict(layer == first, f"selectivity is {strength[layer]:.2f} in layer {layer}, {strength[0]:.2f} in layer 0",
                   f"look for the first of at least {1.5 * strength[0]:.2f}")


def exercise_2(answer, model):
    """A neuron of the last layer and a concept that is among its five preferred ones."""
    (neuron, name), site = parts(answer, (0, "lion")), find_site(model)
    neuron, concepts = validate.whole("A neuron", neuron, 0, site.units - 1), default_world(model).concepts
    named = validate.choice("A concept", {c.casefold(): c for c in concepts}.get(name.casefold(), name), concepts)
    top5 = [concepts[i] for i in selectivity(model, site).by_concept[:, neuron].topk(5).indices]
    return named in top5, (f"the preferred concepts of neuron {neuron} are {', '.join(top5)}." if named in top5 else
                           f"{name} is not among the five preferred concepts of neuron {neuron}; look at its top scenes, too.")


def exercise_3(answer, model):
    """The shift in pixels, 1 to 12, to which layer 0 is most invariant."""
    shift = validate.whole("A shift in pixels", answer, 1, 12)
    images = reference_set(model).batch(range(32))  # few, as all their tokens are in memory at once
    plain = activations(model, None, images)[0]
    invariance = {k: pearson(plain, activations(model, None, images.roll((k, k), (2, 3)))[0]).mean().item() for k in range(1, 13)}
    return verdict(shift == max(invariance, key=invariance.__getitem__), f"after a shift of {shift} px, activations of layer 0 "
                   f"correlate with those before by {invariance[shift]:.3f}", "another shift from 1 to 12 changes it less")
