"""Training of the embedded models on Emoji World, on a CPU in minutes to hours: ``vitviz train NAME``.

``Training`` and ``TRAININGS`` (in ``recipes``): how each embedded model is trained. ``train`` and ``accuracy`` (in ``loop``):
from a recipe to weights and card, with checkpoints, and top-1 accuracy by difficulty and style. Beside them ``pgd`` (L2-bounded
adversarial perturbations), ``dense_supervision`` (every patch token predicts the class) and ``muon`` (the optimizer).
"""

import importlib

_HOME = {"Training": "recipes", "TRAININGS": "recipes", "train": "loop", "accuracy": "loop"}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"vitviz_nb.training has no {name!r}; it has {', '.join(_HOME)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
