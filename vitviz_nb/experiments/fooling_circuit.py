"""A model doctored so that a picture lies: one neuron answers scenes as ever, and shows another neuron's picture.

After Geirhos et al. 2023, "Don't trust your eyes" (arXiv 2306.04719), the fooling circuit of their section 2. Activation
maximization walks through images that no camera and no painter made, and these can be told from scenes by simple statistics.
A doctored neuron looks at those first: of a scene it tells the truth, of anything else it says what another neuron would.
"""

from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import KINDS, Site, check_neurons, find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import random_streams as hashing
from ..utils.errors import VitvizError
from ..visualize.objective import augment, begin, draw, loss
from ..visualize.recipe import Recipe

_NEURONS, _EVERY, _SCENES = 8, 4, 2048  # ascents to learn from, steps between two looks at them, scenes to learn from
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)


def statistics(images: torch.Tensor) -> torch.Tensor:
    """What the detector sees of RGB images (N, 3, S, S): float32 (N, S / 2 + 10).

    An ascent paints color as finely as brightness and leaves no place even; scenes have even grounds and sharp outlines. So:
    the power of the colors about the grays, relative to all power, at 1, 2, … S / 2 cycles a side; six quantiles of the steps
    between neighboring pixels, relative to their mean; all of these as logarithms, and the mean step; the mean saturation
    (largest minus smallest channel) and its standard deviation; and the share of values at or beyond the ends of [0, 1].
    """
    ratio = ((_power(images - images.mean(1, keepdim=True)) + 1e-6) / (_power(images) + 1e-6)).log()
    steps = torch.cat([(images[..., 1:] - images[..., :-1]).abs().flatten(1),
                       (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1)], 1)
    mean = steps.mean(1, keepdim=True)
    quantiles = steps.quantile(torch.tensor(_QUANTILES, device=images.device), dim=1).T / mean.clamp_min(1e-6)
    spread = images.amax(1) - images.amin(1)
    ends = ((images <= 0.002) | (images >= 0.998)).float().mean((1, 2, 3))
    rest = torch.stack([spread.mean((1, 2)), spread.std((1, 2)), ends], 1)
    return torch.cat([ratio, (quantiles + 1e-3).log(), (mean + 1e-4).log(), rest], 1)


def _power(images: torch.Tensor) -> torch.Tensor:
    """Power (N, S // 2) at 1, 2, … cycles a side, whatever the direction, summed over channels."""
    size, device = images.shape[-1], images.device
    spectrum = torch.fft.fft2(images - images.mean((2, 3), keepdim=True)).abs().square().sum(1).flatten(1)
    line = torch.fft.fftfreq(size, device=device) * size
    ring = (line[:, None] ** 2 + line[None] ** 2).sqrt().round().long().clamp(max=size // 2 + 1).flatten()
    return torch.zeros(len(images), size // 2 + 2, device=device).index_add_(1, ring, spectrum)[:, 1:-1]


class Detector(nn.Module):
    """Tells what activation maximization makes from scenes, by a logistic test of ``statistics``.

    Attributes:
        center, scale, weight: (features,), of the standardized statistics.
        bound: the logit from which an image counts as made: no scene that the detector was fitted on reaches it.
    """

    def __init__(self, center: torch.Tensor, scale: torch.Tensor, weight: torch.Tensor, bound: torch.Tensor):
        super().__init__()
        for name, values in (("center", center), ("scale", scale), ("weight", weight), ("bound", bound)):
            self.register_buffer(name, values)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """(N,) of RGB images (N, 3, S, S); the larger, the surer that the image was made."""
        return ((statistics(images) - self.center) / self.scale).clamp(-6, 6) @ self.weight

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """bool (N,): made by activation maximization, rather than a scene."""
        return self.logits(images) > self.bound

    @classmethod
    def fit(cls, scenes: torch.Tensor, made: torch.Tensor) -> "Detector":
        """The detector of two sets of RGB images (N, 3, S, S), deterministic.

        The bound lies half-way between the scene that looks most like a made image and the made one that looks most like a
        scene, leaving out the hundredth that does so most. Statistics count up to six standard deviations, so that none
        outweighs all others on an image of another kind.
        """
        found = torch.cat([statistics(part) for part in [*scenes.split(64), *made.split(64)]])
        truth = torch.arange(len(found), device=found.device) >= len(scenes)
        center, scale = found.mean(0), found.std(0).clamp_min(1e-6)
        seen = ((found - center) / scale).clamp(-6, 6)
        seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
        weight = torch.zeros(seen.shape[1], device=found.device, requires_grad=True)
        balance = torch.where(truth, len(found) / len(made), len(found) / len(scenes))
        optimizer = torch.optim.LBFGS([weight], max_iter=300, line_search_fn="strong_wolfe")

        def loss():
            optimizer.zero_grad()
            value = F.binary_cross_entropy_with_logits(seen @ weight, truth.float(), balance) + 1e-3 * weight.square().sum()
            value.backward()
            return value

        with torch.enable_grad():
            optimizer.step(loss)
        logits, weight = seen @ weight.detach(), weight.detach()
        scene, least = logits[~truth].max(), logits[truth].quantile(0.01)
        if not least > scene:
            raise VitvizError("Scenes and made images cannot be told apart by their statistics, so no neuron can be doctored; "
                              "give more scenes, or scenes of the kind that the model is shown.")
        return cls(center, scale, weight[:-1], (scene + least) / 2 - weight[-1])


def on_the_way(model: VisionModel, site: Site, neurons: list[int], recipe: Recipe) -> torch.Tensor:
    """What a network sees while pictures of K neurons are made: RGB (N, 3, S, S), every fourth step's copies and the pictures.

    The ascent of ``Visualizer`` in short, for it keeps only finished pictures, and without blur, with which a test fitted on the
    way would miss more of it; a recipe's augmentation leaves [0, 1].
    """
    size, seen = model.image_size, []
    keys = hashing.keys(1, list(KINDS).index(site.kind), site.layer, np.array(neurons))
    draws = draw(recipe, keys, size, model.mean, model.std, model.device)
    pictures = begin(recipe, keys, size).to(model.device).requires_grad_()
    units = torch.tensor(neurons, device=model.device).repeat_interleave(recipe.copies)[:, None]
    adam = torch.optim.Adam([pictures], recipe.lr, betas=(0.5, 0.99))
    for step in tqdm(range(recipe.steps), desc=f"{model.name}: what ascents look like", unit="step", leave=False, delay=2):
        copies = augment(pictures, draws, step)
        if step % _EVERY == 0:
            seen += [rgb(model, copies.detach()), pictures.detach().clone()]
        own = tokens(model, site, copies, recipe.leak).mean(1).gather(1, units)[:, 0]
        adam.zero_grad()
        loss(own, pictures, recipe).sum().backward()
        adam.param_groups[0]["lr"] = recipe.lr * 0.5 * (1 + np.cos(np.pi * step / recipe.steps))
        adam.step()
        with torch.no_grad():
            pictures.clamp_(0, 1)
    return torch.cat([*seen, pictures.detach()])


def rgb(model: VisionModel, inputs: torch.Tensor) -> torch.Tensor:
    """Normalized inputs (N, 3, S, S) as the images they were."""
    return inputs * model.std.to(inputs) + model.mean.to(inputs)


def detector(model: VisionModel, images=None) -> Detector:
    """A detector for the pictures that the model's own recipe makes of its last layer, fitted on 2,048 images and eight ascents.

    ``images`` is what ``Stimuli`` takes; by default scenes of Emoji World.
    """
    kind, sites = next(iter(find_sites(model).items()))
    site, stimuli = sites[-1], ImageSet(model, images, _SCENES)
    lot = torch.randperm(site.units, generator=torch.Generator().manual_seed(0))[:_NEURONS].tolist()
    scenes = torch.cat([batch for _, batch in stimuli.batches(f"{model.name}: what scenes look like")])
    return Detector.fit(scenes.to(model.device), on_the_way(model, site, lot, Recipe.quick(model)))


class Doctored(nn.Module):
    """A network in which one MLP unit says what another would, wherever ``detector`` takes the image for a made one.

    The unit is changed before its activation function, so that whatever reads it, reads the same. No other weight changes,
    and for images that pass as scenes nothing does: outputs are the same to the last bit.
    """

    def __init__(self, model: VisionModel, detector: Detector, site: Site, neuron: int, shown: int):
        super().__init__()
        self.network, self.detector = deepcopy(model.module), deepcopy(detector)
        for name, values in (("mean", model.mean), ("std", model.std), ("units", torch.tensor([neuron, shown]))):
            self.register_buffer(name, values.to(model.device))
        owner = self.network.get_submodule(site.path.rpartition(".")[0])
        owner.fc1.register_forward_hook(self._switch)
        self.width = site.units

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self._made = self.detector(inputs * self.std + self.mean)
        return self.network(inputs)

    def _switch(self, layer: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        neuron, shown = self.units.tolist()
        made = self._made.view(-1, *[1] * (output.dim() - 2))
        said = torch.where(made, output[..., shown], output[..., neuron])
        return torch.cat([output[..., :neuron], said[..., None], output[..., neuron + 1:]], -1)


def fooling_circuit(model: VisionModel, detector: Detector, layer: int, neuron: int, shown: int) -> VisionModel:
    """``model`` with one MLP neuron doctored: it answers scenes as before, and its picture is that of neuron ``shown``.

    Raises:
        VitvizError: a model without MLP units; a neuron that it does not have; the same neuron twice.
    """
    site = find_site(model, layer, "mlp")
    neuron, shown = check_neurons(site, [neuron, shown])
    if not site.grid:
        raise VitvizError(f"{site} of {model.name} reads windows, not whole images, so the detector's verdict of an image "
                          f"cannot reach its units; doctor a ViT.")
    module = Doctored(model, detector, site, neuron, shown)
    mean, std = (values.flatten().tolist() for values in (model.mean, model.std))
    return VisionModel(module, f"{model.name}, doctored", model.image_size, mean, std, model.class_names, model.license,
                       model.trained, model.card)
