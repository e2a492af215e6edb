"""Emoji World: what is in it, that a scene is fixed by (split, index, seed), and that its truth is true."""

import math
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from vitviz_nb.datasets import backgrounds, sprites
from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.emoji_world import P_USUAL_CONTEXT, SPLITS, STYLES, EmojiWorld
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.paths import data_dir

DATA = data_dir() / "emoji_world"
STEP = 1 / 255
DRAWN = ("3d", "cartoon", "flat")  # the styles in color


@pytest.fixture(scope="module")
def world() -> EmojiWorld:
    return EmojiWorld()


def facts_of(world: EmojiWorld, **changes) -> dict[str, np.ndarray]:
    """Facts of one scene, all known: one upright object in full size in the middle of a background in plain light."""
    known = {
        "concept": 3, "style": 0, "context": 0, "count": 1, "companion": -1, "rotation": 0, "position": 0, "size": 2,
        "occluded": False, "blurred": False, "objects": 1, "x": 0.0, "y": 0.0, "scale": 1.0, "tilt": 0.0, "flip": 1.0,
        "gain": 1.0, "ink": 0.0, "cut_angle": 0.0, "cut_at": 0.0, "variant": 2, "window": [10, 20], "mirror": False,
        "light": 1.0,
    }
    facts = world.facts(np.array([0]))
    assert known.keys() == facts.keys() and changes.keys() <= known.keys()
    return {key: np.broadcast_to(np.asarray(value, facts[key].dtype), facts[key].shape).copy()
            for key, value in (known | changes).items()}


def drawn(world: EmojiWorld, facts: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (N, 3, S, S) and masks (N, S, S)."""
    return world.draw(facts)


def one(world: EmojiWorld, **changes) -> tuple[torch.Tensor, torch.Tensor]:
    """Image (3, S, S) and mask (S, S) of a scene of known facts."""
    images, masks = drawn(world, facts_of(world, **changes))
    return images[0], masks[0]


def background(world: EmojiWorld) -> torch.Tensor:
    """What lies behind the scenes of ``one``: rows 10 to 73 and columns 20 to 83 of a tile."""
    return backgrounds.tiles(16, world.seed * 3 + SPLITS.index(world.split))[0, 2, :, 10:74, 20:84].float() / 255


def sprite(world: EmojiWorld, concept: int, style: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Color (3, 64, 64) and opacity (64, 64), cut from the committed sheet by hand."""
    row = [row["name"] for row in sprites.concept_table()].index(world.concepts[concept])
    cell = (row % 30 * 64, row // 30 * 64, row % 30 * 64 + 64, row // 30 * 64 + 64)
    with Image.open(DATA / f"{style}.webp") as sheet:
        pixels = torch.from_numpy(np.array(sheet.convert("RGBA").crop(cell))).permute(2, 0, 1) / 255
    return pixels[:3], pixels[3]


# What there is


def test_there_are_600_concepts_in_five_styles_and_ten_contexts():
    everything = EmojiWorld(concepts="all")
    assert len(set(everything.concepts)) == len(everything.concepts) >= 600
    assert everything.styles == STYLES and len(set(STYLES)) == 5
    assert len(set(CONTEXTS)) == len(CONTEXTS) >= 10
    for row in sprites.concept_table():
        assert all(row[field] for field in ("name", "codepoint", "category", "subcategory")) and row["context"] in CONTEXTS


def test_256_concepts_are_trained_32_of_each_category(world: EmojiWorld):
    assert len(world.concepts) == 256 and len(world.categories) == 8
    assert np.bincount(world.category_of).tolist() == [32] * 8


def test_trained_and_unseen_share_nothing_and_are_all(world: EmojiWorld):
    trained, unseen = set(world.concepts), set(EmojiWorld(concepts="unseen").concepts)
    assert not trained & unseen
    assert trained | unseen == set(EmojiWorld(concepts="all").concepts)


@pytest.mark.parametrize("style", STYLES)
def test_every_sprite_can_be_seen_and_is_of_its_concept_alone(style: str):
    drawn = sprites.sheet(style)
    assert drawn.shape == (len(sprites.concept_table()), 4, 64, 64)
    opaque = (drawn[:, 3] > 127).flatten(1).sum(1)
    assert opaque.min() >= 100  # of 4,096 px
    assert len({picture.numpy().tobytes() for picture in drawn}) == len(drawn)


# A scene is fixed by (split, index, seed)


def test_a_scene_does_not_depend_on_its_batch(world: EmojiWorld):
    numbers = torch.randperm(150).tolist()  # more than are drawn at once
    together = world.batch(numbers)
    for k in (0, 127, 128, 149):
        alone = world.batch([numbers[k]])
        assert (alone.images[0] - together.images[k]).abs().max() <= STEP
        assert (alone.masks[0] - together.masks[k]).abs().max() <= STEP
        for fact in ("concept", "style", "context", "count", "size", "rotation", "position", "occluded", "blurred", "companion"):
            assert getattr(alone, fact)[0] == getattr(together, fact)[k], fact
        assert alone.captions == [together.captions[k]]
    assert together.indices.tolist() == numbers


def test_the_same_world_made_again_shows_the_same_scenes(world: EmojiWorld):
    again = EmojiWorld().batch(range(8))
    assert (again.images - world.batch(range(8)).images).abs().max() <= STEP


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_scene_does_not_depend_on_the_device(world: EmojiWorld):
    here, there = world.batch(range(64)), world.batch(range(64), "cuda")
    # The edge of a cut may fall on another side of a pixel's middle; everything else agrees.
    assert ((here.images - there.images.cpu()).abs() <= STEP).float().mean() > 0.999
    assert here.captions == there.captions


def test_splits_and_seeds_share_no_scene():
    worlds = [EmojiWorld(split) for split in SPLITS] + [EmojiWorld("val", seed=1)]
    scenes = [picture.mul(255).byte().numpy().tobytes() for w in worlds for picture in w.batch(range(40)).images]
    assert len(set(scenes)) == len(scenes)
    facts = [w.facts(np.arange(4000)) for w in worlds]
    for i, first in enumerate(facts):
        for second in facts[:i]:  # independent draws: concepts agree by chance, 1 in 256
            assert (first["concept"] == second["concept"]).mean() < 0.01


def test_splits_and_seeds_share_no_background():
    tiles = [backgrounds.tiles(16, seed * 3 + k).flatten(0, 1) for k, seed in ((0, 0), (1, 0), (2, 0), (1, 1))]
    seen = [tile.numpy().tobytes() for group in tiles for tile in group]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("held_out", ["3d", "word"])
def test_a_held_out_style_is_never_drawn(held_out: str):
    world = EmojiWorld("train", concepts=["dog face", "pizza"], styles=[s for s in STYLES if s != held_out])
    assert {world.styles[i] for i in world.batch(range(40)).style} == set(STYLES) - {held_out}


# Its truth is true


def test_image_and_mask_are_sprite_over_background_as_worked_out_by_hand(world: EmojiWorld):
    for style in DRAWN:
        color, opacity = sprite(world, 3, style)
        image, mask = one(world, style=STYLES.index(style))
        assert (mask - opacity).abs().max() < 1e-3
        assert (image - (opacity * color + (1 - opacity) * background(world))).abs().max() < 2 * STEP


def test_the_mask_is_zero_where_nothing_of_the_concept_is(world: EmojiWorld):
    image, mask = one(world, scale=0.5, x=0.5, y=-0.5)  # the upper right quarter
    outside = torch.ones(64, 64, dtype=torch.bool)
    outside[:32, 32:] = False
    assert mask[~outside].max() > 0.99
    assert mask[outside].max() == 0
    assert torch.equal(image[:, outside], background(world)[:, outside])


def test_the_mask_turns_and_flips_with_the_object(world: EmojiWorld):
    upright = one(world)[1]
    assert (one(world, flip=-1.0)[1] - upright.flip(1)).abs().max() < 1e-3
    assert (one(world, tilt=math.pi / 2)[1] - upright.rot90(-1)).abs().max() < 1e-3  # clockwise
    assert (upright - upright.flip(1)).abs().max() > 0.5  # else nothing was tested


def test_the_mask_shows_every_object_of_the_concept(world: EmojiWorld):
    single = one(world, scale=0.5, x=-0.5)[1]
    pair = one(world, scale=0.5, x=[[-0.5, 0.5, 0, 0]], count=2, objects=2)[1]
    assert (pair[:, :32] - single[:, :32]).abs().max() < 1e-5
    assert (pair[:, 32:] - single[:, :32]).abs().max() < 1e-3


def test_the_mask_leaves_out_the_companion_and_what_it_hides(world: EmojiWorld):
    both = {"companion": 7, "objects": 2, "scale": 0.5}
    image, mask = one(world, x=[[-0.5, 0.5, 0, 0]], **both)
    assert mask[:, 32:].max() == 0
    assert (image[:, :, 32:] - background(world)[:, :, 32:]).abs().max() > 0.2  # there it is
    hidden = one(world, **both)[1]  # both in the middle, the companion in front
    alone, front = one(world, scale=0.5)[1], one(world, scale=0.4, concept=7)[1]
    assert (hidden - alone * (1 - front)).abs().max() < 1e-3


def test_occlusion_hides_the_half_beyond_the_cut(world: EmojiWorld):
    whole, cut = one(world)[1], one(world, occluded=True, cut_angle=0.0, cut_at=0.0)
    assert torch.equal(cut[1][:, :32], whole[:, :32])
    assert cut[1][:, 32:].max() == 0 < whole[:, 32:].max()
    assert torch.equal(cut[0][:, :, 32:], background(world)[:, :, 32:])


def test_an_occluded_scene_shows_less_of_its_concept(world: EmojiWorld):
    facts = world.facts(np.arange(1500))
    rows = facts["occluded"] & (facts["style"] < len(DRAWN))  # a word is so thin that a cut may miss it
    facts = {key: value[rows] for key, value in facts.items()}
    covered = drawn(world, facts)[1].sum((1, 2))
    whole = drawn(world, facts | {"occluded": np.zeros_like(facts["occluded"])})[1].sum((1, 2))
    assert rows.sum() > 60
    assert (covered < 0.95 * whole).all() and (covered > 0.05 * whole).all()


def test_where_the_mask_is_zero_and_nobody_else_stands_the_background_shows(world: EmojiWorld):
    facts = world.facts(np.arange(200))
    rows = (facts["companion"] < 0) & ~facts["blurred"]
    facts = {key: value[rows] for key, value in facts.items()}
    images, masks = drawn(world, facts)
    empty, nothing = drawn(world, facts | {"objects": np.zeros_like(facts["objects"])})
    assert nothing.max() == 0
    free = (masks == 0)[:, None].expand_as(images)
    assert 0.1 < free.float().mean() < 0.9
    assert torch.equal(images[free], empty[free])
    assert masks.min() >= 0 and masks.max() <= 1
    solid = (masks > 0.99)[:, None].expand_as(images)
    assert (images[solid] - empty[solid]).abs().mean() > 0.1


def test_images_and_masks_stay_within_zero_and_one(world: EmojiWorld):
    scenes = world.batch(range(256))
    for tensor in (scenes.images, scenes.masks):
        assert tensor.dtype == torch.float32 and tensor.min() >= 0 and tensor.max() <= 1
    assert (scenes.masks.amax((1, 2)) > 0.5).float().mean() > 0.98
    assert scenes.images.shape == (256, 3, 64, 64) and scenes.masks.shape == (256, 64, 64) and len(scenes) == 256


def test_a_blurred_scene_is_smoother_than_the_same_unblurred(world: EmojiWorld):
    def roughness(blurred: bool) -> float:
        return one(world, blurred=blurred)[0].diff(dim=2).abs().mean().item()

    assert roughness(True) < 0.6 * roughness(False)


def test_a_concept_stands_in_its_usual_context_as_often_as_stated(world: EmojiWorld):
    n = 20_000
    facts = world.facts(np.arange(n))
    usual = facts["context"] == world.usual_context[facts["concept"]]
    assert P_USUAL_CONTEXT == 0.7
    assert abs(usual.mean() - 0.7) < 4 * math.sqrt(0.7 * 0.3 / n)
    strange = Counter(((facts["context"] - world.usual_context[facts["concept"]]) % len(CONTEXTS))[~usual].tolist())
    assert len(strange) == len(CONTEXTS) - 1
    share = 1 / len(strange)  # all others are equally likely
    for hits in strange.values():
        assert abs(hits / (~usual).sum() - share) < 4 * math.sqrt(share * (1 - share) / (~usual).sum())


def test_concepts_and_styles_are_equally_likely(world: EmojiWorld):
    n = 20_000
    facts = world.facts(np.arange(n))
    for fact, kinds in (("concept", 256), ("style", 5)):
        counts = np.bincount(facts[fact], minlength=kinds)
        assert len(counts) == kinds and np.abs(counts - n / kinds).max() < 5 * math.sqrt(n / kinds)


def test_a_style_named_twice_is_drawn_twice_as_often_and_listed_once():
    n, world = 20_000, EmojiWorld("train", styles=("flat", "word", "flat"))
    assert world.styles == ("flat", "word")
    share = (world.facts(np.arange(n))["style"] == 0).mean()
    assert abs(share - 2 / 3) < 4 * math.sqrt(2 / 9 / n)
    scenes = world.batch(range(40))
    assert all((" word" in caption) == (style == 1) for caption, style in zip(scenes.captions, scenes.style, strict=True))
    assert "styles flat, word, flat," in repr(world)


def test_a_caption_names_concept_context_and_count(world: EmojiWorld):
    scenes = world.batch(range(300))
    words = ("a ", "two ", "three ")
    assert len(scenes.captions) == 300
    for i, caption in enumerate(scenes.captions):
        assert f" of {world.concepts[scenes.concept[i]]}" in caption
        assert caption.endswith(f"on {CONTEXTS[scenes.context[i]]}")
        assert caption.startswith(words[scenes.count[i] - 1])
        assert caption.split()[1] == {0: "small", 2: "large"}.get(int(scenes.size[i]), caption.split()[1])
        assert scenes.size[i] != 1 or caption.split()[1] not in ("small", "large")
        assert ("half hidden" in caption) == scenes.occluded[i]
        assert ("blurred" in caption) == scenes.blurred[i]
        assert ("upside down" in caption) == (scenes.rotation[i] == 2)
        if scenes.companion[i] >= 0:
            assert f"with {world.concepts[scenes.companion[i]]}" in caption and scenes.companion[i] != scenes.concept[i]
    assert set(scenes.count.tolist()) == {1, 2, 3}
    assert scenes.category.tolist() == [world.category_of[c] for c in scenes.concept]


@pytest.mark.parametrize("size", [32, 96])
def test_another_size_shows_the_same_scenes(world: EmojiWorld, size: int):
    def coarse(pictures: torch.Tensor) -> torch.Tensor:
        return F.interpolate(pictures, (16, 16), mode="area")

    other, same = EmojiWorld(size=size).batch(range(32)), world.batch(range(32))
    assert other.images.shape == (32, 3, size, size) and other.captions == same.captions
    assert (coarse(other.images) - coarse(same.images)).abs().mean() < 0.02
    assert (coarse(other.masks[:, None]) - coarse(same.masks[:, None])).abs().mean() < 0.02
    assert (coarse(other.images) - coarse(same.images.roll(1, 0))).abs().mean() > 0.1  # another scene is far from it


# Bad input


@pytest.mark.parametrize(("arguments", "message"), [
    ({"split": "valid"}, r"split is one of train, val, test; got 'valid'"),
    ({"split": 1}, r"split is one of train, val, test; got 1"),
    ({"styles": ["flat", "oil"]}, r"styles is one of 3d, cartoon, flat, line, word; got 'oil'"),
    ({"styles": []}, r"styles is a list of names, with at least one, got \[\]"),
    ({"styles": None}, r"styles is a list of names"),
    ({"size": 4}, r"size is a whole number from 8 to 2048, got 4"),
    ({"size": 64.5}, r"size is a whole number from 8 to 2048, got 64.5"),
    ({"size": 10**6}, r"size is a whole number from 8 to 2048"),
    ({"seed": -1}, r"seed is a whole number from 0"),
    ({"seed": 2**64}, r"seed is a whole number from 0"),
    ({"seed": "0"}, r"seed is a whole number from 0"),
    ({"concepts": "seen"}, r"'trained', 'unseen', 'all' or names of .*concepts.csv, got 'seen'"),
    ({"concepts": ["dog face", "dog fase"]}, r"got 'dog fase'.*Did you mean dog face"),
    ({"concepts": ["dog face", 3]}, r"concepts is a list of names, .*got \['dog face', 3\]"),
    ({"concepts": 7}, r"concepts is a list of names"),
    ({"concepts": ["dog face"]}, r"at least two concepts"),
    ({"concepts": "dog face"}, r"at least two concepts"),
])
def test_arguments_out_of_range_are_refused_with_what_is_allowed(arguments: dict, message: str):
    with pytest.raises(VitvizError, match=message):
        EmojiWorld(**arguments)


def test_one_style_may_be_given_by_its_name_and_numbers_as_numpys():
    assert EmojiWorld(styles="3d").styles == ("3d",)
    assert repr(EmojiWorld(size=np.int64(32), seed=torch.tensor(3))) == repr(EmojiWorld(size=32, seed=3))


@pytest.mark.parametrize("indices", [3, None, "abc", [2.0], [True], [[1, 2]], [4, -3], [2**63], torch.tensor(5), {1: 2}.values,
                                     np.array([1.5]), range(10**9)])
def test_indices_that_are_no_scene_numbers_are_refused(world: EmojiWorld, indices):
    for read in (world.batch, world.captions, world.facts):
        with pytest.raises(VitvizError, match="indices"):
            read(indices)


def test_indices_may_be_any_list_of_whole_numbers(world: EmojiWorld):
    expected = world.facts([4, 2])["concept"].tolist()
    for indices in (np.array([4, 2], np.uint8), torch.tensor([4, 2]), (i for i in (4, 2)), (torch.tensor(4), np.int32(2))):
        assert world.facts(indices)["concept"].tolist() == expected


@pytest.mark.parametrize("contexts", ["grass", [0], [0, 12], [0, -1], 3, [0.0, 1.0], ["grass", "sky"]])
def test_contexts_are_one_number_a_scene(world: EmojiWorld, contexts):
    with pytest.raises(VitvizError, match="contexts"):
        world.batch([0, 1], contexts=contexts)


@pytest.mark.parametrize("device", ["nowhere", 3.5, "cuda:99"])
def test_a_device_that_is_not_there_is_refused(world: EmojiWorld, device):
    with pytest.raises(VitvizError, match="cannot be drawn on"):
        world.batch([0], device)


def test_an_empty_batch_is_empty(world: EmojiWorld):
    scenes = world.batch([])
    assert len(scenes) == 0 and scenes.captions == [] and scenes.images.shape == (0, 3, 64, 64)
    assert "image/png" in scenes._repr_mimebundle_()


def test_captions_need_no_pictures():
    world = EmojiWorld("val", size=16)
    assert world.captions([5, 900, 2**41]) == world.batch([5, 900, 2**41]).captions


# Damaged data


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A copy of Emoji World's data, to be damaged."""
    shutil.copytree(DATA, tmp_path / "emoji_world", ignore=shutil.ignore_patterns("*.py"))
    monkeypatch.setattr(sprites, "data_dir", lambda: tmp_path)
    caches = (sprites.concept_table, sprites.sprites)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path / "emoji_world"
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize("content", [None, b"", b"name,context\ndog,grass\n", b"\xff\xfe\x00",
                                     b"name,category,context,trained\na,b,moon,1\n"])
def test_a_concept_table_that_is_missing_or_damaged_is_named_with_the_mend(damaged: Path, content: bytes | None):
    (damaged / "concepts.csv").unlink()
    if content is not None:
        (damaged / "concepts.csv").write_bytes(content)
    with pytest.raises(VitvizError, match=r"concepts\.csv is missing or damaged .*Restore it with git checkout"):
        EmojiWorld()


@pytest.mark.parametrize(("style", "file"), [("flat", "flat.webp"), ("line", "line.png")])
@pytest.mark.parametrize("damage", ["missing", "empty", "cut off", "wrong shape"])
def test_sprites_that_are_missing_or_damaged_are_named_with_the_mend(damaged: Path, style: str, file: str, damage: str):
    path = damaged / file
    content = path.read_bytes()
    path.unlink()
    if damage == "wrong shape":
        Image.new("RGBA" if style == "flat" else "L", (1920, 64)).save(path)
    elif damage != "missing":
        path.write_bytes(content[:len(content) // 2] if damage == "cut off" else b"")
    with pytest.raises(VitvizError, match=rf"{file} is missing or damaged .*Restore it with git checkout"):
        EmojiWorld(styles=style, seed=977).batch([0])  # which nobody has drawn before
