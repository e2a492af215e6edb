"""Training: what it writes can be loaded, an interrupted run ends where an uninterrupted one does."""

import dataclasses
import functools
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.layers import PatchDropout
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.models import loading as models
from vitviz_nb.models.text_tower import shorten
from vitviz_nb.training import training
from vitviz_nb.training.training import ATTACK_STEPS, TRAININGS, Training, train
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.statistics import wilson

VIT, DEIT = "timm.models.vision_transformer.VisionTransformer", "timm.models.deit.VisionTransformerDistilled"
ARGUMENTS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 256}
ARCHITECTURE = {"class": VIT, "arguments": ARGUMENTS}
AT_RANDOM = {"class": VIT, "arguments": ARGUMENTS | {"drop_path_rate": 0.5, "patch_drop_rate": 0.5}}
TO_POINTS = {"class": VIT, "arguments": ARGUMENTS | {"num_classes": 16, "patch_drop_rate": 0.5}}
RESNET = {"class": "timm.models.resnet.ResNet", "arguments": {
    "num_classes": 256, "block": "timm.models.resnet.BasicBlock", "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}}
STEPS, BATCH = 6, 4  # the last two steps see every patch


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Training:
    """A recipe of six steps under attack that drops paths and patches at random, measured on a few scenes."""
    recipe = Training(AT_RANDOM, styles=("flat", "line"), steps=STEPS, batch=BATCH, warmup=1, peak=1e-2, radius=1.0)
    monkeypatch.setitem(TRAININGS, "tiny", recipe)
    monkeypatch.setattr(training, "SIZE", 16)
    monkeypatch.setattr(training, "accuracy", functools.partial(training.accuracy, n=60))
    return recipe


@pytest.fixture
def recipe(tiny: Training, monkeypatch: pytest.MonkeyPatch):
    """Changes the recipe that "tiny" is trained by."""
    def change(**changes) -> Training:
        changed = dataclasses.replace(tiny, **changes)
        monkeypatch.setitem(TRAININGS, "tiny", changed)
        return changed

    return change


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch):
    """Makes training fail once, with ``error``, as it begins ``step``."""
    batch, drawn = EmojiWorld.batch, []

    def install(step: int, error: type[BaseException]) -> list[int]:
        pending = [error]

        def failing(world: EmojiWorld, indices, device="cpu"):
            if world.split == "train" and len(indices) == BATCH:  # not the scenes that only give the vocabulary
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

        def spy(name, recipe, network, *rest):
            seen.update({key: value.clone() for key, value in network.state_dict().items()})
            return finish(name, recipe, network, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(training, "_finish", spy)
            train("tiny", folder, "cpu")
        return seen

    return run


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, Tensor]]:
    return {}


@pytest.fixture(params=["labels", "captions"])
def uninterrupted(request, kept, recipe, trained, tmp_path: Path) -> dict[str, Tensor]:
    """The weights of a run from beginning to end, learning from labels and from captions; each made once."""
    if request.param == "captions":
        recipe(architecture=TO_POINTS, captions=True)
    if request.param not in kept:
        kept[request.param] = trained(tmp_path / "whole")
    return kept[request.param]


@pytest.fixture
def earlier(tmp_path: Path):
    """Writes a model into a folder as if it had been trained before: random weights of ``seed``, which answer ``always``."""
    def write(folder: Path, seed: int, always: int | None = None) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        module = models.build(ARCHITECTURE)
        if always is not None:
            module.head.bias.data[always] = 50.0
        folder.mkdir(exist_ok=True)
        weights = {key: value.half() for key, value in module.state_dict().items()}
        save_file(weights, folder / "earlier.safetensors")
        (folder / "earlier.json").write_text(json.dumps({
            "architecture": ARCHITECTURE, "image_size": 16, "mean": [0.5] * 3, "std": [0.5] * 3, "license": "none",
            "class_names": EmojiWorld().concepts, "recipe": {"styles": ["flat"]},
            "sha256": hashlib.sha256((folder / "earlier.safetensors").read_bytes()).hexdigest()}))
        return {key: value.float() for key, value in weights.items()}

    return write


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.allclose(first[key], second[key], atol=1e-5, rtol=1e-4) for key in first)


def test_it_writes_float16_weights_and_a_card_that_load_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    card = train("tiny", tmp_path / "new" / "folder", "cpu")
    folder = tmp_path / "new" / "folder"
    weights = load_file(folder / "tiny.safetensors")
    assert all(value.dtype == torch.float16 for value in weights.values())
    assert json.loads(json.dumps(card)) == json.loads((folder / "tiny.json").read_text(encoding="utf-8"))
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


def test_weights_depend_on_the_seed_and_nothing_else(tmp_path: Path, uninterrupted, trained, recipe):
    torch.manual_seed(77)
    assert same(trained(tmp_path / "again"), uninterrupted)
    recipe(**({"architecture": TO_POINTS, "captions": True} if "text.place" in uninterrupted else {}), seed=1)
    assert not torch.allclose(trained(tmp_path / "other")["image.head.weight"], uninterrupted["image.head.weight"], atol=1e-2)


@pytest.mark.parametrize("step", [0, 3, STEPS - 1])
def test_an_interrupted_run_goes_on_to_the_same_weights(step: int, tmp_path: Path, uninterrupted, trained, stop_at):
    drawn = stop_at(step, KeyboardInterrupt)
    with pytest.raises(VitvizError, match=rf"Stopped at step {step} of {STEPS}; the same command goes on .*tiny\.checkpoint"):
        train("tiny", tmp_path, "cpu")
    assert not (tmp_path / "tiny.json").exists()
    torch.manual_seed(77)
    found = trained(tmp_path)
    assert drawn == [*range(step + 1), *range(step, STEPS)]  # no step twice
    assert same(found, uninterrupted)


@pytest.mark.parametrize("uninterrupted", ["labels"], indirect=True)
def test_a_run_interrupted_between_its_optimizers_goes_on_to_the_same_weights(tmp_path: Path, uninterrupted, trained,
                                                                              monkeypatch: pytest.MonkeyPatch):
    move, moves = training.Muon.step, []

    def interrupted(*arguments):
        moves.append(None)
        if len(moves) == 3:
            raise KeyboardInterrupt
        return move(*arguments)

    monkeypatch.setattr(training.Muon, "step", interrupted)
    with pytest.raises(VitvizError, match="Stopped at step 2 of 6; the same command starts afresh"):
        train("tiny", tmp_path, "cpu")
    assert same(trained(tmp_path), uninterrupted)


def test_modules_that_are_used_twice_can_be_kept_and_read_again(tmp_path: Path, recipe):
    """CoaT's stages share an MLP, whose weights then have several names."""
    path, made = tmp_path / "shared.checkpoint.safetensors", recipe()

    def network():
        shared = torch.nn.Linear(3, 3)
        return torch.nn.ModuleDict({"one": shared, "two": shared})

    first, second = network(), network()
    training._save(path, first, [], made, 2, 1.5)
    assert training._resume(path, second, [], made) == (2, 1.5)
    assert torch.equal(first["two"].weight, second["one"].weight)


@pytest.mark.parametrize("uninterrupted", ["labels"], indirect=True)
def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path, uninterrupted, trained, stop_at):
    drawn = stop_at(2, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 2"):
        train("tiny", tmp_path, "cpu")
    stop_at(4, SystemError)
    with pytest.raises(SystemError):
        train("tiny", tmp_path, "cpu")
    found = trained(tmp_path)
    assert drawn == [0, 1, 2, 2, 3, 4, *range(2, STEPS)]
    assert same(found, uninterrupted)


def test_a_killed_run_loses_at_most_250_steps(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    small = {"class": VIT, "arguments": ARGUMENTS | {"depth": 1, "embed_dim": 8, "num_heads": 1, "patch_size": 16}}
    recipe(architecture=small, radius=0.0, batch=1, steps=252)
    batch, drawn, saved, save = EmojiWorld.batch, {}, [], training._save

    def quick(world: EmojiWorld, indices, device="cpu"):
        if world not in drawn:
            drawn[world] = batch(world, range(1 if world.split == "train" else 60), device)
        return drawn[world]

    def spy(*arguments):
        saved.append(arguments[-2])
        save(*arguments)

    monkeypatch.setattr(EmojiWorld, "batch", quick)
    monkeypatch.setattr(training, "_save", spy)
    train("tiny", tmp_path, "cpu")
    assert saved == [250, 252]


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


@pytest.mark.parametrize(("radius", "attacked"), [(1.0, STEPS), (0.0, 0)])
def test_scenes_are_attacked_in_every_step_or_never(radius: float, attacked: int, tmp_path: Path, recipe,
                                                    monkeypatch: pytest.MonkeyPatch):
    radii = []

    def spy(measure, images, radius, steps):
        radii.append((radius, steps))
        return images

    monkeypatch.setattr(training, "attack", spy)
    recipe(radius=radius)
    train("tiny", tmp_path, "cpu")
    assert radii == [(radius, ATTACK_STEPS)] * attacked


def test_an_attacked_step_learns_the_attacked_scenes(tmp_path: Path, recipe, trained, monkeypatch: pytest.MonkeyPatch):
    recipe(architecture=ARCHITECTURE, steps=2)
    monkeypatch.setattr(training, "attack", lambda measure, images, *_: images)
    plain = trained(tmp_path / "plain")
    monkeypatch.setattr(training, "attack", lambda measure, images, *_: 1 - images)
    assert not same(trained(tmp_path / "moved"), plain)


def test_the_attack_and_the_learning_leave_out_the_same_patches(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    states, forward = [], PatchDropout.forward

    def spy(drop: PatchDropout, x: Tensor) -> Tensor:
        states.append(torch.get_rng_state())  # from which the patches are drawn
        return forward(drop, x)

    monkeypatch.setattr(PatchDropout, "forward", spy)
    recipe(architecture={"class": VIT, "arguments": ARGUMENTS | {"patch_drop_rate": 0.5}}, steps=5)
    train("tiny", tmp_path, "cpu")
    passes = 1 + ATTACK_STEPS
    by_step = [states[i:i + passes] for i in range(0, len(states), passes)]
    assert len(by_step) == 4  # the fifth leaves nothing out
    assert all(torch.equal(state, step[0]) for step in by_step for state in step)
    assert len({tuple(step[0].tolist()) for step in by_step}) == 4


@pytest.mark.parametrize("changes", [{"captions": True}, {"teacher": "earlier"}])
def test_a_recipe_has_one_thing_to_learn_from(changes: dict):
    with pytest.raises(VitvizError, match="every_token, teacher and captions"):
        Training(ARCHITECTURE, every_token=True, **changes)


def test_training_that_diverges_stops_with_a_sentence_and_no_model(tmp_path: Path, recipe):
    recipe(peak=1e30, radius=0.0)
    with pytest.raises(VitvizError, match="Training tiny diverged: .* not finite in step .*peak"):
        train("tiny", tmp_path, "cpu")
    assert not list(tmp_path.iterdir())


def test_half_of_the_patches_is_left_out_until_the_last_fifth_of_the_steps(tmp_path: Path, recipe,
                                                                           monkeypatch: pytest.MonkeyPatch):
    tokens, forward = [], Block.forward

    def spy(block, x, *rest, **more):
        if block.training:
            tokens.append(x.shape[1])
        return forward(block, x, *rest, **more)

    monkeypatch.setattr(Block, "forward", spy)
    recipe(architecture={"class": VIT, "arguments": ARGUMENTS | {"depth": 1, "patch_drop_rate": 0.5}}, radius=0.0)
    train("tiny", tmp_path, "cpu", steps=10)
    assert tokens == [3] * 8 + [5] * 2  # of four patches, and the class token


# Muon and AdamW


@pytest.mark.parametrize(("changes", "muon"), [
    ({}, {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}),
    ({"architecture": TO_POINTS, "captions": True},
     {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "self_attn.out_proj", "linear1", "linear2"}),
    ({"architecture": RESNET}, set()),
])
def test_muon_moves_the_matrices_inside_and_adamw_all_the_rest(changes: dict, muon: set, tmp_path: Path, recipe):
    changed = recipe(**changes)
    network = training._Network(changed, EmojiWorld("train", styles=changed.styles, size=16), tmp_path, "cpu")
    optimizers = training._optimizers(network, changed)
    moved = [[id(p) for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]
    assert sorted(sum(moved, [])) == sorted(map(id, network.parameters()))  # each by one
    kinds = [type(optimizer) for optimizer in optimizers]
    assert kinds == [torch.optim.AdamW, training.Muon][:len(kinds)]
    inside = {name for name, p in network.named_parameters() if id(p) not in moved[0]}
    assert {re.sub(r".*\.\d+\.|\.weight$", "", name) for name in inside} == muon


def test_both_optimizers_move_their_weights_by_the_schedule(tmp_path: Path, recipe, trained, monkeypatch: pytest.MonkeyPatch):
    recipe(architecture=ARCHITECTURE)
    monkeypatch.setattr(training, "_schedule", lambda *_: 0.0)
    still = trained(tmp_path / "still")
    torch.manual_seed(0)
    first = models.build(ARCHITECTURE).state_dict()
    assert all(torch.equal(still[f"image.{key}"], first[key]) for key in first)


# What a recipe starts from and learns from


@pytest.mark.parametrize("where", ["out", "models"])
def test_a_recipe_starts_from_the_model_in_out_else_from_the_one_that_ships(where: str, tmp_path: Path, recipe, earlier, stop_at,
                                                                            monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "models_dir", lambda: tmp_path / "models")
    expected = earlier(tmp_path / "models", seed=1)
    if where == "out":
        expected = earlier(tmp_path / "out", seed=2)
    recipe(start="earlier")
    stop_at(0, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 0"):
        train("tiny", tmp_path / "out", "cpu")
    found = load_file(tmp_path / "out" / "tiny.checkpoint.safetensors")
    assert all(torch.equal(found[f"weight.image.{key}"], expected[key]) for key in expected)


def test_a_run_that_goes_on_keeps_what_it_has_learnt_since_its_start(tmp_path: Path, recipe, earlier, trained, stop_at):
    earlier(tmp_path / "whole", seed=1)
    earlier(tmp_path / "stopped", seed=1)
    recipe(start="earlier")
    expected = trained(tmp_path / "whole")
    stop_at(4, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 4"):
        train("tiny", tmp_path / "stopped", "cpu")
    assert same(trained(tmp_path / "stopped"), expected)


@pytest.mark.parametrize("needs", ["start", "teacher"])
def test_an_earlier_model_that_is_nowhere_is_named(needs: str, tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training, "models_dir", lambda: tmp_path)
    recipe(**{needs: "earlier"})
    with pytest.raises(VitvizError, match=r"earlier\.json cannot be read"):
        train("tiny", tmp_path, "cpu")


def test_the_distillation_token_learns_its_teachers_answers_and_the_class_token_the_labels(tmp_path: Path, recipe, earlier):
    taught = earlier(tmp_path, seed=1, always=7)
    recipe(architecture={"class": DEIT, "arguments": ARGUMENTS}, teacher="earlier", radius=0.0)
    train("tiny", tmp_path, "cpu", steps=15)
    module = models.load_from(tmp_path, "tiny").module
    features = module.forward_features(torch.rand(8, 3, 16, 16) * 2 - 1)
    own, copied = module.head(features[:, 0]), module.head_dist(features[:, 1])
    assert (copied.argmax(1) == 7).all() and not (own.argmax(1) == 7).any()
    teacher = load_file(tmp_path / "earlier.safetensors")
    assert all(torch.equal(teacher[key].float(), taught[key]) for key in taught)


def test_the_distillation_token_is_never_left_out_with_the_patches(tmp_path: Path, recipe, earlier):
    earlier(tmp_path, seed=1)
    changed = recipe(architecture={"class": DEIT, "arguments": ARGUMENTS | {"patch_drop_rate": 0.5}}, teacher="earlier")
    network = training._Network(changed, EmojiWorld("train", styles=changed.styles, size=16), tmp_path, "cpu")
    tokens = torch.arange(6.0).view(1, 6, 1).expand(32, 6, 16)
    kept = network.image.patch_drop(tokens)[..., 0]
    assert (kept[:, 1] == 1).all() and kept.shape == (32, 4)


def test_a_pupils_loss_is_half_labels_and_half_teacher(tmp_path: Path, recipe, earlier):
    earlier(tmp_path, seed=1)
    changed = recipe(architecture={"class": DEIT, "arguments": ARGUMENTS}, teacher="earlier")
    world = EmojiWorld("train", styles=changed.styles, size=16)
    network, scenes, images = training._Network(changed, world, tmp_path, "cpu"), world.batch(range(4)), torch.rand(4, 3, 16, 16)
    answers = models.load_from(tmp_path, "earlier")(scenes.images).argmax(1)  # to the scene itself, also under attack
    own, copied = network.image(images * 2 - 1)
    right = own.log_softmax(1)[range(4), scenes.concept] * 0.9 + own.log_softmax(1).mean(1) * 0.1
    expected = -(right.mean() + copied.log_softmax(1)[range(4), answers].mean()) / 2
    assert network.loss(scenes)(images).item() == pytest.approx(expected.item(), abs=1e-5)
    assert not any(p is q for p in network.parameters() for q in network._teacher[0].module.parameters())


# Captions


@pytest.fixture
def clip(tmp_path: Path, recipe) -> models.VisionModel:
    recipe(architecture=TO_POINTS, captions=True, styles=("flat", "line", "flat"), radius=0.0)
    train("tiny", tmp_path, "cpu", steps=2)
    return models.load_from(tmp_path, "tiny")


def test_both_towers_lie_in_one_file_and_give_the_cosines_with_class_names(clip: models.VisionModel, tmp_path: Path):
    weights = load_file(tmp_path / "tiny.safetensors")
    towers = {"image": clip.module, "text": clip.text}
    assert weights.keys() == {f"{tower}.{key}" for tower, module in towers.items() for key in module.state_dict()}
    for tower, module in towers.items():
        assert all(torch.equal(value, weights[f"{tower}.{key}"].float()) for key, value in module.state_dict().items())
    images, names = torch.rand(3, 3, 16, 16), EmojiWorld().concepts
    points = clip.module(images * 2 - 1)
    logits = clip(images)
    assert logits.shape == (3, 256) and clip.class_names == names
    for k in (0, 100, 255):
        prompt = clip.text([f"a {names[k]}", f"a flat icon of {names[k]}", f"a line drawing of {names[k]}"]).mean(0)
        cosine = torch.cosine_similarity(points, prompt[None], dim=1)
        assert torch.allclose(logits[:, k], cosine * clip.text.log_scale.exp(), atol=1e-4)


def test_the_card_of_a_captions_model_tells_its_text_tower(clip: models.VisionModel):
    text = clip.card["text"]
    assert text["width"] == 16 and len(set(text["words"])) == len(text["words"])
    assert {word for name in clip.class_names for word in training.split(name)} <= set(text["words"])
    assert {"a", "three", "icon", "icons", "drawing", "of", "on", "at", "with", "half", "hidden", "blurred"} <= set(text["words"])
    assert clip.card["parameters"] == sum(p.numel() for p in clip.module.parameters())


def test_every_weight_of_both_towers_is_trained(tmp_path: Path, recipe, trained, stop_at):
    recipe(architecture={"class": VIT, "arguments": ARGUMENTS | {"num_classes": 16}}, captions=True, decay=0.0, radius=0.0)
    stop_at(0, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 0"):
        train("tiny", tmp_path, "cpu")
    before, after = load_file(tmp_path / "tiny.checkpoint.safetensors"), trained(tmp_path)
    assert not [key for key in after if torch.equal(after[key], before[f"weight.{key}"])]


def test_a_captions_loss_is_that_of_its_own_captions(tmp_path: Path, recipe):
    changed = recipe(architecture=TO_POINTS, captions=True)
    world = EmojiWorld("train", styles=changed.styles, size=16)
    network = training._Network(changed, world, tmp_path, "cpu").eval()
    scenes = world.batch(range(4))
    points = F.normalize(network.image(scenes.images * 2 - 1), dim=1)
    torch.manual_seed(3)  # which facts a caption leaves out
    others = world.captions(i + 2**40 * k for i in range(4) for k in (1, 2, 3))
    captions = [shorten(caption) for caption in [*scenes.captions, *others]]
    cosines = points @ network.text(captions).T * network.text.log_scale.exp()  # (4 scenes, 16 captions)
    own = range(4)
    expected = -(cosines[:, :4].log_softmax(0)[own, own].mean() + cosines.log_softmax(1)[own, own].mean()) / 2
    torch.manual_seed(3)
    assert network.loss(scenes)(scenes.images).item() == pytest.approx(expected.item(), abs=1e-4)


def test_every_token_must_name_the_concept_where_the_recipe_says_so(tmp_path: Path, recipe):
    world = EmojiWorld("train", styles=("flat", "line"), size=16)
    scenes = world.batch(range(4))
    network = training._Network(recipe(every_token=True), world, tmp_path, "cpu").eval()
    tokens = network.image.head(network.image.forward_features(scenes.images * 2 - 1)).log_softmax(-1)  # (4, 1 + 4, 256)
    smooth = 0.9 * F.one_hot(scenes.concept, 256)[:, None] + 0.1 / 256
    each = -(smooth * tokens).sum(-1)
    expected = (each[:, 0].mean() + each[:, 1:].mean()) / 2
    assert network.loss(scenes)(scenes.images).item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in TRAININGS if name.endswith("-robust") and name != "emoji-resnet-robust"])
def test_a_familys_recipe_for_pictures_starts_from_its_weights_and_moves_them_all(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(training, "SIZE", 64)
    world = EmojiWorld("train", styles=TRAININGS[name].styles, size=64)
    network = training._Network(TRAININGS[name], world, tmp_path, "cpu")
    started = models.load_from(models.models_dir(), TRAININGS[name].start).module.state_dict()
    assert all(torch.equal(value, started[key]) for key, value in network.image.state_dict().items())
    network.loss(scenes := world.batch(range(2)))(scenes.images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.image.parameters())


def test_a_resnet_is_written_with_the_integers_of_its_batch_norms(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    # At 16 px, its last stage halves a map of 1 x 1: torch 2.15's bfloat16 gradient of that is sometimes NaN on a CPU.
    monkeypatch.setattr(training, "SIZE", 32)
    recipe(architecture=RESNET, radius=0.0)
    train("tiny", tmp_path, "cpu", steps=2)
    weights = load_file(tmp_path / "tiny.safetensors")
    assert weights["bn1.num_batches_tracked"].item() == 2 and weights["bn1.num_batches_tracked"].dtype == torch.int64
    assert models.load_from(tmp_path, "tiny")(torch.rand(1, 3, 32, 32)).shape == (1, 256)


# Bad input, and the parts


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path, recipe, stop_at):
    stop_at(1, KeyboardInterrupt)
    with pytest.raises(VitvizError, match="Stopped at step 1"):
        train("tiny", tmp_path, "cpu")
    checkpoint = tmp_path / "tiny.checkpoint.safetensors"
    before = checkpoint.read_bytes()
    recipe(peak=1e-3)
    with pytest.raises(VitvizError, match=r"tiny\.checkpoint\.safetensors belongs to another recipe; .*--out"):
        train("tiny", tmp_path, "cpu")
    assert checkpoint.read_bytes() == before


def test_wrong_arguments_are_told_what_is_allowed(tmp_path: Path):
    with pytest.raises(VitvizError, match=r"no recipe to train 'tinny'; there is one for .*, tiny\..*mean [^?]*\btiny\b"):
        train("tinny", tmp_path)
    with pytest.raises(VitvizError, match="at least 1 step, got 0"):
        train("tiny", tmp_path, steps=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitvizError, match=r"to the folder .*file \(File exists\)"):
        train("tiny", tmp_path / "file", "cpu")
    with pytest.raises(VitvizError, match=r"device 'gpu' cannot be used here"):
        train("tiny", tmp_path, "gpu")


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_nothing_along_a_cosine(tiny: Training):
    recipe = dataclasses.replace(tiny, steps=1000, warmup=100)
    rate = [training._schedule(step, recipe) for step in range(1000)]
    assert rate[0] == pytest.approx(0.01) and rate[49] == pytest.approx(0.5, abs=0.01)
    assert max(rate) == pytest.approx(0.976, abs=0.001) == rate[99]
    assert rate[250] == pytest.approx(0.8536, abs=1e-3) and rate[500] == pytest.approx(0.5) and rate[999] < 1e-4


@pytest.mark.parametrize("name", sorted(set(TRAININGS)))
def test_every_recipe_builds_a_model_for_its_scenes(name: str):
    recipe = TRAININGS[name]
    module = models.build(recipe.architecture).eval()
    assert module(torch.rand(1, 3, 64, 64)).shape == (1, recipe.architecture["arguments"]["num_classes"])
    assert recipe.captions or recipe.architecture["arguments"]["num_classes"] == 256


# Newcombe 1998, table I, method 3; and the first by hand: (0.5 + 0.19207 ± 1.96 * sqrt(0.25 / 10 + 0.0096036)) / 1.38415
@pytest.mark.parametrize(("hits", "n", "low", "high"), [
    (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611),
    (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0), (0, 0, 0.0, 1.0),
])
def test_wilsons_interval_is_the_published_one(hits: int, n: int, low: float, high: float):
    assert wilson(hits, n) == pytest.approx((low, high), abs=5e-5)


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
