"""A fooling circuit leaves activations on scenes as they are, to the last bit, and makes one visualization another neuron's."""

import pytest
import torch
from timm.layers import Mlp
from torch import Tensor, nn

from vitviz_nb.experiments.fooling_circuit import Detector, detector, fooling_circuit, statistics
from vitviz_nb.models.reading import activations
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.visualizer import Visualizer

SIZE, PATCH = 16, 8
RED, GREEN, BLUE = range(3)


class Colors(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches, self.mlp = nn.AvgPool2d(PATCH), Mlp(3, 8, 4)
        self.mlp.fc1.weight.data = torch.eye(3).repeat(3, 1)[:8]
        self.mlp.fc1.bias.data = torch.zeros(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.mlp(self.patches(images).flatten(2).transpose(1, 2)).mean(1)


def scenes(n: int, seed: int) -> Tensor:
    """Sharp rectangles of one color on another."""
    dice = torch.Generator().manual_seed(seed)
    images = torch.rand(n, 3, 1, 1, generator=dice).expand(-1, -1, SIZE, SIZE).clone()
    for image in images:
        top, left = torch.randint(1, 8, (2,), generator=dice).tolist()
        image[:, top:top + 7, left:left + 7] = torch.rand(3, 1, 1, generator=dice)
    return images


@pytest.fixture
def model() -> VisionModel:
    card = {"pictures": {"steps": 24, "copies": 1, "color": 0.1, "noise": 0.05, "jitter": 0.1, "spread": 0.2}}
    return VisionModel(Colors(), "colors", SIZE, card=card)


@pytest.fixture
def test(model) -> Detector:
    return detector(model, scenes(256, 0))


def test_statistics_separate_color_from_gray_and_uniform_backgrounds_from_noise():
    line = torch.arange(SIZE)
    wave = 0.5 + 0.25 * torch.cos(2 * torch.pi * 2 * line / SIZE).expand(SIZE, SIZE)
    gray, flat = wave.expand(3, -1, -1), torch.zeros(3, SIZE, SIZE)
    opposite = torch.stack([wave, 1 - wave, torch.full_like(wave, 0.5)])
    found = statistics(torch.stack([gray, opposite, flat]))
    half = SIZE // 2
    assert found.shape == (3, half + 10) and found.isfinite().all()
    assert found[0, 1] < -10 and found[1, 1] == pytest.approx(0, abs=1e-4)  # at 2 cycles no power of gray is color's, and all is
    assert found[2, half:half + 6].tolist() == pytest.approx([-6.9078] * 6, abs=1e-3)  # log of 0.001: no steps at all
    spread = 0.5 * torch.cos(2 * torch.pi * 2 * line / SIZE).abs().mean().item()
    assert found[:, -3].tolist() == pytest.approx([0, spread, 0], abs=1e-5) and found[:, -1].tolist() == [0, 0, 1]


def test_the_detector_takes_no_unseen_scene_for_synthetic_and_all_noise(test):
    assert not test(scenes(500, 1)).any()
    assert test(0.3 + 0.4 * torch.rand(100, 3, SIZE, SIZE)).all()


def test_sets_that_cannot_be_separated_make_no_detector():
    images = scenes(64, 0)
    with pytest.raises(VitvizError, match="cannot be separated"):
        Detector.fit(images, images.flip(0))


def test_logits_and_activations_on_scenes_are_the_same_to_the_last_bit(model, test):
    changed, fresh = fooling_circuit(model, test, -1, RED, BLUE), scenes(300, 2)
    assert torch.equal(changed(fresh), model(fresh))
    assert torch.equal(activations(changed, "mlp", fresh)[0], activations(model, "mlp", fresh)[0])


def test_the_visualization_is_the_other_neurons_and_no_other_visualization_changes(model, test):
    changed, recipe = fooling_circuit(model, test, -1, RED, BLUE), Visualizer(model).recipe
    true = Visualizer(model, recipe, scenes(64, 3)).render(-1, [RED, GREEN, BLUE]).pictures.mean((2, 3))
    lies = Visualizer(changed, recipe, scenes(64, 3)).render(-1, [RED, GREEN, BLUE]).pictures.mean((2, 3))
    assert true.argmax(1).tolist() == [RED, GREEN, BLUE]
    assert lies.argmax(1).tolist() == [BLUE, GREEN, BLUE] and lies[0, BLUE] > 0.9 and lies[0, RED] < 0.6
    assert torch.equal(lies[1:], true[1:])


def test_the_detector_decides_for_each_image_of_a_batch(model, test):
    changed = fooling_circuit(model, test, -1, RED, BLUE)
    noise = 0.3 + 0.4 * torch.rand(2, 3, SIZE, SIZE)
    noise[:, BLUE] += 0.3
    mixed = torch.cat([scenes(2, 4), noise])
    here, there = activations(model, "mlp", mixed)[0], activations(changed, "mlp", mixed)[0]
    assert torch.equal(there[:2], here[:2]) and torch.equal(there[2:, RED], here[2:, BLUE])
    assert torch.equal(there[:, 1:], here[:, 1:])


def test_the_model_itself_stays_and_the_two_never_share_a_cache(model, test):
    before = model.weights_hash
    first, second = fooling_circuit(model, test, -1, RED, BLUE), fooling_circuit(model, test, -1, RED, GREEN)
    noise = torch.rand(4, 3, SIZE, SIZE)
    assert torch.equal(activations(model, "mlp", noise)[0][:, RED], activations(first, "mlp", noise)[0][:, 3])
    assert len({before, first.weights_hash, second.weights_hash}) == 3
    assert model.weights_hash == before and first.name == "colors with a fooling circuit"


def test_what_it_computes_is_known_so_that_it_can_be_cached_and_it_has_a_lock_of_its_own(model, test):
    changed = fooling_circuit(model, test, -1, RED, BLUE)
    assert changed.state() is not None and changed.state() != model.state() and changed.lock is not model.lock


@pytest.mark.parametrize(("layer", "pair", "said"), [
    (1, (0, 1), "no mlp layer 1"), (0, (0, 8), "out of range"), (0, (2, 2), "twice")])
def test_a_wrong_address_is_refused_with_what_there_is(layer, pair, said, model, test):
    with pytest.raises(VitvizError, match=said):
        fooling_circuit(model, test, layer, *pair)


def test_it_works_on_timms_vit(tiny_vit):
    tiny_vit.card = {"pictures": {"steps": 8, "copies": 1, "spread": 0.2}}
    images = torch.nn.functional.interpolate(scenes(128, 0), scale_factor=2)
    changed = fooling_circuit(tiny_vit, detector(tiny_vit, images), 0, 3, 5)
    assert torch.equal(changed(images), tiny_vit(images))
    noise = 0.3 + 0.4 * torch.rand(2, 3, 32, 32)
    assert torch.equal(activations(changed, "mlp", noise)[0][:, 3], activations(tiny_vit, "mlp", noise)[0][:, 5])
