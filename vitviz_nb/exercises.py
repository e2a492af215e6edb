"""Checks of the exercises: is this answer right, and which number decides?"""

from collections.abc import Callable
from numbers import Integral, Real

from .contexts import CONTEXTS
from .errors import VitvizError, nearest
from .faithfulness import selectivity
from .models import VisionModel
from .pooling import alone, isolated, patch_hits, top1
from .progression import correlation
from .scores import default_reference
from .sites import activations, sites
from .top import top_images


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
    places = sites(model).get("mlp") or next(iter(sites(model).values()))
    if isinstance(answer, bool) or not isinstance(answer, Integral):
        raise VitvizError(f"Exercise 00.1 wants the number of a neuron, 0 to {places[-1].units - 1}, got {answer!r}.")
    best = top_images(model, places[-1].layer, answer, places[-1].kind)
    contexts = default_reference(model).source.batch(best.indices).context.tolist()
    most = max(set(contexts), key=contexts.count)
    found = f"{contexts.count(most)} of the {len(contexts)} strongest scenes of neuron {answer} are on {CONTEXTS[most]}"
    return contexts.count(most) >= 5, found if contexts.count(most) >= 5 else f"{found}; at least 5 are needed."


def _turning_point(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.1: the first layer whose units are, on average, half again as selective as those of layer 0."""
    places = next(iter(sites(model).values()))
    wanted = _whole("03.1", answer, "a layer", len(places) - 1)
    found = [selectivity(model, place).strength.mean().item() for place in places]
    right = next((i for i, value in enumerate(found) if value >= 1.5 * found[0]), None)
    said = f"selectivity is {found[wanted]:.2f} in layer {wanted}, {found[0]:.2f} in layer 0"
    return wanted == right, f"{said}." if wanted == right else f"{said}; look for the first of at least {1.5 * found[0]:.2f}."


def _named_picture(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.2: a neuron of the last layer and a name that is among its five favourite concepts of all."""
    places = next(iter(sites(model).values()))
    if not isinstance(answer, tuple) or len(answer) != 2 or not isinstance(answer[1], str):
        raise VitvizError(f"Exercise 03.2 wants a neuron and a name, such as (0, 'lion'), got {answer!r}.")
    neuron, name = _whole("03.2", answer[0], "a neuron", places[-1].units - 1), answer[1]
    names = [known.casefold() for known in model.class_names]
    if name.casefold() not in names:
        raise VitvizError(f"No concept is called {name!r}.{nearest(name, model.class_names)} model.class_names lists all.")
    best = selectivity(model, places[-1]).of_each[:, neuron].topk(5).indices.tolist()
    right = names.index(name.casefold()) in best
    return right, (f"the favourites of neuron {neuron} are {', '.join(model.class_names[i] for i in best)}." if right else
                   f"{name} is not among the five favourites of neuron {neuron}; look at its strongest scenes, too.")


def _period(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 03.3: the shift in pixels, 1 to 12, that layer 0 minds least."""
    wanted = _whole("03.3", answer, "a shift in pixels", 12)
    images = default_reference(model).batch(range(128))
    plain = activations(model, next(iter(sites(model))), images)[0]
    found = [1.0]
    for shift in range(1, 13):
        moved = activations(model, next(iter(sites(model))), images.roll((shift, shift), (2, 3)))[0]
        found.append(correlation(plain, moved).mean().item())
    right = max(range(1, 13), key=found.__getitem__)
    return wanted == right, (f"shifted by {wanted} px, layer 0 answers as before with a correlation of {found[wanted]:.3f}"
                             + ("." if wanted == right else "; another shift from 1 to 12 does it less harm."))


def _half_gone(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.1: the fewest blocks apart that cost the model half of its right answers."""
    depth = len(sites(model)["residual"])
    wanted = _whole("05.1", answer, "a number of blocks", depth)
    whole = top1(model)
    found = [top1(model, isolated(model, k)) for k in range(depth + 1)]
    right = next(k for k in range(depth + 1) if found[k] < whole / 2)
    return wanted == right, (f"with {wanted} blocks apart {found[wanted]:.1f} % of the scenes are right, with none {whole:.1f} %"
                             + ("." if wanted == right else "; look for the first that is below half of it."))


def _last_meeting(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.2: percentage points that the class token's meeting with the patches in the last block is worth, within 3."""
    if isinstance(answer, bool) or not isinstance(answer, Real):
        raise VitvizError(f"Exercise 05.2 wants a number of percentage points, got {answer!r}.")
    worth = top1(model) - top1(model, alone(model, len(sites(model)["residual"]) - 1))
    near = abs(answer - worth) <= 3
    return near, (f"it is {worth:.1f} points, within 3 of yours." if near else
                  "your number is more than 3 points off. Compare all blocks with class token alone from the last block on.")


def _best_patch(answer, model: VisionModel) -> tuple[bool, str]:
    """Exercise 05.3: a patch whose token the head reads three quarters as often right as the best patch's."""
    hits, n = patch_hits(model)
    patch = _whole("05.3", answer, "a patch", len(hits) - 1)
    mine, best = hits[patch].item(), hits.max().item()
    return mine >= 0.75 * best, f"the head is right on {100 * mine / n:.1f} % of scenes at patch {patch}" + (
        f", on {100 * best / n:.1f} % at the best." if mine >= 0.75 * best else "; there are better ones.")


def _whole(exercise: str, answer, what: str, most: int) -> int:
    if isinstance(answer, bool) or not isinstance(answer, Integral) or not 0 <= answer <= most:
        raise VitvizError(f"Exercise {exercise} wants {what}, 0 to {most}, got {answer!r}.")
    return int(answer)


_EXERCISES: dict[str, Callable] = {"00.1": _shared_context, "03.1": _turning_point, "03.2": _named_picture,
                                   "03.3": _period, "05.1": _half_gone, "05.2": _last_meeting, "05.3": _best_patch}
