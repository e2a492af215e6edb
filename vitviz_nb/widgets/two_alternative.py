"""The two-alternative forced-choice task of Borowski et al. 2021 (arXiv 2010.12606): which image activates a neuron more?

A player sees a hint, a neuron's feature visualization or its top images, and chooses between two other images. Accuracy above
chance shows that the hint tells something about the neuron (see also Zimmermann et al. 2021, arXiv 2106.12447).
"""

from collections.abc import Callable
from dataclasses import dataclass

import ipywidgets as widgets
import pandas as pd
import torch
from PIL import Image

from ..experiments.result import Result, proportion
from ..models.sites import find_site
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet
from ..utils import validate
from ..utils.errors import VitvizError
from ..visualize.parameterization import resized
from ..visualize.scores import reference_activations, reference_set
from ..visualize.visualizer import Visualizer
from .elements import Picture, Status

HINTS = ("feature visualization", "top images")
SIDES = ("left", "right")
_HINT_IMAGES = 4
_HIGH, _LOW = 0.05, 0.5  # one image of a question has an activation in the top 5 %, the other in the lower half


@dataclass(frozen=True)
class Question:
    """One trial: two images, one of which activates a neuron more."""

    neuron: int  # of the last layer
    hint: str  # one of HINTS
    images: tuple[int, int]  # the left and the right one, as indices of reference images
    activations: tuple[float, float]  # of the neuron, on both; never equal

    @property
    def correct(self) -> int:
        """The correct choice: 0 for the left image, 1 for the right one."""
        return int(self.activations[1] > self.activations[0])


class Task:
    """Questions, each about another neuron of a model's last layer, sampled uniformly; kinds of hint alternate.

    Top images are taken from the first half of the reference images, questions from the second half.

    Args:
        n: number of ``questions``, at most one for each neuron whose activation varies.
        images: at least 16 reference images (see ``ImageSet``); by default scenes of Emoji World.
    """

    def __init__(self, model: VisionModel, n: int = 20, seed: int = 0, images=None):
        self.model, self.site, self._reference = model, find_site(model), reference_set(model, images)
        generator, self.questions = torch.Generator().manual_seed(validate.whole("seed", seed)), []
        activations = reference_activations(model, self.site, self._reference)
        half = len(activations) // 2
        if half < 2 * _HINT_IMAGES:
            raise VitvizError(f"The task needs at least {4 * _HINT_IMAGES} images, got {len(activations)}.")
        varying = (activations[half:].std(0) > 0).nonzero()[:, 0]
        n = validate.whole("n, the number of questions,", n, 1, len(varying))
        for i, neuron in enumerate(varying[torch.randperm(len(varying), generator=generator)[:n]].tolist()):
            own = activations[:, neuron]
            order = own[half:].argsort(descending=True) + half
            above = int((own[order] > own[order[-1]]).sum())  # images with equal activations make no question
            high = order[_draw(generator, max(1, min(above, int(_HIGH * len(order)))))].item()
            lower = order[own[order] < own[high]]
            low = lower[len(lower) - 1 - _draw(generator, min(len(lower), int(_LOW * len(order))))].item()
            pair = (low, high) if _draw(generator, 2) else (high, low)
            self.questions.append(Question(neuron, HINTS[i % 2], pair, tuple(own[list(pair)].tolist())))
        self._top = {q.neuron: activations[:half, q.neuron].topk(_HINT_IMAGES).indices.tolist() for q in self.questions}
        self._visualizer = Visualizer(model, images=None if images is None else self._reference)
        self._visualizations: dict[int, torch.Tensor] = {}

    def hint(self, question: Question) -> torch.Tensor:
        """What a player sees of the neuron: (1, 3, S, S), its feature visualization, or (4, 3, S, S), its top images."""
        self._check(question)
        if question.hint == HINTS[1]:
            return self._reference.batch(self._top[question.neuron]).cpu()
        if not self._visualizations:  # those of all questions: an atlas has them, or one batch makes many
            neurons = [q.neuron for q in self.questions if q.hint == HINTS[0]]
            rendering = self._visualizer.render(self.site.layer, neurons, self.site.kind)
            self._visualizations = dict(zip(neurons, rendering.require_finished().pictures, strict=True))
        return self._visualizations[question.neuron][None]

    def pair(self, question: Question) -> torch.Tensor:
        """The left and the right image, (2, 3, S, S)."""
        self._check(question)
        return self._reference.batch(question.images).cpu()

    def score(self, choices: list[int], player: str = "you") -> Result:
        """Accuracy in percent by kind of hint, with Wilson's interval, of choices (0 left, 1 right) for the first questions."""
        if not isinstance(choices, list | tuple) or len(choices) > len(self.questions):
            raise VitvizError(f"Choices are a list of up to {len(self.questions)} times 0 (left) or 1 (right), got {choices!r}.")
        choices = [validate.whole("A choice", choice, 0, 1) for choice in choices]
        rows = []
        for hint in HINTS:
            hits = [q.correct == c for q, c in zip(self.questions, choices, strict=False) if q.hint == hint]
            rows.append({"hint": hint, "player": player, **proportion(sum(hits), len(hits))})
        return Result(f"{self.model.title}, {self.site}: which of two images activates a neuron more?", "accuracy (%)",
                      pd.DataFrame(rows), ("chance", 50.0))

    def play(self, player: Callable[[torch.Tensor, torch.Tensor], int], name: str) -> Result:
        """The score of a player made of code: from a hint (1 or 4, 3, S, S) and two images (2, 3, S, S) to 0 (left) or 1."""
        if not callable(player):
            raise VitvizError(f"A player is a function of a hint and two images that returns 0 or 1, got {player!r}.")
        choices = [validate.scalar(player(self.hint(question), self.pair(question))) for question in self.questions]
        return self.score([int(choice) if isinstance(choice, bool) else choice for choice in choices], name)

    def sheet(self, question: Question) -> Image.Image:
        """A question as one image: the hint, then the two images, without the answer."""
        tiles = [Tile(image, [f"neuron {question.neuron}" if not i else ""]) for i, image in enumerate(self.hint(question))]
        tiles += [Tile(image, [f"{side}?"]) for side, image in zip(SIDES, self.pair(question), strict=True)]
        return contact_sheet(tiles, f"{question.hint.capitalize()}, then two images. Which activates the neuron more?")

    def _check(self, question: Question) -> None:
        if question not in self.questions:
            raise VitvizError(f"The question is one of this task's questions, such as task.questions[0]; got {question!r}.")


def _draw(generator: torch.Generator, n: int) -> int:
    return int(torch.randint(n, (1,), generator=generator))


def model_player(model: VisionModel) -> Callable:
    """A player that sees with another network: the image whose centered logits are more similar (cosine) to the hint's."""
    if not isinstance(model, VisionModel):
        raise VitvizError(f"model_player takes a model, such as vv.load('emoji-resnet'), got {type(model).__name__}.")

    @torch.inference_mode()
    def player(hint: torch.Tensor, images: torch.Tensor) -> int:
        logits = model(torch.cat([resized(part, model.image_size) for part in (hint, images)])).float().cpu()
        logits = logits - logits.mean(1, keepdim=True)
        return int(torch.cosine_similarity(logits[-2:], logits[:-2].mean(0, keepdim=True)).argmax())

    return player


class TaskWidget(widgets.VBox):
    """The task on the page, with a button for each image; ``choices`` are 0 (left) or 1 (right), one a question answered."""

    def __init__(self, task: Task):
        if not isinstance(task, Task):
            raise VitvizError(f"The widget takes a task, as in TaskWidget(Task(model, 20)), got {type(task).__name__}.")
        self.task, self.choices = task, []
        self._asked, self._sheet, self._feedback = Status(), Picture(layout=widgets.Layout(max_width="100%")), Status()
        self._buttons = [widgets.Button(description=f"The {side} image") for side in SIDES]
        for side, button in enumerate(self._buttons):
            button.on_click(lambda button, side=side: self.choose(side))
        for widget, name in ((self, "task"), (self._sheet, "sheet"), (self._asked, "question"), (self._feedback, "feedback")):
            widget.add_class(f"vitviz-{name}")
        super().__init__([self._asked, self._sheet, widgets.HBox(self._buttons), self._feedback])
        self._ask()

    @property
    def score(self) -> Result:
        """Accuracy so far, by kind of hint, with intervals."""
        return self.task.score(self.choices)

    def choose(self, side: int) -> None:
        """Choose the left (0) or the right (1) image, as a click on a button does."""
        side = validate.whole("A choice", side, 0, 1)
        if len(self.choices) == len(self.task.questions):
            return
        question = self.task.questions[len(self.choices)]
        self.choices.append(side)
        self._feedback.say(f"{'Correct' if side == question.correct else 'Incorrect'}: the {SIDES[question.correct]} image "
                           f"activates neuron {question.neuron} more, {max(question.activations):.3g} against "
                           f"{min(question.activations):.3g}.")
        self._ask()

    def _ask(self) -> None:
        done, n = len(self.choices), len(self.task.questions)
        if done == n:
            self._asked.say(f"All {n} questions are answered; the attribute score has the result.")
            for button in self._buttons:
                button.disabled = True
            return
        question = self.task.questions[done]
        self._asked.say(f"Question {done + 1} of {n}. Hint: {question.hint}. Which of the last two images activates it more?")
        self._sheet.show(self.task.sheet(question), f"{question.hint} of neuron {question.neuron}, the left and the right image")
