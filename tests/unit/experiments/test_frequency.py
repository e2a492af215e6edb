"""Filters pass exactly the frequencies they should, and curves are those of models planted to see one of them."""

import math

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.experiments.frequency import (
    accuracy_by_cutoff,
    at_equal_accuracy,
    conflict,
    cutoff_needed,
    cutoffs,
    filtered,
    hybrid,
)
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

SIZE = 32


def wave(cycles: float, size: int = SIZE) -> torch.Tensor:
    line = torch.arange(size) / size
    return (0.5 + 0.25 * torch.cos(2 * math.pi * cycles * line)).expand(3, size, size)


def test_a_low_pass_keeps_low_frequencies_and_a_high_pass_the_others():
    both = (wave(3) + wave(10) - 0.5)[None]
    assert torch.allclose(filtered(both, 5, "low")[0], wave(3), atol=1e-5)
    assert torch.allclose(filtered(both, 5, "high")[0], wave(10), atol=1e-5)
    assert torch.allclose(filtered(both, 10, "low"), both, atol=1e-5)  # a wave on the radius counts as within
    assert torch.allclose(filtered(both, 0, "low"), torch.full_like(both, 0.5), atol=1e-5)
    assert torch.allclose(filtered(both, 0, "high"), both, atol=1e-5)


def test_diagonal_gratings_have_a_higher_frequency_than_their_rows():
    line = torch.arange(SIZE) / SIZE
    diagonal = (0.5 + 0.25 * torch.cos(2 * math.pi * 4 * (line[:, None] + line[None]))).expand(1, 3, SIZE, SIZE)
    assert torch.allclose(filtered(diagonal, 5.6), torch.full_like(diagonal, 0.5), atol=1e-5)  # 4 * sqrt(2) = 5.66
    assert torch.allclose(filtered(diagonal, 5.7), diagonal, atol=1e-5)


def test_what_leaves_the_range_is_clamped():
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2:] = 1
    assert 0 <= filtered(step, 4).min() and filtered(step, 4).max() <= 1


@pytest.mark.parametrize(("cutoff", "passes", "sentence"), [
    (3, "mid", "one of low, high; got 'mid'"), (3, None, "one of low, high; got None"), (-1, "low", "from 0 to .*, got -1"),
    (math.nan, "low", "got nan"), ("4", "low", "cutoff is a number"), (None, "high", "got None")])
def test_other_filters_are_refused(cutoff, passes, sentence):
    with pytest.raises(VitvizError, match=sentence):
        filtered(torch.zeros(1, 3, 8, 8), cutoff, passes)


def test_cutoffs_reach_from_two_cycles_to_the_corner():
    assert cutoffs(64) == [2, 4, 6, 8, 12, 16, 24, 32, 45]
    assert cutoffs(224)[-1] > 112 * math.sqrt(2) - 1


class Stripes:
    """Images of a fast wave ("fine") and of none ("plain")."""

    classes = ["plain", "fine"]

    def __len__(self):
        return 4

    def __getitem__(self, i):
        stripes = wave(8) if i % 2 else torch.full((3, SIZE, SIZE), 0.5)
        return Image.fromarray((255 * stripes).round().byte().permute(1, 2, 0).numpy()), i % 2


class Contrast(nn.Module):
    """"fine" where neighbors differ."""

    def forward(self, x):
        spread = x.std((1, 2, 3), correction=0)
        return torch.stack([torch.full_like(spread, 0.1), spread], 1)


def test_a_model_that_sees_8_cycles_is_correct_from_cutoff_8_on():
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    low = accuracy_by_cutoff(model, Stripes()).where(measure="top-1").table.set_index("cutoff (cycles per image)")["value"]
    assert low.to_dict() == {1: 50, 2: 50, 3: 50, 4: 50, 6: 50, 8: 100, 12: 100, 16: 100, 23: 100}
    high = accuracy_by_cutoff(model, Stripes(), passes="high").where(measure="top-1").table
    assert dict(zip(high.iloc[:, 0], high["value"], strict=True)) == {0: 100, 1: 100, 2: 100, 3: 100, 4: 100, 6: 100, 8: 50,
                                                                    12: 50, 16: 50}


def test_the_cutoff_that_leaves_a_proportion_is_read_from_a_straight_line_between_cutoffs():
    model = VisionModel(Fine(), "fine", SIZE, class_names=[*Stripes.classes, "neither"])
    guessing = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    waves = Waves([8, 8, 12, 12])  # a low-pass of 12 leaves all, of 8 two of four, of 6 none: half where it is 8
    low = cutoff_needed([model], waves, keep=0.5).table
    assert low["value"].tolist() == [8] and low["n"].tolist() == [4] and low["model"].tolist() == ["fine"]
    assert 6 <= low["low"].iloc[0] < low["high"].iloc[0] <= 12
    assert cutoff_needed([model], waves, keep=0.75).table["value"].tolist() == [10]
    waves = Waves([8, 8, 8, 12])  # of 12 leaves all, of 8 three of four, of 6 none: half at 6 + 2 * 2 / 3
    assert cutoff_needed([model], waves, keep=0.5).table["value"].iloc[0] == pytest.approx(6 + 4 / 3)
    # Beyond 6 all are left, beyond 8 one of four, beyond 12 none: half at 6 + 2 * 2 / 3, from the other side.
    assert cutoff_needed([model], waves, passes="high", keep=0.5).table["value"].iloc[0] == pytest.approx(6 + 4 / 3)
    both = cutoff_needed([guessing, model], Stripes(), keep=0.5).table  # of two classes, a guess is right half the time
    assert math.isnan(both["value"].iloc[0]) and both["value"].iloc[1] == pytest.approx(7)
    with pytest.raises(VitvizError, match="from 0.01 to 0.99, got 90"):
        cutoff_needed([model], waves, keep=90)


def test_a_model_without_classes_is_named_as_the_reason_and_no_other_images_are_advised():
    for measure in (accuracy_by_cutoff, conflict, lambda model, images: cutoff_needed([model], images)):
        with pytest.raises(VitvizError, match="nameless predicts no classes") as error:
            measure(VisionModel(Blind(), "nameless", SIZE), Stripes())  # as DINOv2
        assert "EmojiWorld" not in str(error.value)


def test_at_equal_accuracy_only_images_count_that_all_get_right():
    model = VisionModel(Fine(), "fine", SIZE, class_names=[*Stripes.classes, "neither"])
    guessing = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    table = at_equal_accuracy([guessing, model], Stripes()).table  # the second knows no plain images: two of four are left
    assert table["n"].eq(2).all()
    curves = {name: dict(zip(rows.iloc[:, 0], rows["value"], strict=True)) for name, rows in table.groupby("model")}
    assert curves["fine"] == curves["contrast"] == {r: 0 if r < 8 else 100 for r in cutoffs(SIZE)}
    high = at_equal_accuracy([guessing, model], Stripes(), passes="high").table
    assert high[high.iloc[:, 0] == 0]["value"].eq(100).all()
    with pytest.raises(VitvizError, match="no image that blind, fine all classify correctly"):
        at_equal_accuracy([VisionModel(Blind(), "blind", SIZE, class_names=Stripes.classes), model], Stripes())


class Blind(nn.Module):
    """"plain", always."""

    def forward(self, x):
        return torch.tensor([[1.0, 0]]).expand(len(x), -1)


class Waves(Stripes):
    """Images of one wave each, all of the class "fine"."""

    def __init__(self, cycles: list[int]):
        self.cycles = cycles

    def __getitem__(self, i):
        return Image.fromarray((255 * wave(self.cycles[i])).round().byte().permute(1, 2, 0).numpy()), 1


class Fine(nn.Module):
    """"fine" where neighbors differ, else neither class that there is an image of."""

    def forward(self, x):
        spread = x.std((1, 2, 3), correction=0)
        return torch.stack([torch.full_like(spread, -1.0), spread, torch.full_like(spread, 0.1)], 1)


def test_a_hybrid_has_the_low_frequencies_of_one_image_and_the_high_ones_of_the_other():
    coarse, fine = (wave(3) + wave(10) - 0.5)[None], (0.5 * wave(3) + 0.5 * wave(12) + 0.1)[None]
    wanted = (wave(3) + 0.5 * wave(12) - 0.25)[None]
    assert torch.allclose(hybrid(coarse, fine, 5), wanted, atol=1e-5)  # and the brightness of the coarse one
    dark, striped = torch.full_like(coarse, 0.1), 2 * (fine - 0.225).clamp(0, 0.5)
    assert 0 <= hybrid(dark, striped, 5).min() and hybrid(1 - dark, striped, 5).max() <= 1


class TwoKinds:
    """Images of a wave of 2 cycles, or of 9."""

    classes = ["slow", "fast"]

    def __len__(self):
        return 6

    def __getitem__(self, i):
        return Image.fromarray((255 * wave((2, 9)[i % 2])).round().byte().permute(1, 2, 0).numpy()), i % 2


class Neighbors(nn.Module):
    """Looks only at differences of neighbors: "fast" where they are large, "slow" where they are small."""

    def forward(self, x):
        jumps = (x[..., 1:] - x[..., :-1]).abs().mean((1, 2, 3))
        return torch.stack([torch.full_like(jumps, 0.25), jumps], 1)


def test_hybrids_tell_a_model_that_relies_on_high_frequencies_from_one_that_relies_on_low_ones():
    model = VisionModel(Neighbors(), "neighbors", SIZE, class_names=TwoKinds.classes)
    table = conflict(model, TwoKinds(), steps=(5,)).table.set_index("predicted class")["value"]
    # Slow with fast on top: fast. Fast below the radius is nothing, and slow beyond it is nothing: slow. Always what is fine.
    assert table.to_dict() == {"of the low frequencies": 0, "of the high frequencies": 100}
    coarse = VisionModel(Slow(), "slow", SIZE, class_names=TwoKinds.classes)
    table = conflict(coarse, TwoKinds(), steps=(5,)).table.set_index("predicted class")["value"]
    assert table.to_dict() == {"of the low frequencies": 100, "of the high frequencies": 0}


class Slow(nn.Module):
    """"slow" where there is a wave of 2 cycles."""

    def forward(self, x):
        there = torch.fft.fft(x.mean((1, 2)))[:, 2].abs()
        return torch.stack([there, torch.full_like(there, 1.0)], 1)


def test_hybrids_need_two_classes():
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    with pytest.raises(VitvizError, match="at least two classes"):
        conflict(model, Waves([8, 8, 8, 8]))


@pytest.mark.parametrize("models", [[], ["emoji-vit"], None, "emoji-vit"])
def test_what_are_no_models_is_refused(models):
    for experiment in (at_equal_accuracy, cutoff_needed):
        with pytest.raises(VitvizError, match="models is a list of models from vv.load"):
            experiment(models, Stripes())


class Constant(nn.Module):
    """Predicts the first of 256 classes, and remembers the images."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.clone())
        return torch.eye(1, 256).expand(len(x), -1)


def test_models_of_other_training_are_compared_on_the_same_images_by_default():
    """Embedded models trained in other styles have other default scenes, which were compared as if they were the same."""
    world = EmojiWorld("val", styles=("3d", "flat"), size=SIZE)
    correct = world.concepts[int(world.facts([0])["concept"][0])]
    classes = sorted(world.concepts, key=lambda name: name != correct)
    first, second = (VisionModel(Constant(), name, SIZE, class_names=classes, card={"recipe": {"styles": styles}})
                     for name, styles in (("first", ("3d", "flat")), ("second", ("word",))))
    at_equal_accuracy([first, second], n=4)
    assert torch.equal(first.module.seen[0], second.module.seen[0])


@pytest.mark.parametrize("images", [255 * torch.rand(2, 3, 8, 8), torch.rand(3, 8, 8), torch.full((1, 3, 8, 8), math.nan), "a"])
def test_images_of_another_range_or_shape_are_refused(images):
    with pytest.raises(VitvizError, match=r"in \[0, 1\], got"):
        filtered(images, 4)


@pytest.mark.parametrize("n", [0, 2.5, -1, "all", True])
def test_a_number_of_images_that_is_none_is_refused(n):
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    with pytest.raises(VitvizError, match="n is a whole number from 1"):
        accuracy_by_cutoff(model, Stripes(), n=n)


def test_it_runs_on_timm_models_with_random_weights():
    module = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=64, depth=2)
    model = VisionModel(module, "vit", 64, class_names=Stripes.classes, trained=False)
    result = accuracy_by_cutoff(model, Stripes(), n=2)
    assert result.table["n"].eq(2).all() and list(result.table.iloc[:, 0].unique()) == cutoffs(64)
    assert conflict(model, Stripes(), n=2, steps=(8,)).table["n"].tolist() == [2, 2]
