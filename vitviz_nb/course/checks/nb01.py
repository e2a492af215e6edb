"""Checks of notebook 01, Obstacle: noise."""

from dataclasses import replace

from ...experiments import regularizers
from ...models.sites import find_site
from ...models.vision_model import VisionModel
from ...utils import validate
from ...visualize.parameterization import resized
from ...visualize.recipe import Recipe
from ...visualize.scores import reference_set
from ...visualize.visualizer import Visualizer
from . import parts, verdict


def short_recipe(model: VisionModel) -> Recipe:
    """The recipe of notebook 01: half of the steps, because it makes ten times the pictures, and no blur of the gradient."""
    return replace(Recipe.quick(model), steps=64, blur=0.0)


def exercise_1(answer, model):
    """The regularizer without which the largest share of a picture's pixel differences lies on patch borders."""
    names = [name for name in regularizers.OFF if name != "copies"]
    validate.choice("A regularizer", answer, names)
    patch, neurons, shares = regularizers.patch_size(model), regularizers.most_selective(model), {}
    for name in names:
        rendering = Visualizer(model, replace(short_recipe(model), **{name: 0.0})).render(-1, neurons).require_finished()
        shares[name] = regularizers.patch_borders(resized(rendering.pictures, model.image_size), patch).mean().item()
    return verdict(answer == max(shares, key=shares.__getitem__), f"with all but {answer}, {shares[answer]:.1f} % of the squared "
                   f"differences between neighboring pixels lie on patch borders", "without another one, more do")


def exercise_2(answer, model):
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


def exercise_3(answer, model):
    """The L2 norm, to a fifth, from which an adversarial example of scene 0 is above the 99th percentile of a neuron."""
    norm = validate.real("The L2 norm (size) of a perturbation", answer, 1e-9, 20)
    scene, (neuron,) = reference_set(model).batch([0])[0], regularizers.most_selective(model, 1)
    above, below = (regularizers.adversarial_example(model, scene, neuron=neuron, distance=distance).percentiles[1]
                    for distance in (norm, 0.8 * norm))
    return verdict(above >= 99 > below, f"a perturbation of {norm:.3g} puts the scene above {above:.1f} % of scenes, one of "
                   f"{0.8 * norm:.3g} above {below:.1f} %", f"a {'smaller' if above >= 99 else 'larger'} one is wanted")
