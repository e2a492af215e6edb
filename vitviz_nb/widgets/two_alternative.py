"""A game of two choices: which of two scenes excites a neuron more, judged from its picture or from its top scenes?

After Borowski et al. 2021 (arXiv 2010.12606) and Zimmermann et al. 2021 (arXiv 2106.12447), who asked people. Whoever answers
better than by guessing has learned something of the neuron from the hint. The two kinds of hint are counted apart, so that
pictures can be compared with scenes. ``Quiz`` is the game without a page, for players made of code; ``Game`` shows it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

import ipywidgets as widgets
import pandas as pd
import torch
from PIL import Image

from ..datasets.image_set import ImageSet
from ..experiments.result import Result, proportion
from ..models.sites import find_sites
from ..models.vision_model import VisionModel
from ..plotting.image_grid import Tile, contact_sheet, png, to_image
from ..utils.errors import VitvizError
from ..visualize.scores import default_reference, reference_activations
from ..visualize.visualizer import Visualizer

HINTS = ("its picture", "its top scenes")
SIDES = ("left", "right")
_HINT_SCENES, _SIDE = 4, 224
_HIGH, _LOW = 0.05, 0.5  # one scene of a question is among the strongest 5 %, the other among the weaker half


@dataclass(frozen=True)
class Question:
    """Which of two scenes excites a neuron more?

    Attributes:
        neuron: of the last layer.
        hint: one of ``HINTS``, what the player sees of the neuron.
        scenes: numbers of the left and the right scene among the reference images.
        activations: the neuron's on both; never equal.
    """

    neuron: int
    hint: str
    scenes: tuple[int, int]
    activations: tuple[float, float]

    @property
    def right(self) -> int:
        """The answer: 0 for the left scene, 1 for the right one."""
        return int(self.activations[1] > self.activations[0])


class Quiz:
    """Questions fixed by a seed, about neurons drawn by lot from the last layer of a model, each neuron once.

    One scene of a question is among the 5 % that excite the neuron most, the other among the weaker half. Hints take turns.
    Scenes shown as a hint come from the first half of the images, those asked about from the second half.

    Args:
        model: with ``mlp`` units or channels.
        n: how many questions, an even number.
        seed: other questions.
        images: what ``Stimuli`` takes; by default scenes of Emoji World.

    Attributes:
        questions: the list of them.
    """

    def __init__(self, model: VisionModel, n: int = 20, seed: int = 0, images=None):
        site = next(iter(find_sites(model).values()))[-1]
        self.model, self.place, self._images = model, site, images
        self._reference = default_reference(model) if images is None else ImageSet(model, images)
        known = reference_activations(model, site, self._reference)
        half = len(known) // 2
        if half < 2 * _HINT_SCENES:
            raise VitvizError(f"The game needs at least {4 * _HINT_SCENES} images, got {len(known)}.")
        living = (known[half:].std(0) > 0).nonzero()[:, 0]
        if not isinstance(n, Integral) or n < 2 or n % 2 or n > len(living):
            raise VitvizError(f"A game has an even number of questions, 2 to {len(living) // 2 * 2} with this layer, got {n!r}.")
        lot, self.questions = torch.Generator().manual_seed(seed), []
        chosen = living[torch.randperm(len(living), generator=lot)[:n]].tolist()
        for i, neuron in enumerate(chosen):
            order = known[half:, neuron].argsort(descending=True) + half
            above = int((known[order, neuron] > known[order[-1], neuron]).sum())  # scenes that tie are no question
            strong = order[_draw(lot, max(1, min(above, int(_HIGH * len(order)))))].item()
            weaker = order[known[order, neuron] < known[strong, neuron]]
            weak = weaker[len(weaker) - 1 - _draw(lot, min(len(weaker), int(_LOW * len(order))))].item()
            pair = (weak, strong) if _draw(lot, 2) else (strong, weak)
            self.questions.append(Question(neuron, HINTS[i % 2], pair, tuple(known[list(pair), neuron].tolist())))
        self._strongest = {q.neuron: known[:half, q.neuron].topk(_HINT_SCENES).indices.tolist() for q in self.questions}
        self._pictures = dict.fromkeys(q.neuron for q in self.questions if q.hint == HINTS[0])

    def hint(self, question: Question) -> torch.Tensor:
        """What a player sees of the neuron: (1, 3, S, S), its picture, or (4, 3, S, S), its top scenes."""
        if question.hint == HINTS[1]:
            return self._reference.batch(self._strongest[question.neuron]).cpu()
        if self._pictures[question.neuron] is None:  # all at once: an atlas has them, and else many are made in one go
            made = Visualizer(self.model, images=self._images).render(self.place.layer, list(self._pictures), self.place.kind)
            self._pictures = dict(zip(made.neurons, made.pictures, strict=True))
        return self._pictures[question.neuron][None]

    def pair(self, question: Question) -> torch.Tensor:
        """The left and the right scene, (2, 3, S, S)."""
        return self._reference.batch(question.scenes).cpu()

    def score(self, answers: list[int], player: str = "you") -> Result:
        """Right answers in percent by kind of hint, with Wilson's interval, of the first ``len(answers)`` questions.

        A hint without answers yet has no value, and an interval from 0 to 100 %.
        """
        rows = []
        for hint in HINTS:
            hits = [q.right == a for q, a in zip(self.questions, answers, strict=False) if q.hint == hint]
            rows.append({"the player sees": hint, "player": player, **proportion(sum(hits), len(hits))})
            if not hits:
                rows[-1] |= {"value": float("nan"), "low": 0.0, "high": 100.0}
        return Result(f"{self.model.title}, {self.place}: which of two scenes excites a neuron more?", "right answers (%)",
                       pd.DataFrame(rows), ("guessing", 50.0))

    def play(self, player: Callable[[torch.Tensor, torch.Tensor], int], name: str) -> Result:
        """The score of a player made of code: from a hint (1 or 4, 3, S, S) and two scenes (2, 3, S, S) to 0 (left) or 1."""
        return self.score([int(player(self.hint(q), self.pair(q))) for q in self.questions], name)

    def sheet(self, question: Question) -> Image.Image:
        """A question as one image: the hint, then the two scenes, without the answer."""
        tiles = [Tile(image, [f"neuron {question.neuron}" if not i else ""]) for i, image in enumerate(self.hint(question))]
        tiles += [Tile(image, [f"{side}?"]) for side, image in zip(SIDES, self.pair(question), strict=True)]
        return contact_sheet(tiles, f"{question.hint.capitalize()}, then two scenes. Which excites the neuron more?", side=128)


def _draw(lot: torch.Generator, n: int) -> int:
    return int(torch.randint(n, (1,), generator=lot))


def guess(seed: int = 0) -> Callable:
    """A player that guesses."""
    lot = torch.Generator().manual_seed(seed)
    return lambda hint, scenes: _draw(lot, 2)


def by_color(hint: torch.Tensor, scenes: torch.Tensor) -> int:
    """A player that goes by color alone: the scene whose histogram of 64 colors shares more with the hint's."""
    def histogram(images):
        cells = (images * 3.999).long().clamp(0, 3)
        return torch.bincount((cells[:, 0] * 16 + cells[:, 1] * 4 + cells[:, 2]).flatten(), minlength=64) / cells[:, 0].numel()

    wanted = histogram(hint)
    return int(torch.minimum(histogram(scenes[1:]), wanted).sum() > torch.minimum(histogram(scenes[:1]), wanted).sum())


def by_eye_of(judge: VisionModel) -> Callable:
    """A player that sees with another network: the scene whose answer (logits) correlates more with that to the hint."""
    @torch.inference_mode()
    def player(hint: torch.Tensor, scenes: torch.Tensor) -> int:
        answers = judge(torch.cat([hint, scenes])).float().cpu()
        answers = answers - answers.mean(1, keepdim=True)
        wanted, pair = answers[:-2].mean(0), answers[-2:]
        return int((pair @ wanted / pair.norm(dim=1)).argmax())

    return player


class Game(widgets.VBox):
    """The game on the page: the hint, the two scenes, and under each a button that chooses it.

    After an answer the line below says whether it was right, and the next question is there. All of it works with Tab and
    Enter. ``score`` is a ``Finding``, at any time; ``answers`` are 0 (left) and 1 (right).

    Args:
        quiz: whose questions are asked.
    """

    def __init__(self, quiz: Quiz):
        self.quiz, self.answers = quiz, []
        self._asked, self._said = widgets.HTML(), widgets.HTML()
        self._hint = widgets.Image(format="png", layout=widgets.Layout(max_width="100%"))
        self._scenes = [widgets.Image(format="png", width=_SIDE, height=_SIDE) for _ in SIDES]
        self._buttons = [widgets.Button(description=f"The {side} scene", tooltip=f"The {side} scene excites the neuron more",
                                        layout=widgets.Layout(width=f"{_SIDE}px")) for side in SIDES]
        for side, button in enumerate(self._buttons):
            button.on_click(lambda button, side=side: self.answer(side))
        pairs = [widgets.VBox([scene, button]) for scene, button in zip(self._scenes, self._buttons, strict=True)]
        for widget, name in ((self, "game"), (self._hint, "hint"), (self._said, "said")):
            widget.add_class(f"vitviz-{name}")
        super().__init__([self._asked, self._hint, widgets.HBox(pairs), self._said])
        self._ask()

    @property
    def score(self) -> Result:
        """Right answers so far, by kind of hint, with intervals."""
        return self.quiz.score(self.answers)

    def answer(self, side: int) -> None:
        """Choose the left (0) or the right (1) scene; what a click on a button does."""
        if len(self.answers) == len(self.quiz.questions):
            return
        question = self.quiz.questions[len(self.answers)]
        self.answers.append(side)
        strong, weak = max(question.activations), min(question.activations)
        self._said.value = (f"<span role='status'>{'Right' if side == question.right else 'Wrong'}: the {SIDES[question.right]} "
                            f"scene excites neuron {question.neuron} more, {strong:.3g} against {weak:.3g}.</span>")
        self._ask()

    def _ask(self) -> None:
        done, of = len(self.answers), len(self.quiz.questions)
        if done == of:
            self._asked.value = f"All {of} questions are answered: <code>game.score</code> has the result."
            for button in self._buttons:
                button.disabled = True
            return
        question = self.quiz.questions[done]
        self._asked.value = (f"Question {done + 1} of {of}: here is <b>{question.hint.removeprefix('its ')}</b> of one neuron. "
                             f"Which scene below excites it more?")
        tiles = [Tile(image, []) for image in self.quiz.hint(question)]
        self._hint.value = png(contact_sheet(tiles, f"neuron {question.neuron}: {question.hint}", side=144))
        for widget, image in zip(self._scenes, self.quiz.pair(question), strict=True):
            widget.value = png(to_image(image, _SIDE))
