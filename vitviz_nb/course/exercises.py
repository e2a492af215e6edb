"""Checks of the exercises: is this answer right, and which number decides? Here those of notebooks 00 to 05."""

from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real

import torch

from ..datasets.backgrounds import CONTEXTS
from ..datasets.image_set import default_world
from ..experiments.class_token import cls_only, depth, isolate_cls, patch_hits, top1
from ..experiments.faithfulness import selectivity
from ..experiments.localization import locality, mask_agreement_of, patch_grid, patch_perturbation
from ..experiments.regularizers import (
    OFF,
    adversarial_example,
    high_frequencies,
    most_selective,
    patch_borders,
    patch_size,
    reference_images,
)
from ..experiments.units import axis_alignment, covariance_rank, layer_activations
from ..models.reading import activations
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..utils.errors import VitvizError, nearest
from ..utils.statistics import class_selectivity, pearson
from ..visualize.recipe import Recipe
from ..visualize.scores import reference_set
from ..visualize.top_images import top_images
from ..visualize.visualizer import Visualizer
from .exercises_further import FURTHER, whole_number


def check(exercise: str, answer, model: VisionModel) -> None:
    """Say whether an answer to an exercise is right, with the number that decides.

    Raises:
        VitvizError: no such exercise, or an answer of the wrong kind.
    """
    if exercise not in _EXERCISES:
        raise VitvizError(f"There is no exercise {exercise!r}; there are {', '.join(_EXERCISES)}.")
    if not isinstance(model, VisionModel):
        raise VitvizError(f"The check needs the model as its third argument, as in vv.check({exercise!r}, answer, model).")
    right, why = _EXERCISES[exercise](answer, model)
    print(f"{'Right' if right else 'Not yet'}: {why}")


def _shared_context(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 00.1: a neuron of the last MLP layer, at least 5 of whose 6 strongest scenes lie in one context."""
    sites = find_sites(model).get("mlp") or next(iter(find_sites(model).values()))
    if isinstance(answer, bool) or not isinstance(answer, Integral):
        raise VitvizError(f"Exercise 00.1 wants the number of a neuron, 0 to {sites[-1].units - 1}, got {answer!r}.")
    best = top_images(model, sites[-1].layer, answer, sites[-1].kind)
    contexts = reference_set(model).source.batch(best.indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    found = f"{contexts.count(most)} of the {len(contexts)} strongest scenes of neuron {answer} are on {CONTEXTS[most]}"
    return contexts.count(most) >= 5, found if contexts.count(most) >= 5 else f"{found}; at least 5 are needed."


def _joins_patches(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 01.1: the regularizer without which the largest share of a picture's steps lies on borders of patches."""
    recipe, names = _short(model), [name for name in OFF if name != "copies"]
    if answer not in names:
        raise VitvizError(f"Exercise 01.1 wants one of {', '.join(map(repr, names))}, got {answer!r}.")
    patch, neurons = patch_size(model), most_selective(model)
    found = {name: patch_borders(
        Visualizer(model, replace(recipe, **{name: 0.0})).render(-1, neurons).pictures, patch).mean().item()
             for name in names}
    right = answer == max(found, key=found.__getitem__)
    said = f"with all but {answer}, {found[answer]:.1f} % of the steps between neighboring pixels lie on borders of patches"
    return right, f"{said}." if right else f"{said}; without another one, more do."


def _natural_grain(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 01.2: a neuron, and a tv that gives its picture the grain of scenes, within a fifth, and above 99 % of them."""
    if (not isinstance(answer, tuple) or len(answer) != 2 or isinstance(answer[1], bool) or not isinstance(answer[1], Real)
            or not answer[1] >= 0):
        raise VitvizError(f"Exercise 01.2 wants a neuron and a tv of at least 0, such as (376, 0.014), got {answer!r}.")
    neuron = whole_number("01.2", answer[0], "a neuron", next(iter(find_sites(model).values()))[-1].units - 1)
    made = Visualizer(model, replace(_short(model), tv=float(answer[1]))).render(-1, neuron)
    mine, percentile = high_frequencies(made.pictures).item(), made.scores.percentile[0]
    scenes = high_frequencies(reference_images(model)).mean().item()
    said = (f"the picture has {mine:.1f} % of its variance in fine grain, scenes {scenes:.1f} %; it excites neuron {neuron} more "
            f"than {percentile:.1f} % of scenes do")
    right = 0.8 * scenes <= mine <= 1.2 * scenes and percentile > 99
    return right, f"{said}." if right else f"{said}. Come within a fifth of the scenes, above 99 %."


def _invisible(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 01.3: the size of the change, to a fifth, from which scene 0 excites the most selective neuron above 99 %."""
    if isinstance(answer, bool) or not isinstance(answer, Real) or not 0 < answer <= 20:
        raise VitvizError(f"Exercise 01.3 wants the size of a change, above 0 and at most 20, got {answer!r}.")
    scene, (neuron,) = reference_set(model).batch([0])[0], most_selective(model, 1)
    here, less = (adversarial_example(model, scene, neuron=neuron, distance=d).percentiles[1] for d in (answer, 0.8 * answer))
    said = f"a change of {answer:.3g} puts the scene above {here:.1f} % of scenes, one of {0.8 * answer:.3g} above {less:.1f} %"
    right, wanted = here >= 99 > less, "a smaller" if here >= 99 else "a larger"
    return right, f"{said}." if right else f"{said}; {wanted} one is wanted."


def _short(model: VisionModel) -> Recipe:
    """The recipe of notebook 01: half of the steps, because it makes ten times the pictures, and nothing but regularizers."""
    return replace(Recipe.quick(model), steps=64, blur=0.0)


def _gap(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 02.1: standard deviations by which MLP units stand out more than random directions of their space, within 0.2."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 02.1 wants a number of standard deviations, got {answer!r}.")
    means = axis_alignment(model)[0].table.query("kind == 'mlp'").set_index("of")["value"]
    gap = means["units"] - means["random directions"]
    near = abs(answer - gap) <= 0.2
    return near, (f"units {means['units']:.2f}, random directions {means['random directions']:.2f}: {gap:.2f} more."
                  if near else "your number is more than 0.2 off. Take random directions from units, both of the kind mlp.")


def _rank(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 02.2: in how many dimensions MLP units vary before their activation function, within 1."""
    before = layer_activations(model)[1]["before"]
    wanted, found = whole_number("02.2", answer, "a number of dimensions", before.shape[1]), covariance_rank(before)
    near = abs(wanted - found) <= 1
    return near, (f"{before.shape[1]} units, and they vary in {found} dimensions." if near else
                  f"not {wanted}. What are these units computed from, and how many numbers are that?")


def _direction(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 02.3: a direction of the queries' space along which a concept stands out by 4 on the second half of the scenes."""
    stimuli, found = layer_activations(model)
    queries, half = found["query"], stimuli.n // 2
    if not isinstance(answer, torch.Tensor) or answer.shape != (queries.shape[1],) or not answer.isfinite().all():
        raise VitvizError(f"Exercise 02.3 wants a direction, a tensor of {queries.shape[1]} finite numbers, got "
                          f"{tuple(answer.shape) if isinstance(answer, torch.Tensor) else repr(answer)}.")
    along = queries[half:] @ answer.float()[:, None]
    best, concept = class_selectivity(along, stimuli.labels(range(half, stimuli.n)), len(model.class_names))[:, 0].max(0)
    said = f"along it {model.class_names[concept]} stands out by {best:.2f} standard deviations on the second half of scenes"
    return best.item() >= 4, f"{said}." if best >= 4 else f"{said}; at least 4 are needed."


def _turning_point(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.1: the first layer whose units are, on average, half again as selective as those of layer 0."""
    sites = next(iter(find_sites(model).values()))
    wanted = whole_number("03.1", answer, "a layer", len(sites) - 1)
    found = [selectivity(model, site).strength.mean().item() for site in sites]
    right = next((i for i, value in enumerate(found) if value >= 1.5 * found[0]), None)
    said = f"selectivity is {found[wanted]:.2f} in layer {wanted}, {found[0]:.2f} in layer 0"
    return wanted == right, f"{said}." if wanted == right else f"{said}; look for the first of at least {1.5 * found[0]:.2f}."


def _named_picture(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.2: a neuron of the last layer and a name that is among its five favorite concepts of all."""
    sites = next(iter(find_sites(model).values()))
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], str):
        raise VitvizError(f"Exercise 03.2 wants a neuron and a name, such as (0, 'lion'), got {answer!r}.")
    neuron, name = whole_number("03.2", answer[0], "a neuron", sites[-1].units - 1), answer[1]
    concepts = default_world(model).concepts
    names = [known.casefold() for known in concepts]
    if name.casefold() not in names:
        raise VitvizError(f"No concept is called {name!r}.{nearest(name, concepts)} vv.EmojiWorld().concepts lists all.")
    best = selectivity(model, sites[-1]).by_concept[:, neuron].topk(5).indices.tolist()
    right = names.index(name.casefold()) in best
    return right, (f"the favorites of neuron {neuron} are {', '.join(concepts[i] for i in best)}." if right else
                   f"{name} is not among the five favorites of neuron {neuron}; look at its strongest scenes, too.")


def _period(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.3: the shift in pixels, 1 to 12, that layer 0 minds least."""
    wanted = whole_number("03.3", answer, "a shift in pixels", 12)
    images = reference_set(model).batch(range(32))  # few, as all their tokens are in memory at once
    plain = activations(model, next(iter(find_sites(model))), images)[0]
    found = [1.0]
    for shift in range(1, 13):
        moved = activations(model, next(iter(find_sites(model))), images.roll((shift, shift), (2, 3)))[0]
        found.append(pearson(plain, moved).mean().item())
    right = max(range(1, 13), key=found.__getitem__)
    return wanted == right, (f"shifted by {wanted} px, layer 0 answers as before with a correlation of {found[wanted]:.3f}"
                             + ("." if wanted == right else "; another shift from 1 to 12 does it less harm."))


def _first_to_leave(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 04.1: the first layer in which more than a tenth of a change is no longer at its own place."""
    found = locality(model).table["value"].tolist()
    wanted = whole_number("04.1", answer, "a layer", len(found) - 1)
    right = next((i for i, value in enumerate(found) if value < 90), None)  # None for a model in which all stays
    return wanted == right, (f"in layer {wanted} {found[wanted]:.1f} % of the change is at its own place"
                             + ("." if wanted == right else "; look for the first layer with less than 90 %."))


def _outline(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 04.2: a neuron of the last layer but one whose maps the masks explain to at least 60 %."""
    sites = next(iter(find_sites(model).values()))
    neuron = whole_number("04.2", answer, "a neuron", sites[-2].units - 1)
    explained = mask_agreement_of(model, sites[-2].layer, neuron).mean().item()
    return explained >= 60, (f"the masks explain {explained:.0f} % of the maps of neuron {neuron}"
                             + ("." if explained >= 60 else "; at least 60 % are needed."))


def _neighbors(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 04.3: what share of the change that leaves the middle square goes to the eight around, mid-network."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 04.3 wants a number of percent, got {answer!r}.")
    rows, columns = patch_grid(model)
    middle = torch.full((96,), rows // 2 * columns + columns // 2)
    layers = patch_perturbation(model, reference_set(model).batch(range(96)), middle)
    shares = layers[max(0, len(layers) // 2 - 1)]  # layer 2 of six
    own = shares[:, rows // 2, columns // 2]
    around = shares[:, rows // 2 - 1:rows // 2 + 2, columns // 2 - 1:columns // 2 + 2].sum((1, 2)) - own
    share, chance = 100 * (around / (1 - own)).mean().item(), 800 / (rows * columns - 1)
    near = abs(answer - share) <= 3
    return near, (f"it is {share:.1f} %, within 3 points of yours; spread evenly it would be {chance:.1f} %." if near else
                  "your number is more than 3 points off. Leave the changed square out, of the sum by which you divide, too.")


def _half_gone(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.1: the fewest blocks apart that cost the model half of its right answers."""
    blocks = depth(model)
    wanted = whole_number("05.1", answer, "a number of blocks", blocks)
    whole = top1(model)
    found = [top1(model, isolate_cls(model, k)) for k in range(blocks + 1)]
    right = next((k for k in range(blocks + 1) if found[k] < whole / 2), None)  # None for a model that knows nothing
    return wanted == right, (f"with {wanted} blocks apart {found[wanted]:.1f} % of the scenes are right, with none {whole:.1f} %"
                             + ("." if wanted == right else "; look for the first that is below half of it."))


def _last_meeting(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.2: percentage points that the class token's meeting with the patches in the last block is worth, within 3."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 05.2 wants a number of percentage points, got {answer!r}.")
    worth = top1(model) - top1(model, cls_only(model, depth(model) - 1))
    near = abs(answer - worth) <= 3
    return near, (f"it is {worth:.1f} points, within 3 of yours." if near else
                  "your number is more than 3 points off. Compare all blocks with class token alone from the last block on.")


def _best_patch(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.3: a patch whose token the head reads three quarters as often right as the best patch's."""
    hits, n = patch_hits(model)
    patch = whole_number("05.3", answer, "a patch", len(hits) - 1)
    mine, best = hits[patch].item(), hits.max().item()
    return mine >= 0.75 * best, f"the head is right on {100 * mine / n:.1f} % of scenes at patch {patch}" + (
        f", on {100 * best / n:.1f} % at the best." if mine >= 0.75 * best else "; there are better ones.")


_EXERCISES: dict[str, Callable] = {"00.1": _shared_context, "01.1": _joins_patches, "01.2": _natural_grain,
                                   "01.3": _invisible, "02.1": _gap, "02.2": _rank,
                                   "02.3": _direction, "03.1": _turning_point, "03.2": _named_picture,
                                   "03.3": _period, "04.1": _first_to_leave, "04.2": _outline, "04.3": _neighbors,
                                   "05.1": _half_gone, "05.2": _last_meeting, "05.3": _best_patch, **FURTHER}
