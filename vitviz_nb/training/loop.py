"""Train the embedded models on Emoji World: ``vitviz train NAME``.

A run is fixed by its recipe: step k always sees the same scenes, so an interrupted run goes on from its checkpoint to the same
end (to within float arithmetic).
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
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from timm.layers import DropPath
from torch import nn
from tqdm import tqdm

from ..datasets.emoji_world import STYLES, EmojiWorld, Scenes
from ..models.cards import build, models_dir, read_card
from ..models.loading import load_from, usable_device
from ..models.text_tower import TextTower, split
from ..models.vision_model import VisionModel, plain_attention
from ..utils import files, validate
from ..utils.errors import VitvizError
from ..utils.statistics import wilson
from .captions import HYPERNYMS, contrast, shorten
from .dense_supervision import logits_by_token
from .muon import Muon
from .pgd import pgd
from .recipes import SIZE, Training, recipe_of

MEAN = STD = (0.5, 0.5, 0.5)
PGD_STEPS = 2  # with one, networks learn to mask the gradient instead of the class
CHECKPOINT_EVERY = 250  # steps
_OTHERS, _UNSEEN = 3, 2**40  # captions of other scenes for each scene of a batch, and how far off these scenes lie


def train(name: str, out: Path, device: str | None = None, steps: int | None = None, force: bool = False,
          recipe: Training | None = None) -> dict:
    """Train one model, write ``out/NAME.safetensors`` (float16) and its card ``out/NAME.json``, and return the card.

    Stopping it (Ctrl-C, or a killed machine) loses at most 250 steps: the same call goes on from the checkpoint in ``out``.

    Args:
        name: an embedded model, or with a ``recipe`` of your own any name of letters, digits and hyphens.
        steps: fewer updates than the recipe's, to try it out.
        force: replace files of these names that are no model of the kit.

    Raises:
        VitvizError: no such recipe or device; ``out`` cannot be written, or the disk is full (the last checkpoint stays).
    """
    recipe, device = recipe or recipe_of(name), usable_device(device)
    if not isinstance(recipe, Training) or not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise VitvizError(f"A model is trained by a Training, under a name of letters, digits and hyphens; got "
                          f"{validate.shown(recipe)}, {validate.shown(name)}.")
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=validate.whole("steps", steps, 1, 10**9))
    out = files.ready(validate.path("out", out), "The folder")
    for suffix in ("json", "safetensors"):
        files.check_target(out / f"{name}.{suffix}", lambda path: bool(read_card(name, out)), force)
    torch.manual_seed(recipe.seed)
    world = EmojiWorld("train", styles=recipe.styles, size=SIZE, seed=recipe.seed)
    network = Network(recipe, world, out, device).to(device)
    optimizers = _optimizers(network, recipe)
    checkpoint = out / f"{name}.checkpoint.safetensors"
    done, seconds = _resume(checkpoint, network, optimizers, recipe)

    started, updating = time.perf_counter() - seconds, False
    bar = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc=f"train {name}", unit="step", mininterval=5)
    try:
        for step in bar:
            scenes = world.batch(range(step * recipe.batch, (step + 1) * recipe.batch), device)
            if step >= 0.8 * recipe.steps and hasattr(network.image, "patch_drop"):
                network.image.patch_drop = nn.Identity()
            seed = recipe.seed * 1_000_003 + step  # of shortened captions, and of dropped paths and patches
            torch.manual_seed(seed)
            with _precision(device):
                images, loss_of = scenes.images, network.loss(scenes)
                if recipe.radius:
                    loss_of = partial(_seeded, loss_of, seed)
                    images = pgd(loss_of, images, recipe.radius, PGD_STEPS)
                loss = loss_of(images)
            loss.backward()
            try:
                torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0, error_if_nonfinite=True)
            except RuntimeError:
                raise VitvizError(f"Training {name} diverged: the gradient of its loss is not finite in step {step}. "
                                  f"Lower the recipe's peak, or lengthen its warmup.") from None
            rate = recipe.peak * min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))
            updating = True
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = rate
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done, updating = step + 1, False
            if done % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
            if done % CHECKPOINT_EVERY == 0 or done == recipe.steps:
                _save(checkpoint, network, optimizers, recipe, done, time.perf_counter() - started)
    except KeyboardInterrupt:
        if not updating:  # else some weights have made the step and others have not: the checkpoint before it is whole
            _save(checkpoint, network, optimizers, recipe, done, time.perf_counter() - started)
        again = f"goes on from {checkpoint}" if checkpoint.exists() else "starts afresh"
        print(f"Stopped at step {done} of {recipe.steps}; the same command {again}.", file=sys.stderr, flush=True)
        raise
    return _finish(name, recipe, network, world, out, time.perf_counter() - started)


class Network(nn.Module):
    """What is trained: an image tower, with captions a text tower too, and the loss."""

    def __init__(self, recipe: Training, world: EmojiWorld, out: Path, device: str):
        super().__init__()
        self.image, self.text, self._teacher = build(recipe.architecture), None, None
        self._every_token = recipe.every_token
        plain_attention(self.image, device)
        if hasattr(getattr(self.image, "patch_drop", None), "num_prefix_tokens"):
            self.image.patch_drop.num_prefix_tokens = self.image.num_prefix_tokens  # timm's DeiT forgets its second token
        if recipe.drop_path:
            _drop_paths(self.image, recipe.drop_path)
        self.image.to(memory_format=torch.channels_last)  # convolutions are half as fast again
        if recipe.start:
            self.image.load_state_dict(_earlier(recipe.start, out).module.state_dict())
        if recipe.captions:
            texts = [*world.captions(range(2000)), *world.concepts, *HYPERNYMS.values()]
            words = sorted({word for text in texts for word in split(text)})
            self.text = TextTower(words, recipe.architecture["arguments"]["num_classes"])
        if recipe.teacher:
            self._teacher = [_earlier(recipe.teacher, out).to(device)]  # in a list, so that it is not trained
            self._teacher[0].module.to(memory_format=torch.channels_last)
            self.image.set_distilled_training(True)

    def loss(self, scenes: Scenes) -> Callable[[torch.Tensor], torch.Tensor]:
        """From images (N, 3, S, S) in [0, 1], which show ``scenes``, to their mean loss."""
        if self.text:
            # Among 128 scenes, background and style nearly identify each; among more captions, only the concept does.
            others = scenes.world.captions(int(i) + _UNSEEN * k for i in scenes.indices for k in range(1, _OTHERS + 1))
            captions = [shorten(caption) for caption in [*scenes.captions, *others]]
            words = self.text(captions)
            return lambda images: contrast(self.image(_normalize(images)), words, captions, self.text.log_scale)
        with torch.no_grad():
            taught = self._teacher and self._teacher[0](scenes.images.contiguous(memory_format=torch.channels_last)).argmax(1)

        def loss(images: torch.Tensor) -> torch.Tensor:
            if self._every_token:
                own, each = logits_by_token(self.image, _normalize(images))
                labels = scenes.concept[:, None].expand(-1, each.shape[1])
                return (_entropy(own, scenes.concept) + _entropy(each.flatten(0, 1), labels.flatten())) / 2
            if self._teacher:
                own, copied = self.image(_normalize(images))
                return (_entropy(own, scenes.concept) + _entropy(copied, taught, smoothing=0.0)) / 2
            return _entropy(self.image(_normalize(images)), scenes.concept)

        return loss


def _seeded(loss: Callable, seed: int, images: torch.Tensor) -> torch.Tensor:
    """``loss``, dropping the same patches and paths each time: those that PGD has perturbed must be seen."""
    torch.manual_seed(seed)
    return loss(images)


def _entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float = 0.1) -> torch.Tensor:
    return F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)


def _earlier(name: str, out: Path) -> VisionModel:
    """A model trained before: the one in ``out``, else the one that ships."""
    return load_from(out if (out / f"{name}.json").exists() else models_dir(), name)


def _drop_paths(network: nn.Module, rate: float) -> None:
    """Stochastic depth at the same rate in every block (Touvron et al. 2022), where timm's own rises with depth."""
    blocks = [module for module in network.modules() if hasattr(module, "drop_path1")]
    if not blocks:
        raise VitvizError(f"{type(network).__name__} has no blocks whose branches can be dropped; leave drop_path at 0.")
    for block in blocks:
        block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)


def _optimizers(network: nn.Module, recipe: Training) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside (twice as fast as AdamW here), AdamW for the rest: embeddings, heads, convolutions."""
    inner = [m.weight for name, m in network.named_modules()
             if isinstance(m, nn.Linear) and not re.search(r"\b(head|head_dist|fc)$", name)]
    known, settings = {id(weight) for weight in inner}, {"lr": recipe.peak, "weight_decay": recipe.decay}
    rest = torch.optim.AdamW([p for p in network.parameters() if id(p) not in known], **settings)
    return [rest, Muon(inner, **settings)] if inner else [rest]


@torch.inference_mode()
def accuracy(model: VisionModel, world: EmojiWorld, n: int = 4000) -> dict[str, dict]:
    """Top-1 accuracy on the first ``n`` scenes of ``world``, of all and by difficulty and style: n, top1, 95 % interval."""
    n = validate.whole("n", n, 1, 10**7)
    hits: dict[str, list[torch.Tensor]] = {}
    for start in range(0, n, 250):
        scenes = world.batch(range(start, min(n, start + 250)), model.device)
        correct, small = model(scenes.images).argmax(1) == scenes.concept, scenes.size == 0
        groups = {"all": torch.ones_like(correct), "unoccluded": ~scenes.occluded, "occluded": scenes.occluded, "small": small,
                  "blurred": scenes.blurred, "plain": ~(scenes.occluded | scenes.blurred | small)}
        groups |= {f"style {style}": scenes.style == i for i, style in enumerate(world.styles)}
        for group, rows in groups.items():
            hits.setdefault(group, []).append(correct[rows].cpu())
    counts = {group: (int(torch.cat(parts).sum()), len(torch.cat(parts))) for group, parts in hits.items()}
    return {group: {"n": n, "top1": round(k / n, 4), "interval95": [round(end, 4) for end in wilson(k, n)]}
            for group, (k, n) in counts.items() if n}


def _normalize(images: torch.Tensor) -> torch.Tensor:
    return ((images - MEAN[0]) / STD[0]).contiguous(memory_format=torch.channels_last)


def _precision(device: str):
    """bfloat16 where the hardware multiplies it, else float32."""
    fast_cpu = device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    fast_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return torch.autocast(device.split(":")[0], torch.bfloat16) if fast_cpu or fast_gpu else nullcontext()


def _settings(recipe: Training) -> dict:
    """All that shapes the weights."""
    return {k: v for k, v in dataclasses.asdict(recipe).items() if k != "pictures"}


def _save(path: Path, network, optimizers, recipe: Training, done: int, seconds: float) -> None:
    tensors = {f"weight.{k}": v for k, v in network.state_dict().items()}
    for j, optimizer in enumerate(optimizers):
        for i, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{j}.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    facts = {"recipe": json.dumps(_settings(recipe)), "done": str(done), "seconds": str(seconds), "tensors": str(len(tensors))}
    # Copies, because safetensors refuses tensors that share memory, as those of modules that CoaT shares do.
    files.write(path, save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, metadata=facts))


def _resume(path: Path, network, optimizers, recipe: Training) -> tuple[int, float]:
    """Steps done and seconds spent so far; loads the checkpoint where there is one of the same recipe."""
    if not path.exists():
        return 0, 0.0
    try:
        with safe_open(path, "pt") as file:
            facts, tensors = file.metadata() or {}, {key: file.get_tensor(key) for key in file.keys()}
        if ours := facts.get("recipe") == json.dumps(_settings(recipe)):
            done, seconds, states = int(facts["done"]), float(facts["seconds"]), [{} for _ in optimizers]
            if facts.get("tensors", str(len(tensors))) != str(len(tensors)) or not (
                    0 <= done <= recipe.steps and 0 <= seconds < math.inf):
                raise ValueError(f"{len(tensors)} tensors of {facts.get('tensors')}, step {done} of {recipe.steps}")
            network.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
            for key, value in tensors.items():
                if key.startswith("optimizer."):
                    _, j, i, field = key.split(".")
                    if value.dim() and value.shape != optimizers[int(j)].param_groups[0]["params"][int(i)].shape:
                        raise ValueError(f"{key} has the shape {tuple(value.shape)}")
                    states[int(j)].setdefault(int(i), {})[field] = value
    except (SafetensorError, OSError, RuntimeError, KeyError, ValueError, IndexError) as error:
        raise VitvizError(f"The checkpoint {path} is damaged ({' '.join(str(error).split())[:200]}); move it away to start "
                          f"afresh.") from None
    if not ours:
        raise VitvizError(f"{path} belongs to another recipe; move it away to start afresh, or choose another --out.")
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return done, seconds


def _finish(name: str, recipe: Training, network: Network, world: EmojiWorld, out: Path, seconds: float) -> dict:
    """Round to float16, measure what was rounded, write weights and card."""
    trained = network if network.text else network.image
    state = {k: v.detach().cpu().contiguous() for k, v in trained.state_dict().items()}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}  # BatchNorm counts in integers
    trained.load_state_dict(weights)
    model = VisionModel(network.image, name, world.size, MEAN, STD, world.concepts, text=network.text, styles=recipe.styles)
    measured = accuracy(model, EmojiWorld("val", styles=recipe.styles, size=world.size, seed=recipe.seed))
    if held_out := [style for style in STYLES if style not in recipe.styles]:
        transfer = accuracy(model, EmojiWorld("val", styles=held_out, size=world.size, seed=recipe.seed))
        measured |= {f"held-out style {style}": transfer[f"style {style}"] for style in held_out}
    on_gpu, packed = str(model.device).startswith("cuda"), save(weights)
    card = {
        "name": name, "architecture": recipe.architecture, "image_size": world.size, "mean": MEAN, "std": STD,
        "parameters": sum(p.numel() for p in network.image.parameters()),
        "text": {"words": network.text.words, "width": network.text.head.out_features} if network.text else None,
        "data": (f"Emoji World, split train, {len(world.concepts)} concepts, styles {', '.join(recipe.styles)}, "
                 f"seed {recipe.seed}"),
        "recipe": {k: v for k, v in _settings(recipe).items() if k != "architecture"}, "pictures": recipe.pictures,
        "training_time_s": round(seconds),
        "hardware": torch.cuda.get_device_name() if on_gpu else f"CPU, threads: {torch.get_num_threads()}",
        "torch": torch.__version__, "python": platform.python_version(), "accuracy": measured, "license": "CC BY 4.0",
        "sha256": hashlib.sha256(packed).hexdigest(), "class_names": world.concepts,
    }
    # Measured before anything is written. The card is first: it does not describe weights of another run, which loading refuses.
    files.write(out / f"{name}.json", json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    files.write(out / f"{name}.safetensors", packed)
    (out / f"{name}.checkpoint.safetensors").unlink(missing_ok=True)
    return card
