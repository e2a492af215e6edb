"""Checks of the exercises: ``vv.check("00.1", answer, model)`` prints whether an answer is right, and the number that decides.

One module a notebook, ``nb00`` to ``nb11``, with a function an exercise, ``exercise_1``, ``exercise_2``, …: from the answer and
the model to whether it is right, and why. It accepts every right answer. Where the answer is a function, it is tried on inputs
that the notebook does not show, and the model is not needed: ``vv.check("01.2", my_function)``.
"""

from collections.abc import Callable
from importlib import import_module
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from ...datasets.emoji_world import STYLES, EmojiWorld
from ...models.vision_model import VisionModel
from ...utils import validate
from ...utils.errors import VitvizError, first_line


def exercises() -> dict[str, Callable]:
    """The check of each exercise that has one, by its number, such as "00.1"."""
    modules = {f"{n:02}": import_module(f"{__name__}.nb{n:02}") for n in range(12)}
    return {f"{notebook}.{name.removeprefix('exercise_')}": getattr(module, name)
            for notebook, module in modules.items() for name in sorted(vars(module)) if name.startswith("exercise_")}


def check(exercise: str, answer: Any, model: VisionModel | None = None) -> None:
    """Print whether an answer to an exercise is right, and the number that decides; VitvizError for one of the wrong kind."""
    own = exercises()[validate.choice("An exercise", exercise, tuple(exercises()))]
    if not isinstance(model, VisionModel) and (model is not None or signature(own).parameters["model"].default is not None):
        raise VitvizError(f"The check needs the model as its third argument, as in vv.check({exercise!r}, answer, model).")
    right, why = own(answer, model)
    print(f"{'Right' if right else 'Not yet'}: {why}")


def implementation(answer: Any, reference: Callable, inputs: list[tuple], misses: dict[str, Callable],
                   tolerance: float = 1e-4) -> tuple[bool, str]:
    """What a check of a function returns, after trying it on each tuple of arguments in ``inputs``.

    Args:
        reference: what it should compute, a tensor or a number; any way to the same values within ``tolerance`` (relative to the
            largest of them) is right.
        misses: what a wrong answer lacks, by a function that makes the same mistake; the first that gives its values is named.
    """
    for given in inputs:
        expected = torch.as_tensor(reference(*given)).double()
        if isinstance(found := called(answer, given, expected.shape), str):
            return False, found
        if found.isnan().any():
            return False, "on a hidden input it gives NaN, as 0 / 0 does: is a sum that you divide by 0"
        if not _close(found, expected, tolerance):
            named = (miss for miss, wrong in misses.items() if _close(found, torch.as_tensor(wrong(*given)), tolerance))
            return False, next(named, f"on a hidden input it is {(found - expected).abs().max():.3g} off")
    return True, f"your function gives the expected values on {len(inputs)} hidden inputs."


def called(answer: Any, given: tuple, shape: tuple) -> Tensor | str:
    """What a learner's function returns for copies of these arguments, float64 of this shape; or in words why it is not that."""
    if not callable(answer):
        raise VitvizError(f"The answer is your function itself, without calling it; got {validate.shown(answer)}.")
    try:
        found = answer(*(part.clone() if isinstance(part, Tensor) else part for part in given))
    except Exception as error:  # a learner's function may raise anything
        return f"your function raised {type(error).__name__}: {first_line(error)}"
    try:
        values = torch.as_tensor(found).detach()
    except (TypeError, ValueError, RuntimeError):
        values = None
    if values is None or values.is_complex():
        return f"your function returned {validate.shown(found)}; a tensor of real numbers of shape {tuple(shape)} is expected"
    if values.shape != shape:
        return f"your function returned the shape {tuple(values.shape)} where {tuple(shape)} is expected"
    return values.cpu().double()


def _close(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    return found.shape == expected.shape and torch.allclose(found.double(), expected.double(), 0,
                                                            tolerance * max(expected.abs().max().item(), 1e-12))


def parts(answer: Any, example: tuple) -> tuple:
    """The answer, a tuple (or list) of as many parts as ``example``, with a string where it has one."""
    if not isinstance(answer, tuple | list) or len(answer) != len(example) or any(
            isinstance(wanted, str) and not isinstance(part, str) for part, wanted in zip(answer, example, strict=True)):
        raise VitvizError(f"The answer is {len(example)} values, such as {example}; got {validate.shown(answer)}.")
    return tuple(answer)


def verdict(right: bool, measured: str, hint: str) -> tuple[bool, str]:
    """What a check returns: the measured number, and a hint where the answer is wrong."""
    return bool(right), f"{measured}." if right else f"{measured}; {hint}."


def close(answer: float, value: float, tolerance: float, measured: str, hint: str) -> tuple[bool, str]:
    """What a check of a number returns: the measured one only where the answer is within ``tolerance`` of it."""
    near = abs(answer - value) <= tolerance
    if not near and 0 < answer < 1 < value and abs(100 * answer - value) <= tolerance:
        hint = "It looks like a fraction of 1; give it in percent"
    return near, f"{measured}." if near else f"your number is more than {tolerance:g} off. {hint}."


def color_world(model: VisionModel) -> EmojiWorld:
    """Validation scenes in the three color styles, whatever styles a model was trained on."""
    return EmojiWorld("val", styles=STYLES[:3], size=model.image_size)
