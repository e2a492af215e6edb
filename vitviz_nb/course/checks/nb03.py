"""Checks of notebook 03, Finding: progression."""

import torch

from ...datasets.image_set import ImageSet, default_world
from ...experiments.faithfulness import selectivity
from ...models.reading import activations
from ...models.sites import find_site, find_sites
from ...utils import validate
from ...utils.errors import VitvizError
from ...utils.statistics import class_selectivity, pearson
from ...visualize.scores import reference_set
from . import implementation, parts, verdict

_SCENES = 256  # of exercise 4


def exercise_1(answer, model=None):
    """A function of activations (n, units), labels (n,) and a concept, to the selectivity of each unit for it (units,)."""
    random = torch.Generator().manual_seed(3)
    labels = [torch.arange(200).remainder(k)[torch.randperm(200, generator=random)] for k in (4, 7)]
    inputs = [(torch.randn(200, 6, generator=random).exp() + (of == c)[:, None], of, c) for of in labels for c in (0, 3)]

    def deviation(values, labels, concept):
        return values[labels == concept].mean(0) - values.mean(0)

    def among_others(values, labels, concept):
        return (values[labels == concept].mean(0) - values[labels != concept].mean(0)) / values.std(0)

    return implementation(answer, lambda values, labels, concept: class_selectivity(values, labels, 8)[concept], inputs, {
        "the difference of the means is right; give it in standard deviations over all images": deviation,
        "subtract the mean over all images, those of the concept among them": among_others,
        "the standard deviation is over all images, not over those of the concept":
            lambda values, labels, concept: deviation(values, labels, concept) / values[labels == concept].std(0),
        "the standard deviation is each unit's own: over images, not over units":
            lambda values, labels, concept: deviation(values, labels, concept) / values.std(),
    }, tolerance=0.01)  # by n or by n - 1, both are right


def exercise_2(answer, model):
    """A neuron of the last layer and a concept that is among its five preferred ones."""
    (neuron, name), site = parts(answer, (0, "lion")), find_site(model)
    neuron, concepts = validate.whole("A neuron", neuron, 0, site.units - 1), default_world(model).concepts
    named = {concept.casefold(): concept for concept in concepts}.get(name.casefold())
    if named is None:  # the nearest in spelling would suggest "ship" for "lips"
        raise VitvizError(f"{validate.shown(name)} is none of the {len(concepts)} concepts; print(model.class_names) lists them. "
                          f"Perhaps the object has another name there.")
    top5 = [concepts[i] for i in selectivity(model, site).preferred[:, neuron]]
    return named in top5, (f"the preferred concepts of neuron {neuron} are {', '.join(top5)}." if named in top5 else
                           f"{named} is not among the five preferred concepts of neuron {neuron}; look at its top images, too.")


def exercise_3(answer, model):
    """The shift in pixels, 1 to 12, to which layer 0 is most invariant."""
    shift = validate.whole("A shift in pixels", answer, 1, 12)
    images = reference_set(model).batch(range(32))  # few, as all their tokens are in memory at once
    plain = activations(model, None, images)[0]
    invariance = {k: pearson(plain, activations(model, None, images.roll((k, k), (2, 3)))[0]).mean().item() for k in range(1, 13)}
    return verdict(shift == max(invariance, key=invariance.__getitem__), f"after a shift of {shift} px, activations of layer 0 "
                   f"correlate with those before by {invariance[shift]:.3f}", "another shift from 1 to 12 changes it less")


def exercise_4(answer, model):
    """The percentages of the first and the last layer's selectivity that are left in gray scenes, each within 5."""
    given = [validate.real("A number of percent", part, -200, 200) for part in parts(answer, (100.0, 100.0))]
    reference, sites = ImageSet(model, n=_SCENES), find_sites(model)[find_site(model).kind]
    labels, seen = reference.labels(range(_SCENES)), [[], []]
    for start in range(0, _SCENES, 16):
        images = reference.batch(range(start, start + 16))
        for found, shown in zip(seen, (images, images.mean(1, keepdim=True).expand_as(images)), strict=True):
            layers = activations(model, None, shown)
            found.append((layers[0], layers[-1]))
    measured = []
    for i, site in enumerate((sites[0], sites[-1])):
        own = labels[:, None] == selectivity(model, site).concept
        color, gray = (_of_own(torch.cat([part[i] for part in found]), own) for found in seen)
        measured.append(100 * gray / color)
    right = all(abs(part - wanted) <= 5 for part, wanted in zip(given, measured, strict=True))
    return right, (f"{measured[0]:.0f} % are left in the first layer, {measured[1]:.0f} % in the last." if right else
                   "at least one is more than 5 off; show the same scenes in color and in gray, and take deviations over these.")


def _of_own(values: torch.Tensor, own: torch.Tensor) -> float:
    """Selectivity of units for their preferred concept, mean over the units of which ``own`` (n, units) marks an image."""
    shown = own.any(0) & (values.std(0) > 0)
    values, own = values[:, shown], own[:, shown]
    z = (values - values.mean(0)) / values.std(0, correction=0)
    return ((z * own).sum(0) / own.sum(0)).mean().item()
