"""Train the embedded models on Emoji World: ``vitviz train NAME``.

The same code runs on a CPU and on a GPU. A run is fixed by its recipe: step k always sees the same scenes, so an
interrupted run goes on from its checkpoint to the same end (to within float arithmetic).
"""

import dataclasses
import hashlib
import json
import math
import platform
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from tqdm import tqdm

from .emoji_world import STYLES, EmojiWorld
from .errors import VitvizError, nearest
from .models import VisionModel, build, usable_device

MEAN = STD = (0.5, 0.5, 0.5)


@dataclasses.dataclass(frozen=True)
class Training:
    """How one embedded model is trained.

    Attributes:
        architecture: class and arguments, as ``models.build`` takes them.
        styles: drawn in training; the others are held out for tests of transfer.
        steps, batch: number of updates, and scenes in each.
        peak, warmup, decay: AdamW's largest learning rate, steps to reach it, weight decay.
        restart: the step at which the learning rate, having fallen to 0 along a cosine, starts again from 0.4 of its peak.
        radius: L2 norm of the attack on each scene after the restart, in units of [0, 1] pixels over the whole picture;
            0 trains on plain scenes to the end.
        seed: of weights, scenes and attacks.
    """

    architecture: dict
    styles: tuple[str, ...] = ("3d", "cartoon", "flat")
    steps: int = 7200
    batch: int = 128
    peak: float = 1e-3
    warmup: int = 300
    decay: float = 0.05
    restart: int = 4200
    radius: float = 0.0
    seed: int = 0


TRAININGS = {
    "emoji-vit": Training({
        "class": "timm.models.vision_transformer.VisionTransformer",
        "arguments": {"img_size": 64, "patch_size": 8, "embed_dim": 128, "depth": 6, "num_heads": 4, "num_classes": 256},
    }),
}


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
        recipe = dataclasses.replace(recipe, steps=steps, restart=min(steps, recipe.restart))
    device = usable_device(device)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise VitvizError(f"Nothing can be written to the folder {out} ({error.strerror}); name another.") from None
    torch.manual_seed(recipe.seed)
    world = EmojiWorld("train", styles=recipe.styles, size=recipe.architecture["arguments"]["img_size"], seed=recipe.seed)
    module = build(recipe.architecture).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=recipe.peak, weight_decay=recipe.decay)
    checkpoint = out / f"{name}.checkpoint.safetensors"
    done, seconds = _resume(checkpoint, module, optimizer, recipe)

    started = time.perf_counter()
    bar = tqdm(range(done, recipe.steps), initial=done, total=recipe.steps, desc=f"train {name}", unit="step", mininterval=5)
    try:
        for step in bar:
            scenes = world.batch(range(step * recipe.batch, (step + 1) * recipe.batch), device)
            images, labels = scenes.images, scenes.concept
            random = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
            torch.manual_seed(recipe.seed * 1_000_003 + step)  # for architectures that drop paths at random
            with _precision(device):
                if step >= recipe.restart and recipe.radius:
                    images = attack(module, images, labels, recipe.radius, random)
                loss = F.cross_entropy(module(_normalize(images)).float(), labels, label_smoothing=0.1)
            optimizer.param_groups[0]["lr"] = recipe.peak * _schedule(step, recipe)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            done = step + 1
            if done % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
            if done % 250 == 0 or done in (recipe.restart, recipe.steps):
                _save(checkpoint, module, optimizer, recipe, done, seconds + time.perf_counter() - started)
    except KeyboardInterrupt:
        _save(checkpoint, module, optimizer, recipe, done, seconds + time.perf_counter() - started)
        raise VitvizError(f"Stopped at step {done} of {recipe.steps}; the same command goes on from {checkpoint}.") from None
    return _finish(name, recipe, module, world, out, seconds + time.perf_counter() - started)


def attack(module, images: torch.Tensor, labels: torch.Tensor, radius: float, random: torch.Generator) -> torch.Tensor:
    """Images (N, 3, H, W) moved by ``radius`` (L2) along the loss gradient at a random point of the ball around them."""
    start = torch.randn(images.shape, generator=random).to(images)
    start = radius * start / start.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    moved = (images + start).requires_grad_()
    loss = F.cross_entropy(module(_normalize(moved)).float(), labels, reduction="sum")
    slope = torch.autograd.grad(loss, moved)[0]
    slope = slope / slope.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
    return (images + radius * slope).clamp(0, 1)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927), both ends in [0, 1]."""
    if not n:
        return 0.0, 1.0
    z, share = 1.959964, hits / n
    centre, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (centre - half) / (1 + z * z / n)), min(1.0, (centre + half) / (1 + z * z / n))


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
    return (images - MEAN[0]) / STD[0]


def _precision(device: str):
    """bfloat16 where the hardware multiplies it, else float32."""
    fast_cpu = device == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)()
    fast_gpu = device.startswith("cuda") and torch.cuda.is_bf16_supported()
    return torch.autocast(device.split(":")[0], torch.bfloat16) if fast_cpu or fast_gpu else nullcontext()


def _schedule(step: int, recipe: Training) -> float:
    """The learning rate at a step as a share of its peak."""
    if step < recipe.restart:
        return min(1.0, (step + 1) / recipe.warmup) * 0.5 * (1 + math.cos(math.pi * step / recipe.restart))
    return 0.4 * 0.5 * (1 + math.cos(math.pi * (step - recipe.restart) / (recipe.steps - recipe.restart)))


def _save(path: Path, module, optimizer, recipe: Training, done: int, seconds: float) -> None:
    tensors = {f"weight.{k}": v for k, v in module.state_dict().items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": torch.as_tensor(v) for k, v in state.items()}
    facts = {"recipe": json.dumps(dataclasses.asdict(recipe)), "done": str(done), "seconds": str(seconds)}
    temporary = path.with_suffix(".partial")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary, metadata=facts)
    temporary.replace(path)


def _resume(path: Path, module, optimizer, recipe: Training) -> tuple[int, float]:
    """Steps done and seconds spent so far; loads the checkpoint where there is one of the same recipe."""
    if not path.exists():
        return 0, 0.0
    try:
        file = safe_open(path, "pt")
        facts = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise VitvizError(f"The checkpoint {path} is damaged ({error}); move it away to start afresh.") from None
    with file:
        if facts.get("recipe") != json.dumps(dataclasses.asdict(recipe)):
            raise VitvizError(f"{path} belongs to another recipe; move it away to start afresh, or choose another --out.")
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    module.load_state_dict({k.removeprefix("weight."): v for k, v in tensors.items() if k.startswith("weight.")})
    state = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, field = key.split(".")
            state.setdefault(int(i), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(facts["done"]), float(facts["seconds"])


def _finish(name: str, recipe: Training, module, world: EmojiWorld, out: Path, seconds: float) -> dict:
    """Round to float16, measure what was rounded, write weights and card."""
    state = {k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    weights = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}  # BatchNorm counts in integers
    path = out / f"{name}.safetensors"
    module.load_state_dict(weights)
    model = VisionModel(module, name, world.size, MEAN, STD, world.concepts)
    held_out = [style for style in STYLES if style not in recipe.styles]
    validation = EmojiWorld("val", styles=recipe.styles, size=world.size, seed=recipe.seed)
    measured = accuracy(model, validation)
    if held_out:
        transfer = accuracy(model, EmojiWorld("val", styles=held_out, size=world.size, seed=recipe.seed))
        measured |= {f"held-out style {style}": transfer[f"style {style}"] for style in held_out}
    hardware = torch.cuda.get_device_name() if str(model.device).startswith("cuda") else f"CPU, {torch.get_num_threads()} threads"
    packed = save(weights)
    card = {
        "name": name, "architecture": recipe.architecture, "image_size": world.size, "mean": MEAN, "std": STD,
        "parameters": sum(p.numel() for p in module.parameters()),
        "data": f"Emoji World, split train, {len(world.concepts)} concepts, "
                f"styles {', '.join(recipe.styles)}, seed {recipe.seed}",
        "recipe": {k: v for k, v in dataclasses.asdict(recipe).items() if k != "architecture"},
        "training_time_s": round(seconds), "hardware": hardware, "torch": torch.__version__, "python": platform.python_version(),
        "accuracy": measured, "license": "CC BY 4.0", "sha256": hashlib.sha256(packed).hexdigest(),
        "class_names": world.concepts,
    }
    # Measured before anything is written, and each file whole or not at all: weights never stand beside another's card.
    text = json.dumps(card, indent=1, ensure_ascii=False) + "\n"
    for file, content in ((path, packed), (out / f"{name}.json", text.encode())):
        file.with_suffix(".partial").write_bytes(content)
        file.with_suffix(".partial").replace(file)
    (out / f"{name}.checkpoint.safetensors").unlink()
    return card
