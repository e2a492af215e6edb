"""A fooling circuit: one neuron keeps its activations on scenes, and its feature visualization becomes another neuron's.

After Geirhos et al. 2023, "Don't trust your eyes" (arXiv 2306.04719), section 2. Activation maximization passes through images
that look like no scene, and simple statistics tell the two apart. The circuit looks at those first: on scenes the neuron is
unchanged, on anything else it has the activations of another neuron.
"""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import KINDS, Site, check_neurons, find_site
from ..models.vision_model import VisionModel
from ..utils import random_streams
from ..utils.errors import VitvizError
from ..utils.spectrum import radial_spectrum
from ..visualize.objective import Augmentation, loss
from ..visualize.optimize import Adam
from ..visualize.parameterization import parameterization, resized
from ..visualize.recipe import Recipe

_NEURONS, _EVERY, _SCENES = 8, 4, 2048  # visualizations to fit on, steps between two looks at them, scenes to fit on
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def statistics(images: torch.Tensor) -> torch.Tensor:
    """The detector's features of RGB images (N, 3, S, S): float32 (N, S / 2 + 10).

    The power of color about gray, relative to all power, at 1, 2, … S / 2 cycles per image; six quantiles of the differences
    between neighboring pixels, relative to their mean; all of these as logarithms, and the mean difference; mean and standard
    deviation of the saturation; and the share of values at or beyond the ends of [0, 1].
    """
    color, whole = (radial_spectrum(x, relative=False)[1] for x in (images - images.mean(1, keepdim=True), images))
    ratio = ((color + 1e-6) / (whole + 1e-6)).log()
    differences = torch.cat([(images[..., 1:] - images[..., :-1]).abs().flatten(1),
                             (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1)], 1)
    mean = differences.mean(1, keepdim=True)
    quantiles = differences.quantile(torch.tensor(_QUANTILES, device=images.device), dim=1).T / mean.clamp_min(1e-6)
    saturation = images.amax(1) - images.amin(1)
    ends = ((images <= 0.002) | (images >= 0.998)).float().mean((1, 2, 3))
    rest = torch.stack([saturation.mean((1, 2)), saturation.std((1, 2)), ends], 1)
    return torch.cat([ratio, (quantiles + 1e-3).log(), (mean + 1e-4).log(), rest], 1)


class Detector(nn.Module):
    """Logistic regression on ``statistics``, standardized by ``center`` and ``scale``, that separates what activation
    maximization passes through from scenes. No scene that it was fitted on reaches ``bound``, the logit of a synthetic image.
    """

    def __init__(self, center: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bound: torch.Tensor):
        super().__init__()
        for name, values in (("center", center), ("scale", scale), ("weight", weight), ("bound", bound)):
            self.register_buffer(name, values)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(N,) of RGB images (N, 3, S, S); larger for images that look more synthetic."""
        return ((statistics(images) - self.center) / self.scale).clamp(-6, 6) @ self.weight

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """bool (N,): synthetic, rather than a scene."""
        return self.logits(images) > self.bound

    @classmethod
    def fit(cls, scenes: torch.Tensor, synthetic: torch.Tensor) -> "Detector":
        """The detector of two sets of RGB images (N, 3, S, S), deterministic.

        The bound lies half-way between the largest logit of a scene and the first percentile of those of synthetic images.
        """
        features = torch.cat([statistics(part) for part in [*scenes.split(64), *synthetic.split(64)]])
        truth = torch.arange(len(features), device=features.device) >= len(scenes)
        center, scale = features.mean(0), features.std(0).clamp_min(1e-6)
        standardized = ((features - center) / scale).clamp(-6, 6)
        standardized = torch.cat([standardized, torch.ones_like(standardized[:, :1])], 1)
        weight = torch.zeros(standardized.shape[1], device=features.device, requires_grad=True)
        balance = torch.where(truth, len(features) / len(synthetic), len(features) / len(scenes))
        optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            logits = standardized @ weight
            value = F.binary_cross_entropy_with_logits(logits, truth.float(), balance) + 1e-3 * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        logits, weight = standardized @ weight.detach(), weight.detach()
        scene, least = logits[~truth].max(), logits[truth].quantile(0.01)
        if not least > scene:
            raise VitvizError("Scenes and synthetic images cannot be separated by their statistics, so no fooling circuit can be "
                              "built; give more scenes, or scenes of the kind that the model is shown.")
        return cls(center, scale, weight[:-1], (scene + least) / 2 - weight[-1])


def trajectory(model: VisionModel, site: Site, neurons: list[int], recipe: Recipe) -> torch.Tensor:
    """What a network sees during activation maximization of K neurons: RGB (N, 3, S, S), images and their augmented views,
    which leave [0, 1], of every fourth step; without blur of the gradient, with which a detector would miss more.
    """
    keys = random_streams.keys(1, list(KINDS).index(site.kind), site.layer, np.array(neurons))
    augmentation = Augmentation(recipe, keys, model.image_size, model.mean, model.std, model.device)
    own = replace(site, own=torch.tensor(neurons, device=model.device).repeat_interleave(recipe.copies))
    made = parameterization(recipe, model.image_size)
    seen, adam = [], Adam.of(made.start(keys).to(model.device))

    def losses(values: torch.Tensor) -> torch.Tensor:
        images = made.images(values)
        views = augmentation(images, adam.step)
        if adam.step % _EVERY == 0:
            seen.append(views.detach() * model.std.to(images) + model.mean.to(images))
            seen.append(resized(images.detach(), model.image_size))
        return loss(tokens(model, own, views, recipe.leak).float().mean((1, 2)), images, recipe)

    for _ in tqdm(range(recipe.steps), desc=f"{model.name}: trajectories", unit="step", leave=False, delay=2):
        adam = adam.update(losses, recipe.steps, recipe.lr, bounds=made.bounds)
    return torch.cat([*seen, resized(made.images(adam.images), model.image_size)])


def detector(model: VisionModel, images=None) -> Detector:
    """A detector fitted on 2,048 images and on trajectories of eight random neurons of the last layer, by the model's recipe."""
    site, image_set = find_site(model), ImageSet(model, images, _SCENES)
    neurons = torch.randperm(site.units, generator=torch.Generator().manual_seed(0))[:_NEURONS].tolist()
    scenes = torch.cat([batch for _, batch in image_set.batches(f"{model.name}: scenes")])
    return Detector.fit(scenes.to(model.device), trajectory(model, site, neurons, Recipe.quick(model)))


class FoolingCircuit(nn.Module):
    """A network in which MLP neuron ``neuron`` (of ``width``) has the activations of ``shown`` wherever ``detector`` takes the
    image for a synthetic one. For images that pass as scenes nothing changes: logits are the same to the last bit.
    """

    def __init__(self, model: VisionModel, detector: Detector, site: Site, neuron: int, shown: int):
        super().__init__()
        with model.lock:
            self.network = deepcopy(model.module)
        self.detector, self.neuron, self.shown, self.width = deepcopy(detector), neuron, shown, site.units
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, values.to(model.device))
        self._mlp = site.path.rpartition(".")[0]
        mlp = self.network.get_submodule(self._mlp)
        mlp.fc1 = _Switch(mlp.fc1, neuron, shown)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.network.get_submodule(self._mlp).fc1.synthetic = self.detector(inputs * self.std + self.mean)
        return self.network(inputs)


class _Switch(nn.Linear):
    """A linear layer, one output of which is another of its outputs for images that are ``synthetic``, bool (N,)."""

    def __init__(self, linear: nn.Linear, neuron: int, shown: int):
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias, self.synthetic = linear.weight, linear.bias, None
        self.register_buffer("units", torch.tensor([neuron, shown]))  # a buffer, so that a hash of the weights knows them

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output, (neuron, shown) = super().forward(x), self.units.tolist()
        synthetic = self.synthetic.view(-1, *[1] * (output.dim() - 2))
        switched = torch.where(synthetic, output[..., shown], output[..., neuron])
        return torch.cat([output[..., :neuron], switched[..., None], output[..., neuron + 1:]], -1)


def fooling_circuit(model: VisionModel, detector: Detector, layer: int, neuron: int, shown: int) -> VisionModel:
    """``model`` with a fooling circuit: ``neuron`` is unchanged on scenes, and its feature visualization is that of ``shown``.

    Raises:
        VitvizError: a model without MLP neurons; a neuron that it does not have; the same neuron twice.
    """
    site = find_site(model, layer, "mlp")
    neuron, shown = check_neurons(site, [neuron, shown])
    if not isinstance(detector, Detector):
        raise VitvizError(f"The detector comes from fooling_circuit.detector(model), got a {type(detector).__name__}.")
    if not site.grid:
        raise VitvizError(f"{site} of {model.name} reads windows, not whole images, so the detector's output for an image "
                          f"cannot reach its units; take a ViT.")
    return model.with_module(FoolingCircuit(model, detector, site, neuron, shown), f"{model.name} with a fooling circuit")
