"""Facts that explain activations: planted units that depend on one fact; and choices among captions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from vitviz_nb.datasets.backgrounds import CONTEXTS
from vitviz_nb.datasets.emoji_world import POSITIONS, ROTATIONS, SIZES, STYLES, EmojiWorld, Scenes
from vitviz_nb.experiments import semantics
from vitviz_nb.experiments.semantics import (
    FACTS,
    STORED,
    across_styles,
    caption_matching,
    image_embeddings,
    mean_colors,
    profiles_by_category,
    random_contexts,
    scene_facts,
    variance_by_fact,
)
from vitviz_nb.models.loading import load
from vitviz_nb.models.sites import find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import NotApplicable, VitvizError

N = 512


@pytest.fixture
def planted(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    """A model of one layer whose units are: 0 the concept, 1 the style, 2 both added, 3 their product, 4 the context, 5 noise,
    6 a constant, 7 the concept in 3D style only."""
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
    monkeypatch.setattr(semantics, "activations", answers)
    monkeypatch.setattr(semantics, "find_sites", lambda model: {"mlp": [replace(find_sites(model)["mlp"][0], units=8)]})
    return tiny_vit


def test_each_unit_is_explained_by_the_fact_it_was_planted_to_depend_on(planted):
    world = EmojiWorld("val", concepts=["ant", "cat", "dog", "owl"], size=32)
    found = variance_by_fact(planted, world, n=N)
    share = dict(zip(found.facts, found.fractions[0], strict=True))
    assert found.facts == FACTS
    assert share["concept"][0] == pytest.approx(1, abs=1e-4) and share["style"][1] == pytest.approx(1, abs=1e-4)
    assert share["concept"][2] + share["style"][2] == pytest.approx(1, abs=0.05)  # scenes are not quite evenly spread
    assert share["context"][4] == pytest.approx(1, abs=1e-4)
    for fact in ("concept", "style", "context", "count", "size", "rotation", "position"):
        assert abs(share[fact][5]) < 0.05  # adjusted: a fact of many values explains no noise
        assert share[fact][6] == 0
    assert found.best("context", 0, 1) == [(4, pytest.approx(1, abs=1e-4))]
    rows = found.by_layer().table.set_index("explained by")
    assert rows.loc["context", "value"] == pytest.approx(100 * share["context"].mean().item()) and rows.loc["context", "n"] == 8


def test_contexts_are_random_so_that_they_are_independent_of_concepts(planted):
    found = variance_by_fact(planted, n=2048)
    share = dict(zip(found.facts, found.fractions[0], strict=True))
    assert abs(share["concept"][4]) < 0.05  # in a scene's own context it would be about a half
    lot = random_contexts(range(1200))
    assert np.bincount(lot, minlength=12).min() > 70 and len(CONTEXTS) == 12
    assert (random_contexts([700, 3]) == lot[[700, 3]]).all()


def test_shuffled_facts_explain_nothing(planted):
    found = variance_by_fact(planted, n=1024, shuffled=True)
    assert all(abs(found.fractions[0][found.facts.index(fact)][:5]).max() < 0.1 for fact in ("style", "context", "position"))


def test_a_second_run_comes_from_the_cache(planted, monkeypatch: pytest.MonkeyPatch):
    first = variance_by_fact(planted, n=64)
    monkeypatch.setattr(semantics, "activations", lambda *_: pytest.fail("measured again"))
    again = variance_by_fact(planted, n=64)
    assert again.facts == first.facts and torch.equal(again.fractions[0], first.fractions[0])


def test_what_is_stored_is_of_the_weights_that_ship_and_what_the_headlines_measured(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(semantics, "sums_by_fact", None)  # nothing is measured
    measured = pd.read_csv(Path(__file__).parents[3] / "notebooks" / "headlines.csv").set_index(["call", "cell"])["value"]
    for name, shuffled in (("emoji-clip", False), ("emoji-clip", True), ("emoji-vit-deep", False)):
        last = variance_by_fact(load(name, device="cpu"), n=STORED, shuffled=shuffled).by_layer().where(layer=11).table
        call = f"variance_by_fact({name}{', shuffled=True' * shuffled})"
        for fact in ("concept",) if shuffled else ("concept", "context"):
            value = last.set_index("explained by").loc[fact, "value"]
            assert value == pytest.approx(measured[call, f"layer=11, explained by={fact}"], abs=1e-3)


def test_what_is_stored_of_the_cls_token_is_of_that_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(semantics, "sums_by_fact", None)
    count = {(name, token): variance_by_fact(load(name, device="cpu"), n=STORED, token=token).best("count", count=1)[0][1]
             for name in ("emoji-clip", "emoji-vit-deep") for token in semantics.TOKENS}
    assert count["emoji-clip", "cls"] > 0.5 > count["emoji-clip", "patches"]  # captions tell the count; they are read from CLS
    assert count["emoji-vit-deep", "cls"] < 0.05


@pytest.mark.parametrize("other", ["scenes", "fewer", "kind", "weights"])
def test_what_is_stored_is_taken_for_nothing_else(other, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(semantics, "sums_by_fact", lambda *_, **__: pytest.fail("measured"))
    model = load("emoji-clip", device="cpu")
    variance_by_fact(model, n=STORED)
    if other == "weights":
        model.module.blocks[0].mlp.fc1.weight.data[0] += 1
    given = {"scenes": {"images": EmojiWorld("val", size=model.image_size), "n": STORED}, "fewer": {"n": 16},
             "kind": {"n": STORED, "kind": "query"}, "weights": {"n": STORED}}
    with pytest.raises(pytest.fail.Exception, match="measured"):
        variance_by_fact(model, **given[other])


def test_one_pass_measures_facts_and_shuffled_facts_and_profiles_at_either_token(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    facts = {"half": [i % 2 for i in range(33)]}  # the last batch is of one image, which has no other to take facts of
    images = torch.rand(33, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def plant(module, inputs):  # at the CLS token no unit varies
        return (torch.cat([torch.zeros_like(inputs[0][:, :1]), inputs[0][:, 1:]], 1),)

    for site in find_sites(tiny_vit)["mlp"]:
        tiny_vit.module.get_submodule(site.path).register_forward_pre_hook(plant)
    monkeypatch.setattr(type(tiny_vit), "state", lambda self: {"weights": "planted"})  # a hook of others is not cached
    own, profiles = variance_by_fact(tiny_vit, images, facts=facts), profiles_by_category(tiny_vit, 512)
    for name in ("activations", "each_layer"):
        monkeypatch.setattr(semantics, name, lambda *_, **__: pytest.fail("measured again"))
    control = variance_by_fact(tiny_vit, images, facts=facts, shuffled=True)
    assert control.fractions[0].shape == own.fractions[0].shape and not torch.equal(control.fractions[0], own.fractions[0])
    assert (profiles.table["n"] > 0).all() and (profiles_by_category(tiny_vit, 512, "cls").table["n"] == 0).all()


def test_a_fact_may_be_called_what_the_control_is_called(tiny_vit):
    images, half = torch.rand(32, 3, 32, 32), [i % 2 for i in range(32)]
    facts = {"half": half, "half, shuffled": half, "shuffled": half}
    for shuffled in (False, True, 2):
        found = variance_by_fact(tiny_vit, images, facts=facts, shuffled=shuffled)
        assert len(found.fractions) == 2 and all(torch.equal(row, found.fractions[0][0]) for row in found.fractions[0])


def test_colors_have_the_names_people_give_them():
    shown = torch.tensor([[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1], [1, 0, 0], [1, 0.75, 0], [0, 1, 0], [0, 0, 1], [0.9, 0.1, 0.1]])
    images = shown[:, :, None, None].expand(-1, 3, 4, 4).clone()
    masks = torch.zeros(len(shown), 4, 4)
    masks[:, 1:3, 1:3] = 1
    images[:, :, 0] = 0.3  # outside of the mask
    black, gray, white, red, yellow, green, blue, other_red = mean_colors(images, masks).tolist()
    assert (black, gray, white, red, other_red) == (0, 1, 2, 3, 3)
    assert len({red, yellow, green, blue}) == 4 and min(yellow, green, blue) > 3 and max(yellow, green, blue) < 11


def test_every_fact_of_a_scene_is_a_number(planted):
    facts = scene_facts(EmojiWorld(size=32).batch(range(8)))
    assert tuple(facts) == FACTS and all(f.dtype == torch.int64 and f.shape == (8,) for f in facts.values())


def test_profiles_correlate_across_styles_and_not_with_other_concepts(planted):
    rows = across_styles(planted, 288).table
    # Of the eight planted units only those that vary with concepts on average count; concept, sum and product do.
    value = rows.set_index("3d and")["value"]
    assert set(value.index) == {*STYLES, "3d, other concepts"}
    assert value["3d"] > 0.5 and abs(value["3d, other concepts"]) < 0.2


def test_a_unit_keeps_its_profile_in_every_style_if_it_depends_on_the_concept_alone(planted, monkeypatch: pytest.MonkeyPatch):
    answers = semantics.activations
    monkeypatch.setattr(semantics, "activations", lambda *a: [answers(*a)[0][:, [0, 7]]])
    value = across_styles(planted, 288).table.set_index("3d and")["value"]
    assert value["3d"] == pytest.approx(1, abs=1e-4)
    assert value["word"] == value["line"] == pytest.approx(1, abs=1e-4)  # the unit for 3D alone is still there, and left out
    assert abs(value["3d, other concepts"]) < 0.2


def test_categories_explain_a_profile_as_far_as_it_depends_on_them(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    """Units over concepts: the category; the category and as much of the concept; the concept alone; a constant, left out."""
    category_of, batch, shown = torch.from_numpy(EmojiWorld("val").category_of), EmojiWorld.batch, []
    value, own = torch.randn(9)[category_of], torch.randn(256)
    value, own = (value - value.mean()) / value.std(), (own - own.mean()) / own.std()
    units = torch.stack([value, value + own, own, torch.zeros(256)], 1)
    monkeypatch.setattr(EmojiWorld, "batch", lambda self, *a, **named: shown.append(batch(self, *a, **named)) or shown[-1])
    monkeypatch.setattr(semantics, "activations", lambda *_: [units[shown[-1].concept]])
    monkeypatch.setattr(semantics, "find_sites", lambda model: {"mlp": [replace(find_sites(model)["mlp"][0], units=4)]})
    found = profiles_by_category(tiny_vit, 512)
    mean = found.table.groupby("categories")["value"].mean()
    assert mean["own"] == pytest.approx((100 + 50 + 0) / 3, abs=5) and abs(mean["shuffled"]) < 2
    assert set(found.table["style"]) == set(STYLES) and set(found.table["layer"]) == {0} and set(found.table["n"]) == {3}


def test_at_the_cls_token_it_is_its_own_activations_that_are_explained(tiny_vit):
    """The CLS token's activation is made the class of its image, and those of the patch tokens are left as they are."""
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    half, site = torch.arange(64) % 2, find_sites(tiny_vit)["mlp"][-1]

    def plant(module, inputs):
        planted = inputs[0].clone()
        planted[:, 0] = half[:len(planted), None].float()  # batches are of an even number of images
        return (planted,)

    hook = tiny_vit.module.get_submodule(site.path).register_forward_pre_hook(plant)
    try:
        at_cls, at_patches = (variance_by_fact(tiny_vit, images, facts={"half": half.tolist()}, token=token).fractions[-1]
                              for token in ("cls", "patches"))
    finally:
        hook.remove()
    assert at_cls == pytest.approx(1, abs=1e-4) and abs(at_patches).max() < 0.5


@pytest.mark.parametrize("network", [
    lambda: timm.create_model("resnet18"),
    lambda: VisionTransformer(64, 8, embed_dim=16, depth=2, num_heads=2, class_token=False, reg_tokens=4, global_pool="avg")],
    ids=["CNN", "registers and no CLS token"])
def test_a_network_without_a_cls_token_is_refused_where_one_is_asked_for(network):
    model = VisionModel(network().eval(), "a-network", 64, trained=False)
    for call in (variance_by_fact, profiles_by_category):
        with pytest.raises(NotApplicable, match="a-network has no CLS token in every layer"):
            call(model, n=64, token="cls")


def test_images_of_ones_own_are_explained_by_their_classes_or_by_what_is_given(tiny_vit):
    images = torch.rand(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    images[::2] *= 0.2
    found = variance_by_fact(tiny_vit, images, facts={"light": ["dark", "bright"] * 12, "day": ["mon", "tue", "wed"] * 8})
    light, day = (share.mean().item() for share in found.fractions[0])
    assert found.facts == ("light", "day") and light > 0.5 > 0.2 > day
    with pytest.raises(VitvizError, match="facts has 24 values, .*'light' has 3"):
        variance_by_fact(tiny_vit, images, facts={"light": [1, 2, 3]})
    with pytest.raises(VitvizError, match="scenes are known"):
        variance_by_fact(tiny_vit, facts={"light": []})
    with pytest.raises(VitvizError, match="fact is one of light, day; got 'lihgt'. .*light"):
        found.best("lihgt")


def test_facts_are_told_apart_however_many_values_they_have(tiny_vit):
    images = torch.rand(1200, 3, 32, 32)
    first = np.arange(1200) % 2
    second = first.copy()
    second[500:700] = 1 - second[500:700]  # what repr leaves out of a long array
    shares = [variance_by_fact(tiny_vit, images, facts={"half": values}).fractions[0]
              for values in (first, second, torch.tensor(first))]
    assert torch.equal(shares[0], shares[2]) and not torch.allclose(shares[0], shares[1])


@pytest.mark.parametrize(("name", "settings"), [
    ("vit_tiny_patch16_224", {"img_size": 64}), ("test_resnet", {}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2)}),
])
def test_it_runs_on_timm_models_with_random_weights(name, settings):
    model = VisionModel(timm.create_model(name, **settings).eval(), name, 64, trained=False)
    images = torch.rand(6, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = variance_by_fact(model, images, facts={"half": [0, 1] * 3})
    assert all(share.isfinite().all() and share.max() <= 1 for share in found.fractions)


# Captions


SAID = [*CONTEXTS, *POSITIONS[1:], *ROTATIONS[1:], "small", "large", "two", "three", "3D", "cartoon", "flat"]


class Reader(nn.Module):
    """A text tower that has a direction for each word of ``SAID`` and reads nothing else."""

    def forward(self, captions: list[str]) -> torch.Tensor:
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
    monkeypatch.setattr(semantics, "default_world", lambda model: EmojiWorld("val", styles=STYLES[:3], size=8))
    monkeypatch.setattr(model, "text", Reader())
    monkeypatch.setattr(semantics, "image_embeddings",
                        lambda model, images: told["points"] / told["points"].norm(dim=1, keepdim=True))
    return model


def test_the_facts_that_the_image_tower_encodes_are_matched_and_the_others_by_chance(reader):
    found = caption_matching(reader, n=60)
    table = found.table.set_index(["captions differ in", "nearest to"])["value"]
    for fact in ("context", "style"):
        assert table[fact, "its own image"] == 100
    for fact, of in (("rotation", 3), ("position", 5), ("count", 3), ("size", 3)):
        assert table[fact, "its own image"] == pytest.approx(100 / of), fact  # one answer, all values alike
    assert table["context", "another scene's image"] < 25
    assert set(found.table["n"]) == {60}


def test_scenes_of_a_choice_show_each_value_equally_often_on_grounds_random_contexts(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    asked, batch = [], EmojiWorld.batch

    def drawn(self, numbers, device="cpu", contexts=None):
        asked.append((batch(self, numbers, device, contexts), contexts))
        return asked[-1][0]

    monkeypatch.setattr(EmojiWorld, "batch", drawn)
    monkeypatch.setattr(semantics, "default_world", lambda model: EmojiWorld("val", styles=STYLES[:2], size=8))
    monkeypatch.setattr(semantics, "image_embeddings", lambda model, images: torch.ones(len(images), 1))
    monkeypatch.setattr(tiny_vit, "text", Reader())
    monkeypatch.setattr(semantics, "AT_ONCE", 60)  # the scenes of a fact in one batch
    caption_matching(tiny_vit, n=60)
    counts = {"count": 3, "size": len(SIZES), "rotation": len(ROTATIONS), "style": 2, "position": len(POSITIONS),
              "context": len(CONTEXTS)}
    for (scenes, contexts), (fact, of) in zip(asked, counts.items(), strict=True):
        assert torch.bincount(getattr(scenes, fact) - int(fact == "count")).tolist() == [60 // of] * of
        assert (contexts == semantics.random_contexts(scenes.indices)).all()


def test_embeddings_have_length_1_and_do_not_depend_on_the_batch(tiny_vit, monkeypatch: pytest.MonkeyPatch):
    images = torch.rand(20, 3, tiny_vit.image_size, tiny_vit.image_size, generator=torch.Generator().manual_seed(0))
    with pytest.raises(VitvizError, match="tiny-vit has no text tower.* take emoji-clip"):
        image_embeddings(tiny_vit, images)
    monkeypatch.setattr(tiny_vit, "text", Reader())
    found = image_embeddings(tiny_vit, images)
    assert torch.allclose(found.norm(dim=1), torch.ones(20), atol=1e-5)
    assert torch.allclose(found[18:], image_embeddings(tiny_vit, images[18:]), atol=1e-5)


def test_choices_among_captions_need_a_text_tower_and_scenes_of_every_context(tiny_vit):
    with pytest.raises(VitvizError, match="tiny-vit has no text tower"):
        caption_matching(tiny_vit)
    tiny_vit.text = Reader()
    with pytest.raises(VitvizError, match="n is a whole number from 24 to"):
        caption_matching(tiny_vit, n=23)


@pytest.mark.parametrize("call", [
    lambda model: variance_by_fact(model, n=2.5), lambda model: variance_by_fact(model, n="many"),
    lambda model: variance_by_fact(model, kind=3), lambda model: variance_by_fact(model, torch.rand(4, 3, 32, 32), facts=["a"]),
    lambda model: variance_by_fact(model, torch.rand(4, 3, 32, 32), facts={"a": 4}),
    lambda model: variance_by_fact(model, torch.rand(4, 3, 32, 32), facts={"a": [[], [], [], []]}),
    lambda model: across_styles(model, 0), lambda model: across_styles(model, None),
    lambda model: profiles_by_category(model, 2.5), lambda model: profiles_by_category(model, token="CLS"),
    lambda model: variance_by_fact(model, n=64, token=0),
    lambda model: image_embeddings(model, 255 * torch.ones(1, 3, 32, 32))])
def test_arguments_of_a_wrong_type_or_range_are_refused_in_a_sentence(call, tiny_vit):
    tiny_vit.text = Reader()
    with pytest.raises(VitvizError, match=r"[.]$"):
        call(tiny_vit)
