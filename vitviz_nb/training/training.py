"""Train the embedded models on Emoji World: ``vitviz train NAME``.

The same code runs on a CPU and on a GPU. A run is fixed by its recipe: step k always sees the same scenes, so an
interrupted run goes on from its checkpoint to the same end (to within float arithmetic).
"""

import dataclasses
import hashlib
import json
import math
import platform
import re
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import nn
from tqdm import tqdm

from ..datasets.emoji_world import STYLES, EmojiWorld, Scenes
from ..models.cards import models_dir
from ..models.cards import build
from ..models.loading import load_from, usable_device
from ..models.text_tower import TextTower, contrast, shorten, split
from ..models.vision_model import VisionModel, plain_attention
from ..utils.errors import VitvizError, nearest
from ..utils.statistics import wilson
from .dense_supervision import logits_by_token
from .muon import Muon
from .pgd import pgd

SIZE = 64  # px
MEAN = STD = (0.5, 0.5, 0.5)
COLORED = ("3d", "cartoon", "flat")
ATTACK_STEPS = 2  # with one, networks learn to bend the slope instead of the answer
_OTHERS, _UNSEEN = 3, 2**40  # captions of other scenes for each scene of a batch, and how far off these scenes lie
WITH_WORDS = (*COLORED, *COLORED, "word")  # reading is learned late: more words than this slow everything down


@dataclasses.dataclass(frozen=True)
class Training:
    """How one embedded model is trained.

    Attributes:
        architecture: class and arguments, as ``models.build`` takes them. A ``patch_drop_rate`` holds until the last fifth
            of the steps (Liu et al. 2022, PatchDropout): the transformer sees almost twice as many scenes in the same time.
        styles: drawn in training, one named twice twice as often; the others are held out for tests of transfer.
        steps, batch: number of updates, and scenes in each.
        peak, warmup, decay: largest learning rate, steps to reach it (it then falls to 0 along a cosine), weight decay.
        start: the model whose trained weights it starts from; None for random weights.
        radius: L2 norm of the attack on each scene, in units of [0, 1] pixels over the whole picture; 0 for plain scenes.
        every_token: whether each patch token of the last block, too, must name the scene's concept, not the class token alone.
        teacher: the model whose answers the distillation token learns (DeiT).
        captions: whether it learns to match scenes and captions, with a text tower, instead of labels.
        seed: of weights, scenes and attacks.
        pictures: what ``Recipe.quick`` should do for this model instead of its own settings.
    """

    architecture: dict
    styles: tuple[str, ...] = COLORED
    steps: int = 4500
    batch: int = 128
    peak: float = 3e-3
    warmup: int = 200
    decay: float = 0.05
    start: str | None = None
    radius: float = 0.0
    every_token: bool = False
    teacher: str | None = None
    captions: bool = False
    seed: int = 0
    pictures: dict = dataclasses.field(default_factory=lambda: _PICTURES)

    def __post_init__(self):
        if self.every_token + bool(self.teacher) + self.captions > 1:
            raise VitvizError("Each of every_token, teacher and captions sets what a model learns from; a recipe takes one.")


# Few augmentations leave the colors of a picture as the neuron wants them (data/models/README.md).
_PICTURES = {"steps": 64, "copies": 1, "tv": 0.04, "jitter": 0.125, "color": 0.1, "noise": 0.05, "spread": 0.2, "leak": 0.1}
_PICTURES_ROBUST = {**_PICTURES, "steps": 128, "tv": 0.014, "jitter": 0.09}  # gentle slopes need longer, and less to hold them


def _timm(path: str, **arguments) -> dict:
    return {"class": f"timm.models.{path}", "arguments": {"num_classes": 256, **arguments}}


_VIT = {"img_size": SIZE, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "patch_drop_rate": 0.5}
_RESNET = {"block": "timm.models.resnet.BasicBlock", "layers": (1, 2, 2, 1), "channels": (48, 96, 160, 256)}
TRAININGS = {
    "emoji-vit-standard": Training(_timm("vision_transformer.VisionTransformer", **_VIT), WITH_WORDS, steps=11_000),
    "emoji-vit": Training(_timm("vision_transformer.VisionTransformer", **_VIT), steps=5000, peak=2e-3,
                          start="emoji-vit-standard", radius=2.0, every_token=True, seed=1,
                          # Shifts by more than a patch, so that no place in it is left out; large forms first.
                          pictures={**_PICTURES_ROBUST, "jitter": 0.14, "blur": 0.1}),
    # The first 384,000 of the 1,408,000 scenes that emoji-vit-standard sees, with captions instead of labels (and in smaller
    # batches: see below); 128 is a point's width.
    "emoji-clip": Training(_timm("vision_transformer.VisionTransformer", **_VIT | {"num_classes": 128}), WITH_WORDS,
                           steps=6000, batch=64, captions=True),
    "emoji-resnet": Training(_timm("resnet.ResNet", **_RESNET), steps=5500),
    "emoji-resnet-robust": Training(_timm("resnet.ResNet", **_RESNET), steps=2500, peak=2e-3, start="emoji-resnet", radius=2.0,
                                    seed=1),
    # Batches of 64: on a CPU, where scenes are what costs, they learn more of each (loss 3.7 instead of 4.1 after 25,600).
    "emoji-deit": Training(_timm("deit.VisionTransformerDistilled", **_VIT), steps=5500, batch=64, teacher="emoji-resnet"),
    "emoji-coat": Training(_timm("coat.CoaT", img_size=SIZE, patch_size=4, embed_dims=(64, 96, 96, 96),
                                 serial_depths=(1, 1, 1, 1), parallel_depth=1, num_heads=8), steps=4000, batch=64),
    "emoji-convit": Training(_timm("convit.ConVit", img_size=SIZE, patch_size=8, embed_dim=32, depth=6, num_heads=4,
                                   local_up_to_layer=4), steps=1900),
    "emoji-pit": Training(_timm("pit.PoolingVisionTransformer", img_size=SIZE, patch_size=8, stride=4, base_dims=(24, 24, 24),
                                depth=(1, 2, 2), heads=(2, 4, 8)), batch=64),
    "emoji-swin": Training(_timm("swin_transformer.SwinTransformer", img_size=SIZE, patch_size=4, embed_dim=48,
                                 depths=(2, 2, 2), num_heads=(2, 4, 8), window_size=4), batch=64),
    "emoji-twins": Training(_timm("twins.Twins", img_size=SIZE, patch_size=4, embed_dims=(48, 96, 192), num_heads=(2, 4, 6),
                                  mlp_ratios=(4, 4, 4), depths=(1, 2, 2), sr_ratios=(4, 2, 1), wss=(4, 4, 4)), steps=4000,
                            batch=64),
}
# Each family once more, for pictures: as emoji-vit, trained on under attack. Large batches, because on a GPU, where this takes
# minutes, launching is what costs.
for _name, _steps in (("coat", 1400), ("convit", 1000), ("pit", 2100), ("swin", 2100), ("twins", 1800)):
    TRAININGS[f"emoji-{_name}-robust"] = dataclasses.replace(
        TRAININGS[f"emoji-{_name}"], steps=_steps, batch=256, peak=2e-3, start=f"emoji-{_name}", radius=2.0, seed=1,
        pictures=_PICTURES_ROBUST, every_token=_name in ("coat", "convit", "pit"))  # the other two answer by the mean over tokens


def train(name: str, out: Path, device: str | None = None, steps: int | None = None) -> dict:
    """Train one model and write ``out/NAME.safetensors`` (float16) and its card ``out/NAME.json``.

    Stopping it (Ctrl-C, or a killed machine) loses at most 250 steps: the same call goes on from the checkpoint in ``out``.

    Args:
        name: one of ``TRAININGS``.
        out: folder for weights, card and checkpoint; made if missing.
        device: by default the fastest there is.
        steps: fewer updates than the recipe's, to try it out.

    Returns:
        The card.
    """
    if name not in TRAININGS:
        raise VitvizError(f"There is no recipe to train {name!r}; there is one for {', '.join(TRAININGS)}."
                          f"{nearest(name, TRAININGS)}")
    recipe = TRAININGS[name]
    if steps is not None:
        if steps < 1:
            raise VitvizError(f"Training needs at least 1 step, got {steps}.")
        recipe = dataclasses.replace(recipe, steps=steps)
    device = usable_device(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise VitvizError(f"Nothing can be written to the folder {out} ({error.strerror}); name another.") from None
    torch.manual_seed(recipe.seed)
    world = EmojiWorld("train", styles=recipe.styles, size=SIZE, seed=recipe.seed)
    network = _Network(recipe, world, out, device).to(device)
    optimizers = _optimizers(network, recipe)
    checkpoint = out / f"{name}.checkpoint.safetensors"
    done, seconds = _resume(checkpoint, network, optimizers, recipe)

    started, moving = time.perf_counter(), False
    bar = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc=f"train {name}", unit="step", mininterval=5)
    try:
        for step in bar:
            scenes = world.batch(range(step * recipe.batch, (step + 1) * recipe.batch), device)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # of shortened captions, and of paths and patches left out
            network.see_all(step >= 0.8 * recipe.steps)
            with _precision(device):
                images, measure = scenes.images, _with_same_draws(network.loss(scenes))
                if recipe.radius:
                    images = pgd(measure, images, recipe.radius, ATTACK_STEPS)
                loss = measure(images)
            loss.backward()
            try:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
            except RuntimeError:
                raise VitvizError(f"Training {name} diverged: the slope of its loss is not finite in step {step}. "
                                  f"Lower the recipe's peak, or lengthen its warmup.") from None
            moving = True
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = recipe.peak * _schedule(step, recipe)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done, moving = step + 1, False
            if done % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
            if done % 250 == 0 or done == recipe.steps:
                _save(checkpoint, network, optimizers, recipe, done, seconds + time.perf_counter() - started)
    except KeyboardInterrupt:
        if not moving:  # else some weights have made the step and others have not: the checkpoint before it is whole
            _save(checkpoint, network, optimizers, recipe, done, seconds + time.perf_counter() - started)
        again = f"goes on from {checkpoint}" if checkpoint.exists() else "starts afresh"
        raise VitvizError(f"Stopped at step {done} of {recipe.steps}; the same command {again}.") from None
    return _finish(name, recipe, network, world, out, seconds + time.perf_counter() - started)


class _Network(nn.Module):
    """What is trained: an image tower, with captions a text tower too, and what they are compared with."""

    def __init__(self, recipe: Training, world: EmojiWorld, out: Path, device: str):
        super().__init__()
        self.image, self.text, self._teacher = build(recipe.architecture), None, None
        self._every_token = recipe.every_token
        plain_attention(self.image, device)
        if hasattr(getattr(self.image, "patch_drop", None), "num_prefix_tokens"):
            self.image.patch_drop.num_prefix_tokens = self.image.num_prefix_tokens  # timm's DeiT forgets its second token
        self.image.to(memory_format=torch.channels_last)  # convolutions are half as fast again
        if recipe.start:
            self.image.load_state_dict(_earlier(recipe.start, out).module.state_dict())
        if recipe.captions:
            words = {word for caption in world.captions(range(2000)) for word in split(caption)}
            words |= {word for name in world.concepts for word in split(name)}
            self.text = TextTower(sorted(words), recipe.architecture["arguments"]["num_classes"])
        if recipe.teacher:
            self._teacher = [_earlier(recipe.teacher, out).to(device)]  # in a list, so that it is not trained
            self._teacher[0].module.to(memory_format=torch.channels_last)
            self.image.set_distilled_training(True)

    def see_all(self, everything: bool) -> None:
        """Leave no patch out any more."""
        if everything and hasattr(self.image, "patch_drop"):
            self.image.patch_drop = nn.Identity()

    def loss(self, scenes: Scenes) -> Callable[[torch.Tensor], torch.Tensor]:
        """From images (N, 3, S, S) in [0, 1], which show ``scenes``, to their mean loss."""
        if self.text:
            # Among 128 scenes, background and style nearly tell which is whose; among more captions, only the thing does.
            others = scenes.world.captions(int(i) + _UNSEEN * k for i in scenes.indices for k in range(1, _OTHERS + 1))
            captions = [shorten(caption) for caption in [*scenes.captions, *others]]
            words = self.text(captions)
            return lambda images: contrast(self.image(_normalize(images)), words, captions, self.text.log_scale)
        labels = scenes.concept
        if self._every_token:
            def by_token(images: torch.Tensor) -> torch.Tensor:
                own, each = (answers.float() for answers in logits_by_token(self.image, _normalize(images)))
                known = labels[:, None].expand(-1, each.shape[1]).flatten()
                return (F.cross_entropy(own, labels, label_smoothing=0.1)
                        + F.cross_entropy(each.flatten(0, 1), known, label_smoothing=0.1)) / 2

            return by_token
        if self._teacher is None:
            return lambda images: F.cross_entropy(self.image(_normalize(images)).float(), labels, label_smoothing=0.1)
        with torch.no_grad():
            taught = self._teacher[0](scenes.images.contiguous(memory_format=torch.channels_last)).argmax(1)

        def distilled(images: torch.Tensor) -> torch.Tensor:
            own, copied = self.image(_normalize(images))
            return (F.cross_entropy(own.float(), labels, label_smoothing=0.1) + F.cross_entropy(copied.float(), taught)) / 2

        return distilled


def _with_same_draws(measure: Callable) -> Callable:
    """``measure``, leaving out the same patches and paths each time: those that an attack has changed must be seen."""
    random, on_card = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def again(images: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(random)
        torch.cuda.set_rng_state_all(on_card)
        return measure(images)

    return again


def _earlier(name: str, out: Path) -> VisionModel:
    """A model trained before: the one in ``out``, else the one that ships."""
    return load_from(out if (out / f"{name}.json").exists() else models_dir(), name)


def _optimizers(network: nn.Module, recipe: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside (twice as fast as AdamW here), AdamW for the rest: embeddings, heads, convolutions."""
    inner = [m.weight for name, m in network.named_modules()
             if isinstance(m, nn.Linear) and not re.search(r"\b(head|head_dist|fc)$", name)]
    known = {id(weight) for weight in inner}
    rest = [p for p in network.parameters() if id(p) not in known]
    optimizers = [torch.optim.AdamW(rest, lr=recipe.peak, weight_decay=recipe.decay)]
    if inner:
        optimizers.append(Muon(inner, lr=recipe.peak, weight_decay=recipe.decay))
    return optimizers


@torch.inference_mode()
def accuracy(model: VisionModel, world: EmojiWorld, n: int = 4000) -> dict[str, dict]:
    """Top-1 on the first ``n`` scenes of ``world``, whole and by difficulty and style: n, top1 and 95 % interval of each."""
    hits: dict[str, list[torch.Tensor]] = {}
    for start in range(0, n, 250):
        scenes = world.batch(range(start, min(n, start + 250)), model.device)
        right = model(scenes.images).argmax(1) == scenes.concept
        small = scenes.size == 0
        groups = {"all": torch.ones_like(right), "unoccluded": ~scenes.occluded, "occluded": scenes.occluded, "small": small,
                  "blurred": scenes.blurred, "plain": ~(scenes.occluded | scenes.blurred | small)}
        groups |= {f"style {style}": scenes.style == i for i, style in enumerate(world.styles)}
        for group, rows in groups.items():
            hits.setdefault(group, []).append(right[rows].cpu())
    table = {}
    for group, parts in hits.items():
        right = torch.cat(parts)
        if len(right):
            k, m = int(right.sum()), len(right)
            table[group] = {"n": m, "top1": round(k / m, 4), "interval95": [round(end, 4) for end in wilson(k, m)]}
    return table


def _normalize(images: torch.Tensor) -> torch.Tensor:
    return ((images - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)


def _precision(device: str):
    """bfloat16 where the hardware multiplies it, else float32."""
    fast_cpu = device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    fast_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return torch.autocast(device.split(":")[0], torch.bfloat16) if fast_cpu or fast_gpu else nullcontext()


def _schedule(step: int, recipe: Training) -> float:
    """The learning rate at a step as a share of its peak."""
    return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def _settings(recipe: Training) -> dict:
    """All that shapes the weights."""
    return {k: v for k, v in dataclasses.asdict(recipe).items() if k != "pictures"}


def _save(path: Path, network, optimizers, recipe: Training, done: int, seconds: float) -> None:
    tensors = {f"weight.{k}": v for k, v in network.state_dict().items()}
    for j, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{j}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    facts = {"recipe": json.dumps(_settings(recipe)), "done": str(done), "seconds": str(seconds)}
    temporary = path.with_suffix(".partial")
    # Copies, because safetensors refuses tensors that share memory, as those of modules that CoaT shares do.
    save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary, metadata=facts)
    temporary.replace(path)


def _resume(path: Path, network, optimizers, recipe: Training) -> tuple[int, float]:
    """Steps done and seconds spent so far; loads the checkpoint where there is one of the same recipe."""
    if not path.exists():
        return 0, 0.0
    try:
        file = safe_open(path, "pt")
        facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise VitvizError(f"The checkpoint {path} is damaged ({error}); move it away to start afresh.") from None
    with file:
        if facts.get("recipe") != json.dumps(_settings(recipe)):
            raise VitvizError(f"{path} belongs to another recipe; move it away to start afresh, or choose another --out.")
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    network.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
    states = [{} for _ in optimizers]
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, j, i, field = key.split(".")
            states[int(j)].setdefault(int(i), {})[field] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["done"]), float(facts["seconds"])


def _finish(name: str, recipe: Training, network: _Network, world: EmojiWorld, out: Path, seconds: float) -> dict:
    """Round to float16, measure what was rounded, write weights and card."""
    state = {k: v.detach().cpu().contiguous() for k, v in (network if network.text else network.image).state_dict().items()}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}  # BatchNorm counts in integers
    (network if network.text else network.image).load_state_dict(weights)
    model = VisionModel(network.image, name, world.size, MEAN, STD, world.concepts, text=network.text, styles=recipe.styles)
    held_out = [style for style in STYLES if style not in recipe.styles]
    validation = EmojiWorld("val", styles=recipe.styles, size=world.size, seed=recipe.seed)
    measured = accuracy(model, validation)
    if held_out:
        transfer = accuracy(model, EmojiWorld("val", styles=held_out, size=world.size, seed=recipe.seed))
        measured |= {f"held-out style {style}": transfer[f"style {style}"] for style in held_out}
    on_card = str(model.device).startswith("cuda")
    hardware = torch.cuda.get_device_name() if on_card else f"CPU, threads: {torch.get_num_threads()}"
    packed = save(weights)
    card = {
        "name": name, "architecture": recipe.architecture, "image_size": world.size, "mean": MEAN, "std": STD,
        "parameters": sum(p.numel() for p in network.image.parameters()),
        "text": {"words": network.text.words, "width": network.text.place.shape[1]} if network.text else None,
        "data": f"Emoji World, split train, {len(world.concepts)} concepts, "
                f"styles {', '.join(recipe.styles)}, seed {recipe.seed}",
        "recipe": {k: v for k, v in _settings(recipe).items() if k != "architecture"},
        "pictures": recipe.pictures,
        "training_time_s": round(seconds), "hardware": hardware, "torch": torch.__version__, "python": platform.python_version(),
        "accuracy": measured, "license": "CC BY 4.0", "sha256": hashlib.sha256(packed).hexdigest(),
        "class_names": world.concepts,
    }
    # Measured before anything is written, and each file whole or not at all: weights never stand beside another's card.
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    for file, content in ((out / f"{name}.safetensors", packed), (out / f"{name}.json", text.encode())):
        file.with_suffix(".partial").write_bytes(content)
        file.with_suffix(".partial").replace(file)
    (out / f"{name}.checkpoint.safetensors").unlink()
    return card
