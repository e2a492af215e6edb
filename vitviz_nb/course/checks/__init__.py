"""Checks of the exercises: ``vv.check("00.1", answer, model)`` prints whether an answer is right, and the number that decides.

One module a notebook, ``nb00`` to ``nb11``. Each check is a function of the answer and the model, registered by ``exercise``,
that returns whether the answer is right, and why; it accepts every right answer.
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from ...datasets.emoji_world import STYLES, EmojiWorld
from ...models.vision_model import VisionModel
from ...utils import validate
from ...utils.errors import VitvizError, nearest

Check = Callable[[Any, VisionModel], tuple[bool, str]]
EXERCISES: dict[str, Check] = {}
NOTEBOOKS = 12


class Unsuitable(VitvizError):
    """An answer of the wrong kind; the message is what the exercise wants instead."""


def exercise(name: str) -> Callable[[Check], Check]:
    """Decorator that registers the check of an exercise, such as "00.1"."""
    return lambda function: EXERCISES.setdefault(name, function)


def check(exercise: str, answer: Any, model: VisionModel | None = None) -> None:
    """Print whether an answer to an exercise is right, and the number that decides.

    Raises:
        VitvizError: no such exercise, an answer of the wrong kind, or no model.
    """
    for number in range(NOTEBOOKS):
        import_module(f"{__name__}.nb{number:02}")
    if not isinstance(exercise, str) or exercise not in EXERCISES:
        raise VitvizError(f"There is no exercise {validate.shown(exercise)}; there are {', '.join(sorted(EXERCISES))}.")
    if not isinstance(model, VisionModel):
        raise VitvizError(f"The check needs the model as its third argument, as in vv.check({exercise!r}, answer, model).")
    try:
        right, why = EXERCISES[exercise](answer, model)
    except Unsuitable as error:
        raise VitvizError(f"Exercise {exercise} wants {error}") from None
    print(f"{'Right' if right else 'Not yet'}: {why}")


def unsuitable(what: str, answer: Any, hint: str = "") -> Unsuitable:
    """The error for an answer that is not ``what``."""
    return Unsuitable(f"{what}, got {validate.shown(answer)}.{hint}")


def whole(answer: Any, what: str, most: int, least: int = 0) -> int:
    """The answer as a whole number from ``least`` to ``most``."""
    try:
        return validate.whole(what, answer, least, most)
    except VitvizError:
        raise unsuitable(f"{what}, {least} to {most}", answer) from None


def real(answer: Any, what: str, low: float = -1e12, high: float = 1e12) -> float:
    """The answer as a finite number from ``low`` to ``high``."""
    try:
        return validate.real(what, answer, low, high)
    except VitvizError:
        raise unsuitable(what, answer) from None


def one_of(answer: Any, what: str, allowed: Iterable[str], hint: str = "") -> str:
    """The answer, one of the strings ``allowed``."""
    allowed = list(allowed)
    if not isinstance(answer, str) or answer not in allowed:
        raise unsuitable(what, answer, nearest(answer, allowed) + hint if isinstance(answer, str) else hint)
    return answer


def several(answer: Any, count: int, what: str) -> tuple:
    """The answer, a tuple (or list) of ``count`` parts."""
    if not isinstance(answer, tuple | list) or len(answer) != count:
        raise unsuitable(what, answer)
    return tuple(answer)


def verdict(right: bool, measured: str, hint: str) -> tuple[bool, str]:
    """What a check returns: the measured number, and a hint where the answer is wrong."""
    return bool(right), f"{measured}." if right else f"{measured}; {hint}."


def close(answer: float, value: float, tolerance: float, measured: str, hint: str) -> tuple[bool, str]:
    """What a check of a number returns: the measured one only where the answer is within ``tolerance`` of it."""
    near = abs(answer - value) <= tolerance
    return near, f"{measured}." if near else f"your number is more than {tolerance:g} off. {hint}."


def color_world(model: VisionModel) -> EmojiWorld:
    """Validation scenes in the three color styles, whatever styles a model was trained on."""
    return EmojiWorld("val", styles=STYLES[:3], size=model.image_size)
