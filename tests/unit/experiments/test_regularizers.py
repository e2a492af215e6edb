"""Noise: grain and seams of pictures drawn by hand, settings by name, and neurons whose best change is known."""

import math

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vitviz_nb.datasets.image_folder import image_folder
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments import regularizers as noise
from vitviz_nb.experiments.faithfulness import Selectivity
from vitviz_nb.experiments.regularizers import (
    ablation,
    grain,
    patch_side,
    reference_images,
    seams,
    sensitivity,
    settings,
    spectrum,
)
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.plotting.image_grid import to_image
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.visualizer import Visualizer

SIDE = 32
BRIEF = Recipe(steps=2, copies=1)
TWO = Recipe(steps=2, copies=1, color=0, noise=0)  # tv and jitter: four settings


def grating(across: int, amplitude: float = 0.1) -> Tensor:
    """(3, 32, 32), a cosine of so many cycles a side."""
    return (0.5 + amplitude * torch.cos(2 * math.pi * across * torch.arange(SIDE) / SIDE)).expand(3, SIDE, -1)


# Grain, seams, spectra


def test_grain_is_the_share_of_variance_above_a_quarter_of_the_side():
    mixed = grating(3, 0.2) + grating(12, 0.1) - 0.5  # four times the power in the coarse one
    checks = (torch.arange(SIDE)[:, None] + torch.arange(SIDE)).remainder(2).float().expand(3, -1, -1)  # beyond the last ring
    found = grain(torch.stack([grating(8), grating(9), mixed, checks, torch.full((3, SIDE, SIDE), 0.3)]))
    assert found.tolist() == pytest.approx([0, 100, 20, 100, 0], abs=1e-3)


def test_white_noise_has_the_grain_that_the_docstring_says():
    assert grain(torch.rand(20, 3, 64, 64)).mean().item() == pytest.approx(79, abs=0.5)


def test_seams_are_the_share_of_steps_on_borders_of_patches():
    blocks = torch.arange(4).repeat_interleave(8).float().expand(3, SIDE, -1)  # steps at 8, 16 and 24 and nowhere else
    inside = (torch.arange(SIDE) >= 12).float().expand(3, SIDE, -1)
    ramp = torch.arange(SIDE).float().expand(3, SIDE, -1)  # 31 equal steps, 3 of them on borders
    pictures = torch.stack([blocks, blocks.mT, inside, ramp, ramp.mT, torch.zeros(3, SIDE, SIDE)])
    assert seams(pictures, 8).tolist() == pytest.approx([100, 100, 0, 300 / 31, 300 / 31, 0], abs=1e-4)
    assert seams(ramp[None] + 2 * blocks, 8).item() == pytest.approx(100 * 3 * 9 / (3 * 9 + 28), abs=1e-4)  # steps of 3 and 1


def test_the_spectrum_of_white_noise_is_flat_and_that_of_a_grating_is_all_at_its_frequency():
    found = spectrum({"white": torch.rand(300, 3, 16, 16), "grating": grating(5)[None, :, ::2, ::2]}, "t").table
    white = found[found["pictures"] == "white"]
    assert white["value"].tolist() == pytest.approx([1] * 8, abs=0.05) and (white["n"] == 300).all()
    assert (white["low"] < white["value"]).all() and (white["value"] < white["high"]).all()
    lone = found[found["pictures"] == "grating"].set_index("frequency (cycles a side)")["value"]
    # All power lies on the ring of 4.5 to 5.5, which holds 28 of the 255 frequencies of 16 x 16: (5, 0) turned about, 4, and
    # (5, 1), (5, 2) and (4, 3), 8 each.
    assert lone[5] == pytest.approx(255 / 28, rel=1e-4) and lone.drop(5).abs().max() < 1e-4


# Settings


def test_settings_take_away_all_each_and_all_but_each():
    recipe = Recipe(copies=1, noise=0.0)  # tv, jitter and color
    found = settings(recipe)
    assert list(found) == ["none", "tv alone", "jitter alone", "color alone", "all but tv", "all but jitter", "all but color",
                           "all"]
    used = {name: [k for k in ("tv", "jitter", "color", "noise") if getattr(made, k)] for name, made in found.items()}
    assert used["none"] == [] and used["tv alone"] == ["tv"] and used["all but tv"] == ["jitter", "color"]
    assert found["all"] == recipe and found["tv alone"].tv == recipe.tv and found["none"].spread == recipe.spread


def test_copies_count_where_there_are_several_and_no_setting_stands_there_twice():
    assert settings(Recipe())["copies alone"].copies == 8 and settings(Recipe())["all but copies"].copies == 1
    for few, names in (({}, ["none", "tv alone", "jitter alone", "all"]), ({"tv": 0.0}, ["none", "all"])):
        found = settings(Recipe(copies=1, noise=0, color=0, **few))
        assert list(found) == names and len(set(found.values())) == len(found)
    with pytest.raises(VitvizError, match="no regularizer to take away; give at least one of tv, jitter"):
        settings(Recipe(copies=1, noise=0, color=0, tv=0, jitter=0))


# Ablation


def test_every_setting_has_its_own_pictures_of_the_same_neurons_and_its_rows(tiny_vit: VisionModel):
    images = torch.rand(12, 3, SIDE, SIDE)
    found = ablation(tiny_vit, BRIEF, neurons=[5, 9], images=images)
    assert list(found.pictures) == list(settings(BRIEF))
    for name, made in found.pictures.items():
        assert made.recipe == settings(BRIEF)[name] and made.neurons == [5, 9] and made.layer == 1
        again = Visualizer(tiny_vit, made.recipe, images).render(1, [5, 9])
        assert torch.equal(made.pictures, again.pictures) and made.scores == again.scores
    rough = found.rough.table.set_index(["regularizers", "share"])
    assert rough.loc[("none", "variance in fine grain"), "value"] == pytest.approx(
        grain(found.pictures["none"].pictures).mean().item())
    assert rough.loc[("all", "steps on patch borders"), "value"] == pytest.approx(
        seams(found.pictures["all"].pictures, 8).mean().item())
    scenes = rough.loc[("scenes", "variance in fine grain"), ["value", "n"]].tolist()
    assert scenes == pytest.approx([grain(images).mean().item(), 12])
    assert found.rough.control[1] == pytest.approx(300 / 31)
    worth = found.worth.table.set_index("regularizers")
    assert set(worth["pictures"]) == {"above the 99th percentile"} and set(worth["n"]) == {2} and found.worth.control is None
    high = sum(p > 99 for p in found.pictures["tv alone"].scores.percentile)
    assert worth.loc["tv alone", "value"] == 50 * high


def test_a_judge_counts_the_pictures_of_a_neurons_own_concept(tiny_vit: VisionModel, monkeypatch: pytest.MonkeyPatch):
    names = [f"concept {i}" for i in range(16)]
    tiny_vit.class_names, tiny_vit.card = names, {"recipe": {"styles": ["flat"]}}
    judge = VisionModel(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 16)), "judge", SIDE, class_names=names)
    judge.module[2].weight.data.zero_()
    judge.module[2].bias.data = -torch.arange(16.0)  # says concepts 0 to 4, whatever it sees
    concept = torch.arange(128) % 16
    monkeypatch.setattr(noise, "selectivity", lambda model, place: Selectivity(concept, torch.ones(128), torch.ones(16, 128)))
    found = ablation(tiny_vit, BRIEF, neurons=[4, 5, 20, 9], images=torch.rand(8, 3, SIDE, SIDE), judge=judge)
    rows = found.worth.table.query("pictures == 'named by judge'")
    assert rows["value"].tolist() == [50] * len(found.pictures) and found.worth.control == ("guessing names", 500 / 16)
    judge.class_names = names[:-1] + ["other"]
    with pytest.raises(VitvizError, match="Naming pictures needs two embedded models"):
        ablation(tiny_vit, BRIEF, judge=judge)


def test_the_sheet_has_a_row_a_setting_and_a_column_a_neuron(tiny_vit: VisionModel, monkeypatch: pytest.MonkeyPatch):
    found, shown = ablation(tiny_vit, TWO, neurons=range(9), images=torch.rand(8, 3, SIDE, SIDE)), []
    draw = noise.contact_sheet
    monkeypatch.setattr(noise, "contact_sheet", lambda tiles, title, **k: shown.extend(tiles) or draw(tiles, title, **k))
    data, _ = found._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG") and len(shown) == 8 * len(found.pictures)
    assert [tile.lines[0] for tile in shown[::8]] == list(found.pictures)
    assert torch.equal(shown[11].picture, found.pictures["tv alone"].pictures[3])
    shown.clear()
    found.sheet(["all", "none"])
    assert [tile.lines[0] for tile in shown[::8]] == ["all", "none"]


SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 5}
STAGES = {"img_size": SIDE, "patch_size": 4, "embed_dim": 8, "depths": (2,), "num_heads": (2,), "window_size": 4}
FAMILIES = {  # CLIP's image tower is a ViT with a norm before its blocks
    "vit": (lambda: VisionTransformer(**SMALL), 8), "deit": (lambda: VisionTransformerDistilled(**SMALL), 8),
    "clip": (lambda: VisionTransformer(**SMALL, pre_norm=True), 8), "swin": (lambda: SwinTransformer(**STAGES), 4)}


@pytest.mark.parametrize("family", FAMILIES)
def test_experiments_run_on_timms_families_with_random_weights_and_a_folder_of_images(family, tmp_path):
    for i in range(9):
        to_image(torch.rand(3, 40, 50)).save(tmp_path / f"{i}.png")
    make, patch = FAMILIES[family]
    model, images = VisionModel(make(), family, SIDE), image_folder(tmp_path, SIDE)
    assert patch_side(model) == patch
    found = ablation(model, TWO, neurons=[0, 3], images=images)
    assert set(found.rough.table["share"]) == {"variance in fine grain", "steps on patch borders"}
    assert found.rough.table["value"].between(0, 100).all() and "9 images" in found.worth.title
    rises = sensitivity(model, images, n=4, distances=(0.5,)).table.set_index("change")["value"]
    assert rises["most exciting"] > abs(rises["random"])


def test_a_cnn_has_no_seams_and_is_measured_all_the_same():
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", SIDE)
    found = ablation(cnn, TWO, neurons=[0], images=torch.rand(8, 3, SIDE, SIDE))
    assert set(found.rough.table["share"]) == {"variance in fine grain"} and found.rough.control is None
    with pytest.raises(VitvizError, match="cnn does not cut images into patches of whole pixels"):
        patch_side(cnn)


# Sensitivity


class Red(nn.Module):
    """Its units: the mean of red, the same upside down, and one that never moves."""

    def __init__(self):
        super().__init__()
        self.conv, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.conv.weight.data = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0], [0.0, 0, 0]])[:, :, None, None]
        self.conv.bias.data = torch.tensor([0.0, 1.0, 0.5])

    def forward(self, images: Tensor) -> Tensor:
        return self.act(self.conv(images)).mean((2, 3))


def test_of_linear_units_the_rise_is_the_largest_there_is_in_standard_deviations():
    reds = torch.tensor([0.3, 0.4, 0.5, 0.6])
    images = torch.stack([reds, *[torch.full((4,), 0.5)] * 2], 1)[:, :, None, None].expand(-1, -1, 16, 16).contiguous()
    model = VisionModel(Red(), "red", 16, mean=(0, 0, 0), std=(1, 1, 1))
    found = sensitivity(model, images, distances=(0.5, 1.0)).table
    best = found[found["change"] == "most exciting"].set_index("size of the change (L2)")
    # A step of length 1 along the slope adds 1/16 to each of 256 red pixels, and so to their mean; units vary as reds do.
    for distance in (0.5, 1.0):
        assert best.loc[distance, "value"] == pytest.approx(distance / 16 / reds.std().item(), rel=1e-3)
    assert best["n"].tolist() == [4, 4] and best.loc[1.0, "high"] - best.loc[1.0, "low"] < 1e-3
    random = found[found["change"] == "random"]
    assert random["value"].abs().max() < 0.25 * best.loc[0.5, "value"]


def test_images_that_are_one_or_all_alike_are_told_so(tiny_vit: VisionModel):
    one = torch.rand(1, 3, SIDE, SIDE)
    for images, said in ((one, "at least two"), (one.repeat(4, 1, 1, 1), "differ")):
        with pytest.raises(VitvizError, match=said):
            sensitivity(tiny_vit, images)


def test_the_most_selective_units_come_best_first(tiny_vit: VisionModel, monkeypatch: pytest.MonkeyPatch):
    strength = torch.zeros(128)
    strength[[7, 3, 90]] = torch.tensor([3.0, 5.0, 4.0])
    monkeypatch.setattr(noise, "selectivity", lambda model, place: Selectivity(strength.long(), strength, strength[None]))
    assert noise.most_selective(tiny_vit, 3) == [3, 90, 7]


def test_reference_images_are_the_first_of_them_in_order(tiny_vit: VisionModel):
    images = torch.rand(40, 3, SIDE, SIDE)
    tiny_vit.memo["reference"] = ImageSet(tiny_vit, images)
    for n, found in ((20, reference_images(tiny_vit, images, 20)), (40, reference_images(tiny_vit)),
                     (7, reference_images(tiny_vit, ImageSet(tiny_vit, images), 7))):
        assert torch.equal(found, images[:n])


def test_scenes_are_the_default(tiny_vit: VisionModel):
    tiny_vit.memo["reference"] = ImageSet(tiny_vit, torch.rand(8, 3, SIDE, SIDE))
    assert "8 images" in ablation(tiny_vit, TWO, neurons=[0]).worth.title
