"""What a feature visualization costs here and by the authors' procedure: one table, ``python tests/benchmarks/visualizer.py``.

Both sides make the same number of visualizations in the same number of steps of 8 copies, in turns. Times of a step do not
depend on the weights, so models that do not come with the kit have random ones, and a turn has few steps.
"""

import argparse
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

import vitviz_nb as vv
from vitviz_nb.models import reading
from vitviz_nb.models.cards import embedded_names
from vitviz_nb.models.sites import Site, find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import hardware
from vitviz_nb.visualize.objective import total_variation

MODELS = ("emoji-vit", "vit_base_patch32_224", "vit_base_patch16_224", "swin_tiny_patch4_window7_224")


def published(model: VisionModel, place: Site, neurons: list[int], recipe: vv.Recipe) -> None:
    """The authors' procedure (their code: hamidkazemi22/vit-visualization), written afresh, made no slower than it need be.

    One neuron after another, the whole forward pass, every copy made at full size, total variation of the copies, and two
    numbers read from the device in each step. Weights are frozen, and attention is as ``vv.load`` sets it for both sides.
    """
    seen, size, device, copies = [], model.image_size, model.device, recipe.copies
    mean, std = model.mean.to(device), model.std.to(device)
    handle = model.module.get_submodule(place.path).register_forward_hook(
        lambda module, given, made: seen.append(given[0] if place.given else made))
    try:
        for neuron in neurons:
            picture = torch.rand(1, 3, size, size, device=device, requires_grad=True)
            adam = torch.optim.Adam([picture], lr=recipe.lr, betas=(0.5, 0.99))
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, recipe.steps)
            reach = round(recipe.jitter * size)
            for step in range(recipe.steps):
                adam.zero_grad()
                images = picture.repeat(copies, 1, 1, 1)
                shift, log_scale = (2 * torch.rand(2, copies, 3, 1, 1, device=device) - 1).unbind()
                images = (images - shift) / log_scale.exp()
                fading = recipe.noise * (1 - (step + 1) / recipe.steps)
                images = images + fading * torch.randn(copies, 3, 1, 1, device=device)
                images = images.roll(tuple(np.random.randint(-reach, reach + 1, 2).tolist()), (2, 3))
                model.module((images - mean) / std)
                activation = seen[place.call].reshape(copies, -1, place.units)[:, place.prefix :, neuron].mean(1)
                loss = 0.0005 * total_variation(images).mean() - activation.diag().mean()
                loss.backward()
                adam.step()
                schedule.step()
                picture.data.clamp_(0, 1)
                loss.item(), activation.mean().item()
                seen.clear()
    finally:
        handle.remove()


class Clock:
    """Seconds and memory of what is run on one device; with ``busy``, seconds in which a core worked for this process."""

    def __init__(self, device: torch.device, busy: bool):
        self.device, self.now = device, time.process_time if busy else time.perf_counter

    def seconds(self, work) -> float:
        start = self.now()
        work()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.now() - start

    def peak(self) -> float:
        """FLOP/s of a large product of matrices, in bfloat16 on a card and float32 elsewhere."""
        n = 8192 if self.device.type == "cuda" else 2048
        a = torch.randn(n, n, device=self.device, dtype=torch.bfloat16 if self.device.type == "cuda" else torch.float32)
        return 2 * n**3 / min(self.seconds(lambda: a @ a) for _ in range(3))

    def memory(self, work) -> float:
        """Most memory (MiB) of the process, or of the card, during ``work``; without Linux's counter, since the start."""
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            work()
            return torch.cuda.max_memory_allocated() / 2**20
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            work()
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
        work()
        status = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024


def operations(work) -> int:
    """Floating-point operations of the matrix products and convolutions in ``work``, forwards and backwards.

    The counter has hooks on all modules, for which the kit would compute all units of a layer instead of each image's own; so
    they are hidden from it.
    """
    usual, reading.changes = reading.changes, lambda module: []
    try:
        with FlopCounterMode(display=False) as counter:
            work()
    finally:
        reading.changes = usual
    return counter.get_total_flops()


def row(model: VisionModel, place: Site, steps: int, turns: int, clock: Clock) -> list[str]:
    """One layer's line of the table; its times are medians over turns, and its ratio is the median of the turns' ratios."""
    recipe = replace(vv.Recipe.paper(), steps=steps)
    here = vv.Visualizer(model, recipe, atlas=False, keep=False)
    neurons = list(range(hardware.batch_size(model, recipe.copies)))
    # The published side makes one after another: on a card, where this side makes 64 together, its time is that of 4, times 16.
    alone = neurons[:4]
    times = {"published": len(neurons) / len(alone), "here": 1.0}
    ours = partial(here.optimize, place.layer, neurons)
    sides = {"published": lambda seed: published(model, place, alone, recipe), "here": lambda seed: ours(seed=seed)}
    flops, memory = {}, {}
    for name, side in sides.items():  # which is also the warm-up; counting keeps what is counted, so memory is read apart
        flops[name] = times[name] * operations(partial(side, turns))
        memory[name] = clock.memory(partial(side, turns))
    took, peaks = {name: [] for name in sides}, []
    for turn in range(turns):
        for name, side in sides.items():
            took[name].append(times[name] * clock.seconds(partial(side, turn)))
        peaks.append(clock.peak())
    ratios = sorted(a / b for a, b in zip(took["published"], took["here"], strict=True))
    middle = {name: statistics.median(values) for name, values in took.items()}
    # Beside its own turn's peak, for a machine that others use is not equally fast in each.
    share = {name: statistics.median(flops[name] / s / p for s, p in zip(took[name], peaks, strict=True)) for name in sides}

    def both(values: dict, text: str) -> list[str]:
        return [text.format(values["published"]), text.format(values["here"])]

    return [str(model.device), model.name, str(place.layer), str(len(neurons)),
            *both({name: s / len(neurons) for name, s in middle.items()}, "{:.3g}"),
            f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f})",
            *both({name: flops[name] / s / 1e9 for name, s in middle.items()}, "{:.0f}"),
            *both({name: 100 * s for name, s in share.items()}, "{:.0f}"), *both(memory, "{:.0f}")]


HEAD = ["device", "model", "layer", "neurons", "s/neuron published", "here", "ratio (lowest to highest)", "GFLOP/s published",
        "here", "% of peak published", "here", "MiB published", "here"]


def load(name: str, device: str | None) -> VisionModel:
    model = vv.load(name, pretrained=name in embedded_names(), device=device)
    if "mlp" not in find_sites(model):
        raise VitvizError(f"{name} has no MLP neurons, which the authors' procedure visualizes; transformers do.")
    return model


def line(cells: list[str]) -> None:
    print("| " + " | ".join(cells) + " |", flush=True)


def growth(model: VisionModel, clock: Clock) -> None:
    """Seconds by number of neurons and steps, and by how many renderings were made before."""
    layer = len(find_sites(model)["mlp"]) // 2

    def seconds(neurons: int, steps: int) -> float:
        viewer = vv.Visualizer(model, replace(vv.Recipe.quick(model), steps=steps), atlas=False, keep=False)
        return statistics.median(clock.seconds(lambda: viewer.optimize(layer, range(neurons))) for _ in range(5))

    seconds(1, 8)
    line(["neurons", "steps", "s", "ms per neuron and step"])
    line(["---"] * 4)
    for neurons, steps in ((1, 8), (2, 8), (4, 8), (8, 8), (8, 16), (8, 32)):
        s = seconds(neurons, steps)
        line([str(neurons), str(steps), f"{s:.3g}", f"{1000 * s / neurons / steps:.2f}"])
    viewer = vv.Visualizer(model, replace(vv.Recipe.quick(model), steps=4), atlas=False, keep=False)
    times = [clock.seconds(partial(viewer.optimize, layer, range(4), seed=seed)) for seed in range(200)]
    print(f"\n200 renderings: median {1000 * statistics.median(times[:50]):.0f} ms of the first 50, "
          f"{1000 * statistics.median(times[-50:]):.0f} ms of the last 50.")


def elsewhere(model: VisionModel, turns: int) -> None:
    """Milliseconds a step of one neuron of the last layer in the main thread, and in another with all cores and with one."""
    layer = len(find_sites(model)["mlp"]) - 1

    def step(viewer: vv.Visualizer) -> float:
        start = time.perf_counter()
        viewer.optimize(layer, 0, seed=1)
        return 1000 * (time.perf_counter() - start) / viewer.recipe.steps

    def in_thread(viewer: vv.Visualizer) -> float:
        with ThreadPoolExecutor(1) as pool:
            pool.submit(step, viewer).result()  # OpenMP makes this thread's helpers
            return pool.submit(step, viewer).result()

    usual = hardware.SMALL
    for copies in (1, 4, 8):
        viewer = vv.Visualizer(model, vv.Recipe(steps=8, copies=copies), atlas=False, keep=False)
        found: list[list[float]] = [[], [], []]
        for _ in range(turns):
            for times, measure, small in zip(found, (step, in_thread, in_thread), (0, 0, sys.maxsize), strict=True):
                hardware.SMALL = small
                times.append(measure(viewer))
        hardware.SMALL = usual
        chosen = "one" if copies * model.image_size**2 <= usual else "all"
        line([model.name, str(copies), *(f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for t in found), chosen])


def fourier(model: VisionModel, clock: Clock) -> None:
    """Seconds of the Fourier recipe in the last layer: to a first preview; of a visualization alone and of 4 together, with
    their share of the peak.
    """
    viewer = vv.Visualizer(model, vv.Recipe.fourier(), atlas=False, keep=False)
    previews = (clock.seconds(lambda seed=seed: next(viewer.stream(-1, 3, seed=seed, every=1))) for seed in range(5))
    alone, four = (clock.seconds(lambda n=n: viewer.optimize(-1, range(n), seed=9)) for n in (1, 4))
    share = operations(lambda: viewer.optimize(-1, range(4), seed=9)) / four / clock.peak()
    print(f"{model.name}, {viewer.recipe.work}: preview {statistics.median(previews):.2f} s, a visualization alone "
          f"{alone:.1f} s, of 4 together {four / 4:.1f} s at {100 * share:.0f} % of the peak")


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--device", help="cpu, cuda, mps, …; by default the fastest there is")
    ask.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help=f"by default {', '.join(MODELS)}")
    ask.add_argument("--layers", type=int, nargs="+", help="by default the first, middle and last")
    ask.add_argument("--steps", type=int, default=4, help="in each turn (default 4)")
    ask.add_argument("--turns", type=int, default=5, help="of which medians are taken (default 5)")
    ask.add_argument("--growth", action="store_true", help="instead, how cost grows with neurons, steps and renderings before")
    ask.add_argument("--fourier", metavar="CHECKPOINT", help="instead, the fourier recipe on a ViT-S/14 of these weights")
    ask.add_argument("--elsewhere", action="store_true", help="instead, what a step costs in another thread than the main one")
    ask.add_argument("--busy", action="store_true", help="count seconds of processor time, where others use the machine, too "
                                                         "(CPU only, with OMP_NUM_THREADS=1)")
    given = ask.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, turns of {given.steps} steps, "
          f"{'processor' if given.busy else 'wall-clock'} time\n")
    if given.growth:
        model = load("emoji-vit", given.device)
        growth(model, Clock(model.device, given.busy))
        return
    if given.fourier:
        model = vv.load("vit_small_patch14_dinov2.lvd142m", device=given.device, checkpoint=given.fourier, image_size=112)
        fourier(model, Clock(model.device, given.busy))
        return
    if given.elsewhere:
        head = ["model", "copies", "ms a step: main thread", "another, all cores", "another, one core", "which is taken there"]
        line(head)
        line(["---"] * len(head))
        for name in given.models:
            elsewhere(load(name, given.device), given.turns)
        return
    line(HEAD)
    line(["---"] * len(HEAD))
    for name in given.models:
        model = load(name, given.device)
        last = len(find_sites(model)["mlp"]) - 1
        for layer in given.layers or (0, last // 2, last):
            line(row(model, find_site(model, layer), given.steps, given.turns, Clock(model.device, given.busy)))


if __name__ == "__main__":
    try:
        main()
    except VitvizError as error:
        sys.exit(str(error))
