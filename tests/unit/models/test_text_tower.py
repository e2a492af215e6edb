"""The text tower: embeddings of captions, and the zero-shot classifier made of them."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.emoji_world import STYLES, EmojiWorld, Scenes
from vitviz_nb.models import text_tower as language
from vitviz_nb.models.text_tower import TextTower, class_embeddings, split

WORDS = ["a", "cat", "cartoon", "dog", "drawing", "flat", "icon", "line", "of", "two"]


@pytest.fixture
def tower() -> TextTower:
    return TextTower(WORDS, 16).eval().requires_grad_(False)


def apart(first: Tensor, second: Tensor) -> float:
    return (first - second).abs().max().item()


def test_a_caption_is_split_into_lower_case_words_without_commas_and_colons():
    assert split("Two 3D models of Keycap: 1, half hidden,on  T-shirt") == [
        "two", "3d", "models", "of", "keycap", "1", "half", "hidden", "on", "t-shirt"]


def test_a_captions_point_has_length_1_and_depends_on_its_words_and_their_order(tower: TextTower):
    points = tower(["a cat", "a dog", "A, Cat", "cat a"])
    assert points.shape == (4, 16) and torch.allclose(points.norm(dim=1), torch.ones(4), atol=1e-5)
    assert apart(points[0], points[2]) < 1e-5
    assert apart(points[0], points[1]) > 1e-2 and apart(points[0], points[3]) > 1e-4


def test_words_it_has_not_learnt_are_all_read_as_the_same_unknown_one(tower: TextTower):
    points = tower(["a zebra", "a yak", "a", "a cat"])
    assert apart(points[0], points[1]) < 1e-6
    assert apart(points[0], points[2]) > 1e-3 and apart(points[0], points[3]) > 1e-3  # neither left out nor taken for another


@pytest.mark.parametrize("training", [True, False])  # torch has a way of its own for towers that do not learn
def test_a_captions_point_does_not_depend_on_the_longer_ones_beside_it(tower: TextTower, training: bool):
    tower.train(training)
    alone = tower(["two flat icon of cat"])
    beside = tower(["a", "two flat icon of cat", "a line drawing of two cat, a cartoon of a dog"])
    assert apart(beside[1], alone[0]) < 1e-5
    assert apart(beside[0], tower(["a"])[0]) < 1e-5


def test_a_caption_is_read_up_to_its_32nd_word(tower: TextTower):
    before = ["a"] * 31
    last, cut = tower([" ".join([*before, word]) for word in ("cat", "dog")]), tower([" ".join([*before, "cat", "dog", "dog"])])
    assert apart(last[0], last[1]) > 1e-4
    assert apart(cut[0], last[0]) < 1e-6


@pytest.mark.parametrize("concepts", ["trained", "all"])
def test_no_caption_of_emoji_world_is_so_long_that_it_is_cut(concepts: str):
    world = EmojiWorld(concepts=concepts)
    name = max(range(len(world.concepts)), key=lambda k: len(split(world.concepts[k])))
    context = max(range(len(CONTEXTS)), key=lambda k: len(split(CONTEXTS[k])))

    def longest(style: int, rotation: int, position: int) -> Scenes:
        facts = {"concept": name, "style": style, "context": context, "count": 3, "size": 0, "rotation": rotation,
                 "position": position, "companion": name}
        empty = torch.zeros(1, 3, 8, 8), torch.zeros(1, 8, 8)
        return Scenes(world, *empty, **{key: torch.tensor([value]) for key, value in facts.items()},
                      occluded=torch.tensor([True]), blurred=torch.tensor([False]), indices=torch.tensor([0]))

    captions = [longest(*facts).captions[0] for facts in itertools.product(range(5), range(3), range(5))]
    assert 20 < max(len(split(caption)) for caption in captions) <= language._LENGTH


def test_the_factor_between_cosine_and_logit_grows_to_e_to_the_4_6_and_no_further(tower: TextTower):
    tower.log_scale.data.fill_(9.0)
    assert torch.allclose(class_embeddings(tower, ["cat"], ["flat"]).norm(), torch.tensor(math.exp(4.6)), rtol=1e-4)


def test_a_class_is_the_mean_of_its_name_alone_and_in_each_style_times_the_factor(tower: TextTower):
    found = class_embeddings(tower, ["cat", "dog"], ["flat", "line"])
    for k, name in enumerate(["cat", "dog"]):
        mean = sum(tower([prompt.format(name)])[0] for prompt in ("a {}", "a flat icon of {}", "a line drawing of {}")) / 3
        assert torch.allclose(found[k], mean / mean.norm() * math.exp(2.3), atol=1e-4)
    assert not found.requires_grad


def test_every_style_has_a_prompt_that_begins_as_its_captions_do():
    scenes = EmojiWorld(size=8).batch(range(300))
    plain = [i for i in range(300) if scenes.count[i] == 1 and scenes.size[i] == 1]
    for i in plain:
        name = scenes.world.concepts[scenes.concept[i]]
        assert scenes.captions[i].startswith(language.PROMPTS[STYLES[scenes.style[i]]].format(name))
    assert {STYLES[scenes.style[i]] for i in plain} == set(STYLES) == language.PROMPTS.keys()
