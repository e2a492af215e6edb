"""Scores and top images against a model whose activations can be read off its images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.datasets.image_folder import ImageFolder
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.scores import reference_activations, reference_set, score
from vitviz_nb.visualize.top_images import top_images

SIZE, PATCH = 16, 8
RED, GREEN, DIFFERENCE, DEAD, BLUE = range(5)


class Colors(nn.Module):
    """Unit activations are the mean colors of each of 2 x 2 patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.AvgPool2d(PATCH)
        self.mlp = Mlp(3, 5, 2, act_layer=nn.ReLU)
        rows = [[1.0, 0, 0], [0, 1, 0], [1, -1, 0], [0, 0, 0], [0, 0, 1]]
        self.mlp.fc1.weight.data = torch.tensor(rows)
        self.mlp.fc1.bias.data = torch.tensor([0.0, 0, 0, -1, 0])
        self.head = nn.Linear(2, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.mlp(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


@pytest.fixture
def model() -> VisionModel:
    torch.manual_seed(0)
    return VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1))


def flat(*colors: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colors).float().view(-1, 3, 1, 1).expand(-1, 3, SIZE, SIZE).contiguous()


# Red 0 to 0.7, green 0.2 and 0.4 in turn, blue 0.1 but for one.
IMAGES = flat(*((0.1 * i, 0.4 if i % 2 else 0.2, 0.9 if i == 2 else 0.1) for i in range(8)))


def scored(model: VisionModel, neurons: list[int], pictures: Tensor, images: Tensor = IMAGES):
    return score(model, find_site(model, 0), neurons, pictures, ImageSet(model, images))


def test_activation_and_percentile_are_what_they_are_by_hand(model):
    # A red of 0.35 is above 0, 0.1, 0.2 and 0.3 of eight; a green of 0.3 above the four of 0.2; a blue of 0.5 above seven.
    found = scored(model, [RED, GREEN, BLUE], flat((0.35, 0, 0), (0, 0.3, 0), (0, 0, 0.5)))
    assert found.activation == pytest.approx([0.35, 0.3, 0.5], abs=1e-6)
    assert found.percentile == [50, 50, 87.5]
    assert found.status == ["weak", "weak", "weak"]
    assert found.reference == "8 images"


def test_picture_above_every_image_is_alive_and_equal_does_not_count_as_above(model):
    found = scored(model, [RED, GREEN], flat((1, 0, 0), (0, 0.4, 0)))
    assert found.percentile == [100, 50] and found.status == ["alive", "weak"]


def test_picture_at_the_95th_percentile_is_alive_and_below_it_weak(model):
    hundred = flat(*((i / 100, 0, 0) for i in range(100)))
    found = scored(model, [RED, RED], flat((0.945, 0, 0), (0.935, 0, 0)), hundred)
    assert found.percentile == pytest.approx([95, 94]) and found.status == ["alive", "weak"]


def test_rank_counts_units_raised_by_more_standard_deviations(model):
    # Over the images: red has mean 0.35 and deviation 0.1 * sqrt(63 / 12) = 0.229; green 0.3 and 0.1; blue 0.2 and
    # 0.8 * sqrt(1 / 8 * 7 / 8) = 0.265; the difference, max(0, red - green) = (0, 0, 0, 0, .2, .1, .4, .3), has mean 0.125 and
    # deviation sqrt(0.3 / 8 - 0.125**2) = 0.148. The dead unit's 0 is divided by a hundredth of the middle deviation: 0.
    #   (0.60, 0.35, 0.20): red 1.09, green 0.50, difference (0.25 - 0.125) / 0.148 = 0.84, blue 0, dead 0
    #   (0.60, 0.45, 0.20): red 1.09, green 1.50, difference 0.025 / 0.148 = 0.17, blue 0, dead 0
    #   (0.35, 0.30, 0.20): red 0, green 0, difference -0.51, blue 0, dead 0
    first, second = (0.60, 0.35, 0.20), (0.60, 0.45, 0.20)
    found = scored(model, [RED, DIFFERENCE, GREEN, RED, GREEN, DIFFERENCE], flat(*[first] * 3, *[second] * 3))
    assert found.rank == [1, 2, 3, 2, 1, 3]


def test_neuron_that_no_image_moves_and_no_picture_wakes_is_dead(model):
    found = scored(model, [DEAD, RED], flat((1, 0, 0), (1, 0, 0)))
    assert found.status == ["dead", "alive"] and found.percentile[0] == 0
    woken = VisionModel(Colors(), "woken", SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    woken.module.mlp.fc1.weight.data[DEAD] = torch.tensor([0.0, 0.0, 1.1])  # minus 1: wakes above a blue of 0.91
    assert scored(woken, [DEAD, DEAD], flat((0, 0, 1), (0, 0, 0.5))).status == ["alive", "dead"]


def test_reference_of_one_image_gives_finite_scores_and_calls_no_neuron_dead(model):
    found = scored(model, [RED, DEAD], flat((0.9, 0, 0), (0.9, 0, 0)), IMAGES[3:4])
    assert found.percentile == [100, 0] and found.status == ["alive", "weak"] and found.rank[0] >= 1


def test_scores_do_not_depend_on_how_many_pictures_are_scored_together(model):
    torch.manual_seed(1)
    pictures = torch.rand(130, 3, SIZE, SIZE)
    neurons = [i % 3 for i in range(130)]
    together = scored(model, neurons, pictures)
    alone = scored(model, neurons[129:], pictures[129:])
    assert together.activation[129:] == pytest.approx(alone.activation, abs=1e-6) and together.rank[129:] == alone.rank


# Top images


def test_top_images_come_strongest_first_with_their_numbers(model):
    best = top_images(model, 0, RED, images=IMAGES, k=3)
    assert best.indices == [7, 6, 5] and best.activations == pytest.approx([0.7, 0.6, 0.5], abs=1e-6)
    assert torch.equal(best.images, IMAGES[[7, 6, 5]])
    assert top_images(model, 0, BLUE, images=IMAGES, k=1).indices == [2]
    assert top_images(model, 0, DIFFERENCE, images=IMAGES, k=4).indices == [6, 7, 4, 5]  # 0.4, 0.3, 0.2, 0.1
    assert len(top_images(model, 0, RED, images=IMAGES, k=99).indices) == 8


def test_maps_show_where_in_the_image_the_neuron_is_raised(model):
    images = IMAGES.clone()
    images[4, RED] = 0
    images[4, RED, PATCH:, :PATCH] = 1.0  # below left; raises the mean from 0 to 0.25
    images[3, RED] = 0
    images[3, RED, :PATCH, PATCH:] = 0.5  # above right
    best = top_images(model, 0, RED, images=images, k=8)
    maps = dict(zip(best.indices, best.maps, strict=True))
    assert torch.allclose(maps[4], torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert torch.allclose(maps[3], torch.tensor([[0.0, 0.5], [0.0, 0.0]]))
    assert torch.allclose(best.maps.mean((1, 2)), torch.tensor(best.activations), atol=1e-6)


def test_top_images_show_themselves_with_alternative_text(model):
    best = top_images(model, 0, RED, images=IMAGES, k=4)
    data = best._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    assert '<img alt="colors, mlp layer 0, neuron 0: strongest of 8 images, with activation maps"' in data["text/html"]
    rows = {columns: best.sheet(columns).height for columns in (2, 4)}
    assert rows[2] > 1.5 * rows[4]  # two rows of images and two of maps, against one and one


def test_top_images_of_an_untrained_model_say_so(model):
    untrained = VisionModel(model.module, "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1), trained=False)
    assert top_images(untrained, 0, RED, images=IMAGES).title.startswith("colors (untrained), ")


@pytest.mark.parametrize(("arguments", "message"), [
    ({"neuron": 5}, "neurons 0 to 4; neuron 5 is out of range"),
    ({"neuron": [1, 2]}, "Top images are of one neuron, got 2; call top_images once for each"),
    ({"neuron": 1, "k": 0}, "k is a whole number from 1"), ({"neuron": 1, "kind": 3}, "no sites of kind 3"),
    ({"neuron": 1, "images": torch.full((2, 3, SIZE, SIZE), float("nan"))}, "nan"),
    ({"neuron": 1, "images": 255 * IMAGES}, "0 to 230. Divide 0-255 images by 255"),
])
def test_top_images_refuse_what_they_cannot_take(model, arguments, message):
    with pytest.raises(VitvizError, match=message):
        top_images(model, **{"layer": 0, "images": IMAGES} | arguments)


def test_a_tensor_of_one_neuron_is_a_neuron(model):
    for neuron in (torch.tensor(RED), torch.tensor([RED])):
        assert top_images(model, torch.tensor(0), neuron, images=IMAGES, k=2).indices == [7, 6]


# References


def test_reference_takes_a_folder_of_images(model):
    folder = ImageFolder(IMAGES, [Path(f"{i}.png") for i in range(8)], [""] * 8, [])
    assert top_images(model, 0, RED, images=folder, k=2).indices == [7, 6]


def test_reference_takes_a_world_and_is_emoji_world_by_default(model):
    world = ImageSet(model, EmojiWorld("test", size=SIZE, seed=3), 32)
    best = top_images(model, 0, RED, images=world, k=2)
    shown = world.batch(best.indices)
    assert torch.equal(best.images, shown) and "32 Emoji World scenes" in best.title
    expected = [image[0].mean().item() for image in shown]
    assert best.activations == pytest.approx(expected, abs=1e-5) and expected[0] >= expected[1]
    default = reference_set(model)
    assert default.n == 1024 and default.key == ImageSet(model, EmojiWorld("val", size=SIZE)).key
    assert reference_set(model, world) is world and reference_set(model, IMAGES).key == ImageSet(model, IMAGES).key


@pytest.fixture
def batches(monkeypatch) -> list[int]:
    """The size of every forward pass."""
    sizes, forward = [], VisionModel.forward
    monkeypatch.setattr(VisionModel, "forward", lambda self, inputs: sizes.append(len(inputs)) or forward(self, inputs))
    return sizes


def read(model: VisionModel, images: Tensor = IMAGES) -> Tensor:
    return reference_activations(model, find_site(model, 0), ImageSet(model, images))


def test_reference_activations_are_computed_once_and_kept_on_disk(model, batches):
    images = torch.rand(130, 3, SIZE, SIZE)
    find_site(model)
    probed = sum(batches)  # to find where neurons are
    first = read(model, images)
    assert first.shape == (130, 5) and torch.allclose(first[:, RED], images[:, 0].mean((1, 2)), atol=1e-5)
    assert sum(batches) == probed + 130
    assert torch.equal(read(model, images.clone()), first)  # from memory
    again = VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    again.module.load_state_dict(model.module.state_dict())
    assert torch.equal(read(again, images), first) and sum(batches) == 2 * probed + 130  # from disk


def double_red(model: VisionModel) -> None:
    model.module.mlp.fc1.weight.data[RED] *= 2


def hook_red(model: VisionModel) -> None:
    model.module.mlp.act.register_forward_hook(lambda module, arguments, output: 2 * output)


def replace_forward(model: VisionModel) -> None:
    forward = model.module.mlp.act.forward
    model.module.mlp.act.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("change", [double_red, hook_red, replace_forward])
def test_activations_of_a_changed_model_are_neither_read_from_a_cache_nor_left_in_one(model, change):
    before = read(model)[:, RED].clone()
    fresh = VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    fresh.module.load_state_dict(model.module.state_dict())
    change(model)
    assert torch.allclose(read(model)[:, RED], 2 * before)
    assert torch.equal(read(fresh)[:, RED], before)


def test_a_context_has_activations_of_its_own(model):
    before = read(model)[:, RED].clone()
    with model.changed("twice the red"):
        double_red(model)
        assert torch.allclose(read(model)[:, RED], 2 * before)
        model.module.mlp.fc1.weight.data[RED] /= 2
    assert torch.equal(read(model)[:, RED], before)


def test_a_cached_reference_with_nan_is_measured_again(model, tmp_path):
    before = read(model).clone()
    (entry,) = (tmp_path / "vitviz_cache" / "references").rglob("*.npz")
    np.savez_compressed(entry, layer0=np.full((8, 5), np.nan, np.float32))
    fresh = VisionModel(Colors(), "colors", SIZE, mean=(0, 0, 0), std=(1, 1, 1))
    fresh.module.load_state_dict(model.module.state_dict())
    assert torch.equal(read(fresh), before)


def test_weights_that_became_nan_give_no_score(model):
    read(model)
    model.module.mlp.fc1.weight.data[RED] = float("nan")
    with pytest.raises(VitvizError, match="weights of colors contain NaN"):
        scored(model, [RED], flat((1, 0, 0)))


def test_a_model_that_changes_while_it_is_measured_gives_no_reference(model, monkeypatch, tmp_path):
    reference = ImageSet(model, torch.rand(40, 3, SIZE, SIZE))
    batches = reference.batches

    def changing(what):
        for i, batch in enumerate(batches(what)):
            if i == 1:
                double_red(model)
            yield batch

    monkeypatch.setattr(reference, "batches", changing)
    with pytest.raises(VitvizError, match="was changed .* while it was measured, .*measure them again"):
        reference_activations(model, find_site(model, 0), reference)
    assert not list((tmp_path / "vitviz_cache").rglob("*.npz"))


@pytest.mark.parametrize("pictures", [torch.full((1, 3, SIZE, SIZE), float("nan")), 3 * torch.ones(1, 3, SIZE, SIZE)])
def test_pictures_that_are_none_get_no_score(model, pictures):
    with pytest.raises(VitvizError, match="Pictures for colors are floats of shape"):
        scored(model, [RED], pictures)


def test_what_is_handed_out_is_the_callers_own(model):
    images = torch.rand(12, 3, SIZE, SIZE)
    reference = ImageSet(model, images.clone())
    site = find_site(model, 0)
    for read_it in (lambda: reference_activations(model, site, reference),
                    lambda: top_images(model, 0, RED, images=reference).images):
        before = read_it().clone()
        read_it().zero_()
        assert torch.equal(read_it(), before)
