"""What bfloat16 changes in visualizations, beside another seed: ``python tests/benchmarks/rounding.py``."""

import argparse
import statistics

import torch

import vitviz_nb as vv
from vitviz_nb.models.sites import find_sites
from vitviz_nb.visualize import hardware


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--device", help="cpu, cuda, …; by default the fastest there is (a CPU without bfloat16 takes long)")
    ask.add_argument("--neurons", type=int, default=64, help="of each layer, evenly spaced (default 64)")
    ask.add_argument("--recipes", nargs="+", default=["quick", "paper"])
    ask.add_argument("--layers", type=int, nargs="+", help="by default the first, middle and last")
    given = ask.parse_args()
    model = vv.load("emoji-vit", device=given.device)
    sites = find_sites(model)["mlp"]
    print(f"{given.neurons} neurons a layer on {model.device}, torch {torch.__version__}; compared with "
          "float32 and seed 0\n")
    print("| recipe, layer | made | activation, ratio: median (5th to 95th percentile) | mean difference of pixels, median |\n"
          "| --- | --- | --- | --- |", flush=True)
    for name in given.recipes:
        for layer in given.layers or (0, len(sites) // 2 - 1, len(sites) - 1):
            neurons = torch.linspace(0, sites[layer].units - 1, given.neurons).round().long().tolist()
            made = {}
            for label, precision, seed in (("float32", torch.float32, 0), ("in bfloat16", torch.bfloat16, 0),
                                           ("from another seed", torch.float32, 1)):
                hardware.ascent_precision = lambda device, precision=precision: precision
                viewer = vv.Visualizer(model, vv.Recipe.named(name, model), atlas=False, keep=False)
                made[label] = viewer.render(layer, neurons, seed=seed)
            full = made.pop("float32")
            for label, other in made.items():
                ratio = torch.tensor(other.scores.activation) / torch.tensor(full.scores.activation)
                pixels = statistics.median((other.pictures - full.pictures).abs().mean((1, 2, 3)).tolist())
                print(f"| {name}, {layer} | {label} | {ratio.median():.3f} ({ratio.quantile(0.05):.3f} to "
                      f"{ratio.quantile(0.95):.3f}) | {pixels:.3f} |", flush=True)


if __name__ == "__main__":
    main()
