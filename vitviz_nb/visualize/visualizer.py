"""Activation maximization: gradient ascent on images, many neurons at once."""

import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import Site, find_site
from ..models.vision_model import VisionModel, check_finite
from ..utils import cache, validate
from ..utils.errors import VitvizError
from . import hardware, shared
from .atlas import embedded
from .objective import Augmentation, blurred, loss, unchanged
from .optimize import Adam, check_weights, no_gradient
from .parameterization import parameterization, resized
from .recipe import Recipe
from .rendering import Rendering
from .request import Image, Progress, Request, images_of
from .scores import reference_set, score
from .shared import check_client

_READ_EVERY = 10  # steps between two points of a curve


class Visualizer:
    """Makes feature visualizations of a model's neurons.

    Args:
        model: from ``vv.load``, or any ``VisionModel``.
        recipe: ``Recipe.quick(model)`` unless given.
        images: reference for the scores, anything an ``ImageSet`` takes; by default scenes of Emoji World.
        atlas: False to optimize even the pictures that the embedded atlas has (stored with a small loss, and scored as stored).
        keep: False to leave the cache folder alone.
        client: from ``vv.connect``: what the atlas and the cache lack is then made by its workers, and kept there for all. If
            the scheduler is lost, this machine computes, and ``note`` says so.

    Other pictures are cached by what the model computes now (``VisionModel.state``), address, recipe and seed. Where what it
    computes cannot be known, neither atlas nor cache is used, and ``note`` says so.
    """

    def __init__(self, model: VisionModel, recipe: Recipe | None = None, images=None, atlas: bool = True, keep: bool = True,
                 client=None):
        if not isinstance(model, VisionModel) or not isinstance(recipe, Recipe | None):
            raise VitvizError("A Visualizer takes a model, from vv.load(name) or vv.wrap(module), and a Recipe, such as "
                              f"vv.Recipe.paper(); got {type(model).__name__} and {type(recipe).__name__}.")
        self.model, self._recipe = model, recipe or Recipe.quick(model)
        self._made = parameterization(self._recipe, model.image_size)
        self._images, self._keep = images, keep
        self._atlas = embedded(model.name) if atlas and images is None else None
        self._state, self._unfinished = None, {}
        self._client, self._lost = check_client(client), ""

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
        """One sentence saying that nothing is cached, or no shared visualizer used, and why; None where all is as asked."""
        if self._lost:
            return self._lost
        if not self._keep or self.model.state() is not None:
            return None
        return (f"Nothing is cached or taken from a cache: {self.model.name} has hooks or replaced functions that are not this "
                f"kit's, so what it computes cannot be known.")

    def render(self, layer: int, neurons, kind: str | None = None, seed: int = 0, variants: int = 1) -> Rendering:
        """Feature visualizations of ``neurons`` of one layer, scored.

        Interrupted (the Stop button of Jupyter, or Ctrl-C), it returns the pictures so far; the same call then continues. Code
        that measures calls ``Rendering.require_finished`` on what this returns.

        Args:
            layer: counted from 0 in forward order; -1 is the last.
            neurons: a number, or several; of kind "logit" also names of classes. Or directions: floats (K, units), a weight for
                each neuron, whose weighted sum is maximized (several ones for several neurons at once).
            kind: one of ``sites.KINDS`` that the model has; None for its own.
            seed: of the random numbers; another gives another picture of the same neuron.
            variants: pictures of each neuron, side by side, from ``seed`` and those that follow: a polysemantic neuron shows
                different objects.

        Raises:
            VitvizError: an address the model does not have; a cache folder that cannot be written; a network without a gradient
                or with NaN; one that changed while its pictures formed.
        """
        request = self._request(layer, neurons, kind, seed, variants)
        with tqdm(total=len(request.images) * self.recipe.steps, unit="step", leave=False, delay=1,
                  desc=f"{self.model.name} {request.site}") as bar:
            try:
                frame = None
                for frame in self._stream(request, _READ_EVERY):
                    bar.update(sum(frame.steps) - bar.n)
            except KeyboardInterrupt:
                return self.score(frame if frame and self._shares else self._frame(request))
        return frame

    def stream(self, layer: int, neurons, kind: str | None = None, seed: int = 0,
               every: int = _READ_EVERY) -> Iterator[Rendering]:
        """The same as it forms: yields the pictures every ``every`` steps and when finished, and at the end once more, scored.

        Leaving the loop early loses nothing: a later call with the same arguments continues.
        """
        return self._stream(self._request(layer, neurons, kind, seed), validate.whole("every", every, 1))

    def optimize(self, layer: int, neurons, kind: str | None = None, seed: int = 0) -> Rendering:
        """What ``render`` makes, always finished and without scores: where only pictures are wanted, or are scored as stored."""
        [frame] = deque(self.frames(self._request(layer, neurons, kind, seed), self.recipe.steps), maxlen=1)
        return replace(frame, scores=None)

    def in_atlas(self, layer: int, kind: str | None = None, seed: int = 0) -> bool:
        """Whether the embedded atlas has the pictures of a layer, so that they come at once."""
        site = find_site(self.model, layer, kind)
        return bool(self._atlas) and self._atlas.holds(self.model, site.kind, site.layer, self.recipe, seed)

    def score(self, rendering: Rendering) -> Rendering:
        """The rendering with its scores measured."""
        site = find_site(self.model, rendering.layer, rendering.kind)
        if self._shares and self._images is None:
            arrays = [rendering.pictures, rendering.directions]
            with self._unless_lost():
                return replace(rendering, scores=shared.scores(self._client, self.model, site, rendering.neurons, *arrays))
        return replace(rendering, scores=score(self.model, site, rendering.neurons, rendering.pictures, self.reference,
                                               rendering.directions))

    @property
    def _shares(self) -> bool:
        return self._client is not None and not self._lost

    @contextmanager
    def _unless_lost(self) -> Iterator[None]:
        """Leave the block, and say why, when the scheduler is lost."""
        try:
            yield
        except shared.OutOfReach as error:
            self._lost = f"The shared visualizer is out of reach ({error}), so this machine computes. Call vv.connect again."
            warnings.warn(self._lost, stacklevel=2)

    def _request(self, layer, neurons, kind, seed, variants=1) -> Request:
        site = find_site(self.model, layer, kind)
        asked, state = images_of(self.model, site, neurons, seed, variants), self.model.state()
        if state is None or state != self._state:  # no other network's pictures are continued
            self._state, self._unfinished = state, {}
        return Request(site, *asked, state, self._unfinished)

    def _stream(self, request: Request, every: int) -> Iterator[Rendering]:
        (numbers, seeds), site = zip(*request.images, strict=True), request.site
        if not request.labels and self.in_atlas(site.layer, site.kind, seeds[0]):
            yield self._atlas.rendering(site.layer, numbers)
            return
        if self._keep:
            cache.ready()
        for finished in self.frames(request, every):
            yield finished
        if finished.scores:
            return
        scored = self.score(finished)
        self._check_same(request)
        yield scored

    def frames(self, request: Request, every: int) -> Iterator[Rendering]:
        """The pictures of a request as they form, the last of them finished; scored only where workers scored them."""
        if self._shares and not (frame := self._frame(request)).finished:
            with self._unless_lost():
                yield from shared.frames(self._client, self.model, request, frame, self._images is None)
                return
        yield from self._ascend(request, every)
        yield self._frame(request)

    @torch.inference_mode(False)  # in which nothing has a gradient
    def _ascend(self, request: Request, every: int) -> Iterator[Rendering]:
        """Optimize the images that are not finished, batch by batch; what is left unfinished is kept for the next call."""
        check_weights(self.model)
        try:
            waiting = [image for image in request.images if self._progress(request, image).adam.step < self.recipe.steps]
            waiting.sort(key=lambda image: request.progress[image].adam.step)
            batch_size = hardware.batch_size(self.model, self.recipe.copies)
            while waiting:
                step = request.progress[waiting[0]].adam.step
                batch = [image for image in waiting[:batch_size] if request.progress[image].adam.step == step]
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
                waiting = [image for image in waiting if image not in batch]  # after a halving, not the first of them
                self._check_same(request)
                for image in batch:
                    self._write(request, image)
        finally:
            begun = any(progress.adam.step < self.recipe.steps for progress in request.progress.values())
            same = begun and self.model.state() == request.state
            for image, progress in request.progress.items():
                request.unfinished.pop((request.site, image), None)
                if same and progress.adam.step < self.recipe.steps:
                    request.unfinished[request.site, image] = progress

    def _ascend_together(self, request: Request, images: list[Image], every: int) -> Iterator[None]:
        """Finish ``images``, which are at the same step, in one batch; yields every ``every`` steps."""
        model, recipe, device = self.model, self.recipe, self.model.device
        parts = [request.progress[image] for image in images]
        # Of images at step 0, some may have been read before an interrupt and others not.
        read = [step for step in parts[0].curve if all(step in part.curve for part in parts)]
        progress = Progress(Adam.join([part.adam for part in parts]).to(device),
                             {step: torch.cat([part.curve[step] for part in parts]) for step in read})
        keys = np.concatenate([request.random_key(image) for image in images])
        augmentation = Augmentation(recipe, keys, model.image_size, model.mean, model.std, device)
        own, weights = torch.tensor([number for number, _ in images], device=device), request.weights(images)
        if weights is not None:
            own = weights.to(device)
        each, each_view = (replace(request.site, own=units) for units in (own, own.repeat_interleave(recipe.copies, 0)))
        network = hardware.rounded(model, hardware.ascent_precision(device))
        try:
            while progress.adam.step < recipe.steps:
                with hardware.one_core_where_that_is_faster(progress.adam.images[:, 0].numel() * recipe.copies):
                    if not progress.curve:
                        progress = replace(progress, curve={0: self._activation(each, progress.adam)})
                    progress = self._step(network, each, each_view, progress, augmentation)
                if progress.adam.step % every == 0 and progress.adam.step < recipe.steps:
                    self._store(request, images, progress)
                    yield
        finally:
            self._store(request, images, progress)

    def _step(self, network: VisionModel, each: Site, each_view: Site, progress: Progress,
              augmentation: Augmentation) -> Progress:
        """One update; ``each`` and ``each_view`` say which unit each image, and each of its views, is of."""
        recipe, precision, reached = self.recipe, hardware.ascent_precision(self.model.device), []

        def losses(values: torch.Tensor) -> torch.Tensor:
            images = self._made.images(values)
            views = augmentation(images, progress.adam.step, precision)
            views.moved.register_hook(lambda gradient: reached.append(True))
            activation = _own(network, each_view, views, recipe.leak)
            return loss(activation, images, recipe)

        adam = progress.adam.update(losses, recipe.steps, recipe.lr, partial(blurred, recipe=recipe, step=progress.adam.step),
                                    1024.0 if precision is torch.float16 else 1.0, self._made.bounds)
        if not reached:  # total variation has a gradient of its own
            raise no_gradient(f"The activation at {each} of {self.model.name}")
        if adam.step % _READ_EVERY and adam.step < recipe.steps:
            return Progress(adam, progress.curve)
        return Progress(adam, {**progress.curve, adam.step: self._activation(each, adam)})

    @torch.no_grad()
    def _activation(self, each: Site, adam: Adam) -> torch.Tensor:
        """Activation (K,) on the images without augmentation: what scores measure, and what a curve can be compared with."""
        images = resized(self._made.images(adam.images), self.model.image_size)
        values = _own(self.model, each, unchanged(images, self.model.mean, self.model.std))
        if not (values.isfinite() & images.flatten(1).isfinite().all(1)).all():
            check_finite(self.model.module, self.model.name)
            raise VitvizError(f"A picture of {each} of {self.model.name} became NaN or infinite after {adam.step} steps, "
                              f"although the weights are finite; use a smaller lr, or a wider precision (model.module.float()).")
        return values

    @torch.inference_mode(False)
    def _progress(self, request: Request, image: Image) -> Progress:
        """How far one image is: finished (also by an earlier session), begun, or not begun."""
        if image not in request.progress:
            request.progress[image] = (request.unfinished.get((request.site, image)) or self._read(request, image) or
                                       Progress(Adam.of(self._made.start(request.random_key(image))), {}))
        return request.progress[image]

    def _store(self, request: Request, images: list[Image], progress: Progress) -> None:
        adam = progress.adam.to(torch.device("cpu"))
        curve = {step: values.cpu() for step, values in progress.curve.items()}
        for k, image in enumerate(images):
            request.progress[image] = Progress(adam[k], {step: values[k : k + 1] for step, values in curve.items()})

    def _check_same(self, request: Request) -> None:
        if request.state is not None and self.model.state() != request.state:
            raise VitvizError(f"{self.model.name} was changed (weights, hooks or contexts) while pictures of its {request.site} "
                              f"formed, so they are of no single network; render them again.")

    def _frame(self, request: Request) -> Rendering:
        parts = [self._progress(request, image) for image in request.images]
        read = sorted({step for part in parts for step in part.curve})
        curves = torch.tensor([[float(part.curve.get(step, "nan")) for step in read] for part in parts])
        pictures = torch.cat([self._made.images(part.adam.images) for part in parts])
        return Rendering(self.model.title, request.site.kind, request.site.layer, [number for number, _ in request.images],
                         pictures, [part.adam.step for part in parts], read, curves, self.recipe, request.images[0][1],
                         labels=request.labels, directions=request.directions)

    def _path(self, request: Request, image: Image) -> Path | None:
        if not self._keep or request.state is None:
            return None
        return cache.path_of({"model": request.state, "kind": request.site.kind, "layer": request.site.layer, "neuron": image[0],
                              "recipe": asdict(self.recipe), "seed": image[1]}, "renderings")

    def _read(self, request: Request, image: Image) -> Progress | None:
        stored, (low, high) = cache.read(self._path(request, image)), self._made.bounds
        shapes = {"picture": self._made.shape, "curve_steps": (None,), "curve": (None,)}
        if not (stored and cache.fits(stored, shapes) and len(stored["curve"]) == len(stored["curve_steps"])
                and low <= stored["picture"].min() <= stored["picture"].max() <= high):
            return None
        curve = {int(s): torch.tensor([v]) for s, v in zip(stored["curve_steps"], stored["curve"], strict=True)}
        return Progress(replace(Adam.of(torch.from_numpy(stored["picture"]).float()[None]), step=self.recipe.steps), curve)

    def _write(self, request: Request, image: Image) -> None:
        progress = request.progress[image]
        cache.write(self._path(request, image), {
            "picture": progress.adam.images[0].numpy(), "curve_steps": np.array(list(progress.curve), np.int64),
            "curve": np.array([float(value) for value in progress.curve.values()], np.float32)})


def _own(model: VisionModel, each: Site, inputs: torch.Tensor, leak: float = 0.0) -> torch.Tensor:
    """Activation (N,), mean over patch tokens, of each input's own unit or direction: ``each.own`` (N,) or (N, units)."""
    if not each.own.is_floating_point():
        return tokens(model, each, inputs, leak).float().mean((1, 2))
    return (tokens(model, replace(each, own=None), inputs, leak).float().mean(1) * each.own).sum(1)
