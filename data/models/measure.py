"""Measure what the pictures of a model are worth: the rows of the tables in this folder's README.

    python data/models/measure.py emoji-vit --judges emoji-resnet,emoji-swin
    python data/models/measure.py emoji-vit --folder trained --pictures '{"tv": 0.003}' --neurons 128

For the last block of a model, over its neurons: the share of living ones, the share of their pictures above the 99th
percentile of scenes, how many are selective for a concept, and how many pictures of those each judge, a model of another
architecture, names among its five best guesses as the neuron's own concept; seconds for one picture, made alone and scored;
and the share of 500 scenes it names right when they are attacked in ten steps of radius (L2) 1 and 2.
"""

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

import vitviz_nb as vv
from vitviz_nb.training.pgd import pgd
from vitviz_nb.experiments.faithfulness import recognition
from vitviz_nb.experiments.faithfulness import selectivity
from vitviz_nb.utils.statistics import wilson
from vitviz_nb.models.loading import load_from
from vitviz_nb.models.cards import models_dir
from vitviz_nb.models.sites import find_sites

BOUNDS = (0.0, 2.0, 3.0, 4.0)  # standard deviations; the README states the share from 3: below, a neuron has no clear concept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--folder", type=Path, default=models_dir(), help="where the model's weights and card lie")
    parser.add_argument("--judges", default="", help="other embedded models, separated by commas")
    parser.add_argument("--judge-folder", type=Path, default=models_dir())
    parser.add_argument("--layer", type=int, default=-1)
    parser.add_argument("--neurons", type=int, help="only so many, evenly spaced")
    parser.add_argument("--pictures", type=json.loads, default={}, help="changes to the recipe, as JSON")
    options = parser.parse_args()
    model = load_from(options.folder, options.model)
    kind, places = next(iter(find_sites(model).items()))
    visualizer = vv.Visualizer(model, replace(vv.Recipe.quick(model), **options.pictures))
    place = places[options.layer]
    count = options.neurons or place.units
    neurons = torch.linspace(0, place.units - 1, count).round().long().tolist()
    rendering = visualizer.render(place.layer, neurons, kind)
    seconds = []
    for neuron in neurons[:5]:
        started = time.perf_counter()
        visualizer.render(place.layer, neuron, kind, seed=time.time_ns() % 2**31)  # a seed of its own: never from the cache
        seconds.append(time.perf_counter() - started)
    chosen = selectivity(model, place)
    concept, strength = chosen.concept[neurons], chosen.strength[neurons]
    living = torch.tensor([s != "dead" for s in rendering.scores.status])
    high = torch.tensor(rendering.scores.percentile)[living] > 99
    low, top = wilson(int(high.sum()), len(high))
    print(f"{model.name} {place}, {visualizer.recipe}: {count} neurons, {int(living.sum())} alive; above the 99th percentile "
          f"{100 * high.float().mean():.1f} % ({100 * low:.1f} to {100 * top:.1f}); {sorted(seconds)[2]:.2f} s a picture; "
          f"selectivity median {strength.median():.2f}, 90 % {strength.quantile(0.9):.2f}", flush=True)
    for name in filter(None, options.judges.split(",")):
        judge = load_from(options.judge_folder, name)
        row = []
        for bound in BOUNDS:
            hits = recognition(rendering.pictures, concept, judge)[living & (strength >= bound)]
            n = len(hits)
            low, high = wilson(int(hits.sum()), n)
            row.append(f"from {bound}: {100 * hits.float().mean():.1f} % ({100 * low:.1f} to {100 * high:.1f}, n = {n})")
        print(f"  named by {name}: " + "; ".join(row), flush=True)
    scenes = vv.EmojiWorld("val", styles=model.card["recipe"]["styles"], size=model.image_size).batch(range(500), model.device)
    for radius in (1.0, 2.0):
        moved = pgd(lambda images: F.cross_entropy(model(images), scenes.concept), scenes.images, radius, steps=10)
        with torch.inference_mode():
            right = int((model(moved).argmax(1) == scenes.concept).sum())
        low, high = wilson(right, 500)
        print(f"  attacked with radius {radius}: {right / 5:.1f} % right ({100 * low:.1f} to {100 * high:.1f})", flush=True)


if __name__ == "__main__":
    main()
