"""Activation maximization: gradient ascent on images, many neurons at once."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import KINDS, Site, check_neurons, find_site
from ..models.vision_model import VisionModel, check_finite
from ..utils import cache, random_streams, validate
from ..utils.errors import VitvizError
from . import hardware
from .atlas import embedded
from .objective import Augmentation, blurred, loss, unchanged
from .optimize import Adam, check_weights, no_gradient
from .parameterization import parameterization, resized
from .recipe import Recipe
from .rendering import Rendering
from .scores import reference_set, score

_READ_EVERY = 10  # steps between two points of a curve


@dataclass(frozen=True, eq=False)
class _Progress:
    """The optimization of K images and their activations (K,) at the steps at which they were read. Never changed in place."""

    adam: Adam
    curve: dict[int, torch.Tensor]


@dataclass(frozen=True, eq=False)
class _Request:
    """What one call asks for, and how far each neuron's image is; ``state`` is the model's when the call began."""

    site: Site
    neurons: list[int]
    seed: int
    state: dict | None
    unfinished: dict[tuple, _Progress]  # of this and earlier calls with the same state
    progress: dict[int, _Progress] = field(default_factory=dict)

    def random_key(self, neuron: int) -> np.ndarray:
        return random_streams.keys(self.seed, list(KINDS).index(self.site.kind), self.site.layer, neuron)


class Visualizer:
    """Makes feature visualizations of a model's neurons.

    Args:
        model: from ``vv.load``, or any ``VisionModel``.
        recipe: ``Recipe.quick(model)`` unless given.
        images: reference for the scores, anything an ``ImageSet`` takes; by default scenes of Emoji World.
        atlas: False to optimize even the pictures that the embedded atlas has (stored with a small loss, and scored as stored).
        keep: False to leave the cache folder alone.

    Other pictures are cached by what the model computes now (``VisionModel.state``), address, recipe and seed. Where what it
    computes cannot be known, neither atlas nor cache is used, and ``note`` says so.
    """

    def __init__(self, model: VisionModel, recipe: Recipe | None = None, images=None, atlas: bool = True, keep: bool = True):
        if not isinstance(model, VisionModel) or not isinstance(recipe, Recipe | None):
            raise VitvizError("A Visualizer takes a model, from vv.load(name) or vv.wrap(module), and a Recipe, such as "
                              f"vv.Recipe.paper(); got {type(model).__name__} and {type(recipe).__name__}.")
        self.model, self._recipe = model, recipe or Recipe.quick(model)
        self._made = parameterization(self._recipe, model.image_size)
        self._images, self._keep = images, keep
        self._atlas = embedded(model.name) if atlas and images is None else None
        self._state, self._unfinished = None, {}

    @property
    def recipe(self) -> Recipe:
        """How its pictures are optimized; it stays as it is, for pictures may be unfinished."""
        return self._recipe

    @recipe.setter
    def recipe(self, recipe: Recipe) -> None:
        raise VitvizError("A Visualizer keeps its recipe, by which its pictures were begun; make another with "
                          "vv.Visualizer(model, recipe).")

    @cached_property
    def reference(self) -> ImageSet:
        """The images that scores are measured against; made when first needed."""
        return reference_set(self.model, self._images)

    @property
    def note(self) -> str | None:
        """One sentence saying that nothing is cached, and why; None where pictures are cached."""
        if not self._keep or self.model.state() is not None:
            return None
        return (f"Nothing is cached or taken from a cache: {self.model.name} has hooks or replaced functions that are not this "
                f"kit's, so what it computes cannot be known.")

    def render(self, layer: int, neurons, kind: str | None = None, seed: int = 0) -> Rendering:
        """Feature visualizations of ``neurons`` of one layer, scored.

        Interrupted (the Stop button of Jupyter, or Ctrl-C), it returns the pictures so far; the same call then continues. Code
        that measures calls ``Rendering.require_finished`` on what this returns.

        Args:
            layer: counted from 0 in forward order; -1 is the last.
            neurons: a number, or several.
            kind: one of ``sites.KINDS`` that the model has; None for its own.
            seed: of the random numbers; another gives another picture of the same neuron.

        Raises:
            VitvizError: an address the model does not have; a cache folder that cannot be written; a network without a gradient
                or with NaN; one that changed while its pictures formed.
        """
        request = self._request(layer, neurons, kind, seed)
        with tqdm(total=len(request.neurons) * self.recipe.steps, unit="step", leave=False, delay=1,
                  desc=f"{self.model.name} {request.site}") as bar:
            try:
                for frame in self._stream(request, _READ_EVERY):
                    bar.update(sum(frame.steps) - bar.n)
            except KeyboardInterrupt:
                return self.score(self._frame(request))
        return frame

    def stream(self, layer: int, neurons, kind: str | None = None, seed: int = 0,
               every: int = _READ_EVERY) -> Iterator[Rendering]:
        """The same as it forms: yields the pictures every ``every`` steps and when finished, and at the end once more, scored.

        Leaving the loop early loses nothing: a later call with the same arguments continues.
        """
        return self._stream(self._request(layer, neurons, kind, seed), validate.whole("every", every, 1))

    def optimize(self, layer: int, neurons, kind: str | None = None, seed: int = 0) -> Rendering:
        """What ``render`` makes, always finished and without scores: where only pictures are wanted, or are scored as stored."""
        request = self._request(layer, neurons, kind, seed)
        for _ in self._ascend(request, self.recipe.steps):
            pass
        return self._frame(request)

    def in_atlas(self, layer: int, kind: str | None = None, seed: int = 0) -> bool:
        """Whether the embedded atlas has the pictures of a layer, so that they come at once."""
        site = find_site(self.model, layer, kind)
        return bool(self._atlas) and self._atlas.holds(self.model, site.kind, site.layer, self.recipe, seed)

    def score(self, rendering: Rendering) -> Rendering:
        """The rendering with its scores measured."""
        site = find_site(self.model, rendering.layer, rendering.kind)
        return replace(rendering, scores=score(self.model, site, rendering.neurons, rendering.pictures, self.reference))

    def _request(self, layer, neurons, kind, seed) -> _Request:
        site = find_site(self.model, layer, kind)
        neurons, seed, state = check_neurons(site, neurons), validate.whole("A seed", seed), self.model.state()
        if state is None or state != self._state:  # no other network's pictures are continued
            self._state, self._unfinished = state, {}
        return _Request(site, neurons, seed, state, self._unfinished)

    def _stream(self, request: _Request, every: int) -> Iterator[Rendering]:
        if self.in_atlas(request.site.layer, request.site.kind, request.seed):
            yield self._atlas.rendering(request.site.layer, request.neurons)
            return
        if self._keep:
            cache.ready()
        yield from self._ascend(request, every)
        finished = self._frame(request)
        yield finished
        scored = self.score(finished)
        self._check_same(request)
        yield scored

    @torch.inference_mode(False)  # in which nothing has a gradient
    def _ascend(self, request: _Request, every: int) -> Iterator[Rendering]:
        """Optimize the images that are not finished, batch by batch; what is left unfinished is kept for the next call."""
        check_weights(self.model)
        try:
            waiting = [n for n in request.neurons if self._progress(request, n).adam.step < self.recipe.steps]
            waiting.sort(key=lambda n: request.progress[n].adam.step)
            batch_size = hardware.batch_size(self.model, self.recipe.copies)
            while waiting:
                step = request.progress[waiting[0]].adam.step
                batch = [n for n in waiting[:batch_size] if request.progress[n].adam.step == step]
                try:
                    for _ in self._ascend_together(request, batch, every):
                        yield self._frame(request)
                except RuntimeError as error:
                    if not hardware.is_out_of_memory(error):
                        raise
                    if len(batch) == 1:
                        raise VitvizError(f"There is not enough memory for one picture with {self.recipe.copies} copies at "
                                          f"{self.model.image_size} px; use fewer copies or a smaller model.") from None
                    batch_size = len(batch) // 2
                    continue
                waiting = [n for n in waiting if n not in batch]  # after a halving, a batch need not be the first of them
                self._check_same(request)
                for n in batch:
                    self._write(request, n)
        finally:
            same = self.model.state() == request.state
            for neuron, progress in request.progress.items():
                request.unfinished.pop((request.site, neuron, request.seed), None)
                if same and progress.adam.step < self.recipe.steps:
                    request.unfinished[request.site, neuron, request.seed] = progress

    def _ascend_together(self, request: _Request, neurons: list[int], every: int) -> Iterator[None]:
        """Finish the images of ``neurons``, which are at the same step, in one batch; yields every ``every`` steps."""
        model, recipe, device = self.model, self.recipe, self.model.device
        parts = [request.progress[n] for n in neurons]
        # Of images at step 0, some may have been read before an interrupt and others not.
        read = [step for step in parts[0].curve if all(step in part.curve for part in parts)]
        progress = _Progress(Adam.join([part.adam for part in parts]).to(device),
                             {step: torch.cat([part.curve[step] for part in parts]) for step in read})
        keys = np.concatenate([request.random_key(n) for n in neurons])
        augmentation = Augmentation(recipe, keys, model.image_size, model.mean, model.std, device)
        own = torch.tensor(neurons, device=device)
        each, each_view = (replace(request.site, own=units) for units in (own, own.repeat_interleave(recipe.copies)))
        network = hardware.rounded(model, hardware.ascent_precision(device))
        try:
            while progress.adam.step < recipe.steps:
                with hardware.one_core_where_that_is_faster(progress.adam.images[:, 0].numel() * recipe.copies):
                    if not progress.curve:
                        progress = replace(progress, curve={0: self._activation(each, progress.adam)})
                    progress = self._step(network, each, each_view, progress, augmentation)
                if progress.adam.step % every == 0 and progress.adam.step < recipe.steps:
                    self._store(request, neurons, progress)
                    yield
        finally:
            self._store(request, neurons, progress)

    def _step(self, network: VisionModel, each: Site, each_view: Site, progress: _Progress,
              augmentation: Augmentation) -> _Progress:
        """One update; ``each`` and ``each_view`` say which unit each image, and each of its views, is of."""
        recipe, precision, reached = self.recipe, hardware.ascent_precision(self.model.device), []

        def losses(values: torch.Tensor) -> torch.Tensor:
            images = self._made.images(values)
            views = augmentation(images, progress.adam.step, precision)
            views.moved.register_hook(lambda gradient: reached.append(True))
            activation = tokens(network, each_view, views, recipe.leak).float().mean((1, 2))
            return loss(activation, images, recipe)

        adam = progress.adam.update(losses, recipe.steps, recipe.lr, partial(blurred, recipe=recipe, step=progress.adam.step),
                                    1024.0 if precision is torch.float16 else 1.0, self._made.bounds)
        if not reached:  # total variation has a gradient of its own
            raise no_gradient(f"The activation at {each} of {self.model.name}")
        if adam.step % _READ_EVERY and adam.step < recipe.steps:
            return _Progress(adam, progress.curve)
        return _Progress(adam, {**progress.curve, adam.step: self._activation(each, adam)})

    @torch.no_grad()
    def _activation(self, each: Site, adam: Adam) -> torch.Tensor:
        """Activation (K,) on the images without augmentation: what scores measure, and what a curve can be compared with."""
        images = resized(self._made.images(adam.images), self.model.image_size)
        values = tokens(self.model, each, unchanged(images, self.model.mean, self.model.std)).float().mean((1, 2))
        if not (values.isfinite() & images.flatten(1).isfinite().all(1)).all():
            check_finite(self.model.module, self.model.name)
            raise VitvizError(f"A picture of {each} of {self.model.name} became NaN or infinite after {adam.step} steps, "
                              f"although the weights are finite; use a smaller lr, or a wider precision (model.module.float()).")
        return values

    @torch.inference_mode(False)
    def _progress(self, request: _Request, neuron: int) -> _Progress:
        """How far one neuron's image is: finished (also by an earlier session), begun, or not begun."""
        if neuron not in request.progress:
            request.progress[neuron] = (
                request.unfinished.get((request.site, neuron, request.seed)) or self._read(request, neuron) or
                _Progress(Adam.of(self._made.start(request.random_key(neuron))), {}))
        return request.progress[neuron]

    def _store(self, request: _Request, neurons: list[int], progress: _Progress) -> None:
        adam = progress.adam.to(torch.device("cpu"))
        curve = {step: values.cpu() for step, values in progress.curve.items()}
        for k, neuron in enumerate(neurons):
            request.progress[neuron] = _Progress(adam[k], {step: values[k : k + 1] for step, values in curve.items()})

    def _check_same(self, request: _Request) -> None:
        if request.state is not None and self.model.state() != request.state:
            raise VitvizError(f"{self.model.name} was changed (weights, hooks or contexts) while pictures of its {request.site} "
                              f"formed, so they are of no single network; render them again.")

    def _frame(self, request: _Request) -> Rendering:
        parts = [self._progress(request, n) for n in request.neurons]
        read = sorted({step for part in parts for step in part.curve})
        curves = torch.tensor([[float(part.curve.get(step, "nan")) for step in read] for part in parts])
        return Rendering(self.model.title, request.site.kind, request.site.layer, request.neurons,
                         torch.cat([self._made.images(part.adam.images) for part in parts]),
                         [part.adam.step for part in parts], read, curves, self.recipe, request.seed)

    def _path(self, request: _Request, neuron: int) -> Path | None:
        if not self._keep or request.state is None:
            return None
        return cache.path_of({"model": request.state, "kind": request.site.kind, "layer": request.site.layer, "neuron": neuron,
                              "recipe": asdict(self.recipe), "seed": request.seed}, "renderings")

    def _read(self, request: _Request, neuron: int) -> _Progress | None:
        stored, (low, high) = cache.read(self._path(request, neuron)), self._made.bounds
        shapes = {"picture": self._made.shape, "curve_steps": (None,), "curve": (None,)}
        if not (stored and cache.fits(stored, shapes) and len(stored["curve"]) == len(stored["curve_steps"])
                and low <= stored["picture"].min() <= stored["picture"].max() <= high):
            return None
        curve = {int(s): torch.tensor([v]) for s, v in zip(stored["curve_steps"], stored["curve"], strict=True)}
        return _Progress(replace(Adam.of(torch.from_numpy(stored["picture"]).float()[None]), step=self.recipe.steps), curve)

    def _write(self, request: _Request, neuron: int) -> None:
        progress = request.progress[neuron]
        cache.write(self._path(request, neuron), {
            "picture": progress.adam.images[0].numpy(), "curve_steps": np.array(list(progress.curve), np.int64),
            "curve": np.array([float(value) for value in progress.curve.values()], np.float32)})
