"""Filters keep exactly the waves they should, and curves are those of models planted to see one wave."""

import math

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vitviz_nb.experiments.frequency import (
    at_equal_accuracy,
    by_frequency,
    conflict,
    filtered,
    hybrid,
    kept,
    radii,
    radius_needed,
)
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError

SIZE = 32


def wave(cycles: float, size: int = SIZE) -> torch.Tensor:
    line = torch.arange(size) / size
    return (0.5 + 0.25 * torch.cos(2 * math.pi * cycles * line)).expand(3, size, size)


def test_low_pass_keeps_slow_waves_and_high_pass_the_others():
    both = (wave(3) + wave(10) - 0.5)[None]
    assert torch.allclose(filtered(both, 5, "low")[0], wave(3), atol=1e-5)
    assert torch.allclose(filtered(both, 5, "high")[0], wave(10), atol=1e-5)
    assert torch.allclose(filtered(both, 10, "low"), both, atol=1e-5)  # a wave on the radius counts as within
    assert torch.allclose(filtered(both, 0, "low"), torch.full_like(both, 0.5), atol=1e-5)
    assert torch.allclose(filtered(both, 0, "high"), both, atol=1e-5)


def test_diagonal_waves_are_faster_than_their_rows():
    line = torch.arange(SIZE) / SIZE
    diagonal = (0.5 + 0.25 * torch.cos(2 * math.pi * 4 * (line[:, None] + line[None]))).expand(1, 3, SIZE, SIZE)
    assert torch.allclose(filtered(diagonal, 5.6), torch.full_like(diagonal, 0.5), atol=1e-5)  # 4 * sqrt(2) = 5.66
    assert torch.allclose(filtered(diagonal, 5.7), diagonal, atol=1e-5)


def test_what_leaves_the_range_is_clamped():
    step = torch.zeros(1, 3, SIZE, SIZE)
    step[..., SIZE // 2:] = 1
    assert 0 <= filtered(step, 4).min() and filtered(step, 4).max() <= 1


@pytest.mark.parametrize(("radius", "passes", "sentence"), [(3, "band", "low or high"), (-1, "low", "at least 0")])
def test_other_filters_are_refused(radius, passes, sentence):
    with pytest.raises(VitvizError, match=sentence):
        filtered(torch.zeros(1, 3, 8, 8), radius, passes)


def test_radii_reach_from_one_wave_to_the_corner():
    assert radii(64) == [2, 4, 6, 8, 12, 16, 24, 32, 45]
    assert radii(224)[-1] > 112 * math.sqrt(2) - 1


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


def test_a_model_that_sees_a_wave_of_8_cycles_is_right_from_radius_8_on():
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    low = by_frequency(model, Stripes()).table.query("measure == 'top-1'").set_index("radius (cycles a side)")["value"]
    assert low.to_dict() == {1: 50, 2: 50, 3: 50, 4: 50, 6: 50, 8: 100, 12: 100, 16: 100, 23: 100}
    high = by_frequency(model, Stripes(), passes="high").table.query("measure == 'top-1'")
    assert dict(zip(high.iloc[:, 0], high["value"], strict=True)) == {0: 100, 1: 100, 2: 100, 3: 100, 4: 100, 6: 100, 8: 50,
                                                                    12: 50, 16: 50}


def test_several_models_are_compared_by_the_share_they_keep():
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    low, high = by_frequency(model, Stripes()), by_frequency(model, Stripes(), passes="high")
    table = kept({"one": low, "two": low}).table
    assert set(table["model"]) == {"one", "two"} and table["value"].max() == 100 and table["value"].min() == 50
    assert table.query("model == 'one'")["value"].iloc[-1] == 100  # the last radius keeps all
    assert kept({"one": high}).table["value"].iloc[0] == 100
    blind = VisionModel(nn.Flatten(), "blind", SIZE, class_names=[*map(str, range(3070)), "plain", "fine"])
    with pytest.raises(VitvizError, match="right on no whole image"):
        kept({"blind": by_frequency(blind, Stripes())})


def test_the_radius_that_leaves_a_share_is_read_from_a_straight_line_between_radii():
    model = VisionModel(Fine(), "fine", SIZE, class_names=Stripes.classes)
    guessing = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    waves = Waves([8, 8, 12, 12])  # a low-pass of 12 leaves all, of 8 two of four, of 6 none: half where it is 8
    low = radius_needed([model], waves, share=0.5).table
    assert low["value"].tolist() == [8] and low["n"].tolist() == [4] and low["model"].tolist() == ["fine"]
    assert 6 <= low["low"].iloc[0] < low["high"].iloc[0] <= 12
    assert radius_needed([model], waves, share=0.75).table["value"].tolist() == [10]
    waves = Waves([8, 8, 8, 12])  # of 12 leaves all, of 8 three of four, of 6 none: half at 6 + 2 * 2 / 3
    assert radius_needed([model], waves, share=0.5).table["value"].iloc[0] == pytest.approx(6 + 4 / 3)
    # Beyond 6 all are left, beyond 8 one of four, beyond 12 none: half at 6 + 2 * 2 / 3, from the other side.
    assert radius_needed([model], waves, passes="high", share=0.5).table["value"].iloc[0] == pytest.approx(6 + 4 / 3)
    both = radius_needed([guessing, model], Stripes(), share=0.5).table  # of two classes, a guess is right half the time
    assert math.isnan(both["value"].iloc[0]) and both["value"].iloc[1] == pytest.approx(7)
    with pytest.raises(VitvizError, match="between 0 and 1, got 90"):
        radius_needed([model], waves, share=90)


def test_at_equal_accuracy_only_images_count_that_all_get_right():
    model = VisionModel(Fine(), "fine", SIZE, class_names=Stripes.classes)
    guessing = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    table = at_equal_accuracy([guessing, model], Stripes()).table  # the second knows no plain images: two of four are left
    assert table["n"].eq(2).all()
    curves = {name: dict(zip(rows.iloc[:, 0], rows["value"], strict=True)) for name, rows in table.groupby("model")}
    assert curves["fine"] == curves["contrast"] == {r: 0 if r < 8 else 100 for r in radii(SIZE)}
    high = at_equal_accuracy([guessing, model], Stripes(), passes="high").table
    assert high[high.iloc[:, 0] == 0]["value"].eq(100).all()
    with pytest.raises(VitvizError, match="no image that blind, fine all get right"):
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


def test_a_hybrid_has_the_coarse_waves_of_one_and_the_fine_ones_of_the_other():
    coarse, fine = (wave(3) + wave(10) - 0.5)[None], (0.5 * wave(3) + 0.5 * wave(12) + 0.1)[None]
    wanted = (wave(3) + 0.5 * wave(12) - 0.25)[None]
    assert torch.allclose(hybrid(coarse, fine, 5), wanted, atol=1e-5)  # and the brightness of the coarse one
    assert 0 <= hybrid(1.5 * coarse, 2 * fine, 5).min() and hybrid(1.5 * coarse, 2 * fine, 5).max() <= 1


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


def test_hybrids_tell_a_model_that_goes_by_fine_waves_from_one_that_goes_by_coarse_ones():
    model = VisionModel(Neighbors(), "neighbors", SIZE, class_names=TwoKinds.classes)
    table = conflict(model, TwoKinds(), steps=(5,)).table.set_index("answer")["value"]
    # Slow with fast on top: fast. Fast below the radius is nothing, and slow beyond it is nothing: slow. Always what is fine.
    assert table.to_dict() == {"what is coarse": 0, "what is fine": 100}
    coarse = VisionModel(Slow(), "slow", SIZE, class_names=TwoKinds.classes)
    table = conflict(coarse, TwoKinds(), steps=(5,)).table.set_index("answer")["value"]
    assert table.to_dict() == {"what is coarse": 100, "what is fine": 0}


class Slow(nn.Module):
    """"slow" where there is a wave of 2 cycles."""

    def forward(self, x):
        there = torch.fft.fft(x.mean((1, 2)))[:, 2].abs()
        return torch.stack([there, torch.full_like(there, 1.0)], 1)


def test_hybrids_need_two_classes():
    model = VisionModel(Contrast(), "contrast", SIZE, class_names=Stripes.classes)
    with pytest.raises(VitvizError, match="at least two classes"):
        conflict(model, Waves([8, 8, 8, 8]))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_it_runs_on_timm_models_with_random_weights(name):
    model = VisionModel(timm.create_model(name, num_classes=2).eval(), name, 224, class_names=Stripes.classes, trained=False)
    finding = by_frequency(model, Stripes(), n=2)
    assert finding.table["n"].eq(2).all() and list(finding.table.iloc[:, 0].unique()) == radii(224)
    assert conflict(model, Stripes(), n=2, steps=(8,)).table["n"].tolist() == [2, 2]
