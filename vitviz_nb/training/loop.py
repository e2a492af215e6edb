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
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from ..datasets.emoji_world import STYLES, EmojiWorld, Scenes
from ..models.cards import build, models_dir
from ..models.loading import load_from, usable_device
from ..models.text_tower import TextTower, contrast, shorten, split
from ..models.vision_model import VisionModel, plain_attention
from ..utils import files, validate
from ..utils.errors import VitvizError, nearest
from ..utils.statistics import wilson
from .dense_supervision import logits_by_token
from .muon import Muon
from .pgd import pgd
from .recipes import SIZE, TRAININGS, Training

MEAN = STD = (0.5, 0.5, 0.5)
PGD_STEPS = 2  # with one, networks learn to mask the gradient instead of the class
_OTHERS, _UNSEEN = 3, 2**40  # captions of other scenes for each scene of a batch, and how far off these scenes lie


def train(name: str, out: Path, device: str | None = None, steps: int | None = None, force: bool = False) -> dict:
    """Train one model and write ``out/NAME.safetensors`` (float16) and its card ``out/NAME.json``.

    Stopping it (Ctrl-C, or a killed machine) loses at most 250 steps: the same call goes on from the checkpoint in ``out``.

    Args:
        name: one of ``TRAININGS``.
        steps: fewer updates than the recipe's, to try it out.
        force: replace files of these names that are no model of the kit.

    Returns:
        The card.

    Raises:
        VitvizError: no such recipe or device; ``out`` cannot be written, or the disk is full (the last checkpoint stays).
        KeyboardInterrupt: it was stopped; one sentence on the error stream says how it goes on.
    """
    if not isinstance(name, str) or name not in TRAININGS:
        raise VitvizError(f"There is no recipe to train {validate.shown(name)}; there is one for {', '.join(TRAININGS)}."
                          f"{nearest(name, TRAININGS) if isinstance(name, str) else ''}")
    recipe, device = TRAININGS[name], usable_device(device)
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=validate.whole("steps", steps, 1, 10**9))
    out = files.ready(validate.path("out", out), "The folder")
    for path in (out / f"{name}.safetensors", out / f"{name}.json"):
        files.check_target(path, _is_model, force)
    torch.manual_seed(recipe.seed)
    world = EmojiWorld("train", styles=recipe.styles, size=SIZE, seed=recipe.seed)
    network = _Network(recipe, world, out, device).to(device)
    optimizers = _optimizers(network, recipe)
    checkpoint = out / f"{name}.checkpoint.safetensors"
    done, seconds = _resume(checkpoint, network, optimizers, recipe)

    started, updating = time.perf_counter(), False
    bar = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc=f"train {name}", unit="step", mininterval=5)
    try:
        for step in bar:
            scenes = world.batch(range(step * recipe.batch, (step + 1) * recipe.batch), device)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # of shortened captions, and of dropped paths and patches
            network.see_all(step >= 0.8 * recipe.steps)
            with _precision(device):
                images, loss_of = scenes.images, _with_same_draws(network.loss(scenes))
                if recipe.radius:
                    images = pgd(loss_of, images, recipe.radius, PGD_STEPS)
                loss = loss_of(images)
            loss.backward()
            try:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
            except RuntimeError:
                raise VitvizError(f"Training {name} diverged: the gradient of its loss is not finite in step {step}. "
                                  f"Lower the recipe's peak, or lengthen its warmup.") from None
            updating = True
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = recipe.peak * _schedule(step, recipe)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done, updating = step + 1, False
            if done % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
            if done % 250 == 0 or done == recipe.steps:
                _save(checkpoint, network, optimizers, recipe, done, seconds + time.perf_counter() - started)
    except KeyboardInterrupt:
        if not updating:  # else some weights have made the step and others have not: the checkpoint before it is whole
            _save(checkpoint, network, optimizers, recipe, done, seconds + time.perf_counter() - started)
        again = f"goes on from {checkpoint}" if checkpoint.exists() else "starts afresh"
        print(f"Stopped at step {done} of {recipe.steps}; the same command {again}.", file=sys.stderr, flush=True)
        raise
    return _finish(name, recipe, network, world, out, seconds + time.perf_counter() - started)


class _Network(nn.Module):
    """What is trained: an image tower, with captions a text tower too, and the loss."""

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
        """Drop no patch any more."""
        if everything and hasattr(self.image, "patch_drop"):
            self.image.patch_drop = nn.Identity()

    def loss(self, scenes: Scenes) -> Callable[[torch.Tensor], torch.Tensor]:
        """From images (N, 3, S, S) in [0, 1], which show ``scenes``, to their mean loss."""
        if self.text:
            # Among 128 scenes, background and style nearly identify each; among more captions, only the concept does.
            others = scenes.world.captions(int(i) + _UNSEEN * k for i in scenes.indices for k in range(1, _OTHERS + 1))
            captions = [shorten(caption) for caption in [*scenes.captions, *others]]
            words = self.text(captions)
            return lambda images: contrast(self.image(_normalize(images)), words, captions, self.text.log_scale)
        labels = scenes.concept
        if self._every_token:
            def dense(images: torch.Tensor) -> torch.Tensor:
                own, each = (logits.float() for logits in logits_by_token(self.image, _normalize(images)))
                repeated = labels[:, None].expand(-1, each.shape[1]).flatten()
                return (F.cross_entropy(own, labels, label_smoothing=0.1)
                        + F.cross_entropy(each.flatten(0, 1), repeated, label_smoothing=0.1)) / 2

            return dense
        if self._teacher is None:
            return lambda images: F.cross_entropy(self.image(_normalize(images)).float(), labels, label_smoothing=0.1)
        with torch.no_grad():
            predicted = self._teacher[0](scenes.images.contiguous(memory_format=torch.channels_last)).argmax(1)

        def distilled(images: torch.Tensor) -> torch.Tensor:
            own, copied = self.image(_normalize(images))
            return (F.cross_entropy(own.float(), labels, label_smoothing=0.1) + F.cross_entropy(copied.float(), predicted)) / 2

        return distilled


def _with_same_draws(loss: Callable) -> Callable:
    """``loss``, dropping the same patches and paths each time: those that PGD has perturbed must be seen."""
    states, on_gpus = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []

    def again(images: torch.Tensor) -> torch.Tensor:
        torch.set_rng_state(states)
        torch.cuda.set_rng_state_all(on_gpus)
        return loss(images)

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
    """Top-1 accuracy on the first ``n`` scenes of ``world``, of all and by difficulty and style: n, top1, 95 % interval."""
    n = validate.whole("n", n, 1, 10**7)
    hits: dict[str, list[torch.Tensor]] = {}
    for start in range(0, n, 250):
        scenes = world.batch(range(start, min(n, start + 250)), model.device)
        correct = model(scenes.images).argmax(1) == scenes.concept
        small = scenes.size == 0
        groups = {"all": torch.ones_like(correct), "unoccluded": ~scenes.occluded, "occluded": scenes.occluded, "small": small,
                  "blurred": scenes.blurred, "plain": ~(scenes.occluded | scenes.blurred | small)}
        groups |= {f"style {style}": scenes.style == i for i, style in enumerate(world.styles)}
        for group, rows in groups.items():
            hits.setdefault(group, []).append(correct[rows].cpu())
    table = {}
    for group, parts in hits.items():
        correct = torch.cat(parts)
        if len(correct):
            k, m = int(correct.sum()), len(correct)
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
    """The learning rate at a step as a fraction of its peak."""
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
    # Copies, because safetensors refuses tensors that share memory, as those of modules that CoaT shares do.
    files.write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata=facts))


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
    on_gpu = str(model.device).startswith("cuda")
    hardware = torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {torch.get_num_threads()}"
    packed = save(weights)
    card = {
        "name": name, "architecture": recipe.architecture, "image_size": world.size, "mean": MEAN, "std": STD,
        "parameters": sum(p.numel() for p in network.image.parameters()),
        "text": {"words": network.text.words, "width": network.text.head.out_features} if network.text else None,
        "data": f"Emoji World, split train, {len(world.concepts)} concepts, "
                f"styles {', '.join(recipe.styles)}, seed {recipe.seed}",
        "recipe": {k: v for k, v in _settings(recipe).items() if k != "architecture"},
        "pictures": recipe.pictures,
        "training_time_s": round(seconds), "hardware": hardware, "torch": torch.__version__, "python": platform.python_version(),
        "accuracy": measured, "license": "CC BY 4.0", "sha256": hashlib.sha256(packed).hexdigest(),
        "class_names": world.concepts,
    }
    # Measured before anything is written. The card is first: it does not describe weights of another run, which loading refuses.
    files.write(out / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    files.write(out / f"{name}.safetensors", packed)
    (out / f"{name}.checkpoint.safetensors").unlink(missing_ok=True)
    return card


def _is_model(path: Path) -> bool:
    """Whether a file is a card as ``train`` writes it, or weights with such a card beside them."""
    return {"architecture", "recipe", "sha256"} <= json.loads(path.with_suffix(".json").read_text(encoding="utf-8")).keys()
