"""What explains a unit: planted units that answer to one fact, and shares worked out by hand."""

import numpy as np
import pytest
import timm
import torch

from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.emoji_world import STYLES, EmojiWorld
from vitviz_nb.experiments import semantics as factors
from vitviz_nb.experiments.semantics import FACTS, IN_ONE_STYLE, across_styles, by_lot, colors, explained, facts_of
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

N = 512


@pytest.fixture
def planted(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    """A model of one layer whose units are: 0 the concept, 1 the style, 2 both added, 3 their product, 4 the context, 5 nothing
    known, 6 always the same, 7 the concept in 3D models alone."""
    numbers = torch.Generator().manual_seed(0)
    concept, style = torch.randn(256, generator=numbers), torch.randn(5, generator=numbers)

    def answers(model, kind, images):
        scenes = planted.shown
        c, s = concept[scenes.concept], style[scenes.style]
        noise = torch.rand(len(c), generator=torch.Generator().manual_seed(int(scenes.indices[0])))
        in_3d, same = c * (scenes.style == 0), torch.full_like(c, 0.1)
        return [torch.stack([c, s, c + s, c * s, scenes.context.float(), noise, same, in_3d], 1)]

    batch = EmojiWorld.batch

    def drawn(self, *arguments, **named):
        planted.shown = batch(self, *arguments, **named)
        return planted.shown

    monkeypatch.setattr(EmojiWorld, "batch", drawn)
    monkeypatch.setattr(factors, "activations", answers)
    monkeypatch.setattr(factors, "sites", lambda model: {"mlp": [next(iter(real(model).values()))[0]]})
    return tiny_vit


real = factors.sites


def test_each_unit_is_explained_by_the_fact_it_was_planted_to_answer_to(planted):
    world = EmojiWorld("val", concepts=["ant", "cat", "dog", "owl"], size=32)
    found = explained(planted, world, N)
    share = dict(zip(found.facts, found.shares[0], strict=True))
    assert found.facts == (*FACTS, IN_ONE_STYLE) and dict(zip(found.facts, found.levels, strict=True))["style"] == 5
    assert share["concept"][0] == pytest.approx(1, abs=1e-4) and share["style"][1] == pytest.approx(1, abs=1e-4)
    assert share["concept"][2] + share["style"][2] == pytest.approx(1, abs=0.05)  # scenes are not quite evenly spread
    assert share[IN_ONE_STYLE][2] == pytest.approx(0, abs=0.05) and share[IN_ONE_STYLE][3] > 0.2
    assert share["context"][4] == pytest.approx(1, abs=1e-4)
    for fact in ("concept", "style", "context", "count", "size", "turn", "place"):
        assert abs(share[fact][5]) < 0.05  # adjusted: a fact of many values explains no noise
        assert share[fact][6] == 0
    assert found.best("context", 0, 1) == [(4, pytest.approx(1, abs=1e-4))]
    rows = found.by_layer().table.set_index("explained by")
    assert rows.loc["context", "value"] == pytest.approx(100 * share["context"].mean().item()) and rows.loc["context", "n"] == 8


def test_contexts_are_drawn_by_lot_so_that_they_tell_nothing_of_concepts(planted):
    found = explained(planted, n=2048)
    share = dict(zip(found.facts, found.shares[0], strict=True))
    assert abs(share["concept"][4]) < 0.05  # in a scene's own context it would be about a half
    lot = by_lot(range(1200))
    assert np.bincount(lot, minlength=12).min() > 70 and len(CONTEXTS) == 12
    assert (by_lot([700, 3]) == lot[[700, 3]]).all()


def test_shuffled_facts_explain_nothing(planted):
    found = explained(planted, n=1024, shuffled=True)
    assert all(abs(found.shares[0][found.facts.index(fact)][:5]).max() < 0.1 for fact in ("style", "context", "place"))


def test_a_second_run_asks_nothing(planted, monkeypatch: pytest.MonkeyPatch):
    first = explained(planted, n=64)
    monkeypatch.setattr(factors, "activations", lambda *_: pytest.fail("asked again"))
    again = explained(planted, n=64)
    assert again.facts == first.facts and again.levels == first.levels and torch.equal(again.shares[0], first.shares[0])


def test_epsilon_squared_is_worked_out_by_hand():
    sums = factors._Sums()
    sums.add(torch.tensor([[1.0], [3.0], [5.0], [7.0]]), {"side": torch.tensor([0, 0, 1, 1])})
    # Mean 4, whole 20, within 4; (4 / 2) / (20 / 3) = 0.3.
    assert sums.shares()["side"].item() == pytest.approx(0.7)
    with pytest.raises(VitvizError, match="each has its own value of 'who'"):
        alone = factors._Sums()
        alone.add(torch.rand(3, 1), {"who": torch.tensor([0, 1, 2])})
        alone.shares()


def test_colors_have_the_names_people_give_them():
    shown = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1], [1, 0, 0], [1, 0.75, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0.1]])
    images = shown[:, :, None, None].expand(-1, 3, 4, 4).clone()
    masks = torch.zeros(len(shown), 4, 4)
    masks[:, 1:3, 1:3] = 1
    images[:, :, 0] = 0.3  # outside of the mask
    black, gray, white, red, yellow, green, blue, other_red = colors(images, masks).tolist()
    assert (black, gray, white, red, other_red) == (0, 1, 2, 3, 3)
    assert len({red, yellow, green, blue}) == 4 and min(yellow, green, blue) > 3 and max(yellow, green, blue) < 11


def test_every_fact_of_a_scene_is_a_number(planted):
    facts = facts_of(EmojiWorld(size=32).batch(range(8)))
    assert tuple(facts) == FACTS and all(f.dtype == torch.int64 and f.shape == (8,) for f in facts.values())


def test_a_unit_for_a_concept_in_all_styles_is_told_from_one_for_3d_alone(planted):
    rows = across_styles(planted, 1024).table
    # Of the eight planted units only those that vary with concepts on average count; concept, sum and product do.
    value = rows.set_index("3d and")["value"]
    assert set(value.index) == {*STYLES, "3d, other concepts"}
    assert value["3d"] > 0.5 and abs(value["3d, other concepts"]) < 0.2


def test_a_unit_keeps_its_profile_in_every_style_if_only_the_concept_counts(planted, monkeypatch: pytest.MonkeyPatch):
    answers = factors.activations
    monkeypatch.setattr(factors, "activations", lambda *a: [answers(*a)[0][:, [0, 7]]])
    value = across_styles(planted, 1024).table.set_index("3d and")["value"]
    assert value["3d"] == pytest.approx(1, abs=1e-4)
    assert value["word"] == value["line"] == pytest.approx(1, abs=1e-4)  # the unit for 3D alone is still there, and left out
    assert abs(value["3d, other concepts"]) < 0.2


def test_images_of_ones_own_are_explained_by_their_classes_or_by_what_is_given(tiny_vit):
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[::2] *= 0.2
    found = explained(tiny_vit, images, facts={"light": ["dark", "bright"] * 12, "day": ["mon", "tue", "wed"] * 8})
    light, day = (share.mean().item() for share in found.shares[0])
    assert found.facts == ("light", "day") and light > 0.5 > 0.2 > day
    with pytest.raises(VitvizError, match="given for 3 images, but there are 24"):
        explained(tiny_vit, images, facts={"light": [1, 2, 3]})
    with pytest.raises(VitvizError, match="scenes are known"):
        explained(tiny_vit, facts={"light": []})
    with pytest.raises(VitvizError, match="there is no 'lihgt'. .*light"):
        found.best("lihgt")


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "resnet18"])
def test_it_runs_on_timm_models_with_random_weights(name):
    model = VisionModel(timm.create_model(name).eval(), name, 224, trained=False)
    images = torch.rand(6, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    found = explained(model, images, facts={"half": [0, 1] * 3})
    assert all(share.isfinite().all() and share.max() <= 1 for share in found.shares)
