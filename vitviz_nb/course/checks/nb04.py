"""Checks of notebook 04, Finding: position."""

import torch

from ...experiments.localization import mask_agreement_of, patch_grid, patch_perturbation, pointing_game
from ...models.sites import find_site
from ...utils import validate
from ...visualize.scores import reference_set
from . import close, implementation, verdict


def exercise_1(answer, model=None):
    """A function of tokens (N, P, D) before and after a perturbation, to each token's share of the squared change (N, P)."""
    random = torch.Generator().manual_seed(4)
    inputs = [tuple(torch.randn(2, 3, tokens, width, generator=random)) for tokens, width in ((5, 4), (9, 2))]

    def shares(before, after):
        change = (after - before).square().sum(-1)
        return change / change.sum(1, keepdim=True)

    def of_lengths(before, after):
        change = (after - before).norm(dim=-1)
        return change / change.sum(1, keepdim=True)

    def of_all(before, after):
        change = (after - before).square().sum(-1)
        return change / change.sum()

    return implementation(answer, shares, inputs, {
        "square the change of each feature before you add: these are shares of the lengths of the changes": of_lengths,
        "the shares of each image sum to 1, not those of all images together": of_all,
        "divide by the change of all tokens of the image, so that the shares sum to 1":
            lambda before, after: (after - before).square().sum(-1),
        "compare after with before: these are shares of the tokens themselves": lambda before, after: shares(0 * after, after),
    })


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


def exercise_4(answer, model):
    """The percentage of peaks of the last layer inside the mask of another of the top images, within 2."""
    number, table = validate.real("A number of percent", answer, -100, 100), pointing_game(model).table
    last = table[table["layer"] == table["layer"].max()].set_index("mask")["value"]
    own, control, area = last["of the image"], last["of another image"], last["area"]
    return close(number, control, 2, f"{own:.1f} % of the peaks lie in the image's own mask, {control:.1f} % in another "
                 f"image's; the masks cover {area:.1f} %", "Keep where objects usually are, and remove this image's own")
