"""The game: questions and scores with planted neurons and players whose answers are known, and the widget clicked by code."""

import math

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.models import loading as models
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.widgets.two_alternative import HINTS, Game, Quiz, by_color, by_eye_of, guess

SIZE, PATCH, N = 16, 8, 200


class Colors(nn.Module):
    """Units 0 to 2 answer to red, green and blue, 3 to 5 to the lack of them, 6 to nothing; units repeat from 7 on."""

    def __init__(self):
        super().__init__()
        self.patches, self.mlp = nn.AvgPool2d(PATCH), Mlp(3, 28, 3)
        self.mlp.act = nn.ReLU()
        axes = torch.cat([torch.eye(3), -torch.eye(3), torch.zeros(1, 3)])
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = axes.repeat(4, 1), torch.tensor([0.0, 0, 0, 1, 1, 1, 0.3]).repeat(4)

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp(self.patches(images).flatten(2).transpose(1, 2)).mean(1)


@pytest.fixture
def model() -> VisionModel:
    card = {"pictures": {"steps": 20, "copies": 1, "color": 0.0, "noise": 0.0, "spread": 0.2}, "recipe": {"styles": ("3d",)}}
    return VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1), card=card)


@pytest.fixture
def images() -> Tensor:
    """Flat images of random colors."""
    return torch.rand(N, 3, 1, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, SIZE, SIZE).clone()


@pytest.fixture
def quiz(model, images) -> Quiz:
    return Quiz(model, 24, images=images)


def test_questions_are_fixed_by_the_seed(model, images, quiz):
    assert Quiz(model, 24, images=images).questions == quiz.questions != Quiz(model, 24, 1, images).questions


def test_every_living_neuron_is_asked_about_once_and_hints_take_turns(quiz):
    assert sorted(q.neuron for q in quiz.questions) == [n for n in range(28) if n % 7 != 6]
    assert [q.hint for q in quiz.questions] == list(HINTS) * 12
    assert 4 <= sum(q.right for q in quiz.questions) <= 20  # the answer is sometimes left and sometimes right


def test_one_scene_is_among_the_strongest_twentieth_and_the_other_in_the_weaker_half(quiz, images):
    for question in quiz.questions:
        unit = question.neuron % 7
        answers = images[:, unit, 0, 0] if unit < 3 else 1 - images[:, unit - 3, 0, 0]
        assert question.activations == pytest.approx(answers[list(question.scenes)].tolist(), abs=1e-5)
        places = [int((answers[100:] > value + 1e-6).sum()) for value in question.activations]
        assert places[question.right] < 5 and places[1 - question.right] >= 50
        assert min(question.scenes) >= 100


def test_hints_are_the_neurons_picture_and_its_top_scenes_from_the_other_half(quiz, images):
    for question in quiz.questions:
        hint, unit = quiz.hint(question), question.neuron % 7
        if question.hint == "its top scenes":
            answers = images[:100, unit, 0, 0] if unit < 3 else 1 - images[:100, unit - 3, 0, 0]
            assert torch.equal(hint, images[answers.topk(4).indices])
        else:
            assert hint.shape == (1, 3, SIZE, SIZE)
            assert (hint[:, unit].mean() > 0.9) if unit < 3 else (hint[:, unit - 3].mean() < 0.1)


def test_scenes_that_tie_are_never_asked_about(model, images):
    images[101:] = images[100]
    images[101, 0], images[101, 1], images[101, 2] = 1, 0, 0
    for question in Quiz(model, 12, images=images).questions:
        assert question.activations[0] != question.activations[1]


def perfect(quiz: Quiz) -> list[int]:
    return [q.right for q in quiz.questions]


def test_a_perfect_player_is_right_always_and_the_opposite_never_with_wilsons_interval(quiz):
    rows = quiz.score(perfect(quiz)).table.set_index("the player sees")
    assert rows["value"].tolist() == [100, 100] and rows["n"].tolist() == [12, 12]
    assert rows["low"].tolist() == pytest.approx([100 * 12 / (12 + 3.8415)] * 2, abs=0.01)  # n / (n + z^2)
    assert quiz.score([1 - a for a in perfect(quiz)]).table["value"].tolist() == [0, 0]


def test_the_two_kinds_of_hint_are_counted_apart(quiz):
    answers = [q.right if q.hint == HINTS[0] else 1 - q.right for q in quiz.questions]
    assert quiz.score(answers).table["value"].tolist() == [100, 0]
    assert quiz.score(answers[:3]).table["n"].tolist() == [2, 1]
    assert quiz.score([]).control == ("guessing", 50.0)


def test_before_the_first_answer_there_is_no_value_and_the_interval_is_everything(quiz):
    table = quiz.score([]).table
    assert table["value"].isna().all() and (table["low"] == 0).all() and (table["high"] == 100).all()
    quiz.score([]).plot()


def test_one_that_guesses_is_at_chance(model, images):
    found = [Quiz(model, 24, seed, images) for seed in range(20)]
    guessed = [player(None, None) == q.right for i, quiz in enumerate(found) for player in [guess(i)] for q in quiz.questions]
    assert 42 < 100 * sum(guessed) / len(guessed) < 58  # 480 questions: 50 % with a standard deviation of 2.3


def test_one_that_goes_by_color_takes_the_scene_that_shares_more_of_the_hints_colors():
    red, blue = torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)
    red[0], blue[2] = 0.9, 0.9
    some, less = blue.clone(), blue.clone()
    some[:, :4], less[:, :1] = red[:, :4], red[:, :1]
    assert by_color(red[None], torch.stack([some, less])) == 0 and by_color(red[None], torch.stack([less, some])) == 1
    assert by_color(torch.stack([red] * 4), torch.stack([blue, less])) == 1


def test_a_judge_chooses_the_scene_to_which_it_answers_as_to_the_hint():
    def judge(images):
        return torch.stack([images[:, 0, 0, 0], images[:, 1, 0, 0], images[:, 2, 0, 0]], 1)

    red, dark_red, blue = (torch.tensor(c).view(3, 1, 1).expand(3, 4, 4) for c in ((1.0, 0, 0), (0.4, 0, 0.1), (0.0, 0, 1)))
    assert by_eye_of(judge)(red[None], torch.stack([dark_red, blue])) == 0
    assert by_eye_of(judge)(red[None], torch.stack([blue, dark_red])) == 1
    assert by_eye_of(judge)(torch.stack([red] * 4), torch.stack([blue, dark_red])) == 1


def test_the_page_asks_tells_and_counts(quiz):
    game = Game(quiz)
    assert [b.description for b in game._buttons] == ["The left scene", "The right scene"]
    assert "Question 1 of 24" in game._asked.value and game.score.table["n"].sum() == 0
    first = game._scenes[0].value
    for question in quiz.questions[:2]:
        game._buttons[question.right].click()
    assert "Right: the " in game._said.value and "role='status'" in game._said.value and game._scenes[0].value != first
    game._buttons[1 - quiz.questions[2].right].click()
    assert "Wrong: the " in game._said.value and "Question 4 of 24" in game._asked.value
    assert game.score.table["value"].tolist() == [50, 100] and game.score.table["n"].tolist() == [2, 1]


def test_after_the_last_answer_nothing_more_is_counted(model, images):
    game = Game(Quiz(model, 2, images=images))
    for _ in range(4):
        game.answer(0)
    assert len(game.answers) == 2 and "All 2 questions" in game._asked.value and all(b.disabled for b in game._buttons)


@pytest.mark.parametrize("n", [3, 0, 26, 2.0, "20"])
def test_a_number_of_questions_that_cannot_be_asked_is_told_what_can(n, model, images):
    with pytest.raises(VitvizError, match="even number of questions, 2 to 24"):
        Quiz(model, n, images=images)


def test_too_few_images_are_told_how_many(model, images):
    with pytest.raises(VitvizError, match="at least 16 images, got 15"):
        Quiz(model, 2, images=images[:15])


@pytest.mark.parametrize("architecture", [
    {"class": "timm.models.swin_transformer.SwinTransformer", "arguments": {
        "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
        "num_classes": 4}},
    {"class": "timm.models.resnet.ResNet", "arguments": {
        "block": "timm.models.resnet.BasicBlock", "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 4}},
])
def test_it_can_be_played_on_other_families(architecture):
    made = VisionModel(models.build(architecture), "other", 32, trained=False, card={"pictures": {"steps": 3, "copies": 1}})
    quiz = Quiz(made, 2, images=torch.rand(32, 3, 32, 32))
    found = quiz.play(by_color, "color")
    assert found.table["n"].tolist() == [1, 1] and not math.isnan(found.table["value"].sum()) and "untrained" in found.title
    assert quiz.sheet(quiz.questions[1]).width > 6 * 128
