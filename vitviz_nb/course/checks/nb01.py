"""Checks of notebook 01, Obstacle: noise."""

from dataclasses import replace

from ...experiments.regularizers import (
    OFF,
    adversarial_example,
    high_frequencies,
    most_selective,
    patch_borders,
    patch_size,
    reference_images,
)
from ...models.sites import find_site
from ...models.vision_model import VisionModel
from ...visualize.recipe import Recipe
from ...visualize.scores import reference_set
from ...visualize.visualizer import Visualizer
from . import exercise, one_of, real, several, verdict, whole


def short_recipe(model: VisionModel) -> Recipe:
    """The recipe of notebook 01: half of the steps, because it makes ten times the pictures, and no blur of the gradient."""
    return replace(Recipe.quick(model), steps=64, blur=0.0)


@exercise("01.1")
def most_patch_borders(answer, model):
    """The regularizer without which the largest share of a picture's pixel differences lies on patch borders."""
    names = [name for name in OFF if name != "copies"]
    one_of(answer, f"one of {', '.join(map(repr, names))}", names)
    patch, neurons = patch_size(model), most_selective(model)

    def share(name: str) -> float:
        viewer = Visualizer(model, replace(short_recipe(model), **{name: 0.0}))
        return patch_borders(viewer.render(-1, neurons).require_finished().pictures, patch).mean().item()

    shares = {name: share(name) for name in names}
    return verdict(answer == max(shares, key=shares.__getitem__), f"with all but {answer}, {shares[answer]:.1f} % of the squared "
                   f"differences between neighboring pixels lie on patch borders", "without another one, more do")


@exercise("01.2")
def natural_frequencies(answer, model):
    """A neuron, and a tv that gives its picture the high frequencies of scenes, within a fifth, above the 99th percentile."""
    what = "a neuron and a tv of at least 0, such as (376, 0.014)"
    first, second = several(answer, 2, what)
    neuron, tv = whole(first, "a neuron", find_site(model).units - 1), real(second, what, 0, 1e4)
    rendering = Visualizer(model, replace(short_recipe(model), tv=tv)).render(-1, neuron).require_finished()
    own, percentile = high_frequencies(rendering.pictures).item(), rendering.scores.percentile[0]
    scenes = high_frequencies(reference_images(model)).mean().item()
    return verdict(0.8 * scenes <= own <= 1.2 * scenes and percentile > 99,
                   f"the picture has {own:.1f} % of its variance in high frequencies, scenes {scenes:.1f} %; it is at percentile "
                   f"{percentile:.1f} of neuron {neuron}", "come within a fifth of the scenes, above 99 %")


@exercise("01.3")
def smallest_perturbation(answer, model):
    """The L2 norm, to a fifth, from which an adversarial example of scene 0 is above the 99th percentile of a neuron."""
    norm = real(answer, "the L2 norm (size) of a perturbation, above 0 and at most 20", 1e-9, 20)
    scene, (neuron,) = reference_set(model).batch([0])[0], most_selective(model, 1)
    above, below = (adversarial_example(model, scene, neuron=neuron, distance=d).percentiles[1] for d in (norm, 0.8 * norm))
    return verdict(above >= 99 > below, f"a perturbation of {norm:.3g} puts the scene above {above:.1f} % of scenes, one of "
                   f"{0.8 * norm:.3g} above {below:.1f} %", f"a {'smaller' if above >= 99 else 'larger'} one is wanted")
