"""The two-alternative task: planted neurons, players whose choices are known, and the page clicked by code."""

import html
import math

import ipywidgets as widgets
import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.models import loading as models
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.widgets.two_alternative import HINTS, Task, TaskWidget, model_player

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
def task(model, images) -> Task:
    return Task(model, 24, images=images)


def test_questions_are_fixed_by_the_seed(model, images, task):
    assert Task(model, 24, images=images).questions == task.questions != Task(model, 24, 1, images).questions


def test_every_neuron_that_varies_is_asked_about_once_and_hints_alternate(task):
    assert sorted(q.neuron for q in task.questions) == [n for n in range(28) if n % 7 != 6]
    assert [q.hint for q in task.questions] == list(HINTS) * 12
    assert 4 <= sum(q.correct for q in task.questions) <= 20  # the correct image is sometimes left and sometimes right


def test_one_image_is_in_the_top_twentieth_and_the_other_in_the_lower_half(task, images):
    for question in task.questions:
        unit = question.neuron % 7
        activations = images[:, unit, 0, 0] if unit < 3 else 1 - images[:, unit - 3, 0, 0]
        assert question.activations == pytest.approx(activations[list(question.images)].tolist(), abs=1e-5)
        ranks = [int((activations[100:] > value + 1e-6).sum()) for value in question.activations]
        assert ranks[question.correct] < 5 and ranks[1 - question.correct] >= 50
        assert min(question.images) >= 100


def test_hints_are_the_neurons_feature_visualization_and_its_top_images_from_the_other_half(task, images):
    for question in task.questions:
        hint, unit = task.hint(question), question.neuron % 7
        if question.hint == "top images":
            activations = images[:100, unit, 0, 0] if unit < 3 else 1 - images[:100, unit - 3, 0, 0]
            assert torch.equal(hint, images[activations.topk(4).indices])
        else:
            assert hint.shape == (1, 3, SIZE, SIZE)
            assert (hint[:, unit].mean() > 0.9) if unit < 3 else (hint[:, unit - 3].mean() < 0.1)


def test_images_with_equal_activations_are_never_compared(model, images):
    images[101:] = images[100]
    images[101, 0], images[101, 1], images[101, 2] = 1, 0, 0
    for question in Task(model, 12, images=images).questions:
        assert question.activations[0] != question.activations[1]


def test_an_interrupted_feature_visualization_is_no_hint_and_the_next_call_makes_it(task):
    passes = []

    def interrupt_once(module, inputs):
        passes.append(inputs)
        if len(passes) == 5:
            raise KeyboardInterrupt

    handle, (question, *_) = task.model.module.register_forward_pre_hook(interrupt_once), task.questions
    with pytest.raises(VitvizError, match="unfinished"):
        task.hint(question)
    handle.remove()
    assert question.neuron % 7 == 2 and task.hint(question)[:, 2].mean() > 0.9  # a neuron for blue


def correct(task: Task) -> list[int]:
    return [q.correct for q in task.questions]


def test_a_perfect_player_has_accuracy_100_and_the_opposite_0_with_wilsons_interval(task):
    rows = task.score(correct(task)).table.set_index("hint")
    assert rows["value"].tolist() == [100, 100] and rows["n"].tolist() == [12, 12]
    assert rows["low"].tolist() == pytest.approx([100 * 12 / (12 + 3.8415)] * 2, abs=0.01)  # n / (n + z^2)
    assert task.score([1 - choice for choice in correct(task)]).table["value"].tolist() == [0, 0]


def test_the_two_kinds_of_hint_are_scored_separately(task):
    choices = [q.correct if q.hint == HINTS[0] else 1 - q.correct for q in task.questions]
    assert task.score(choices).table["value"].tolist() == [100, 0]
    assert task.score(choices[:3]).table["n"].tolist() == [2, 1]
    assert task.score([]).control == ("chance", 50.0)


def test_before_the_first_choice_there_is_no_value_and_the_interval_is_everything(task):
    table = task.score([]).table
    assert table["value"].isna().all() and (table["low"] == 0).all() and (table["high"] == 100).all()
    task.score([]).plot()


def test_the_model_player_takes_the_image_whose_logits_are_more_similar_to_the_hints(model):
    torch.nn.init.eye_(model.module.mlp.fc2.weight)  # logits are the activations of red, green and blue
    torch.nn.init.zeros_(model.module.mlp.fc2.bias)
    player = model_player(model)
    red, dark_red, blue = (torch.tensor(c).view(3, 1, 1).expand(3, SIZE, SIZE) for c in ((1.0, 0, 0), (0.4, 0, 0.1), (0.0, 0, 1)))
    assert player(red[None], torch.stack([dark_red, blue])) == 0
    assert player(red[None], torch.stack([blue, dark_red])) == 1
    assert player(torch.stack([red] * 4), torch.stack([blue, dark_red])) == 1
    large = F.interpolate(red[None], scale_factor=2)  # a picture on Recipe.fourier's canvas, and images of a larger network
    assert player(large, F.interpolate(torch.stack([blue, dark_red]), scale_factor=3)) == 1


def buttons(page: TaskWidget) -> list[widgets.Button]:
    return list(page.children[2].children)


def line(page: TaskWidget, name: str) -> str:
    return next(html.unescape(child.value) for child in page.children if f"vitviz-{name}" in child._dom_classes)


def test_the_page_asks_answers_and_counts(task):
    page = TaskWidget(task)
    assert [b.description for b in buttons(page)] == ["The left image", "The right image"]
    assert "Question 1 of 24" in line(page, "question") and page.score.table["n"].sum() == 0
    first = page.children[1].value
    for question in task.questions[:2]:
        buttons(page)[question.correct].click()
    assert "Correct: the " in line(page, "feedback") and "role='status'" in line(page, "feedback")
    assert page.children[1].value != first
    buttons(page)[1 - task.questions[2].correct].click()
    assert "Incorrect: the " in line(page, "feedback") and "Question 4 of 24" in line(page, "question")
    assert page.score.table["value"].tolist() == [50, 100] and page.score.table["n"].tolist() == [2, 1]


def test_after_the_last_question_nothing_more_is_counted(model, images):
    page = TaskWidget(Task(model, 2, images=images))
    for _ in range(4):
        page.choose(0)
    assert len(page.choices) == 2 and "All 2 questions" in line(page, "question") and all(b.disabled for b in buttons(page))


@pytest.mark.parametrize("n", [0, 25, 2.0, "20", True])
def test_a_number_of_questions_that_cannot_be_asked_is_refused(n, model, images):
    with pytest.raises(VitvizError, match="number of questions, is a whole number from 1 to 24"):
        Task(model, n, images=images)


@pytest.mark.parametrize("call", [
    lambda task: Task(3), lambda task: Task(task.model, 2, seed="x"), lambda task: Task(task.model, 2, images=3),
    lambda task: task.hint(3), lambda task: task.pair(None), lambda task: task.sheet("x"), lambda task: task.score(3),
    lambda task: task.score([2]), lambda task: task.score([0] * 25), lambda task: task.score(["left"]),
    lambda task: task.play(3, "x"), lambda task: task.play(lambda hint, images: "left", "x"),
    lambda task: model_player(3), lambda task: TaskWidget(3), lambda task: TaskWidget(task).choose("left")])
def test_an_argument_of_another_type_or_range_is_refused(call, task):
    with pytest.raises(VitvizError):
        call(task)


def test_too_few_images_are_refused(model, images):
    with pytest.raises(VitvizError, match="at least 16 images, got 15"):
        Task(model, 2, images=images[:15])


@pytest.mark.parametrize("architecture", [
    {"class": "timm.models.swin_transformer.SwinTransformer", "arguments": {
        "img_size": 32, "patch_size": 4, "window_size": 4, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2),
        "num_classes": 4}},
    {"class": "timm.models.resnet.ResNet", "arguments": {
        "block": "timm.models.resnet.BasicBlock", "layers": (1, 1, 1, 1), "channels": (8, 8, 16, 16), "num_classes": 4}},
])
def test_it_works_on_other_families(architecture):
    made = VisionModel(models.build(architecture), "other", 32, trained=False, card={"pictures": {"steps": 3, "copies": 1}})
    task = Task(made, 2, images=torch.rand(32, 3, 32, 32))
    score = task.play(lambda hint, images: 0, "left")
    assert score.table["n"].tolist() == [1, 1] and not math.isnan(score.table["value"].sum()) and "untrained" in score.title
    assert task.sheet(task.questions[1]).width > 6 * 160
