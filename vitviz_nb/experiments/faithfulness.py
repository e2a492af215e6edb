"""Does the feature visualization of a neuron show what the neuron detects? Emoji World has the ground truth to measure it."""

from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.emoji_world import EmojiWorld
from ..datasets.image_set import AT_ONCE, default_world, derangement
from ..models.reading import activations
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from ..utils.statistics import pearson
from ..visualize.atlas import evenly_spaced
from ..visualize.parameterization import resized
from ..visualize.scores import reference_activations
from ..visualize.visualizer import Visualizer
from .result import Result, proportion
from .semantics import Batches, sums_by_fact

_SCENES = 8192  # 32 of each of 256 concepts
_SCENES_OF_LARGE = 2048  # for networks that are not the kit's, 10 to 100 times slower
_PREFERRED = 5  # concepts of a unit that are kept


@dataclass(frozen=True, eq=False)
class Selectivity:
    """Concept selectivity of a layer's units, in standard deviations over all scenes (``statistics.class_selectivity``): the
    five ``preferred`` concepts of each unit, int64 (5, units), the first the most, and the unit's ``values`` for them.
    """

    preferred: torch.Tensor
    values: torch.Tensor

    @property
    def concept(self) -> torch.Tensor:
        """The preferred concept of each unit, int64 (units,)."""
        return self.preferred[0]

    @property
    def strength(self) -> torch.Tensor:
        """The selectivity of each unit for its preferred concept, (units,)."""
        return self.values[0]


def selectivity(model: VisionModel, site: Site, world: EmojiWorld | None = None, shuffled: bool = False) -> Selectivity:
    """Concept selectivity of every unit at a site over 8,192 scenes, by default validation scenes in the model's styles.

    Of ``shuffled`` labels, the control, the best of 256 concepts has about 0.5. One pass over the scenes measures all layers and
    the control, in about a minute of a CPU core; of the models in ``data/measured`` it is stored, for the default scenes.
    Networks that are not embedded see 2,048 scenes (the control has about 1): a minute for a ViT-S/14 at 112 px on two cores.
    """
    sites, stored, n = find_sites(model)[site.kind], None, _SCENES if model.card else _SCENES_OF_LARGE
    if world is None and model.card and model.unchanged and site.kind == find_site(model).kind:
        stored = cache.shipped(f"{model.name}-selectivity", model.weights_hash)
    world = world or default_world(model)

    def batches() -> Batches:
        for start in tqdm(range(0, n, AT_ONCE), desc=f"{model.name}: concepts", unit="batch", leave=False, delay=2):
            scenes = world.batch(range(start, start + AT_ONCE), model.device)
            concept = scenes.concept.cpu()
            yield scenes.images, {"concepts": concept, "shuffled": concept[derangement(len(concept), start)]}
            if start % (16 * AT_ONCE) == 0:
                release_memory()

    def measure() -> dict[str, np.ndarray]:  # with and without shuffling from one pass over the scenes
        arrays = {}
        for layer, of_layer in enumerate(sums_by_fact(model, site.kind, batches(), len(world.concepts))):
            for labels, total in of_layer.items():
                best = total.selectivity().topk(min(_PREFERRED, len(world.concepts)), dim=0)
                arrays |= {f"{labels}{layer}": best.values.numpy(), f"{labels}{layer}_of": best.indices.short().numpy()}
        return arrays

    facts = {"kind": site.kind, "world": repr(world), "concepts": world.concepts, "n": n, "preferred": _PREFERRED}
    shapes = {f"{labels}{one.layer}{of}": (min(_PREFERRED, len(world.concepts)), one.units) for one in sites
              for labels in ("concepts", "shuffled") for of in ("", "_of")}
    found = stored or cache.made(model, facts, "selectivity", measure, shapes, low=-np.inf)  # of classes of too few scenes
    name = f"{'shuffled' if shuffled else 'concepts'}{site.layer}"
    return Selectivity(torch.from_numpy(found[f"{name}_of"]).long(), torch.from_numpy(found[name]))


def recognition(pictures: torch.Tensor, concept: torch.Tensor, recognizer: VisionModel) -> torch.Tensor:
    """Cross-model recognition, bool (K,): whether ``concept[k]`` is in the recognizer's top 5 for picture k of (K, 3, S, S).

    Pictures are resized to the recognizer's input. Chance is five divided by the number of classes.
    """
    if len(pictures) != len(concept):
        raise VitvizError(f"Each picture has one concept to be recognized; {len(pictures)} pictures have {len(concept)}.")
    with torch.inference_mode():
        shown = resized(pictures, recognizer.image_size).split(AT_ONCE)
        top5 = torch.cat([recognizer(part).topk(5).indices.cpu() for part in shown])
    release_memory()
    return (top5 == concept[:, None]).any(1)


def check_recognizer(model: VisionModel, recognizer: VisionModel) -> None:
    """VitvizError unless both are embedded models of the same concepts."""
    if not isinstance(recognizer, VisionModel) or model.card is None or recognizer.class_names != model.class_names:
        raise VitvizError("Cross-model recognition needs two embedded models: only of Emoji World is it known what each scene "
                          "shows. Load them with vv.load('emoji-…').")


def excess_activation(visualizer: Visualizer, layer: int, neurons,
                      kind: str | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Faithfulness score (K,) of at least two neurons' visualizations: the neuron's activation minus its largest on the
    reference images, in standard deviations over those; and its control (K,), on the visualization of another of them.
    """
    site = find_site(visualizer.model, layer, kind)
    rendering = visualizer.render(layer, neurons, kind).require_finished()
    if len(rendering.neurons) < 2:
        raise VitvizError("The score needs at least two neurons: the visualization of another one is its control.")
    reference = reference_activations(visualizer.model, site, visualizer.reference)[:, rendering.neurons]
    pictures = resized(rendering.pictures, visualizer.model.image_size)
    shown = torch.cat([activations(visualizer.model, site.kind, part)[site.layer] for part in pictures.split(AT_ONCE)])
    excess = (shown[:, rendering.neurons] - reference.amax(0)) / reference.std(0, correction=0).clamp_min(1e-12)
    row = torch.arange(len(rendering.neurons))
    return excess[row, row], excess[derangement(len(row), 0), row]


def excess_by_layer(visualizer: Visualizer, n: int = 64) -> Result:
    """Percentage of visualizations that activate their neuron more than every reference image, by layer.

    The control is the same of another neuron's visualizations. ``n`` neurons of each layer are evenly spaced.
    """
    rows = []
    for site in _layers(visualizer.model):
        own, other = excess_activation(visualizer, site.layer, evenly_spaced(site.units, n), site.kind)
        for name, values in (("the neuron itself", own), ("another neuron", other)):
            rows.append({"layer": site.layer, "the picture is of": name, **proportion((values > 0).sum(), len(values))})
    return Result(f"{visualizer.model.title}: visualizations above all of {visualizer.reference.name}", "share of pictures (%)",
                  rows)


def recognition_by_layer(visualizer: Visualizer, recognizer: VisionModel, n: int = 64) -> Result:
    """Cross-model recognition by layer: percentage of visualizations with the preferred concept in the recognizer's top 5.

    The control counts the preferred concept of another of the ``n`` evenly spaced neurons. Both models must be embedded.
    """
    check_recognizer(visualizer.model, recognizer)
    rows = []
    for site in _layers(visualizer.model):
        neurons = evenly_spaced(site.units, n)
        pictures = visualizer.render(site.layer, neurons, site.kind).require_finished().pictures
        concept = selectivity(visualizer.model, site).concept[neurons]
        for name, whose in (("the neuron itself", concept), ("another neuron", concept[derangement(len(concept), 0)])):
            hits = recognition(pictures, whose, recognizer)
            rows.append({"layer": site.layer, "preferred concept of": name, **proportion(hits.sum(), len(hits))})
    return Result(f"{visualizer.model.title}: visualizations whose neuron's preferred concept is in {recognizer.name}'s top 5",
                  "share of pictures (%)", rows, ("chance", 500 / len(recognizer.class_names)))


def logit_correlation(visualizer: Visualizer, layer: int, neurons, recognizer: VisionModel) -> torch.Tensor:
    """Correlation of a recognizer's logits on a neuron's visualization with those on its six top images: (K,).

    Logits are centered over the K visualizations, and over the K sets of images, so that what all share does not count.
    """
    site, rendering = find_site(visualizer.model, layer), visualizer.render(layer, neurons).require_finished()
    reference = reference_activations(visualizer.model, site, visualizer.reference)
    top = [visualizer.reference.batch(reference[:, n].topk(min(6, len(reference))).indices.tolist()) for n in rendering.neurons]
    with torch.inference_mode():
        pictures = resized(rendering.pictures, recognizer.image_size)
        shown = torch.cat([recognizer(part).float().cpu() for part in pictures.split(AT_ONCE)])
        natural = torch.stack([recognizer(resized(images, recognizer.image_size)).float().mean(0).cpu() for images in top])
    release_memory()
    return pearson(*((logits - logits.mean(0)).T for logits in (shown, natural)))


def _layers(model: VisionModel) -> list[Site]:
    return find_sites(model)[find_site(model).kind]
