"""Checks of notebook 08, Finding: language."""

import numpy as np
import torch

from ...datasets.backgrounds import CONTEXTS
from ...experiments.semantics import image_embeddings, variance_by_fact
from ...models.loading import load
from ...utils import validate
from . import close, color_world, verdict


def exercise_1(answer, model):
    """Points by which context explains more of the last layer's variance than in emoji-vit-standard, within 1."""
    number = validate.real("A number of percentage points", answer, -100, 100)
    own, other = (variance_by_fact(m, n=2048).by_layer().where(explained_by="context").table["value"].iloc[-1]
                  for m in (model, load("emoji-vit-standard")))
    return close(number, own - other, 1, f"{own:.1f} against {other:.1f} %: {own - other:.1f} points",
                 "Take the last layer, the context, and the mean over all units of each model")


@torch.inference_mode()
def exercise_2(answer, model):
    """Percentage of 256 scenes whose nearest of all 256 captions is their own, within 2."""
    number, world = validate.real("A number of percent", answer, -100, 100), color_world(model)
    embeddings = image_embeddings(model, world.batch(range(256)).images)
    match = (embeddings @ model.text(world.captions(range(256))).T).argmax(1).cpu()
    own = int((match == torch.arange(256)).sum())
    return close(number, own / 2.56, 2, f"{own} of 256 scenes are nearest to their own caption: {own / 2.56:.1f} %",
                 "Take the full captions, and for each scene the nearest of all 256")


@torch.inference_mode()
def exercise_3(answer, model):
    """A concept; of the ten scenes nearest to its name that do not show it, seven or more have the same context."""
    world = color_world(model)
    concept = world.concepts.index(validate.choice("A concept", answer, world.concepts))
    facts = world.facts(np.arange(512))
    embeddings = image_embeddings(model, world.batch(range(512)).images)
    similarity = (embeddings @ model.text([f"a {answer}"])[0]).cpu().numpy()
    similarity = np.where((facts["concept"] == concept) | (facts["companion"] == concept), -2, similarity)
    counts = np.bincount(facts["context"][np.argsort(-similarity)[:10]], minlength=len(CONTEXTS))
    return verdict(counts.max() >= 7, f"of the ten scenes nearest to 'a {answer}' that show none, {counts.max()} are on "
                   f"{CONTEXTS[counts.argmax()]}", "wanted are seven")
