"""Which neurons are worth seeing: the most selective of a layer first, or those whose top images show a concept."""

from dataclasses import dataclass

import numpy as np

from ..datasets.image_set import ImageSet
from ..datasets.photographs import Photos
from ..models.sites import Site, find_site
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.errors import VitvizError, nearest
from ..utils.paths import data_dir
from ..visualize.atlas import STRONGEST, Atlas, embedded
from ..visualize.recipe import Recipe
from ..visualize.rendering import Rendering
from ..visualize.scores import reference_activations, reference_set
from ..visualize.top_images import TopImages, top_images

_SEVERAL = 3  # images that a selective neuron distinguishes at least: a single one may be an accident


@dataclass(frozen=True)
class Found:
    """A neuron, and in one clause what it was found by."""

    layer: int
    neuron: int
    why: str


def most_selective(model: VisionModel, site: Site, reference: ImageSet, sample: int | None = None) -> list[Found]:
    """Neurons of a layer, the most selective first.

    By what is stored where that is known: selectivity for a concept (``faithfulness.selectivity``), or how many top images in an
    atlas show the same. Else measured, on the first ``sample`` reference images or on all of them: how many standard deviations
    at least three of them lie above a neuron's mean.
    """
    layer, neurons = site.layer, list(range(site.units))
    if _default(model, reference) and site.kind == find_site(model).kind and model.unchanged and (
            stored := cache.shipped(f"{model.name}-selectivity", model.weights_hash)):
        values = stored[f"concepts{layer}"][0]
        why = [f"{value:.1f} standard deviations" for value in values]
    elif atlas := _atlas(model, site, reference):
        rows = [row for row in atlas.table().itertuples() if row.layer == layer]
        neurons, most = [row.neuron for row in rows], [max(row.scenes, key=row.scenes.count) for row in rows]
        values = np.array([row.scenes.count(concept) + row.percentile / 101 for row, concept in zip(rows, most, strict=True)])
        why = [f"{row.scenes.count(concept)} of its top images show {concept}" for row, concept in zip(rows, most, strict=True)]
    else:
        known = reference_activations(model, site, ImageSet(model, reference, sample) if sample else reference)
        deviation = known.std(0, correction=0)
        above = (known - known.mean(0)) / deviation.clamp_min(0.01 * deviation.median().clamp_min(1e-12))
        values = above.topk(min(_SEVERAL, len(known)), dim=0).values[-1].numpy()
        why = [f"{_SEVERAL} images lie at least {value:.1f} standard deviations above its mean" for value in values]
    order = np.argsort(-values, kind="stable").tolist()
    of = f"{len(order)}{' in the atlas' if len(order) < site.units else ''}"
    return [Found(layer, neurons[i], f"number {place} of {of} by selectivity ({why[i]})")
            for place, i in enumerate(order, 1)]


def showing(model: VisionModel, site: Site, reference: ImageSet, concept: str) -> list[Found]:
    """The neurons that images of a concept activate most, sorted as by ``Atlas.search``; where there is no atlas, of this layer.

    A part of the concept's name will do. Of kind "logit": the class of this name.

    Raises:
        VitvizError: no class is known, or none has this name; no neuron has it among its top images.
    """
    names = list(model.class_names or []) if site.kind == "logit" else reference.classes
    if not names:
        raise VitvizError(f"What the {reference.name} show is not known, so no concept can be searched; images=vv.photos(), or a "
                          f"folder with a subfolder per class, would say it.")
    typed = concept.strip().lower()
    found = [name for name in names if name.lower() == typed] or [name for name in names if typed in name.lower()]
    if not found:
        raise VitvizError(f"None of the {len(names)} concepts of {reference.name} is called {concept!r}."
                          f"{nearest(concept, names)}")
    name = found[0]
    if site.kind == "logit":
        return [Found(site.layer, names.index(name), f"the class {name}")]
    if atlas := _atlas(model, site, reference):
        try:
            rows = [(row.layer, row.neuron, row.count) for row in atlas.search(name)[["layer", "neuron", "count"]].itertuples()]
        except VitvizError:  # no reference image shows it
            rows = []
    else:
        known = reference_activations(model, site, reference)
        top = known.topk(min(STRONGEST, len(known)), dim=0).indices.T
        shown = np.array(reference.names(top.flatten().tolist())).reshape(tuple(top.shape)) == name
        order = np.lexsort([shown.argmax(1), -shown.sum(1)])
        rows = [(site.layer, neuron, shown[neuron].sum()) for neuron in order.tolist() if shown[neuron].any()]
    if not rows:
        raise VitvizError(f"No neuron of {'the atlas' if atlas else f'the {site}'} has {name} among its {STRONGEST} top images.")
    shows = {1: f"1 of its {STRONGEST} top images shows {name}"}
    return [Found(layer, neuron, f"match {place} of {len(rows)}: "
                                 f"{shows.get(count, f'{count} of its {STRONGEST} top images show {name}')}")
            for place, (layer, neuron, count) in enumerate(rows, 1)]


def stored_image(model: VisionModel, site: Site, neuron: int, reference: ImageSet, recipe: Recipe,
                 seed: int) -> tuple[Rendering, TopImages] | None:
    """The neuron's image with its scores, and its top images, if an atlas that ships has it by this recipe and seed."""
    atlas = _atlas(model, site, reference)
    made = atlas and (atlas.facts["format"], Recipe(**atlas.facts["recipe"]), atlas.facts["seed"])
    has = made == (cache.FORMAT, recipe, seed) and neuron in atlas.neurons(site.layer)
    if not has:
        return None
    top = (top_images(atlas, site.layer, neuron) if "photos" in atlas.facts else
           top_images(model, site.layer, neuron, site.kind, reference))
    return atlas.rendering(site.layer, neuron), top


def _default(model: VisionModel, reference: ImageSet) -> bool:
    default = reference_set(model)
    return (reference.key, reference.n) == (default.key, default.n)


def _atlas(model: VisionModel, site: Site, reference: ImageSet) -> Atlas | None:
    """The atlas that ships and has neurons of this layer of the model as it is now, if its reference images are these."""
    photos = reference.source if isinstance(reference.source, Photos) and reference.n == len(reference.source) else None
    if not photos:
        atlas = embedded(model.name) if _default(model, reference) else None
        return atlas if atlas and atlas.covers(model, site.kind, site.layer) else None
    for path in sorted((data_dir() / "atlas").glob("*/manifest.json")):
        facts = (atlas := embedded(path.parent.name)).facts
        size = Recipe(**facts["recipe"]).side(model.image_size)
        same = (facts.get("photos"), facts["weights"], facts["kind"]) == (photos.sha256, model.weights_hash, site.kind)
        if same and model.unchanged and site.layer in facts["layers"] and facts["size"] == size:
            return atlas
    return None
