"""Captions beside scenes: points of images, choices among captions that differ in one fact, and the exercises of notebook 08."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import vitviz_nb as vv
from vitviz_nb.course import exercises_further
from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.emoji_world import POSITIONS, ROTATIONS, SIZES, STYLES, EmojiWorld, Scenes
from vitviz_nb.experiments import semantics as factors
from vitviz_nb.experiments.result import Result
from vitviz_nb.experiments.semantics import by_captions, points
from vitviz_nb.utils.errors import VitvizError

SAID = [*CONTEXTS, *POSITIONS[1:], *ROTATIONS[1:], "small", "large", "two", "three", "3D", "cartoon", "flat"]


class Reader:
    """A text tower that has a direction for each word of ``SAID`` and reads nothing else."""

    def __call__(self, captions: list[str]) -> torch.Tensor:
        spoken = [f"{caption.replace(',', ' ')} ".replace("side ", "side") for caption in captions]
        found = torch.tensor([[float(f" {word} " in f" {text}") for word in SAID] + [1.0] for text in spoken])
        return found / found.norm(dim=1, keepdim=True)


@pytest.fixture
def reader(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    """A model whose image tower sees exactly what scenes' captions say of the ground and the style, and nothing else."""
    model, batch, told = tiny_vit, EmojiWorld.batch, {}

    def drawn(self, *arguments, **named) -> Scenes:
        scenes = batch(self, *arguments, **named)
        unsaid = replace(scenes, count=scenes.count * 0 + 1, size=scenes.size * 0 + 1, rotation=scenes.rotation * 0,
                         position=scenes.position * 0)
        told["points"] = 3 * Reader()(unsaid.captions)
        return scenes

    monkeypatch.setattr(EmojiWorld, "batch", drawn)
    monkeypatch.setattr(factors, "default_world", lambda model: EmojiWorld("val", styles=STYLES[:3], size=8))
    monkeypatch.setattr(model, "text", Reader())
    monkeypatch.setattr(factors, "points", lambda model, images: told["points"] / told["points"].norm(dim=1, keepdim=True))
    return model


def test_a_model_tells_apart_just_the_facts_that_its_image_tower_sees(reader):
    found = by_captions(reader, n=60)
    table = found.table.set_index(["captions differ in", "nearest to"])["value"]
    for fact in ("context", "style"):
        assert table[fact, "its own picture"] == 100
    for fact, of in (("turn", 3), ("place", 5), ("count", 3), ("size", 3)):
        assert table[fact, "its own picture"] == pytest.approx(100 / of), fact  # one answer, all values alike
    assert table["context", "another scene's picture"] < 25
    assert set(found.table["n"]) == {60}


def test_scenes_of_a_choice_show_each_value_equally_often_on_grounds_by_lot(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    asked, batch = [], EmojiWorld.batch

    def drawn(self, numbers, device="cpu", contexts=None):
        asked.append((batch(self, numbers, device, contexts), contexts))
        return asked[-1][0]

    monkeypatch.setattr(EmojiWorld, "batch", drawn)
    monkeypatch.setattr(factors, "default_world", lambda model: EmojiWorld("val", styles=STYLES[:2], size=8))
    monkeypatch.setattr(factors, "points", lambda model, images: torch.ones(len(images), 1))
    monkeypatch.setattr(tiny_vit, "text", lambda captions: torch.ones(len(captions), 1))
    monkeypatch.setattr(factors, "AT_ONCE", 60)  # the scenes of a fact in one batch
    by_captions(tiny_vit, n=60)
    counts = {"count": 3, "size": len(SIZES), "rotation": len(ROTATIONS), "style": 2, "position": len(POSITIONS), "context": len(CONTEXTS)}
    for (scenes, contexts), (fact, of) in zip(asked, counts.items(), strict=True):
        assert torch.bincount(getattr(scenes, fact) - int(fact == "count")).tolist() == [60 // of] * of
        assert (contexts == factors.by_lot(scenes.indices)).all()


def test_points_have_length_1_and_do_not_depend_on_the_batch(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    images = torch.rand(20, 3, tiny_vit.image_size, tiny_vit.image_size, generator=torch.Generator().manual_seed(0))
    with pytest.raises(VitvizError, match="tiny-vit has no text tower.* take emoji-clip"):
        points(tiny_vit, images)
    monkeypatch.setattr(tiny_vit, "text", Reader())
    found = points(tiny_vit, images)
    assert torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-5)
    assert torch.allclose(found[18:], points(tiny_vit, images[18:]), atol=1e-5)


@pytest.fixture
def captioned(monkeypatch: pytest.MonkeyPatch, tiny_vit):
    """A context that explains 40 % in the model's last layer and 25 % in the other's; 64 of 256 scenes that find their own
    caption; and 512 scenes, the nearest to "a bee" 4 bees on sea, then 7 things on snow and 3 elsewhere, to "a cat" 6 on snow."""
    def shares(model, n):
        assert n == 2048
        last = 25.0 if model == "other" else 40.0
        table = pd.DataFrame([{"layer": layer, "explained by": fact, "value": value} for layer, fact, value in (
            (0, "concept", 9.0), (0, "context", 70.0), (1, "concept", 5.0), (1, "context", last))])
        return SimpleNamespace(by_layer=lambda: Result("", "", table))

    monkeypatch.setattr(exercises_further, "explained", shares)
    monkeypatch.setattr(exercises_further, "load", lambda name: "other")
    snow, sea, sky, road = (CONTEXTS.index(name) for name in ("snow", "sea", "sky", "road"))
    concept, companion = torch.full((512,), 2), torch.full((512,), -1)
    concept[:3], companion[3] = 1, 1  # three bees, and one beside something else
    context = torch.arange(512) % 12
    context[:14] = torch.tensor([sea] * 4 + [snow] * 7 + [sky, road, sea])
    context[20:30] = torch.tensor([snow] * 6 + [sky, sky, road, road])
    places = torch.zeros(512, 258)
    places[torch.arange(256), torch.arange(256)] = torch.where(torch.arange(256) % 4 == 0, 1.0, 0.1)
    places[torch.arange(256), (torch.arange(256) + 1) % 256] = 0.5
    places[:14, 256], places[20:30, 257] = torch.arange(14, 0, -1.0), torch.arange(10, 0, -1.0)
    monkeypatch.setattr(exercises_further, "points", lambda model, images: places[images])
    facts = {"concept": concept.numpy(), "companion": companion.numpy(), "context": context.numpy()}
    monkeypatch.setattr(exercises_further, "_pictured", lambda model: SimpleNamespace(
        concepts=["ant", "bee", "cat"], batch=lambda numbers: SimpleNamespace(images=list(numbers)),
        captions=lambda numbers: [str(k) for k in numbers],
        facts=lambda numbers: {name: values[numbers] for name, values in facts.items()}))
    place = {str(k): k for k in range(256)} | {"a bee": 256, "a cat": 257}
    monkeypatch.setattr(tiny_vit, "text", lambda captions: torch.eye(258)[[place.get(c, 0) for c in captions]])
    return tiny_vit


@pytest.mark.parametrize(("exercise", "right", "wrong"), [
    ("08.1", [15, 14.1, 15.9], [13.9, 16.1, -15, 40.0, 0]),
    ("08.2", [25, 23.1, 26.9], [22.9, 27.1, 0.4, 64, 75]),
])
def test_right_answers_to_notebook_08_pass_and_near_misses_do_not(exercise, right, wrong, captioned, capsys):
    for answer in right + wrong:
        vv.check(exercise, answer, captioned)
        assert capsys.readouterr().out.startswith("Right" if answer in right else "Not yet"), answer


def test_a_ground_that_was_not_said_counts_on_scenes_that_do_not_show_the_thing(captioned, capsys):
    vv.check("08.3", "bee", captioned)
    assert capsys.readouterr().out.startswith("Right: of the ten scenes nearest to 'a bee' that show none, 7 lie on snow")
    vv.check("08.3", "cat", captioned)
    assert "wanted are seven" in capsys.readouterr().out


@pytest.mark.parametrize(("exercise", "answer", "wanted"), [
    ("08.1", "15", "a number of percentage points"), ("08.1", True, "a number of percentage points"),
    ("08.2", None, "a number of percent"), ("08.2", np.bool_(True), "a number of percent"),
    ("08.3", "beee", "the name of a concept, .* Did you mean bee"), ("08.3", 3, "the name of a concept"),
])
def test_an_answer_of_the_wrong_kind_to_notebook_08_is_told_what_is_wanted(exercise, answer, wanted, captioned):
    with pytest.raises(VitvizError, match=f"Exercise {exercise} wants .*{wanted}"):
        vv.check(exercise, answer, captioned)


def test_choices_among_captions_need_a_text_tower_and_scenes_of_every_context(tiny_vit):
    with pytest.raises(VitvizError, match="tiny-vit has no text tower"):
        by_captions(tiny_vit)
    tiny_vit.text = lambda captions: torch.ones(len(captions), 1)
    with pytest.raises(VitvizError, match="two scenes each are needed, 24 in all, got n=23"):
        by_captions(tiny_vit, n=23)
