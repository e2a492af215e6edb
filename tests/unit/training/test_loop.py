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
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import PatchDropout
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from vitviz_nb.cli import main
from vitviz_nb.datasets.emoji_world import EmojiWorld
from vitviz_nb.models import cards
from vitviz_nb.models import loading as models
from vitviz_nb.models.text_tower import split
from vitviz_nb.training import loop
from vitviz_nb.training.captions import shorten
from vitviz_nb.training.loop import PGD_STEPS, train
from vitviz_nb.training.recipes import Training, recipe_of
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.utils.statistics import wilson

VIT, DEIT = "timm.models.vision_transformer.VisionTransformer", "timm.models.deit.VisionTransformerDistilled"
ARGUMENTS = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 256}
ARCHITECTURE = {"class": VIT, "arguments": ARGUMENTS}
AT_RANDOM = {"class": VIT, "arguments": ARGUMENTS | {"drop_path_rate": 0.5, "patch_drop_rate": 0.5}}
TO_POINTS = {"class": VIT, "arguments": ARGUMENTS | {"num_classes": 16, "patch_drop_rate": 0.5}}
COAT = {"class": "timm.models.coat.CoaT", "arguments": {
    "img_size": 32, "patch_size": 4, "embed_dims": (32, 32, 32, 32), "serial_depths": (1, 1, 1, 1), "parallel_depth": 1,
    "num_classes": 256}}
RESNET = {"class": "timm.models.resnet.ResNet", "arguments": {
    "num_classes": 256, "block": "timm.models.resnet.BasicBlock", "layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8)}}
STEPS, BATCH = 6, 4  # the last two steps see every patch


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> Training:
    """An adversarial recipe of six steps that drops paths and patches at random, measured on a few scenes."""
    recipe = Training(AT_RANDOM, styles=("flat", "line"), steps=STEPS, batch=BATCH, warmup=1, peak=1e-2, radius=1.0)
    monkeypatch.setattr(loop, "recipe_of", lambda name: recipe if name == "tiny" else recipe_of(name))
    monkeypatch.setattr(loop, "SIZE", 16)
    monkeypatch.setattr(loop, "accuracy", functools.partial(loop.accuracy, n=60))
    return recipe


@pytest.fixture
def recipe(tiny: Training, monkeypatch: pytest.MonkeyPatch):
    """Changes the recipe that "tiny" is trained by."""
    def change(**changes) -> Training:
        changed = dataclasses.replace(tiny, **changes)
        monkeypatch.setattr(loop, "recipe_of", lambda name: changed if name == "tiny" else recipe_of(name))
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


def trained(folder: Path) -> dict[str, Tensor]:
    """The weights of "tiny", trained into a folder."""
    train("tiny", folder, "cpu")
    return {key: value.float() for key, value in load_file(folder / "tiny.safetensors").items()}


@pytest.fixture(scope="module")
def kept() -> dict[str, dict[str, Tensor]]:
    return {}


@pytest.fixture(params=["labels", "captions"])
def uninterrupted(request, kept, recipe, tmp_path: Path) -> dict[str, Tensor]:
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
        module = cards.build(ARCHITECTURE)
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
    """Whether weights agree to what float16 rounds off."""
    return first.keys() == second.keys() and all(
        torch.allclose(first[key], second[key], atol=1e-4, rtol=2e-3) for key in first)


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
    monkeypatch.setattr(cards, "models_dir", lambda: folder)
    model = models.load("tiny", device="cpu")
    found = model.module.state_dict()
    assert all(torch.equal(found[key], weights[key].float()) for key in weights) and model.trained
    assert model(torch.rand(1, 3, 16, 16)).shape == (1, 256)


def test_measured_accuracy_is_that_of_the_rounded_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen = []
    measure = loop.accuracy

    def spy(model, world):
        seen.append({key: value.clone() for key, value in model.module.state_dict().items()})
        return measure(model, world)

    monkeypatch.setattr(loop, "accuracy", spy)
    train("tiny", tmp_path, "cpu", steps=1)
    weights = load_file(tmp_path / "tiny.safetensors")
    assert seen and all(torch.equal(state[key], weights[key].float()) for state in seen for key in weights)


@pytest.mark.slow
def test_weights_depend_on_the_seed_and_nothing_else(tmp_path: Path, uninterrupted, recipe):
    torch.manual_seed(77)
    assert same(trained(tmp_path / "again"), uninterrupted)
    recipe(**({"architecture": TO_POINTS, "captions": True} if "text.place" in uninterrupted else {}), seed=1)
    other = trained(tmp_path / "other")
    assert not any(torch.allclose(other[key], uninterrupted[key], atol=1e-2) for key in other if key.endswith("head.weight"))


@pytest.mark.parametrize("step", [0, STEPS - 1])
def test_an_interrupted_run_goes_on_to_the_same_weights(step: int, tmp_path: Path, uninterrupted, stop_at, capsys):
    drawn = stop_at(step, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    sentence = rf"^Stopped at step {step} of {STEPS}; the same command goes on from .*tiny\.checkpoint\.safetensors\.$"
    assert re.search(sentence, capsys.readouterr().err, re.MULTILINE)
    assert not (tmp_path / "tiny.json").exists()
    torch.manual_seed(77)
    found = trained(tmp_path)
    assert drawn == [*range(step + 1), *range(step, STEPS)]  # no step twice
    assert same(found, uninterrupted)


@pytest.mark.parametrize("uninterrupted", ["labels"], indirect=True)
def test_a_run_interrupted_between_its_optimizers_goes_on_to_the_same_weights(tmp_path: Path, uninterrupted, capsys,
                                                                              monkeypatch: pytest.MonkeyPatch):
    move, moves = loop.Muon.step, []

    def interrupted(*arguments):
        moves.append(None)
        if len(moves) == 3:
            raise KeyboardInterrupt
        return move(*arguments)

    monkeypatch.setattr(loop.Muon, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    assert "Stopped at step 2 of 6; the same command starts afresh." in capsys.readouterr().err
    assert same(trained(tmp_path), uninterrupted)


def test_modules_that_are_used_twice_can_be_kept_and_read_again(tmp_path: Path, recipe, stop_at, monkeypatch):
    """CoaT's stages share modules, whose weights then have several names."""
    monkeypatch.setattr(loop, "SIZE", 32)
    recipe(architecture=COAT, radius=0.0, steps=2)
    stop_at(1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    assert same(trained(tmp_path), trained(tmp_path / "whole"))


@pytest.mark.parametrize("uninterrupted", ["labels"], indirect=True)
def test_a_killed_run_goes_on_from_its_last_checkpoint_of_at_most_250_steps_before(tmp_path: Path, uninterrupted, stop_at,
                                                                                    monkeypatch: pytest.MonkeyPatch):
    assert loop.CHECKPOINT_EVERY <= 250
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY", 2)
    drawn = stop_at(3, SystemError)
    with pytest.raises(SystemError):
        train("tiny", tmp_path, "cpu")
    assert same(trained(tmp_path), uninterrupted)
    assert drawn == [0, 1, 2, 3, *range(2, STEPS)]


def test_a_run_interrupted_while_it_is_measured_is_not_trained_again(tmp_path: Path, stop_at, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "accuracy", interrupt)
        train("tiny", tmp_path, "cpu", steps=2)
    drawn = stop_at(-1, SystemError)
    assert train("tiny", tmp_path, "cpu", steps=2)["accuracy"] and not drawn


def test_a_finished_run_leaves_weights_and_card_alone(tmp_path: Path):
    train("tiny", tmp_path, "cpu", steps=1)
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"tiny.safetensors", "tiny.json"}


@pytest.mark.parametrize(("radius", "perturbed"), [(1.0, STEPS), (0.0, 0)])
def test_scenes_are_perturbed_in_every_step_or_never(radius: float, perturbed: int, tmp_path: Path, recipe,
                                                     monkeypatch: pytest.MonkeyPatch):
    radii = []

    def spy(loss, images, radius, steps):
        radii.append((radius, steps))
        return images

    monkeypatch.setattr(loop, "pgd", spy)
    recipe(radius=radius)
    train("tiny", tmp_path, "cpu")
    assert radii == [(radius, PGD_STEPS)] * perturbed


def test_an_adversarial_step_learns_the_perturbed_scenes(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    recipe(architecture=ARCHITECTURE, steps=2)
    monkeypatch.setattr(loop, "pgd", lambda loss, images, *_: images)
    plain = trained(tmp_path / "plain")
    monkeypatch.setattr(loop, "pgd", lambda loss, images, *_: 1 - images)
    assert not same(trained(tmp_path / "moved"), plain)


def test_pgd_and_the_update_drop_the_same_patches(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    states, forward = [], PatchDropout.forward

    def spy(drop: PatchDropout, x: Tensor) -> Tensor:
        states.append(torch.get_rng_state())  # from which the patches are drawn
        return forward(drop, x)

    monkeypatch.setattr(PatchDropout, "forward", spy)
    recipe(architecture={"class": VIT, "arguments": ARGUMENTS | {"patch_drop_rate": 0.5}}, steps=5)
    train("tiny", tmp_path, "cpu")
    passes = 1 + PGD_STEPS
    by_step = [states[i:i + passes] for i in range(0, len(states), passes)]
    assert len(by_step) == 4  # the fifth leaves nothing out
    assert all(torch.equal(state, step[0]) for step in by_step for state in step)
    assert len({tuple(step[0].tolist()) for step in by_step}) == 4


@pytest.mark.parametrize("changes", [{"captions": True}, {"teacher": "earlier"}])
def test_a_recipe_has_one_objective(changes: dict):
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
    assert tokens == [3] * 8 + [5] * 2  # of four patches, and the CLS token


# Muon and AdamW


@pytest.mark.parametrize(("changes", "inside"), [
    ({}, {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}),
    ({"architecture": TO_POINTS, "captions": True},
     {"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "self_attn.out_proj", "linear1", "linear2"}),
])
def test_muon_moves_the_matrices_inside_and_adamw_all_the_rest(changes: dict, inside: set, tmp_path: Path, recipe, monkeypatch):
    networks, moved, network = [], {}, loop.Network
    monkeypatch.setattr(loop, "Network", lambda *arguments: networks.append(network(*arguments)) or networks[0])
    for optimizer in (loop.Muon, torch.optim.AdamW):
        def step(self, closure=None, move=optimizer.step):
            moved[type(self)] = {id(p) for group in self.param_groups for p in group["params"]}
            return move(self)

        monkeypatch.setattr(optimizer, "step", step)
    recipe(**changes, radius=0.0)
    train("tiny", tmp_path, "cpu", steps=1)
    names = {id(p): re.sub(r".*\.\d+\.|\.weight$", "", name) for name, p in networks[0].named_parameters()}
    by_muon, by_adamw = moved[loop.Muon], moved[torch.optim.AdamW]
    assert by_muon | by_adamw == names.keys() and not by_muon & by_adamw  # each by one
    assert {names[p] for p in by_muon} == inside and not {names[p] for p in by_adamw} & inside


def test_without_a_learning_rate_nothing_moves(tmp_path: Path, recipe):
    recipe(architecture=ARCHITECTURE, peak=0.0)
    still = trained(tmp_path)
    torch.manual_seed(0)
    first = cards.build(ARCHITECTURE).state_dict()
    assert all(torch.equal(still[key], first[key].half().float()) for key in first)


def test_the_learning_rate_rises_over_the_warmup_and_falls_along_a_cosine(tmp_path: Path, recipe, monkeypatch):
    rates, move = [], loop.Muon.step

    def spy(optimizer):
        rates.append(optimizer.param_groups[0]["lr"])
        return move(optimizer)

    monkeypatch.setattr(loop.Muon, "step", spy)
    recipe(architecture=ARCHITECTURE, radius=0.0, steps=4, warmup=2, peak=0.01)
    train("tiny", tmp_path, "cpu")
    assert rates == pytest.approx([0.01 / 2, 0.01 * (1 + 0.5**0.5) / 2, 0.01 / 2, 0.01 * (1 - 0.5**0.5) / 2])


# What a recipe starts from and learns from


@pytest.mark.parametrize("where", ["out", "models"])
def test_a_recipe_starts_from_the_model_in_out_else_from_the_one_that_ships(where: str, tmp_path: Path, recipe, earlier, stop_at,
                                                                            monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "models_dir", lambda: tmp_path / "models")
    expected = earlier(tmp_path / "models", seed=1)
    if where == "out":
        expected = earlier(tmp_path / "out", seed=2)
    recipe(start="earlier")
    stop_at(0, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path / "out", "cpu")
    found = load_file(tmp_path / "out" / "tiny.checkpoint.safetensors")
    assert all(torch.equal(found[f"weight.image.{key}"], expected[key]) for key in expected)


def test_a_run_that_goes_on_keeps_what_it_has_learnt_since_its_start(tmp_path: Path, recipe, earlier, stop_at):
    earlier(tmp_path / "whole", seed=1)
    earlier(tmp_path / "stopped", seed=1)
    recipe(start="earlier")
    expected = trained(tmp_path / "whole")
    stop_at(4, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path / "stopped", "cpu")
    assert same(trained(tmp_path / "stopped"), expected)


@pytest.mark.parametrize("needs", ["start", "teacher"])
def test_an_earlier_model_that_is_nowhere_is_named(needs: str, tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "models_dir", lambda: tmp_path)
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


def test_the_distillation_token_is_never_left_out_with_the_patches(tmp_path: Path, recipe, earlier, monkeypatch):
    passes, forward = [], PatchDropout.forward

    def spy(drop: PatchDropout, x: Tensor) -> Tensor:
        passes.append((x, forward(drop, x)))
        return passes[-1][1]

    monkeypatch.setattr(PatchDropout, "forward", spy)
    earlier(tmp_path, seed=1)
    recipe(architecture={"class": DEIT, "arguments": ARGUMENTS | {"patch_drop_rate": 0.5}}, teacher="earlier", radius=0.0)
    train("tiny", tmp_path, "cpu")
    assert passes and all(y.shape[1] == 4 and torch.equal(x[:, :2], y[:, :2]) for x, y in passes)


def test_a_pupils_loss_is_half_labels_and_half_teacher(tmp_path: Path, recipe, earlier):
    earlier(tmp_path, seed=1)
    changed = recipe(architecture={"class": DEIT, "arguments": ARGUMENTS}, teacher="earlier")
    world = EmojiWorld("train", styles=changed.styles, size=16)
    network, scenes, images = loop.Network(changed, world, tmp_path, "cpu"), world.batch(range(4)), torch.rand(4, 3, 16, 16)
    answers = models.load_from(tmp_path, "earlier")(scenes.images).argmax(1)  # of the scene itself, also where it is perturbed
    own, copied = network.image(images * 2 - 1)
    right = own.log_softmax(1)[range(4), scenes.concept] * 0.9 + own.log_softmax(1).mean(1) * 0.1
    expected = -(right.mean() + copied.log_softmax(1)[range(4), answers].mean()) / 2
    assert network.loss(scenes)(images).item() == pytest.approx(expected.item(), abs=1e-5)
    assert len(list(network.parameters())) == len(list(network.image.parameters()))  # the teacher's are not trained


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
    assert {word for name in clip.class_names for word in split(name)} <= set(text["words"])
    assert {"a", "three", "icon", "icons", "drawing", "of", "on", "at", "with", "half", "hidden", "blurred"} <= set(text["words"])
    assert clip.card["parameters"] == sum(p.numel() for p in clip.module.parameters())


def test_every_weight_of_both_towers_is_trained(tmp_path: Path, recipe, stop_at):
    recipe(architecture={"class": VIT, "arguments": ARGUMENTS | {"num_classes": 16}}, captions=True, decay=0.0, radius=0.0)
    stop_at(0, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    before, after = load_file(tmp_path / "tiny.checkpoint.safetensors"), trained(tmp_path)
    assert not [key for key in after if torch.equal(after[key], before[f"weight.{key}"].half().float())]


def test_a_captions_loss_is_that_of_its_own_captions(tmp_path: Path, recipe):
    changed = recipe(architecture=TO_POINTS, captions=True)
    world = EmojiWorld("train", styles=changed.styles, size=16)
    network = loop.Network(changed, world, tmp_path, "cpu").eval()
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


def test_dense_supervision_is_half_cls_and_half_patch_tokens(tmp_path: Path, recipe):
    world = EmojiWorld("train", styles=("flat", "line"), size=16)
    scenes = world.batch(range(4))
    network = loop.Network(recipe(every_token=True), world, tmp_path, "cpu").eval()
    tokens = network.image.head(network.image.forward_features(scenes.images * 2 - 1)).log_softmax(-1)  # (4, 1 + 4, 256)
    smooth = 0.9 * F.one_hot(scenes.concept, 256)[:, None] + 0.1 / 256
    each = -(smooth * tokens).sum(-1)
    expected = (each[:, 0].mean() + each[:, 1:].mean()) / 2
    assert network.loss(scenes)(scenes.images).item() == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("name", [name for name in cards.embedded_names() if name.endswith("-robust")])
def test_a_familys_recipe_for_pictures_starts_from_its_weights_and_moves_them_all(name: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(loop, "SIZE", 64)
    world = EmojiWorld("train", styles=recipe_of(name).styles, size=64)
    network = loop.Network(recipe_of(name), world, tmp_path, "cpu")
    started = models.load_from(cards.models_dir(), recipe_of(name).start).module.state_dict()
    assert all(torch.equal(value, started[key]) for key, value in network.image.state_dict().items())
    network.loss(scenes := world.batch(range(2)))(scenes.images).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.image.parameters())


def test_a_resnet_is_written_with_the_integers_of_its_batch_norms(tmp_path: Path, recipe, monkeypatch: pytest.MonkeyPatch):
    # At 16 px, its last stage halves a map of 1 x 1: torch 2.15's bfloat16 gradient of that is sometimes NaN on a CPU.
    monkeypatch.setattr(loop, "SIZE", 32)
    recipe(architecture=RESNET, radius=0.0)
    train("tiny", tmp_path, "cpu", steps=2)
    weights = load_file(tmp_path / "tiny.safetensors")
    assert weights["bn1.num_batches_tracked"].item() == 2 and weights["bn1.num_batches_tracked"].dtype == torch.int64
    assert models.load_from(tmp_path, "tiny")(torch.rand(1, 3, 32, 32)).shape == (1, 256)


# Bad input, and the parts


def test_a_checkpoint_of_another_recipe_is_refused_and_kept(tmp_path: Path, recipe, stop_at):
    stop_at(1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    checkpoint = tmp_path / "tiny.checkpoint.safetensors"
    before = checkpoint.read_bytes()
    recipe(peak=1e-3)
    with pytest.raises(VitvizError, match=r"tiny\.checkpoint\.safetensors belongs to another recipe; .*--out"):
        train("tiny", tmp_path, "cpu")
    assert checkpoint.read_bytes() == before


@pytest.mark.parametrize(("arguments", "message"), [
    (("tinny", "out"), "A recipe to train is one of emoji-vit, .*; got 'tinny'"),
    ((None, "out"), "A recipe to train is one of .* got None"),
    (("tiny", "out", "cpu", 0), "steps is a whole number from 1 to"),
    (("tiny", "out", "cpu", 2.5), "steps is a whole number from 1 to"),
    (("tiny", "", "cpu"), "out is a path"),
    (("tiny", None, "cpu"), "out is a path"),
    (("tiny", "file", "cpu"), r"file cannot be written \(File exists\)"),
    (("tiny", "out", "gpu"), "device 'gpu' cannot be used here"),
])
def test_wrong_arguments_are_refused_with_what_is_allowed(arguments, message, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(VitvizError, match=message):
        train(*arguments)


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch": 2.5}, {"warmup": 0}, {"peak": float("nan")}, {"radius": -1},
                                     {"seed": 10**400}, {"styles": ("oil",)}])
def test_a_recipe_out_of_range_is_refused_with_its_field(changes: dict):
    with pytest.raises(VitvizError, match=next(iter(changes))):
        Training(ARCHITECTURE, **changes)


@pytest.mark.parametrize("name", ["tiny.safetensors", "tiny.json"])
def test_files_that_are_no_model_of_the_kit_are_not_replaced(name: str, tmp_path: Path):
    (tmp_path / name).write_text("mine")
    with pytest.raises(VitvizError, match=f"{name} exists, and is nothing that this command made"):
        train("tiny", tmp_path, "cpu", steps=1)
    assert (tmp_path / name).read_text() == "mine"
    train("tiny", tmp_path, "cpu", steps=1, force=True)
    train("tiny", tmp_path, "cpu", steps=1)  # its own model is replaced
    assert models.load_from(tmp_path, "tiny")


@pytest.fixture
def full_disk():
    """Lets nobody write files of more than 8 kB, as a disk that is full does."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))

    yield fill
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_and_no_half_file(tmp_path: Path, stop_at, full_disk):
    stop_at(2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert before.keys() == {"tiny.checkpoint.safetensors"}
    full_disk()
    with pytest.raises(VitvizError, match=r"tiny\.checkpoint\.safetensors cannot be written .*free some space"):
        train("tiny", tmp_path, "cpu")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_stochastic_depth_drops_every_block_alike_and_needs_blocks(tmp_path: Path, recipe):
    network = loop.Network(recipe(drop_path=0.3), EmojiWorld("train", size=16), tmp_path, "cpu")
    rates = [getattr(block, name).drop_prob for block in network.image.blocks for name in ("drop_path1", "drop_path2")]
    assert rates == [0.3] * 2 * len(network.image.blocks)
    with pytest.raises(VitvizError, match="ResNet has no blocks whose branches can be dropped"):
        loop.Network(recipe(architecture=RESNET, drop_path=0.3), EmojiWorld("train", size=16), tmp_path, "cpu")


@pytest.mark.parametrize("name", cards.embedded_names())
def test_every_card_holds_the_recipe_of_a_model_for_its_scenes(name: str):
    recipe, card = recipe_of(name), cards.read_card(name)
    assert (recipe.architecture, recipe.pictures) == (card["architecture"], card["pictures"])
    module = cards.build(recipe.architecture).eval()
    assert module(torch.rand(1, 3, 64, 64)).shape == (1, recipe.architecture["arguments"]["num_classes"])
    assert recipe.captions or recipe.architecture["arguments"]["num_classes"] == 256


def test_a_recipe_of_ones_own_needs_no_card_and_a_name_that_is_no_path(tmp_path: Path, tiny: Training):
    assert train("mine", tmp_path, "cpu", steps=1, recipe=tiny)["name"] == "mine"
    for name, recipe in (("../mine", tiny), ("mine", 3)):
        with pytest.raises(VitvizError, match="under a name of letters"):
            train(name, tmp_path, "cpu", recipe=recipe)


def test_accuracy_counts_hits_by_group(monkeypatch: pytest.MonkeyPatch):
    world = EmojiWorld("val", concepts=["dog face", "pizza"], styles=("flat", "line"), size=16)

    class Guess(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return torch.tensor([[0.0, 1.0]]).expand(len(images), 2)  # always pizza

    table = loop.accuracy(models.VisionModel(Guess(), "guess", 16), world)
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


def without(part: str):
    return lambda tensors, facts: ({k: v for k, v in tensors.items() if part not in k}, facts)


@pytest.mark.parametrize("damage", [
    without("weight.image.head.bias"), without("optimizer."), without("optimizer.0."), without("exp_avg_sq"),
    lambda tensors, facts: ({k: v[:-1] if k == "weight.image.head.bias" else v for k, v in tensors.items()}, facts),
    lambda tensors, facts: ({k: v[..., :-1] if "momentum" in k or "exp_avg" in k else v for k, v in tensors.items()}, facts),
    lambda tensors, facts: (tensors, {k: v for k, v in facts.items() if k != "done"}),
    *(lambda tensors, facts, done=done: (tensors, facts | {"done": done}) for done in ("x", "99", "-1")),
    *(lambda tensors, facts, time=time: (tensors, facts | {"seconds": time}) for time in ("x", "nan", "inf"))])
def test_a_checkpoint_that_lacks_something_gets_one_sentence(tmp_path: Path, stop_at, damage):
    stop_at(2, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        train("tiny", tmp_path, "cpu")
    path = tmp_path / "tiny.checkpoint.safetensors"
    with safe_open(path, "pt") as file:
        tensors, facts = damage(load_file(path), file.metadata())
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, facts)
    with pytest.raises(VitvizError, match="checkpoint.safetensors is damaged .* move it away to start afresh"):
        train("tiny", tmp_path, "cpu")


def test_an_interrupted_command_exits_with_130_and_keeps_its_checkpoint(tmp_path: Path, stop_at, capsys):
    stop_at(3, KeyboardInterrupt)
    assert main(["train", "tiny", "--out", str(tmp_path), "--device", "cpu"]) == 130
    assert "Stopped at step 3 of 6; the same command goes on from" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.checkpoint.safetensors"]
