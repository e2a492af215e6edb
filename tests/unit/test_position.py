"""Position: peaks of units that look at a known patch, and probes of tokens whose content is known."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from vitviz_nb.emoji_world import EmojiWorld
from vitviz_nb.errors import VitvizError
from vitviz_nb.models import VisionModel
from vitviz_nb.position import _cosines, _explained, peaks_in_mask, probes, token_similarity
from vitviz_nb.sites import Site

SIZE, PATCH = 16, 4
# Rows over (red, green, blue, first patch, row, column). FIRST answers to red a little, so that it lives.
RED, FIRST, DEAD = [1.0, 0, 0, 0, 0, 0], [0.1, 0, 0, 10, 0, 0], [0.0] * 6


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
    """Tokens: a patch's mean colour, whether it is the first, its row and column; what ``knows`` lacks is 0."""

    def __init__(self, *layers: list[list[float]], knows: str = "crgbyx", windows: int = 0):
        super().__init__()
        self.blocks, self.windows = nn.ModuleList(map(Block, layers)), windows
        place = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).view(16, 2)
        self.place = torch.cat([(place.sum(1, keepdim=True) == 0).float() * ("c" in knows), place * ("y" in knows)], 1)
        self.colour = float("r" in knows)

    def forward(self, images: Tensor) -> Tensor:
        colour = self.colour * F.avg_pool2d(images, PATCH).flatten(2).transpose(1, 2)
        x = torch.cat([colour, self.place.expand(len(images), -1, -1)], 2)
        for i, block in enumerate(self.blocks):
            x = block(x.reshape(-1, 4, 6)).view(-1, 16, 6) if i < self.windows else block(x)
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


def values(finding, column: str, name: str) -> list[float]:
    return finding.table.query(f"`{column}` == '{name}'")["value"].tolist()


# Peaks


def test_peaks_lie_inside_masks_as_often_as_counted_by_hand():
    # The five strongest are the reddest five, whose masks cover 2 + 2 + 2 + 1 + 1 patches of 16; the reddest misses its spot.
    # Of neighbours in that order, only the second and third of the six have the other's spot under their mask.
    found = peaks_in_mask(make([RED]), Spots(), n=19)
    for name, expected in (("its own scene", 80), ("another scene", 20), ("area of the masks", 10)):
        assert values(found, "the mask is of", name) == pytest.approx([expected]), name


def test_a_unit_that_always_peaks_at_one_patch_is_inside_as_often_as_masks_cover_that_patch():
    found = peaks_in_mask(make([FIRST]), Spots(), n=19)  # one mask of the five covers the first patch
    assert values(found, "the mask is of", "its own scene") == values(found, "the mask is of", "another scene") == [20]


def test_peaks_are_averaged_over_units_that_live_layer_by_layer():
    table = peaks_in_mask(make([RED, DEAD, FIRST], [FIRST]), Spots(), n=19).table
    own = table[table["the mask is of"] == "its own scene"]
    assert own["layer"].tolist() == [0, 1] and own["value"].tolist() == pytest.approx([50, 20]) and own["n"].tolist() == [2, 1]


@pytest.mark.parametrize(("covered", "inside"), [(8, 80), (7, 0)])
def test_a_patch_is_inside_from_half_of_it_on(covered: int, inside: float):
    assert values(peaks_in_mask(make([RED]), Spots(covered), n=19), "the mask is of", "its own scene") == pytest.approx([inside])


def test_images_without_masks_and_units_without_maps_are_told_so():
    with pytest.raises(VitvizError, match="not known where the 3 images show their things"):
        peaks_in_mask(make([RED]), torch.rand(3, 3, SIZE, SIZE))
    with pytest.raises(VitvizError, match="The windows of patches do not lie in the order of the image"):
        peaks_in_mask(make([RED], [RED], windows=1), Spots(), n=19)


# Probes


@pytest.mark.parametrize(("knows", "place", "colour"), [("rgbyx", 100, 100), ("yx", 100, 0), ("rgb", 0, 100)])
def test_a_probe_reads_what_tokens_hold_and_nothing_else(knows: str, place: float, colour: float):
    table = probes(make([RED], [RED], knows=knows), torch.rand(65, 3, SIZE, SIZE)).table
    assert table["layer"].tolist() == [0, 0, 1, 1] and set(table["n"]) == {33}  # the second half
    assert table["read from the token"].tolist() == ["its place", "its colour"] * 2
    assert table["value"].tolist() == pytest.approx([place, colour] * 2, abs=3)  # 3 weights from 512 tokens: chance is about -1


def test_the_share_explained_is_what_it_is_by_hand():
    # Fitted on tokens 5 -+ 1 with targets 10 -+ 2: the slope is 2, times 1 / 1.002 for the ridge (gram 1, plus 0.001 of 2 rows).
    x = torch.tensor([[4.0, 6], [6, 4], [6, 4]])[..., None]
    target = torch.tensor([[8.0, 12], [12, 10], [14, 6]])[..., None]
    guess = 2 / 1.002  # it says +guess, -guess of both; true are +2, 0 and +4, -4, whose squares sum to 4 and 32, 18 on average
    expected = [1 - ((2 - guess) ** 2 + guess**2) / 18, 1 - 2 * (4 - guess) ** 2 / 18]
    assert _explained(x, target).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_linear_target_is_explained_whole_and_an_independent_one_not():
    x = torch.randn(80, 9, 5)
    assert torch.allclose(_explained(x, 3 + x @ torch.randn(5, 2)), torch.ones(40, dtype=torch.float64), atol=1e-3)
    assert abs(_explained(x, torch.randn(80, 9, 2)).mean()) < 0.1


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
    assert table["between"].tolist() == ["patches of an image", "class token and patches"] * 2 and set(table["n"]) == {20}
    gram = patches @ patches.mT
    expected = [(gram.sum() - 20 * 16) / (20 * 16 * 15), (own @ patches.mT).mean()]
    assert table["value"].tolist()[:2] == pytest.approx([float(e) for e in expected], abs=1e-5)


def test_a_model_without_class_token_has_no_row_for_it():
    swin = SwinTransformer(img_size=32, patch_size=4, embed_dim=8, depths=(2,), num_heads=(2,), window_size=4, num_classes=5)
    table = token_similarity(VisionModel(swin, "swin", 32), torch.rand(2, 3, 32, 32)).table
    assert table["between"].tolist() == ["patches of an image"] * 2


@pytest.mark.parametrize("experiment", [probes, token_similarity])
def test_layers_whose_tokens_lie_in_windows_are_left_out_and_the_others_are_their_own(experiment):
    images, tables = torch.rand(8, 3, SIZE, SIZE), []
    for windows in (0, 1):
        model = make([RED], [RED], windows=windows)
        model.module.blocks[1].mlp.fc2.bias.data += 5  # or the two layers would be alike
        tables.append(experiment(model, images).table)
    assert tables[1].equals(tables[0].query("layer == 1").reset_index(drop=True)), tables


@pytest.mark.parametrize("experiment", [probes, token_similarity])
def test_a_model_without_residual_stream_is_told_so(experiment):
    cnn = VisionModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "cnn", SIZE)
    with pytest.raises(VitvizError, match="cnn has no residual stream of patch tokens"):
        experiment(cnn, torch.rand(2, 3, SIZE, SIZE))


def test_a_probe_of_a_single_image_which_leaves_none_to_test_on_is_refused():
    with pytest.raises(VitvizError, match="image"):
        probes(make([RED]), torch.rand(1, 3, SIZE, SIZE))
