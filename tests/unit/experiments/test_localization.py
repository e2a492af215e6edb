"""Position: peaks of units that look at a known patch, and probes of tokens whose content is known."""

from itertools import combinations
from pydoc import locate
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp, QuickGELU
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.experiments import inversion
from vitviz_nb.experiments.inversion import invert
from vitviz_nb.experiments.localization import (
    _cosines,
    _ridge_r2,
    linear_probes,
    locality,
    mask_agreement,
    mask_agreement_of,
    patch_grid,
    patch_perturbation,
    pointing_game,
    token_similarity,
)
from vitviz_nb.experiments.progression import invariance
from vitviz_nb.models.sites import Site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import NotApplicable, VitvizError
from vitviz_nb.visualize.top_images import top_images

SIZE, PATCH = 16, 4
# Rows over (red, green, blue, first patch, row, column). FIRST answers to red a little, so that it lives.
RED, FIRST, DEAD = [1.0, 0, 0, 0, 0, 0], [0.1, 0, 0, 10, 0, 0], [0.0] * 6


SHUFFLED = torch.randperm(16, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    def __init__(self, rows: list[list[float]], windows: bool = False):
        super().__init__()
        self.mlp, self.windows = Mlp(6, len(rows), 6, act_layer=nn.ReLU), windows
        self.mlp.fc1.weight.data, self.mlp.fc1.bias.data = torch.tensor(rows), torch.zeros(len(rows))
        for parameter in self.mlp.fc2.parameters():
            parameter.data.zero_()  # so that every block hands on the tokens as they are

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(x)


class Patches(nn.Module):
    """Tokens: a patch's mean color, whether it is the first, its row and column; what ``knows`` lacks is 0."""

    def __init__(self, *layers: list[list[float]], knows: str = "crgbyx", windows: int = 0):
        super().__init__()
        self.blocks, self.windows = nn.ModuleList(map(Block, layers)), windows
        place = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).view(16, 2)
        self.place = torch.cat([(place.sum(1, keepdim=True) == 0).float() * ("c" in knows), place * ("y" in knows)], 1)
        self.color = float("r" in knows)

    def forward(self, images: Tensor) -> Tensor:
        color = self.color * F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([color, self.place.expand(len(images), -1, -1)], 2)
        for i, block in enumerate(self.blocks):
            hidden = i < self.windows  # the order of its tokens, in windows of four
            x = block(x[:, SHUFFLED].reshape(-1, 4, 6)).view(-1, 16, 6)[:, SHUFFLED.argsort()] if hidden else block(x)
        return x.mean(1)


def make(*layers: list[list[float]], **more) -> VisionModel:
    return VisionModel(Patches(*layers, **more), "patches", SIZE, mean=(0, 0, 0), std=(1, 1, 1))


class Spots(EmojiWorld):
    """19 scenes: 13 black ones that masks cover whole, then six, ever redder, each with one red patch."""

    spot, mask = [0, 2, 4, 6, 8, 10], [{0}, {2, 4}, {2, 4}, {6, 8}, {8}, {0}]

    def __init__(self, covered: int = PATCH * PATCH):
        super().__init__(size=SIZE)
        self.covered = covered  # pixels of a patch that its mask covers

    def batch(self, indices, device="cpu"):
        images, masks = torch.zeros(len(indices), 3, 16, PATCH * PATCH), torch.zeros(len(indices), 16, PATCH * PATCH)
        for row, i in enumerate(indices):
            if i < 13:
                masks[row] = 1
                continue
            images[row, 0, self.spot[i - 13]] = 0.1 * (i - 12)
            masks[row, list(self.mask[i - 13]), :self.covered] = 1
        return SimpleNamespace(images=F.fold(images.flatten(0, 1).transpose(1, 2), SIZE, PATCH, stride=PATCH).view(-1, 3, 16, 16),
                               masks=F.fold(masks.transpose(1, 2), SIZE, PATCH, stride=PATCH)[:, 0])


def values(result, column: str, name: str) -> list[float]:
    return result.where(**{column: name}).table["value"].tolist()


# Peaks


def test_peaks_lie_inside_masks_as_often_as_counted_by_hand():
    # The five strongest are the reddest five, whose masks cover 2 + 2 + 2 + 1 + 1 patches of 16; the reddest misses its spot.
    # Of neighbors in that order, only the second and third of the six have the other's spot under their mask.
    found = pointing_game(make([RED]), Spots(), n=19)
    for name, expected in (("of the image", 80), ("of another image", 20), ("area", 10)):
        assert values(found, "mask", name) == pytest.approx([expected]), name


def test_a_unit_that_always_peaks_at_one_patch_is_inside_as_often_as_masks_cover_that_patch():
    found = pointing_game(make([FIRST]), Spots(), n=19)  # one mask of the five covers the first patch
    assert values(found, "mask", "of the image") == values(found, "mask", "of another image") == [20]


def test_peaks_are_averaged_over_units_that_live_layer_by_layer():
    table = pointing_game(make([RED, DEAD, FIRST], [FIRST]), Spots(), n=19).table
    own = table[table["mask"] == "of the image"]
    assert own["layer"].tolist() == [0, 1] and own["value"].tolist() == pytest.approx([50, 20]) and own["n"].tolist() == [2, 1]


@pytest.mark.parametrize(("covered", "inside"), [(8, 80), (7, 0)])
def test_a_patch_is_inside_from_half_of_it_on(covered: int, inside: float):
    assert values(pointing_game(make([RED]), Spots(covered), n=19), "mask", "of the image") == pytest.approx([inside])


def test_images_without_masks_and_units_without_maps_are_refused():
    with pytest.raises(VitvizError, match="The 3 images have no masks"):
        pointing_game(make([RED]), torch.rand(3, 3, SIZE, SIZE))
    with pytest.raises(VitvizError, match="The windows of patches do not lie in the order of the image"):
        pointing_game(make([RED], [RED], windows=1), Spots(), n=19)


# Agreement of maps and masks


def test_the_mask_explains_as_much_of_a_map_as_by_hand():
    # A map is 1 at its spot and 0 at 15 patches; a mask of one patch at the spot has correlation 1, elsewhere -1/15; of two
    # patches, one of them the spot, r2 = (1 - 2/16)^2 / ((1 - 1/16) (2 - 4/16)) = 7/15. So the reddest has 1/225, the next 1.
    follows, on_it = mask_agreement(make([RED]), Spots(), n=19)
    own = [1 / 225, 1, 7 / 15, 7 / 15, 7 / 15]
    assert values(follows, "mask", "of the image") == pytest.approx([20 * sum(own)], abs=1e-3)
    assert on_it.table["value"].tolist() == [100] and on_it.table["n"].tolist() == [1]
    # Of neighbors in strength, one has its spot under the other's mask of two; off a mask of two r2 is 1/105, of one 1/225.
    other = [7 / 15, 1 / 105, 1 / 105, 1 / 225, 1 / 225]
    assert values(follows, "mask", "of another image") == pytest.approx([20 * sum(other)], abs=1e-3)


def test_a_neuron_that_is_silent_on_the_foreground_follows_its_mask_and_is_not_more_active_on_it():
    class Held(Spots):  # the foreground is black on red
        def batch(self, indices, device="cpu"):
            scenes = super().batch(indices)
            scenes.images[:, 0] = 1 - scenes.masks
            return scenes

    follows, on_it = mask_agreement(make([RED]), Held(), n=19)
    assert values(follows, "mask", "of the image") == pytest.approx([100]) and on_it.table["value"].tolist() == [0]


def test_maps_that_do_not_vary_are_not_explained_and_dead_units_are_left_out():
    class Flat(Spots):  # even scenes, each redder than the one before
        def batch(self, indices, device="cpu"):
            scenes = super().batch(indices)
            scenes.images[:] = torch.tensor(list(indices)).view(-1, 1, 1, 1) / 20
            return scenes

    follows, on_it = mask_agreement(make([RED, DEAD]), Flat(), n=19)
    assert follows.table["value"].tolist() == [0, 0] and on_it.table["n"].tolist() == [1]


def test_the_agreement_of_one_neuron_is_that_of_its_six_top_images():
    model, windows = make([RED]), make([RED], windows=1)
    expected = [100 / 225, 100, 700 / 15, 700 / 15, 700 / 15, 100]
    assert mask_agreement_of(model, 0, 0, ImageSet(model, Spots(), 19)).tolist() == pytest.approx(expected, abs=0.01)
    with pytest.raises(NotApplicable, match="The windows of patches do not lie"):
        mask_agreement_of(windows, 0, 0, ImageSet(windows, Spots(), 19))


# Perturbed patches


class Mixing(Patches):
    """After the first block, tokens hand half of their mean to all; after the second they are all alike."""

    def __init__(self):
        super().__init__([RED], [RED], [RED], knows="rgb")
        for keep, block in zip((1.0, 0.5, 0.0), self.blocks, strict=True):
            block.keep = keep
            block.register_forward_hook(lambda b, _, x: b.keep * x + (1 - b.keep) * x.mean(1, keepdim=True) if b.keep < 1 else x)


def test_shares_of_the_change_are_as_worked_out_by_hand():
    model = VisionModel(Mixing(), "mixing", SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    changed = torch.tensor([5, 0, 15])
    found = patch_perturbation(model, torch.rand(3, 3, SIZE, SIZE), changed)
    # A change of 1 becomes 1/2 + 1/32 at home and 1/32 at the 15 others: 0.2822 and 15 times 0.000977.
    home = (17 / 32) ** 2 / ((17 / 32) ** 2 + 15 / 32**2)
    for shares, own, others in zip(found, (1, home, 1 / 16), (0, (1 - home) / 15, 1 / 16), strict=True):
        assert shares.shape == (3, 4, 4) and torch.allclose(shares.sum((1, 2)), torch.ones(3))
        for row, square in zip(shares.flatten(1), changed.tolist(), strict=True):
            assert row[square].item() == pytest.approx(own, abs=1e-5)
            assert torch.allclose(row[torch.arange(16) != square], torch.tensor(float(others)), atol=1e-5)
    table = locality(model, torch.rand(19, 3, SIZE, SIZE)).table
    assert table["value"].tolist() == pytest.approx([100, 100 * home, 6.25], abs=1e-3) and table["n"].tolist() == [19] * 3


def test_the_patch_takes_the_pixels_of_the_image_before():
    model, seen = make([RED]), []
    model.module.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].clone()))
    images = torch.rand(2, 3, SIZE, SIZE)
    assert patch_grid(model) == (4, 4)
    seen.clear()
    patch_perturbation(model, images, torch.tensor([6, 6]))  # row 1, column 2
    expected = images.clone()
    expected[..., 4:8, 8:12] = images.flip(0)[..., 4:8, 8:12]
    assert torch.equal(seen[0], images) and torch.equal(seen[1], expected)


def test_images_in_which_nothing_changes_do_not_count_and_nothing_at_all_is_an_error():
    model, images = make([RED]), torch.rand(4, 3, SIZE, SIZE)
    images[1] = images[0]  # so that nothing changes in image 1
    assert locality(model, images).table["n"].tolist() == [3]
    with pytest.raises(VitvizError, match="No token of patches changed"):
        locality(model, torch.full((3, 3, SIZE, SIZE), 0.5))


@pytest.mark.parametrize(("n", "patches", "message"), [
    (1, [0], "At least 2 images"), (2, [0], "2 images and 1 numbers"), (2, [0, 16], "from 0 to 15"),
    (2, [-1, 0], "from 0 to 15"), (2, [0, 1.5], "whole numbers"), (2, 3, "got 3"), (2, None, "got None"), (2, "ab", "got")])
def test_patches_that_there_are_not_are_refused_with_those_there_are(n: int, patches, message: str):
    with pytest.raises(VitvizError, match=message):
        patch_perturbation(make([RED]), torch.rand(n, 3, SIZE, SIZE), patches)


@pytest.mark.parametrize("images", [255 * torch.rand(2, 3, SIZE, SIZE), torch.rand(2, 3, 8, 8),
                                    torch.full((2, 3, SIZE, SIZE), torch.nan)])
def test_images_of_another_range_or_size_are_refused(images: Tensor):
    with pytest.raises(VitvizError, match=r"\(N, 3, 16, 16\) in \[0, 1\]"):
        patch_perturbation(make([RED]), images, [0, 0])


# Models of timm with random weights

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
FAMILIES = {
    "ViT": ("vision_transformer.VisionTransformer", SMALL),
    "DeiT": ("deit.VisionTransformerDistilled", SMALL),
    "CLIP": ("vision_transformer.VisionTransformer", {**SMALL, "pre_norm": True, "act_layer": QuickGELU}),
    "Swin": ("swin_transformer.SwinTransformer", {"img_size": 32, "patch_size": 4, "embed_dim": 16, "depths": (1, 1),
                                                  "num_heads": (2, 2), "window_size": 4, "num_classes": 4}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_experiment_of_the_notebook_runs_on_models_of_timm(family: str, monkeypatch: pytest.MonkeyPatch):
    path, arguments = FAMILIES[family]
    model = VisionModel(locate(f"timm.models.{path}")(**arguments), family, 32)
    monkeypatch.setattr(inversion, "STEPS", 2)
    world, layers = EmojiWorld(size=32), range(2)
    scenes = world.batch(range(2)).images
    side = 4
    for result in (locality(model, world, n=6), pointing_game(model, world, n=6), *mask_agreement(model, world, n=6),
                    linear_probes(model, world, n=6), token_similarity(model, world, n=6), invariance(model, world, n=6)):
        assert set(result.table["layer"]) == set(layers) and result.table["value"].notna().all(), result.title
    assert all(0 < value <= 100.001 for value in locality(model, world, n=6).table["value"])
    assert {tuple(s.shape[1:]) for s in patch_perturbation(model, scenes, torch.tensor([0, 15]))} <= {(4, 4), (8, 8)}
    assert patch_grid(model) == (side, side)
    assert top_images(model, -1, 0, images=ImageSet(model, world, 6)).maps.shape == (6, side, side)
    for position in (True, False):
        assert invert(model, scenes, -1, position).pictures.shape == scenes.shape


# Probes


@pytest.mark.parametrize(("knows", "position", "color"), [("rgbyx", 100, 100), ("rgb", 0, 100)])
def test_a_probe_reads_what_tokens_hold_and_nothing_else(knows: str, position: float, color: float):
    table = linear_probes(make([RED], [RED], knows=knows), torch.rand(65, 3, SIZE, SIZE)).table
    assert table["layer"].tolist() == [0, 0, 1, 1] and set(table["n"]) == {33}  # the second half
    assert table["probe"].tolist() == ["position", "color"] * 2
    assert table["value"].tolist() == pytest.approx([position, color] * 2, abs=3)  # 3 weights from 512 tokens: chance is about -1


def test_tokens_that_ignore_the_image_are_no_residual_stream():
    with pytest.raises(NotApplicable, match="no residual stream"):
        linear_probes(make([RED], [RED], knows="yx"), torch.rand(65, 3, SIZE, SIZE))


def test_the_share_explained_is_what_it_is_by_hand():
    # Fitted on tokens 5 -+ 1 with targets 10 -+ 2: the slope is 2, times 1 / 1.002 for the ridge (gram 1, plus 0.001 of 2 rows).
    x = torch.tensor([[4.0, 6], [6, 4], [6, 4]])[..., None]
    target = torch.tensor([[8.0, 12], [12, 10], [14, 6]])[..., None]
    guess = 2 / 1.002  # it says +guess, -guess of both; true are +2, 0 and +4, -4, whose squares sum to 4 and 32, 18 on average
    expected = [1 - ((2 - guess) ** 2 + guess**2) / 18, 1 - 2 * (4 - guess) ** 2 / 18]
    assert _ridge_r2(x, target).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_linear_target_is_explained_whole_and_an_independent_one_not():
    x = torch.randn(80, 9, 5)
    assert torch.allclose(_ridge_r2(x, 3 + x @ torch.randn(5, 2)), torch.ones(40, dtype=torch.float64), atol=1e-3)
    assert abs(_ridge_r2(x, torch.randn(80, 9, 2)).mean()) < 0.1


# Similarities


def test_cosines_are_the_mean_over_pairs():
    x = torch.randn(2, 7, 6)
    found = _cosines(Site("residual", 0, 6, 2, (1, 5), "", 0), x)
    for own, (pairs, with_class) in zip(x, found.tolist(), strict=True):
        cosine = {pair: F.cosine_similarity(own[pair[0]], own[pair[1]], 0).item() for pair in combinations(range(7), 2)}
        assert pairs == pytest.approx(sum(v for (a, _), v in cosine.items() if a > 1) / 10, abs=1e-5)
        assert with_class == pytest.approx(sum(v for (a, b), v in cosine.items() if a < 2 <= b) / 10, abs=1e-5)


def test_identical_tokens_have_a_cosine_of_one():
    flat = torch.rand(3, 3, 1, 1).expand(-1, -1, SIZE, SIZE)
    assert token_similarity(make([RED], knows="rgb"), flat).table["value"].tolist() == pytest.approx([1])


def test_similarities_are_of_the_tokens_that_the_model_has(tiny_vit: VisionModel):
    images = torch.rand(20, 3, 32, 32)
    with torch.no_grad():
        first = tiny_vit.module.forward_intermediates(tiny_vit.normalize(images), output_fmt="NLC", intermediates_only=True,
                                                      return_prefix_tokens=True)[0]
    patches, own = (F.normalize(part, dim=-1) for part in first)
    table = token_similarity(tiny_vit, images).table
    assert table["tokens"].tolist() == ["patches", "CLS and patches"] * 2 and set(table["n"]) == {20}
    gram = patches @ patches.mT
    expected = [(gram.sum() - 20 * 16) / (20 * 16 * 15), (own @ patches.mT).mean()]
    assert table["value"].tolist()[:2] == pytest.approx([float(e) for e in expected], abs=1e-5)


def test_a_model_without_class_token_has_no_row_for_it():
    swin = SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=5)
    table = token_similarity(VisionModel(swin, "swin", 32), torch.rand(2, 3, 32, 32)).table
    assert table["tokens"].tolist() == ["patches"] * 2


@pytest.mark.parametrize("experiment", [linear_probes, token_similarity])
def test_layers_whose_tokens_lie_in_windows_are_left_out_and_the_others_are_their_own(experiment):
    images, tables = torch.rand(8, 3, SIZE, SIZE), []
    for windows in (0, 1):
        model = make([RED], [RED], windows=windows)
        model.module.blocks[1].mlp.fc2.bias.data += 5  # or the two layers would be alike
        tables.append(experiment(model, images).table)
    assert tables[1].equals(tables[0].query("layer == 1").reset_index(drop=True)), tables


@pytest.mark.parametrize("experiment", [linear_probes, token_similarity])
def test_a_model_without_residual_stream_is_told_so(experiment):
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", SIZE)
    with pytest.raises(VitvizError, match="cnn has no residual stream of patch tokens"):
        experiment(cnn, torch.rand(2, 3, SIZE, SIZE))


def test_a_probe_of_a_single_image_which_leaves_none_to_test_on_is_refused():
    with pytest.raises(VitvizError, match="image"):
        linear_probes(make([RED]), torch.rand(1, 3, SIZE, SIZE))
