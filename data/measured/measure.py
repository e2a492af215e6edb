"""Measure what is stored beside this file (see README.md), for models whose weights changed.

    python data/measured/measure.py selectivity emoji-vit emoji-resnet
    python data/measured/measure.py explained emoji-clip emoji-vit-deep

One to three minutes of a CPU core a model. What is stored of other weights is not used: till then it is measured when asked for.
"""

import argparse
from pathlib import Path

import numpy as np

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import default_world
from vitviz_nb.experiments import semantics
from vitviz_nb.experiments.faithfulness import selectivity
from vitviz_nb.models.cards import embedded_names
from vitviz_nb.models.sites import find_site, find_sites


def selective(model: vv.VisionModel) -> dict[str, np.ndarray]:
    world, arrays = default_world(model), {}  # scenes that are given are never stored ones
    for site in find_sites(model)[find_site(model).kind]:
        for labels in ("concepts", "shuffled"):
            found = selectivity(model, site, world, labels == "shuffled")
            arrays |= {f"{labels}{site.layer}": found.values.numpy(), f"{labels}{site.layer}_of": found.preferred.short().numpy()}
    return arrays


def explained(model: vv.VisionModel) -> dict[str, np.ndarray]:
    world, arrays = vv.EmojiWorld("val", size=model.image_size), {}
    for token in semantics.TOKENS:
        for whose in ("own", "shuffled"):
            found = semantics.variance_by_fact(model, world, n=semantics.STORED, shuffled=whose == "shuffled", token=token)
            arrays |= {f"{whose}{layer} {token}": fractions.numpy() for layer, fractions in enumerate(found.fractions)}
    return arrays


MEASURES = {"selectivity": selective, "explained": explained}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=MEASURES)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=embedded_names())
    given = parser.parse_args()
    for name in given.names:
        model = vv.load(name, device="cpu")
        arrays = MEASURES[given.what](model)
        np.savez_compressed(Path(__file__).parent / f"{name}-{given.what}.npz", weights=np.array(model.weights_hash), **arrays)
