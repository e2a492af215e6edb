"""Checks of notebook 01, Obstacle: noise."""

from dataclasses import replace

import torch

from ...experiments import regularizers
from ...models.sites import find_site
from ...models.vision_model import VisionModel
from ...utils import validate
from ...visualize.parameterization import resized
from ...visualize.recipe import Recipe
from ...visualize.scores import reference_set
from ...visualize.visualizer import Visualizer
from . import implementation, parts, verdict


def short_recipe(model: VisionModel) -> Recipe:
    """The recipe of notebook 01: half of the steps, because it makes ten times the pictures, and no blur of the gradient."""
    return replace(Recipe.quick(model), steps=64, blur=0.0)


def exercise_1(answer, model=None):
    """The loss (K,) of activations (K,) and total variations (K,): weight times total variation, minus activation."""
    random = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(k, generator=random), 9 + torch.rand(k, generator=random), w) for k, w in ((3, 0.5), (5, 0.07))]
    return implementation(answer, lambda activation, variation, weight: weight * variation - activation, inputs, {
        "minimizing this lowers the activation; its sign is the other way around": lambda a, v, w: a,
        "the activation is there; the total variation is missing": lambda a, v, w: -a,
        "the total variation counts fully; multiply it by its weight": lambda a, v, w: v - a,
        "this is what gradient *ascent* would maximize; an optimizer minimizes": lambda a, v, w: a - w * v,
        "minimizing this makes the image rough: the total variation enters with a plus": lambda a, v, w: -a - w * v,
        "minimizing this lowers the activation; it enters with a minus": lambda a, v, w: a + w * v,
    })


def exercise_2(answer, model=None):
    """Total variation (K,) of images (K, 3, H, W): the L2 norms of vertical and of horizontal differences, added."""
    random = torch.Generator().manual_seed(2)
    inputs = [(torch.rand(*shape, generator=random),) for shape in ((2, 3, 9, 12), (4, 3, 6, 5))]

    def of(images, power, dims=(2, 3), mean=False):
        parts = [images.diff(dim=dim).abs().pow(power).flatten(1) for dim in dims]
        return [part.mean(1) if mean else part.sum(1) for part in parts]

    return implementation(answer, lambda images: sum(part.sqrt() for part in of(images, 2)), inputs, {
        "there is no root: an L2 norm is the root of the sum of squares": lambda x: sum(of(x, 2)),
        "these are sums of absolute values, the L1 norm; the L2 norm is asked for": lambda x: sum(of(x, 1)),
        "only differences between rows are counted; add those between columns": lambda x: of(x, 2, (2,))[0].sqrt(),
        "only differences between columns are counted; add those between rows": lambda x: of(x, 2, (3,))[0].sqrt(),
        "this is the root of the mean of squares; an L2 norm has the sum": lambda x: sum(p.sqrt() for p in of(x, 2, mean=True)),
        "this is one root of all squares; take a root for each direction, then add": lambda x: sum(of(x, 2)).sqrt(),
        "this is the variance of the pixels, not their differences from neighbors": lambda x: x.flatten(1).var(1),
    })


def exercise_3(answer, model=None):
    """Images (K, 3, H, W) shifted circularly, down and to the right."""
    random = torch.Generator().manual_seed(3)
    inputs = [(torch.rand(2, 3, 7, 10, generator=random), *shift) for shift in ((2, -3), (-1, 4))]

    def padded(images, down, right):
        whole, (height, width) = torch.zeros_like(images), images.shape[2:]
        whole[..., max(down, 0):height + min(down, 0), max(right, 0):width + min(right, 0)] = images[
            ..., max(-down, 0):height + min(-down, 0), max(-right, 0):width + min(-right, 0)]
        return whole

    return implementation(answer, lambda images, down, right: images.roll((down, right), (2, 3)), inputs, {
        "nothing is shifted": lambda images, down, right: images,
        "rows and columns are swapped: axis 2 goes down, axis 3 to the right": lambda x, y, z: x.roll((z, y), (2, 3)),
        "this shifts up and to the left": lambda x, down, right: x.roll((-down, -right), (2, 3)),
        "pixels that leave are lost; let them come back at the other side": padded,
        "only rows are shifted": lambda x, down, right: x.roll(down, 2),
        "only columns are shifted": lambda x, down, right: x.roll(right, 3),
    })


def exercise_4(answer, model):
    """A neuron, and a tv that gives its picture the high frequencies of scenes, within a fifth, above the 99th percentile."""
    neuron, tv = parts(answer, (376, 0.014))
    neuron, tv = validate.whole("A neuron", neuron, 0, find_site(model).units - 1), validate.real("tv", tv, 0, 1e4)
    rendering = Visualizer(model, replace(short_recipe(model), tv=tv)).render(-1, neuron).require_finished()
    picture, percentile = resized(rendering.pictures, model.image_size), rendering.scores.percentile[0]
    own = regularizers.high_frequencies(picture).item()
    reference = reference_set(model)
    scenes = regularizers.high_frequencies(reference.batch(range(min(256, reference.n)))).mean().item()
    return verdict(0.8 * scenes <= own <= 1.2 * scenes and percentile > 99,
                   f"the picture has {own:.1f} % of its variance in high frequencies, scenes {scenes:.1f} %; it is at percentile "
                   f"{percentile:.1f} of neuron {neuron}", "come within a fifth of the scenes, above 99 %")


def exercise_5(answer, model):
    """The L2 norm, to a fifth, from which an adversarial example of scene 0 is above the 99th percentile of a neuron."""
    norm = validate.real("The L2 norm (size) of a perturbation", answer, 1e-9, 20)
    scene, (neuron,) = reference_set(model).batch([0])[0], regularizers.most_selective(model, 1)
    above, below = (regularizers.adversarial_example(model, scene, neuron=neuron, distance=distance).percentiles[1]
                    for distance in (norm, 0.8 * norm))
    return verdict(above >= 99 > below, f"a perturbation of {norm:.3g} puts the scene above {above:.1f} % of scenes, one of "
                   f"{0.8 * norm:.3g} above {below:.1f} %", f"a {'smaller' if above >= 99 else 'larger'} one is wanted")
