"""Checks of the exercises: ``vv.check("00.1", answer, model)`` prints whether an answer is right, and the number that decides.

One module a notebook, ``nb00`` to ``nb11``, with a function an exercise, ``exercise_1`` to ``exercise_3``: from the answer and
the model to whether it is right, and why. It accepts every right answer.
"""

from importlib import import_module
from typing import Any

from ...datasets.emoji_world import STYLES, EmojiWorld
from ...models.vision_model import VisionModel
from ...utils import validate
from ...utils.errors import VitvizError

EXERCISES = ("00.1", *(f"{notebook:02}.{number}" for notebook in range(1, 12) for number in (1, 2, 3)))


def check(exercise: str, answer: Any, model: VisionModel | None = None) -> None:
    """Print whether an answer to an exercise is right, and the number that decides; VitvizError for one of the wrong kind."""
    notebook, number = validate.choice("An exercise", exercise, EXERCISES).split(".")
    if not isinstance(model, VisionModel):
        raise VitvizError(f"The check needs the model as its third argument, as in vv.check({exercise!r}, answer, model).")
    right, why = getattr(import_module(f"{__name__}.nb{notebook}"), f"exercise_{number}")(answer, model)
    print(f"{'Right' if right else 'Not yet'}: {why}")


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
    return near, f"{measured}." if near else f"your number is more than {tolerance:g} off. {hint}."


def color_world(model: VisionModel) -> EmojiWorld:
    """Validation scenes in the three color styles, whatever styles a model was trained on."""
    return EmojiWorld("val", styles=STYLES[:3], size=model.image_size)
