"""Measure the feature visualizations of a model: the rows of the tables in this folder's README.

    python data/models/measure.py emoji-vit --recognizers emoji-resnet,emoji-swin
    python data/models/measure.py emoji-vit --folder trained --pictures '{"tv": 0.003}' --neurons 128

For the neurons of one layer, by default the last: the share that is alive; the share of feature visualizations above the 99th
percentile of scenes; selectivity; the share of visualizations for which each recognizer, a model of another architecture, has
the neuron's preferred concept among its top-5 predictions; seconds for one visualization, made alone and scored; and the
model's top-1 accuracy on 500 adversarial scenes (PGD, ten steps, L2 radius 1 and 2).
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import vitviz_nb as vv
from vitviz_nb.experiments.faithfulness import recognition, selectivity
from vitviz_nb.models.cards import models_dir
from vitviz_nb.models.loading import load_from
from vitviz_nb.models.sites import find_sites
from vitviz_nb.training.pgd import pgd
from vitviz_nb.utils.statistics import wilson

BOUNDS = (0.0, 2.0, 3.0, 4.0)  # standard deviations; the README states the share from 3: below, a neuron has no clear concept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, default=models_dir(), help="where the model's weights and card lie")
    parser.add_argument("--recognizers", default="", help="other embedded models, separated by commas")
    parser.add_argument("--recognizer-folder", type=Path, default=models_dir())
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--neurons", type=int, help="only so many, evenly spaced")
    parser.add_argument("--pictures", type=json.loads, default={}, help="changes to the recipe, as JSON")
    options = parser.parse_args()
    model = load_from(options.folder, options.model)
    kind, sites = next(iter(find_sites(model).items()))
    visualizer = vv.Visualizer(model, replace(vv.Recipe.quick(model), **options.pictures))
    site = sites[options.layer]
    count = options.neurons or site.units
    neurons = torch.linspace(0, site.units - 1, count).round().long().tolist()
    rendering = visualizer.render(site.layer, neurons, kind)
    seconds = []
    for neuron in neurons[:5]:
        started = time.perf_counter()
        visualizer.render(site.layer, neuron, kind, seed=time.time_ns() % 2**31)  # a seed of its own: never from the cache
        seconds.append(time.perf_counter() - started)
    chosen = selectivity(model, site)
    concept, strength = chosen.concept[neurons], chosen.strength[neurons]
    living = torch.tensor([s != "dead" for s in rendering.scores.status])
    high = torch.tensor(rendering.scores.percentile)[living] > 99
    low, top = wilson(int(high.sum()), len(high))
    print(f"{model.name} {site}, {visualizer.recipe}: {count} neurons, {int(living.sum())} alive; above the 99th percentile "
          f"{100 * high.float().mean():.1f} % ({100 * low:.1f} to {100 * top:.1f}); "
          f"{sorted(seconds)[2]:.2f} s a visualization; "
          f"selectivity median {strength.median():.2f}, 90 % {strength.quantile(0.9):.2f}", flush=True)
    for name in filter(None, options.recognizers.split(",")):
        recognizer = load_from(options.recognizer_folder, name)
        row = []
        for bound in BOUNDS:
            hits = recognition(rendering.pictures, concept, recognizer)[living & (strength >= bound)]
            n = len(hits)
            low, high = wilson(int(hits.sum()), n)
            row.append(f"from {bound}: {100 * hits.float().mean():.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {n})")
        print(f"  recognized by {name}: " + "; ".join(row), flush=True)
    scenes = vv.EmojiWorld("val", styles=model.card["recipe"]["styles"], size=model.image_size).batch(range(500), model.device)
    for radius in (1.0, 2.0):
        adversarial = pgd(lambda images: F.cross_entropy(model(images), scenes.concept), scenes.images, radius, steps=10)
        with torch.inference_mode():
            right = int((model(adversarial).argmax(1) == scenes.concept).sum())
        low, high = wilson(right, 500)
        print(f"  PGD, radius {radius}: accuracy {right / 5:.1f} % ({100 * low:.1f} to {100 * high:.1f})", flush=True)


if __name__ == "__main__":
    main()
