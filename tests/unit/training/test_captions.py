"""Language supervision: captions shortened at random, and their contrastive loss worked out by hand."""

import math
import re

import pytest
import torch

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.sprites import concept_table
from vitviz_nb.training.captions import HYPERNYMS, contrast, shorten


def test_contrast_is_what_it_is_by_hand():
    points, words = torch.tensor([[3.0, 0.0], [0.0, 5.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Twice the cosines are [[2, 1.2], [0, 1.6]]: scenes to captions by row, captions to scenes by column.
    rows = math.log(1 + math.exp(1.2 - 2)) + math.log(1 + math.exp(0 - 1.6))
    columns = math.log(1 + math.exp(0 - 2)) + math.log(1 + math.exp(1.2 - 1.6))
    factor = torch.tensor(math.log(2))
    assert contrast(points, words, ["a", "b"], factor).item() == pytest.approx((rows / 2 + columns / 2) / 2, abs=1e-5)
    swapped = contrast(points, words.flip(0), ["a", "b"], factor)
    assert swapped > contrast(points, words, ["a", "b"], factor) + 0.5


def test_scenes_with_the_same_caption_are_each_others_own():
    # Logits are cosines, 1 on the diagonal and 0 elsewhere; half of each twin's answer may go to the other, whose logit is 0.
    whole = math.log(math.e + 2)
    found = [contrast(torch.eye(3), torch.eye(3), ["a", twin, "c"], torch.tensor(0.0)).item() for twin in ("b", "a")]
    assert found == pytest.approx([whole - 1, (2 * (whole - 0.5) + whole - 1) / 3], abs=1e-5)


def test_a_shortened_caption_keeps_thing_and_count_and_each_further_fact_now_and_then():
    torch.manual_seed(0)
    caption = "two large flat icons of ripe apple, upside down, with cat, on grass"
    found = [shorten(caption) for _ in range(2000)]
    assert all(re.match(r"two (large )?(flat icons of )?ripe apple", text) for text in found)
    for fact in ("large ", "flat icons of ", ", upside down", ", with cat", ", on grass"):
        assert sum(fact in text for text in found) / 2000 == pytest.approx(0.3, abs=0.04)
    assert shorten(caption, said=1.0) == caption and shorten(caption, said=0.0) == "two ripe apple"


def test_every_caption_can_be_shortened_to_its_count_and_thing():
    scenes = EmojiWorld(size=8).batch(range(500))
    for i, caption in enumerate(scenes.captions):
        count = ("a", "two", "three")[scenes.count[i] - 1]
        assert shorten(caption, said=0.0, named=1.0) == f"{count} {scenes.world.concepts[scenes.concept[i]]}"


def test_half_of_the_captions_name_the_concept_and_the_others_a_more_general_word():
    torch.manual_seed(0)
    found = [shorten("a flat icon of lemon, on grass", said=0.0) for _ in range(4000)]
    for words, share in (("a lemon", 0.5), ("a fruit", 0.3), ("a something to eat or drink", 0.2)):
        assert found.count(words) / 4000 == pytest.approx(share, abs=0.025)


def test_every_trained_concept_has_more_general_words():
    rows = [row for row in concept_table() if row["trained"] == "1"]
    assert {row["category"] for row in rows} | {row["subcategory"] for row in rows} <= set(HYPERNYMS)


def test_the_factor_between_cosine_and_logit_grows_to_e_to_the_4_6_and_no_further():
    points, words = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    at = {log: contrast(points, words, ["a", "b"], torch.tensor(log)).item() for log in (2.0, 4.6, 9.0)}
    assert at[9.0] == pytest.approx(at[4.6]) and abs(at[2.0] - at[4.6]) > 0.01
