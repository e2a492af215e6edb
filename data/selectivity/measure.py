"""Measure the concept selectivity of every neuron of embedded models, and store it beside this file (see README.md).

    python data/selectivity/measure.py emoji-vit emoji-resnet

About a minute of a CPU core a model. Needed again when a model's weights change: till then they are measured when asked for.
"""

import sys
from pathlib import Path

import numpy as np

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import default_world
from vitviz_nb.experiments.faithfulness import selectivity
from vitviz_nb.models.sites import find_site, find_sites

for name in sys.argv[1:]:
    model = vv.load(name, device="cpu")
    arrays, world = {"weights": np.array(model.weights_hash)}, default_world(model)  # scenes that are given are never stored ones
    for site in find_sites(model)[find_site(model).kind]:
        for labels in ("concepts", "shuffled"):
            found = selectivity(model, site, world, labels == "shuffled")
            arrays[f"{labels}{site.layer}"] = found.values.numpy()
            arrays[f"{labels}{site.layer}_of"] = found.preferred.short().numpy()
    np.savez_compressed(Path(__file__).parent / f"{name}.npz", **arrays)
