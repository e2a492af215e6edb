"""Obstacle 1: activation maximization gives noise. What each regularizer does; adversarial examples (paper, section 2)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from PIL import Image
from tqdm import tqdm

from ..datasets.image_set import AT_ONCE, ImageSet
from ..models.reading import tokens
from ..models.sites import Site, check_neurons, find_site
from ..models.vision_model import VisionModel
from ..plotting.alt_text import bundle
from ..plotting.image_grid import Tile, contact_sheet
from ..training.pgd import pgd
from ..utils import validate
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from ..utils.spectrum import radial_spectrum
from ..visualize.optimize import check_weights
from ..visualize.parameterization import resized
from ..visualize.recipe import Recipe
from ..visualize.rendering import Rendering
from ..visualize.scores import reference_activations, reference_set
from ..visualize.visualizer import Visualizer
from .faithfulness import check_recognizer, recognition, selectivity
from .result import Result, mean_of, proportion

OFF = {"tv": 0.0, "jitter": 0.0, "color": 0.0, "noise": 0.0, "copies": 1}  # each regularizer's value when it is off
_STEPS = 10


def most_selective(model: VisionModel, n: int = 16) -> list[int]:
    """The n units of the last layer with the highest concept selectivity, highest first. The model must be embedded."""
    strength = selectivity(model, find_site(model)).strength
    return strength.topk(validate.whole("n", n, 1, len(strength))).indices.tolist()


def _stack(name: str, images: torch.Tensor) -> torch.Tensor:
    """``images`` if they are floats (K, channels, S, S); else VitvizError."""
    if not (isinstance(images, torch.Tensor) and images.is_floating_point() and images.dim() == 4 and len(images)
            and images.shape[2] == images.shape[3] > 1):
        raise VitvizError(f"{name} are floats of shape (K, 3, S, S), got {validate.shown(images)}.")
    return images


def high_frequencies(images: torch.Tensor) -> torch.Tensor:
    """Share of the variance of images (K, 3, S, S) above S / 4 cycles per image, in percent: (K,); of white noise 79 %."""
    _, power = radial_spectrum(_stack("Images", images))
    varies = images.var((2, 3)).sum(1) > 1e-10
    return torch.where(varies, 100 * (1 - power[:, : images.shape[-1] // 4].sum(1)), 0.0).clamp(0, 100)


def patch_borders(images: torch.Tensor, patch: int) -> torch.Tensor:
    """Share of the squared differences between neighboring pixels that lies on patch borders, in percent: (K,).

    By chance it is (S / patch - 1) / (S - 1): 11.1 % at 64 px with patches of 8 px. An image of one color has 0.
    """
    patch = validate.whole("patch", patch, 1, _stack("Images", images).shape[-1])
    across = (images[..., :, 1:] - images[..., :, :-1]).square().sum((1, 2))
    down = (images[..., 1:, :] - images[..., :-1, :]).square().sum((1, 3))
    differences = across + down
    return 100 * differences[:, patch - 1::patch].sum(1) / differences.sum(1).clamp_min(1e-20)


def patch_size(model: VisionModel) -> int:
    """Side in px of the patches that the first block sees; VitvizError where there are none."""
    first = find_site(model, 0)
    if first.kind == "channel" or not first.grid or model.image_size % first.grid[0]:
        raise VitvizError(f"{model.name} does not cut images into patches of whole pixels, so there are no patch borders to "
                          f"measure; vision transformers do.")
    return model.image_size // first.grid[0]


def ablated_recipes(recipe: Recipe) -> dict[str, Recipe]:
    """The recipe with none of its regularizers, with only each, with all but each, and with all, by name."""
    if not isinstance(recipe, Recipe):
        raise VitvizError(f"A recipe is a vv.Recipe, got {validate.shown(recipe)}.")
    used = [name for name, off in OFF.items() if getattr(recipe, name) > off]
    if not used:
        raise VitvizError(f"The recipe has no regularizer to take away; give at least one of {', '.join(OFF)} a value.")
    off = {name: OFF[name] for name in used}
    only = {f"{name} only": replace(recipe, **{**off, name: getattr(recipe, name)}) for name in used}
    without = {f"all but {name}": replace(recipe, **{name: off[name]}) for name in used}
    # With two regularizers, one only is all but the other; with one, it is all.
    several = (only if len(used) > 1 else {}) | (without if len(used) > 2 else {})
    return {"none": replace(recipe, **off), **several, "all": recipe}


class Ablation(NamedTuple):
    """Feature visualizations of the same neurons from the same seed with and without regularizers."""

    pictures: dict[str, Rendering]  # by name of the setting
    artifacts: Result  # share of high frequencies and of differences at patch borders, beside reference images
    quality: Result  # percentage above the 99th percentile of scenes, and recognized by another model


def ablation(model: VisionModel, images=None, *, recipe: Recipe | None = None, layer: int = -1, neurons=range(16),
             kind: str | None = None, recognizer: VisionModel | None = None, seed: int = 0) -> Ablation:
    """Feature visualizations with none, only each, all but each, and all of a recipe's regularizers.

    Args:
        images: what scores refer to, and what visualizations are compared with (see ``ImageSet``); by default scenes.
        recipe: by default ``Recipe.quick(model)``. Regularizers that it does not use are not ablated.
        recognizer: another embedded model, for cross-model recognition (``faithfulness.recognition``).
    """
    if recognizer is not None:
        check_recognizer(model, recognizer)
    site = find_site(model, layer, kind)
    neurons, pictures, artifacts, quality = check_neurons(site, neurons), {}, [], []
    patch = None if site.kind == "channel" else patch_size(model)
    concept = selectivity(model, site).concept[neurons] if recognizer else None
    for name, ablated in ablated_recipes(recipe or Recipe.quick(model)).items():
        visualizer = Visualizer(model, ablated, images)
        rendering = pictures[name] = visualizer.render(site.layer, neurons, site.kind, seed).require_finished()
        quality.append({"regularizers": name, "pictures": "above the 99th percentile",
                        **proportion(sum(p > 99 for p in rendering.scores.percentile), len(neurons))})
        if recognizer:
            hits = recognition(rendering.pictures, concept, recognizer)
            quality.append({"regularizers": name, "pictures": f"recognized by {recognizer.name}",
                            **proportion(hits.sum(), len(hits))})
        release_memory()
    reference = visualizer.reference
    stacks = {name: resized(made.pictures, model.image_size) for name, made in pictures.items()}
    stacks["scenes"] = reference.batch(range(min(256, reference.n))).cpu()
    for name, stack in stacks.items():
        artifacts.append({"regularizers": name, "share": "variance in high frequencies", **mean_of(high_frequencies(stack))})
        if patch:
            artifacts.append({"regularizers": name, "share": "differences at patch borders",
                              **mean_of(patch_borders(stack, patch))})
    title = f"{model.title}, {site}, {len(neurons)} neurons, {rendering.recipe.steps} steps, seed {seed}"
    chance = ("chance recognition", 500 / len(recognizer.class_names)) if recognizer else None
    even = patch and ("patch borders by chance", 100 * (model.image_size // patch - 1) / (model.image_size - 1))
    quality = Result(f"{title}: quality of visualizations ({reference.name})", "pictures (%)", quality, chance)
    return Ablation(pictures, Result(f"{title}: artifacts", "share (%)", artifacts, even), quality)


def sensitivity(model: VisionModel, images=None, *, n: int = 32, distances=(0.25, 0.5, 1.0, 2.0), layer: int = -1,
                kind: str | None = None) -> Result:
    """Increase of activations by L2-bounded adversarial perturbations (PGD), and by random ones of the same size, in standard
    deviations over images. Each of n images is perturbed for one of n evenly spaced neurons; ``distances`` are L2 norms over
    all pixels and channels, in [0, 1].
    """
    site, image_set = find_site(model, layer, kind), ImageSet(model, images)
    check_weights(model)
    distances = distances if isinstance(distances, (list, tuple, range)) and distances else [distances]
    distances = [validate.real("A distance", distance, 0, 1e4) for distance in distances]
    n = min(validate.whole("n", n, 1), image_set.n)
    reference = reference_activations(model, site, image_set)
    varying = (reference.std(0, correction=0) > 1e-6).nonzero()[:, 0]
    if not len(varying):
        raise VitvizError(f"No unit of {site} of {model.name} varies over {image_set.name}; give at least two that differ.")
    neurons = varying[torch.linspace(0, len(varying) - 1, n).round().long()]
    before, spread, rows = reference[torch.arange(n), neurons], reference.std(0)[neurons], []
    clean = image_set.batch(range(n)).to(model.device)
    random = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).to(clean)
    random /= random.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    for distance in tqdm(distances, desc=f"{model.name}: perturbations", unit="size", leave=False, delay=2):
        increases = {"adversarial": [], "random": []}
        for start in range(0, n, AT_ONCE):
            part = slice(start, start + AT_ONCE)
            activation = _activation(model, site, neurons[part])
            for name, perturbed in (("adversarial", pgd(activation, clean[part], distance, _STEPS)),
                                    ("random", (clean[part] + distance * random[part]).clamp(0, 1))):
                with torch.inference_mode():
                    increases[name].append((activation(perturbed).cpu() - before[part]) / spread[part])
            release_memory()
        rows += [{"L2 norm": distance, "perturbation": name, **mean_of(torch.cat(parts))} for name, parts in increases.items()]
    return Result(f"{model.title}, {site}: increase of activations by perturbations ({image_set.name})",
                  "increase (standard deviations over scenes)", rows)


def _activation(model: VisionModel, site: Site, neurons: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """From images (N, 3, S, S) to the activation (N,) of a neuron each."""
    own = neurons.tolist()  # a tensor that was made in inference mode could not be used where gradients flow
    return lambda images: tokens(model, site, model.normalize(images)).float().mean(1)[range(len(own)), own]


@dataclass(frozen=True, eq=False)
class AdversarialExample:
    """An image, and an adversarial example of it for one neuron. Shows itself."""

    image: torch.Tensor  # (3, S, S) in [0, 1]
    perturbed: torch.Tensor
    distance: float  # L2 norm of the perturbation, over all pixels and channels
    before: float  # the neuron's activation
    after: float
    percentiles: tuple[float, float]  # of both activations among reference images
    title: str

    def sheet(self) -> Image.Image:
        """The image, ten times the perturbation on gray, and the adversarial example."""
        perturbation = 0.5 + 10 * (self.perturbed - self.image)
        lines = [[f"image: {self.before:.3g}", f"above {self.percentiles[0]:.1f} %"], ["10 x perturbation, on gray"],
                 [f"adversarial: {self.after:.3g}", f"above {self.percentiles[1]:.1f} %"]]
        tiles = [Tile(p, text) for p, text in zip((self.image, perturbation, self.perturbed), lines, strict=True)]
        return contact_sheet(tiles, self.title, side=192, columns=3)

    def _repr_mimebundle_(self, include=None, exclude=None):
        return bundle(self.sheet(), f"{self.title}: an image, ten times the perturbation, and the adversarial example")


def adversarial_example(model: VisionModel, image: torch.Tensor, *, layer: int = -1, neuron: int, kind: str | None = None,
                        distance: float = 1.0, images=None) -> AdversarialExample:
    """An L2-bounded adversarial example (PGD, 20 steps) of an image (3, S, S) in [0, 1], which maximizes a neuron's activation.

    Args:
        distance: L2 norm of the perturbation at most; at 64 px, 1 is a hundredth of the range a pixel, which cannot be seen.
        images: what percentiles refer to (see ``ImageSet``); by default scenes of Emoji World.
    """
    site, distance = find_site(model, layer, kind), validate.real("distance", distance, 0, 1e4)
    (neuron,) = check_neurons(site, neuron)
    check_weights(model)
    batch = image[None] if isinstance(image, torch.Tensor) else image
    image = validate.images(f"Images for {model.name}", batch, (3, model.image_size, model.image_size)).to(model.device)
    activation, reference = _activation(model, site, torch.tensor([neuron])), reference_set(model, images)
    perturbed = pgd(activation, image, distance, 2 * _STEPS)
    known = reference_activations(model, site, reference)[:, neuron]
    with torch.inference_mode():
        values = [activation(shown).item() for shown in (image, perturbed)]
    percentiles = tuple(100 * (known < value).float().mean().item() for value in values)
    norm = (perturbed - image).norm().item()
    return AdversarialExample(image[0].cpu(), perturbed[0].cpu(), norm, *values, percentiles,
                              f"{model.title}, {site}, neuron {neuron}: a perturbation of {norm:.2f} (L2), percentiles among "
                              f"{reference.name}")
