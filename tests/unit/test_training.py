"""Training: what it writes can be loaded, an interrupted run ends where an uninterrupted one does."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from vitviz_nb import models, training
from vitviz_nb.emoji_world import EmojiWorld
from vitviz_nb.errors import VitvizError
from vitviz_nb.training import TRAININGS, Training, attack, train, wilson

ARCHITECTURE = {
    "class": "timm.models.vision_transformer.VisionTransformer",
    "arguments": {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 256,
                  "drop_path_rate": 0.5},  # at random, as in Swin: a run that goes on must draw the same
}
STEPS, RESTART, BATCH = 6, 3, 4


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Training:
    """A recipe of six steps, the last three under attack, measured on a few scenes."""
    recipe = Training(ARCHITECTURE, styles=("flat", "line"), steps=STEPS, batch=BATCH, warmup=1, peak=1e-2, restart=RESTART,
                      radius=1.0)
    monkeypatch.setitem(TRAININGS, "tiny", recipe)
    monkeypatch.setattr(training, "accuracy", functools.partial(training.accuracy, n=60))
    return recipe


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Makes training fail once, with ``error``, as it begins ``step``."""
    batch, drawn = EmojiWorld.batch, []

    def install(step: int, error: type[BaseException]) -> list[int]:
        pending = [error]

        def failing(world: EmojiWorld, indices, device="cpu"):
            if world.split == "train":
                drawn.append(indices[0] // BATCH)
                if drawn[-1] == step and pending:
                    raise pending.pop()
            return batch(world, indices, device)

        monkeypatch.setattr(EmojiWorld, "batch", failing)
        return drawn

    return install


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains into a folder; gives the weights of the last step in full precision."""
    def run(folder: Path) -> dict[str, Tensor]:
        seen, finish = {}, training._finish

        def spy(name, recipe, module, *rest):
            seen.update({key: value.clone() for key, value in module.state_dict().items()})
            return finish(name, recipe, module, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "_finish", spy)
            train("tiny", folder, "cpu")
        return seen

    return run


@pytest.fixture(scope="module")
def kept() -> dict[str, Tensor]:
    return {}


@pytest.fixture
def uninterrupted(kept: dict[str, Tensor], trained, tmp_path: Path) -> dict[str, Tensor]:
    """The weights of a run from beginning to end; made once."""
    if not kept:
        kept.update(trained(tmp_path / "whole"))
    return kept


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[key], second[key], atol=1e-5, rtol=1e-4) for key in first)


def test_it_writes_float16_weights_and_a_card_that_load_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card = train("tiny", tmp_path / "new" / "folder", "cpu")
    folder = tmp_path / "new" / "folder"
    weights = load_file(folder / "tiny.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())
    assert card == json.loads((folder / "tiny.json").read_text(encoding="utf-8")) | {"mean": card["mean"], "std": card["std"],
                                                                                     "recipe": card["recipe"]}
    assert card["sha256"] == hashlib.sha256((folder / "tiny.safetensors").read_bytes()).hexdigest()
    for fact in ("data", "recipe", "accuracy", "hardware", "license", "architecture", "class_names", "parameters"):
        assert card[fact], fact
    assert card["training_time_s"] >= 0  # rounded, so 0 on a fast machine
    assert card["recipe"]["seed"] == 0 and len(card["class_names"]) == 256
    assert {"all", "unoccluded", "style flat", "held-out style word", "held-out style 3d"} <= card["accuracy"].keys()
    monkeypatch.setattr(models, "models_dir", lambda: folder)
    model = models.load("tiny", device="cpu")
    found = model.module.state_dict()
    assert all(torch.equal(found[key], weights[key].float()) for key in weights) and model.trained
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 256)


def test_measured_accuracy_is_that_of_the_rounded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    measure = training.accuracy

    def spy(model, world):
        seen.append({key: value.clone() for key, value in model.module.state_dict().items()})
        return measure(model, world)

    monkeypatch.setattr(training, "accuracy", spy)
    train("tiny", tmp_path, "cpu", steps=1)
    weights = load_file(tmp_path / "tiny.safetensors")
    assert seen and all(torch.equal(state[key], weights[key].float()) for state in seen for key in weights)


def test_weights_depend_on_the_seed_and_nothing_else(tmp_path: Path, uninterrupted, trained, tiny: Training,
                                                     monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(77)
    assert same(trained(tmp_path / "again"), uninterrupted)
    monkeypatch.setitem(TRAININGS, "tiny", dataclasses.replace(tiny, seed=1))
    assert not torch.allclose(trained(tmp_path / "other")["head.weight"], uninterrupted["head.weight"], atol=1e-2)


@pytest.mark.parametrize("step", [0, 1, RESTART, RESTART + 1])
def test_an_interrupted_run_goes_on_to_the_same_weights(step: int, tmp_path: Path, uninterrupted, trained, stop_at):
    drawn = stop_at(step, KeyboardInterrupt)
    with pytest.raises(VitvizError, match=rf"Stopped at step {step} of {STEPS}; the same command goes on .*tiny\.checkpoint"):
        train("tiny", tmp_path, "cpu")
    assert not (tmp_path / "tiny.json").exists()
    torch.manual_seed(77)
    found = trained(tmp_path)
    assert drawn == [*range(step + 1), *range(step, STEPS)]  # no step twice
    assert same(found, uninterrupted)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, uninterrupted, trained, stop_at):
    drawn = stop_at(RESTART + 2, SystemError)
    with pytest.raises(SystemError):
        train("tiny", tmp_path, "cpu")
    found = trained(tmp_path)
    assert drawn == [*range(RESTART + 3), *range(RESTART, STEPS)]
    assert same(found, uninterrupted)


def test_a_run_interrupted_while_it_is_measured_is_not_trained_again(tmp_path: Path, stop_at, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "accuracy", interrupt)
        train("tiny", tmp_path, "cpu", steps=2)
    drawn = stop_at(-1, SystemError)
    assert train("tiny", tmp_path, "cpu", steps=2)["accuracy"] and not drawn


def test_a_finished_run_leaves_weights_and_card_alone(tmp_path: Path):
    train("tiny", tmp_path, "cpu", steps=1)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"tiny.safetensors", "tiny.json"}


@pytest.mark.parametrize(("radius", "attacked"), [(1.0, STEPS - RESTART), (0.0, 0)])
def test_scenes_are_attacked_after_the_restart_or_never(radius: float, attacked: int, tmp_path: Path, tiny: Training,
                                                        monkeypatch: pytest.MonkeyPatch):
    radii = []

    def spy(module, images, labels, radius, random):
        radii.append(radius)
        return images

    monkeypatch.setattr(training, "attack", spy)
    monkeypatch.setitem(TRAININGS, "tiny", dataclasses.replace(tiny, radius=radius))
    train("tiny", tmp_path, "cpu")
    assert radii == [radius] * attacked


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path, tiny: Training, stop_at,
                                                            monkeypatch: pytest.MonkeyPatch):
    stop_at(1, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 1"):
        train("tiny", tmp_path, "cpu")
    checkpoint = tmp_path / "tiny.checkpoint.safetensors"
    before = checkpoint.read_bytes()
    monkeypatch.setitem(TRAININGS, "tiny", dataclasses.replace(tiny, peak=1e-3))
    with pytest.raises(VitvizError, match=r"tiny\.checkpoint\.safetensors belongs to another recipe; .*--out"):
        train("tiny", tmp_path, "cpu")
    assert checkpoint.read_bytes() == before


def test_wrong_arguments_are_told_what_is_allowed(tmp_path: Path):
    with pytest.raises(VitvizError, match=r"no recipe to train 'emoji-vi'; there is one for emoji-vit, tiny\..*mean emoji-vit"):
        train("emoji-vi", tmp_path)
    with pytest.raises(VitvizError, match="at least 1 step, got 0"):
        train("tiny", tmp_path, steps=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitvizError, match=r"to the folder .*file \(File exists\)"):
        train("tiny", tmp_path / "file", "cpu")
    with pytest.raises(VitvizError, match=r"device 'gpu' cannot be used here"):
        train("tiny", tmp_path, "gpu")


def test_the_learning_rate_falls_to_nothing_twice(tiny: Training):
    recipe = dataclasses.replace(tiny, steps=1000, restart=800, warmup=100)
    rate = [training._schedule(step, recipe) for step in range(1000)]
    assert rate[0] == pytest.approx(0.01) and rate[49] == pytest.approx(0.5, abs=0.01)
    assert max(rate) > 0.95 and rate[799] < 1e-4 and rate[800] == pytest.approx(0.4) and rate[999] < 1e-4
    assert rate[400] == pytest.approx(0.5) and rate[900] == pytest.approx(0.2)


# Newcombe 1998, table I, method 3; and the first by hand: (0.5 + 0.19207 ± 1.96 * sqrt(0.25 / 10 + 0.0096036)) / 1.38415
@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0), (0, 0, 0.0, 1.0),
])
def test_wilsons_interval_is_the_published_one(hits: int, n: int, low: float, high: float):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


class Slope(nn.Module):
    """Its first logit is the mean red of an image in [-1, 1], its second is 0."""

    def forward(self, images: Tensor) -> Tensor:
        red = images[:, 0].mean((1, 2))
        return 50 * torch.stack([red, torch.zeros_like(red)], 1)


@pytest.mark.parametrize("radius", [0.1, 1.0, 5.0])
def test_an_attack_moves_each_image_by_at_most_the_radius(radius: float):
    module = models.build(ARCHITECTURE).eval()
    images, labels = torch.rand(6, 3, 16, 16), torch.arange(6)
    moved = attack(module, images, labels, radius, torch.Generator().manual_seed(0))
    distance = (moved - images).flatten(1).norm(dim=1)
    assert (distance <= radius * (1 + 1e-5)).all() and (distance > 0.2 * radius).all()
    assert moved.min() >= 0 and moved.max() <= 1 and not moved.requires_grad
    assert all(parameter.grad is None for parameter in module.parameters())


def test_an_attack_goes_where_the_loss_rises():
    images = torch.full((2, 3, 8, 8), 0.5)
    moved = attack(Slope(), images, torch.tensor([0, 1]), 0.8, torch.Generator().manual_seed(0))
    change = moved - images
    # Least loss for label 0 is the most red: its attack takes red away, by the same at each of 64 pixels: 0.8 / 8.
    assert torch.allclose(change[0, 0], torch.full((8, 8), -0.1), atol=1e-5)
    assert torch.allclose(change[1, 0], torch.full((8, 8), 0.1), atol=1e-5)
    assert change[:, 1:].abs().max() < 1e-6


def test_accuracy_counts_hits_by_group(monkeypatch: pytest.MonkeyPatch):
    world = EmojiWorld("val", concepts=["dog face", "pizza"], styles=("flat", "line"), size=16)

    class Guess(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(images), 2)  # always pizza

    table = training.accuracy(models.VisionModel(Guess(), "guess", 16), world)
    scenes = world.batch(range(60))
    right = scenes.concept == 1
    assert table["all"]["n"] == 60 and table["all"]["top1"] == pytest.approx(right.float().mean().item(), abs=1e-4)
    assert table["unoccluded"]["n"] == int((~scenes.occluded).sum())
    assert table["style line"]["top1"] == pytest.approx(right[scenes.style == 1].float().mean().item(), abs=1e-4)
    assert table["style flat"]["n"] + table["style line"]["n"] == 60
    assert table["all"]["interval95"] == pytest.approx(wilson(int(right.sum()), 60), abs=1e-4)


def test_a_damaged_checkpoint_gets_one_sentence(tmp_path: Path):
    (tmp_path / "tiny.checkpoint.safetensors").write_bytes(b"cut off")
    with pytest.raises(VitvizError, match="is damaged .* move it away to start afresh"):
        train("tiny", tmp_path)
