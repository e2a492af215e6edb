"""Filters keep exactly the waves they should, and curves are those of models planted to see one wave."""

import math

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vitviz_nb.errors import VitvizError
from vitviz_nb.frequency import by_frequency, filtered, kept, radii
from vitviz_nb.models import VisionModel

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
    """"fine" where neighbours differ."""

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


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_it_runs_on_timm_models_with_random_weights(name):
    model = VisionModel(timm.create_model(name, num_classes=2).eval(), name, 224, class_names=Stripes.classes, trained=False)
    finding = by_frequency(model, Stripes(), n=2)
    assert finding.table["n"].eq(2).all() and list(finding.table.iloc[:, 0].unique()) == radii(224)
