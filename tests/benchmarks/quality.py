"""How soon the quick recipe of emoji-vit reaches what the published one reaches: ``python tests/benchmarks/quality.py``.

With ``--recipes quick fourier``, the quick recipe beside the best Fourier-parameterized one. All are run by this kit's
visualizer, so that the table is about recipes; what the visualizer itself saves is ``visualizer.py``'s table. Scores are of the
visualization as it is, without augmentation.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import derangement
from vitviz_nb.experiments.faithfulness import recognition, selectivity
from vitviz_nb.models.sites import find_site, find_sites
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.plotting.image_grid import Tile, contact_sheet
from vitviz_nb.utils.statistics import wilson
from vitviz_nb.visualize.rendering import Rendering
from vitviz_nb.visualize.scores import reference_activations

# Of those tried the best for Emoji World's scenes, which show one object on a background.
FOURIER = replace(vv.Recipe.fourier(), steps=96, lr=0.1, copies=1, tv=0.02, jitter=0.0, color=0.1, canvas=1.5, crops=(0.7, 1.0),
                  power=1.3, grain=0.1)


def made(model: VisionModel, recipe: vv.Recipe, layer: int, neurons: list[int], busy: bool) -> tuple[Rendering, float]:
    """The pictures, scored, and how many seconds each took."""
    viewer, now = vv.Visualizer(model, recipe, atlas=False, keep=False), time.process_time if busy else time.perf_counter
    start = now()
    found = viewer.optimize(layer, neurons)
    took = (now() - start) / len(neurons)
    return viewer.score(found), took


def steps_to(rendering: Rendering, goal: torch.Tensor) -> torch.Tensor:
    """Steps (K,) after which each curve is first at its goal (K,); infinite for those that never are."""
    there = rendering.curves >= goal[:, None]
    first = torch.tensor(rendering.curve_steps)[there.int().argmax(1)].float()
    return first.masked_fill(~there.any(1), torch.inf)


def share(hits: torch.Tensor) -> str:
    low, high = wilson(int(hits.sum()), len(hits))
    return f"{100 * hits.float().mean():.0f} ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--device", help="cpu, cuda, mps, …; by default the fastest there is")
    ask.add_argument("--neurons", type=int, default=32, help="of each layer, evenly spaced (default 32)")
    ask.add_argument("--layers", type=int, nargs="+", help="by default the first, middle and last")
    ask.add_argument("--busy", action="store_true", help="count seconds of processor time, with OMP_NUM_THREADS=1")
    ask.add_argument("--recipes", nargs="+", default=["paper", "quick"], choices=["paper", "quick", "fourier"],
                     help="the first is what the others are compared with")
    ask.add_argument("--recognizers", nargs="+", default=["emoji-swin-robust"], help="models that recognize visualizations")
    ask.add_argument("--sheets", type=Path, metavar="FOLDER", help="where sheets of the recipes go, one above the other")
    given = ask.parse_args()
    model, *recognizers = (vv.load(name, device=given.device) for name in ("emoji-vit", *given.recognizers))
    last = len(find_sites(model)["mlp"]) - 1
    print(f"{given.neurons} neurons a layer on {model.device}, {torch.get_num_threads()} threads, "
          f"{'processor' if given.busy else 'wall-clock'} time; intervals are 95 %\n")
    head = ["layer", "recipe", "s/visualization", "activation (SD over scenes, median)", "percentile (median)",
            f"% at least as active as {given.recipes[0]}", f"s to {given.recipes[0]}'s activation (median)",
            *(f"% {what} {recognizer.name}" for recognizer in recognizers
              for what in ("recognized by", "recognized as another neuron's by"))]
    print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head), flush=True)
    for layer in given.layers or (0, last // 2, last):
        site = find_site(model, layer)
        neurons = torch.linspace(0, site.units - 1, given.neurons).round().long().tolist()
        concept = selectivity(model, site).concept[neurons]
        known = reference_activations(model, site, vv.Visualizer(model).reference)[:, neurons]
        results = {name: made(model, FOURIER if name == "fourier" else vv.Recipe.named(name, model), layer, neurons, given.busy)
                   for name in given.recipes}
        goal = torch.tensor(results[given.recipes[0]][0].scores.activation)
        for name, (found, took) in results.items():
            reached = torch.tensor(found.scores.activation)
            sd = ((reached - known.mean(0)) / known.std(0).clamp_min(1e-12)).median()
            when = steps_to(found, goal).median().item() / found.recipe.steps * took
            names = [share(recognition(found.pictures, whose, recognizer))
                     for recognizer in recognizers for whose in (concept, concept[derangement(len(concept), 0)])]
            cells = [str(layer), f"{name}: {found.recipe.work}", f"{took:.2f}", f"{sd:.1f}",
                     f"{torch.tensor(found.scores.percentile).median():.1f}", share(reached >= goal), f"{when:.2f}", *names]
            print("| " + " | ".join(cells) + " |", flush=True)
        if given.sheets:
            given.sheets.mkdir(parents=True, exist_ok=True)
            shown = range(min(8, given.neurons))
            tiles = [Tile(found.pictures[k], found.caption(k)) for found, _ in results.values() for k in shown]
            title = f"{model.name} layer {layer}, from above: {', '.join(given.recipes)}"
            contact_sheet(tiles, title, columns=len(shown)).save(given.sheets / f"layer_{layer}.png")


if __name__ == "__main__":
    main()
