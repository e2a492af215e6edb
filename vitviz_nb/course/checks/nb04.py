"""Checks of notebook 04, Finding: position."""

import torch

from ...experiments.localization import locality, mask_agreement_of, patch_grid, patch_perturbation
from ...models.sites import find_site
from ...utils import validate
from ...visualize.scores import reference_set
from . import close, verdict


def exercise_1(answer, model):
    """The first layer in which more than a tenth of a perturbation is no longer at its own position."""
    shares = locality(model).table["value"].tolist()
    layer = validate.whole("A layer", answer, 0, len(shares) - 1)
    first = next((i for i, value in enumerate(shares) if value < 90), None)  # None for a model in which all stays
    return verdict(layer == first, f"in layer {layer} {shares[layer]:.1f} % of the perturbation is at its own position",
                   "look for the first layer with less than 90 %")


def exercise_2(answer, model):
    """A neuron of the last layer but one, the variance of whose maps the masks explain to at least 60 %."""
    site = find_site(model, -2)
    neuron = validate.whole("A neuron", answer, 0, site.units - 1)
    explained = mask_agreement_of(model, site.layer, neuron).mean().item()
    return verdict(explained >= 60, f"the masks explain {explained:.0f} % of the variance of the maps of neuron {neuron}",
                   "at least 60 % are needed")


def exercise_3(answer, model):
    """The share of the perturbation that leaves the middle patch for the eight around, mid-network, in percent, within 3."""
    number, (rows, columns) = validate.real("A number of percent", answer, -100, 100), patch_grid(model)
    middle = torch.full((96,), rows // 2 * columns + columns // 2)
    layers = patch_perturbation(model, reference_set(model).batch(range(96)), middle)
    shares = layers[max(0, len(layers) // 2 - 1)]  # layer 2 of six
    own = shares[:, rows // 2, columns // 2]
    around = shares[:, rows // 2 - 1:rows // 2 + 2, columns // 2 - 1:columns // 2 + 2].sum((1, 2)) - own
    share, even = 100 * (around / (1 - own)).mean().item(), 800 / (rows * columns - 1)
    return close(number, share, 3, f"it is {share:.1f} %; spread evenly it would be {even:.1f} %",
                 "Leave the perturbed patch out, of the sum by which you divide, too")
