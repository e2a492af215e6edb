"""Language supervision: captions shortened at random, and the contrastive loss of images and captions (Radford et al. 2021)."""

import re
from functools import cache

import torch
import torch.nn.functional as F

from ..datasets.sprites import concept_table

# What people call a thing that they do not name: a word for each category and subcategory (Unicode's) of the trained concepts.
HYPERNYMS = {
    "Activities": "activity", "arts & crafts": "art", "award-medal": "award", "event": "celebration", "game": "game",
    "sport": "sport",
    "Animals & Nature": "living thing", "animal-amphibian": "animal", "animal-bird": "bird", "animal-bug": "small animal",
    "animal-mammal": "mammal", "animal-marine": "sea animal", "animal-reptile": "reptile", "plant-flower": "flower",
    "plant-other": "plant",
    "Food & Drink": "something to eat or drink", "dishware": "tableware", "drink": "drink", "food-asian": "dish",
    "food-fruit": "fruit", "food-prepared": "meal", "food-sweet": "dessert", "food-vegetable": "vegetable",
    "Objects": "object", "book-paper": "book", "clothing": "something to wear", "computer": "machine", "light & video": "light",
    "lock": "lock", "mail": "mail", "money": "money", "music": "music", "musical-instrument": "musical instrument",
    "office": "office supply", "phone": "machine", "tool": "tool", "writing": "office supply",
    "People & Body": "human", "body-parts": "part of the body", "hand-fingers-closed": "hand", "hand-fingers-open": "hand",
    "hand-fingers-partial": "hand", "hand-single-finger": "hand", "hands": "hand", "person": "person",
    "person-activity": "person in motion", "person-fantasy": "imaginary being", "person-role": "person at work",
    "person-sport": "person in motion", "person-symbol": "person",
    "Smileys & Emotion": "feeling", "cat-face": "animal face", "emotion": "feeling", "face-affection": "happy face",
    "face-concerned": "unhappy face", "face-costume": "costume", "face-glasses": "happy face", "face-hand": "face",
    "face-hat": "happy face", "face-negative": "angry face", "face-neutral-skeptical": "face", "face-sleepy": "face",
    "face-smiling": "happy face", "face-tongue": "happy face", "face-unwell": "unhappy face", "heart": "heart",
    "monkey-face": "animal face",
    "Symbols": "symbol", "arrow": "sign", "currency": "money", "geometric": "shape", "math": "mathematics",
    "other-symbol": "sign", "punctuation": "punctuation", "religion": "religion", "transport-sign": "sign", "warning": "warning",
    "Travel & Places": "something outdoors", "place-building": "building", "place-geographic": "landscape",
    "place-other": "place", "place-religious": "building", "sky & weather": "sky", "transport-air": "aircraft",
    "transport-ground": "vehicle", "transport-water": "boat",
}

_FIRST = re.compile(r"(a|two|three) (?:(small|large) )?(\S+(?: \S+)? of) (.+)")  # count, size, style, concept


def shorten(caption: str, said: float = 0.3, named: float = 0.5) -> str:
    """A caption reduced to concept and count; each further fact (size, style, …) stays with probability ``said``.

    With every fact in every caption, a scene's own could be found without knowing its concept. As people do, a caption names the
    concept (with probability ``named``) or calls it by a more general word (``HYPERNYMS``), of its subcategory more often than of
    its category (3 to 2).
    """
    first, *others = caption.split(", ")
    count, size, style, concept = _FIRST.fullmatch(first).groups()
    *u, general = torch.rand(3 + len(others)).tolist()
    if general > named and concept in _groups():
        category, subcategory = _groups()[concept]
        concept = HYPERNYMS[subcategory if (general - named) / (1 - named) < 0.6 else category]
    words = [count, *[size] * bool(size and u[0] < said), *[style] * (u[1] < said), concept]
    return ", ".join([" ".join(words), *(fact for fact, v in zip(others, u[2:], strict=True) if v < said)])


@cache
def _groups() -> dict[str, tuple[str, str]]:
    """Category and subcategory of each concept that has words for them."""
    rows = [row for row in concept_table() if row["subcategory"] in HYPERNYMS]
    return {row["name"]: (row["category"], row["subcategory"]) for row in rows}


def contrast(images: torch.Tensor, words: torch.Tensor, captions: list[str], log_scale: torch.Tensor) -> torch.Tensor:
    """Contrastive loss of N images' embeddings (N, width) and M >= N captions' (M, width), the first N being the images' own.

    Images with equal captions count as each other's matches.
    """
    logits = log_scale.clamp(max=4.6).exp() * F.normalize(images.float(), dim=-1) @ words.T
    n = len(images)
    first = {}
    number = torch.tensor([first.setdefault(caption, i) for i, caption in enumerate(captions)], device=logits.device)
    own = (number[:n, None] == number).float()
    scenes, theirs = own / own.sum(1, keepdim=True), own[:, :n] / own[:, :n].sum(1, keepdim=True)
    return (F.cross_entropy(logits, scenes) + F.cross_entropy(logits[:, :n].T, theirs)) / 2
