"""Activation maximization: gradient ascent on images, many neurons at once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.image_set import ImageSet
from ..models.reading import tokens
from ..models.sites import KINDS, Site, check_neurons, find_site
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils import random_streams as hashing
from ..utils.errors import VitvizError
from .atlas import embedded
from .objective import Draws, augment, begin, blurred, draw, loss, unchanged
from .recipe import Recipe
from .rendering import Rendering
from .scores import default_reference, score

_BETA1, _BETA2, _EPSILON = 0.5, 0.99, 1e-8
_READ_EVERY = 10  # steps between two points of a curve
_SMALL = 2**15  # pixels in a step, all copies together: 8 images of 64 px (tests/benchmarks/README.md, Interaction)
_IMAGES_AT_ONCE = {"cpu": 16, "mps": 64, "cuda": 512}  # of up to 64 px; on a CPU more are no faster, only larger


@dataclass(frozen=True, eq=False)
class _State:
    """Where the ascent of K pictures stands. Never changed in place, so an interrupt finds a whole one."""

    pictures: torch.Tensor  # (K, 3, S, S) in [0, 1]
    first: torch.Tensor  # Adam's running mean of the slope
    second: torch.Tensor  # … and of its square
    step: int
    curve: dict[int, torch.Tensor]  # step: activation (K,)

    def pick(self, rows: list[int]) -> "_State":
        curve = {step: values[rows] for step, values in self.curve.items()}
        return _State(self.pictures[rows], self.first[rows], self.second[rows], self.step, curve)

    @staticmethod
    def join(states: list["_State"]) -> "_State":
        def cat(name):
            return torch.cat([getattr(s, name) for s in states])

        # Of pictures at step 0, some may have been read before an interrupt and others not.
        read = [step for step in states[0].curve if all(step in s.curve for s in states)]
        curve = {step: torch.cat([s.curve[step] for s in states]) for step in read}
        return _State(cat("pictures"), cat("first"), cat("second"), states[0].step, curve)


class Visualizer:
    """Makes pictures of a model's neurons.

    Args:
        model: from ``vv.load``, or any ``VisionModel``.
        recipe: ``Recipe.quick(model)`` unless given.
        images: what scores are measured against (see ``stimuli.Stimuli``); by default scenes of Emoji World.
        atlas: False to make even the pictures that the embedded atlas has.
        keep: False to leave the cache folder alone, as when an atlas is made, which keeps its pictures itself.

    Pictures come from the embedded atlas (``data/atlas``) where it has them: made by the same recipe, stored with a small
    loss and scored as stored. Others are kept in the cache folder, keyed by weights, site, neuron, recipe and seed, and
    never made twice.
    """

    def __init__(self, model: VisionModel, recipe: Recipe | None = None, images=None, atlas: bool = True, keep: bool = True):
        if not isinstance(model, VisionModel) or not isinstance(recipe, Recipe | None):
            raise VitvizError("A Visualizer takes a model from vv.load(name) and a Recipe, such as vv.Recipe.paper(); got "
                              f"{type(model).__name__} and {type(recipe).__name__}.")
        self.model, self.recipe = model, recipe or Recipe.quick(model)
        self._images, self._reference, self._keep = images, None, keep
        self._atlas = embedded(model.name) if atlas and images is None else None
        self._unfinished: dict[tuple, _State] = {}

    @property
    def reference(self) -> ImageSet:
        """What scores are measured against; made when first needed."""
        if self._reference is None:
            self._reference = default_reference(self.model) if self._images is None else ImageSet(self.model, self._images)
        return self._reference

    def render(self, layer: int, neurons, kind: str = "mlp", seed: int = 0) -> Rendering:
        """Pictures of ``neurons`` of one layer, scored.

        Interrupting (the Stop button of Jupyter, or Ctrl-C) returns the pictures so far; the same call then goes on from there.

        Args:
            layer: counted from 0 in forward order; -1 is the last.
            neurons: an int, or several.
            kind: one of ``sites.KINDS`` that the model has.
            seed: another seed gives other random numbers, so another picture of the same neuron.

        Raises:
            VitvizError: an address the model does not have; a cache folder that cannot be written.
        """
        site, neurons = self._address(layer, neurons, kind, seed)
        bar = tqdm(total=len(neurons) * self.recipe.steps, unit="step", leave=False, delay=1,
                   desc=f"{self.model.name} {site}")
        try:
            for frame in self.stream(layer, neurons, kind, seed):
                bar.update(sum(frame.steps) - bar.n)
        except KeyboardInterrupt:
            frame = self.score(self._frame(site, neurons, seed))
        finally:
            bar.close()
        return frame

    def stream(self, layer: int, neurons, kind: str = "mlp", seed: int = 0,
               every: int = _READ_EVERY) -> Iterator[Rendering]:
        """The same, watched: yields the pictures every ``every`` steps and when finished, and at the end once more, scored.

        Scoring takes seconds where the reference images have not been seen before. Leaving the loop early loses nothing: a later
        call with the same arguments goes on.
        """
        site, neurons = self._address(layer, neurons, kind, seed)
        if self.at_hand(site.layer, kind, seed):
            yield self._atlas.rendering(site.layer, neurons)
            return
        if self._keep:
            cache.ready()
        yield from self._climb(site, neurons, seed, every)
        finished = self._frame(site, neurons, seed)
        yield finished
        frame = self.score(finished)  # before they are let go: scoring, too, can be interrupted
        self._let_go(site, neurons, seed)
        yield frame

    def at_hand(self, layer: int, kind: str = "mlp", seed: int = 0) -> bool:
        """Whether the embedded atlas has the pictures of a layer (counted from 0), so that they come at once."""
        return bool(self._atlas) and self._atlas.holds(self.model, kind, layer, self.recipe, seed)

    def unscored(self, layer: int, neurons, kind: str = "mlp", seed: int = 0) -> Rendering:
        """What ``render`` makes, but for the scores: where only pictures are wanted, or are stored before they are scored."""
        site, neurons = self._address(layer, neurons, kind, seed)
        for _ in self._climb(site, neurons, seed, self.recipe.steps):
            pass
        frame = self._frame(site, neurons, seed)
        self._let_go(site, neurons, seed)
        return frame

    @property
    def at_once(self) -> int:
        """How many pictures are made together, by what memory such machines have."""
        images = _IMAGES_AT_ONCE.get(self.model.device.type, 64)
        if self.model.device.type == "cpu":  # where running out of memory kills the kernel instead of raising an error
            images *= min(1.0, (64 / self.model.image_size) ** 2)
        return max(1, int(images / self.recipe.copies))

    def _climb(self, site: Site, neurons: list[int], seed: int, every: int) -> Iterator[Rendering]:
        waiting = [n for n in neurons if self._state(site, n, seed).step < self.recipe.steps]
        waiting.sort(key=lambda n: self._state(site, n, seed).step)
        at_once = self.at_once
        while waiting:
            step = self._state(site, waiting[0], seed).step
            chunk = [n for n in waiting[:at_once] if self._state(site, n, seed).step == step]
            try:
                for _ in self._ascend(site, chunk, seed, every):
                    yield self._frame(site, neurons, seed)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                if len(chunk) == 1:
                    raise VitvizError(f"There is not enough memory for one picture with {self.recipe.copies} copies at "
                                      f"{self.model.image_size} px; use fewer copies or a smaller model.") from None
                at_once = len(chunk) // 2
                continue
            waiting = [n for n in waiting if n not in chunk]  # after a halving, a chunk need not be the first of them

    def score(self, rendering: Rendering) -> Rendering:
        """The rendering with its scores measured."""
        site = find_site(self.model, rendering.layer, rendering.kind)
        return rendering.with_scores(score(self.model, site, rendering.neurons, rendering.pictures, self.reference))

    def _address(self, layer, neurons, kind, seed=0) -> tuple[Site, list[int]]:
        if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
            raise VitvizError(f"A seed is a whole number from 0 to 2**63 - 1, got {seed!r}.")
        site = find_site(self.model, layer, kind)
        return site, check_neurons(site, neurons)

    def _key(self, site: Site, neuron: int, seed: int) -> np.ndarray:
        return hashing.keys(seed, list(KINDS).index(site.kind), site.layer, neuron)

    def _path(self, site: Site, neuron: int, seed: int):
        facts = {"weights": self.model.weights_hash, "kind": site.kind, "layer": site.layer, "neuron": neuron,
                 "recipe": self.recipe.as_dict(), "seed": int(seed), "size": self.model.image_size}
        return cache.path_of(facts, "renderings")

    def _state(self, site: Site, neuron: int, seed: int) -> _State:
        """How far one neuron's picture is: finished (also by an earlier session), begun, or not begun."""
        key = (site.kind, site.layer, neuron, seed)
        if key not in self._unfinished:
            stored = cache.read(self._path(site, neuron, seed)) if self._keep else None
            size = self.model.image_size
            fits = (stored and stored.keys() >= {"picture", "curve_steps", "curve"} and stored["picture"].shape == (3, size, size)
                    and stored["curve"].shape == stored["curve_steps"].shape)
            if fits:
                picture = torch.from_numpy(stored["picture"])[None]
                curve = {int(s): torch.tensor([v]) for s, v in zip(stored["curve_steps"], stored["curve"], strict=True)}
                self._unfinished[key] = _State(picture, picture * 0, picture * 0, self.recipe.steps, curve)
            else:
                start = begin(self.recipe, self._key(site, neuron, seed), self.model.image_size)
                self._unfinished[key] = _State(start, start * 0, start * 0, 0, {})
        return self._unfinished[key]

    def _draws(self, site: Site, neurons: list[int], seed: int) -> Draws:
        keys = np.concatenate([self._key(site, n, seed) for n in neurons])
        return draw(self.recipe, keys, self.model.image_size, self.model.mean, self.model.std, self.model.device)

    def _ascend(self, site: Site, neurons: list[int], seed: int, every: int) -> Iterator[None]:
        """Finish the pictures of ``neurons`` together; yields every ``every`` steps with the states put away."""
        device = self.model.device
        joined = _State.join([self._state(site, n, seed) for n in neurons])
        state = _State(*(getattr(joined, f).to(device) for f in ("pictures", "first", "second")), joined.step, joined.curve)
        draws = self._draws(site, neurons, seed)
        each = torch.tensor(neurons, device=device)
        one, all_copies = replace(site, own=each), replace(site, own=each.repeat_interleave(self.recipe.copies))
        network = _rounded(self.model, _precision(device))
        try:
            if not state.curve:
                state = replace(state, curve={0: self._activation(one, state.pictures)})
            while state.step < self.recipe.steps:
                with _one_core_where_that_is_faster(state.pictures[:, 0].numel() * self.recipe.copies):
                    state = self._step(network, one, all_copies, state, draws)
                if state.step % every == 0 and state.step < self.recipe.steps:
                    self._put_away(site, neurons, seed, state)
                    yield
        finally:
            self._put_away(site, neurons, seed, state)

    def _step(self, network: VisionModel, one: Site, all_copies: Site, state: _State, draws: Draws) -> _State:
        """One update; ``one`` and ``all_copies`` say which unit each picture, and each of its copies, is of."""
        recipe, precision = self.recipe, _precision(self.model.device)
        # float16 has too little range for slopes this small; Adam does not mind the factor, which is taken out again.
        scale = 1024.0 if precision is torch.float16 else 1.0
        pictures = state.pictures.detach().requires_grad_()
        found = tokens(network, all_copies, augment(pictures, draws, state.step, precision), recipe.leak)
        own = found.float().mean((1, 2))
        # A sum, not a mean: no picture's slope depends on how many others are made beside it.
        slope = torch.autograd.grad(scale * loss(own, pictures, recipe).sum(), pictures)[0] / scale
        slope = blurred(slope, recipe, state.step)
        # Adam written out on whole new tensors, because torch.optim's changes its state in place, piece by piece.
        n = state.step + 1
        first = state.first + (slope - state.first) * (1 - _BETA1)
        second = state.second + (slope.square() - state.second) * (1 - _BETA2)
        rate = recipe.lr * 0.5 * (1 + np.cos(np.pi * state.step / recipe.steps))
        move = first / (1 - _BETA1**n) / ((second / (1 - _BETA2**n)).sqrt() + _EPSILON)
        better = (state.pictures - rate * move).clamp(0, 1)
        curve = state.curve
        if n % _READ_EVERY == 0 or n == recipe.steps:
            curve = {**curve, n: self._activation(one, better)}
        return _State(better, first, second, n, curve)

    @torch.no_grad()
    def _activation(self, one: Site, pictures: torch.Tensor) -> torch.Tensor:
        """Activation (K,) on the pictures as they are: what scores measure, and what a curve can be compared with."""
        return tokens(self.model, one, unchanged(pictures, self.model.mean, self.model.std)).float().mean((1, 2))

    def _put_away(self, site: Site, neurons: list[int], seed: int, state: _State) -> None:
        """Keep each picture's state, and finished pictures on disk."""
        here = _State(state.pictures.cpu(), state.first.cpu(), state.second.cpu(), state.step,
                      {step: values.cpu() for step, values in state.curve.items()})
        for k, neuron in enumerate(neurons):
            mine = here.pick([k])
            self._unfinished[site.kind, site.layer, neuron, seed] = mine
            if self._keep and mine.step == self.recipe.steps:
                cache.write(self._path(site, neuron, seed), {
                    "picture": mine.pictures[0].numpy(), "curve_steps": np.array(list(mine.curve), np.int64),
                    "curve": np.array([float(v) for v in mine.curve.values()], np.float32)})

    def _let_go(self, site: Site, neurons: list[int], seed: int) -> None:
        """Forget pictures that have been handed over, or memory would grow with every rendering."""
        for neuron in neurons:
            self._unfinished.pop((site.kind, site.layer, neuron, seed), None)

    def _frame(self, site: Site, neurons: list[int], seed: int) -> Rendering:
        states = [self._state(site, n, seed) for n in neurons]
        read = sorted({step for s in states for step in s.curve})
        curves = torch.tensor([[float(s.curve[step]) if step in s.curve else float("nan") for step in read] for s in states])
        return Rendering(self.model.title, site.kind, site.layer, neurons, torch.cat([s.pictures for s in states]),
                         [s.step for s in states], read, curves, self.recipe, int(seed))


@contextmanager
def _one_core_where_that_is_faster(pixels: int) -> Iterator[None]:
    """Small steps in another thread than the main one, as the Explorer's, are made by that thread alone.

    OpenMP has helpers for each thread, and where there are more of both than cores it puts helpers to sleep after every
    operation. Waking them takes longer than a small one: 43 instead of 23 ms a step for one picture of emoji-vit on two cores.
    Matrix products of the main thread keep their cores meanwhile.
    """
    threads = torch.get_num_threads()
    if threads == 1 or pixels > _SMALL or threading.current_thread() is threading.main_thread():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _precision(device: torch.device) -> torch.dtype:
    """In which networks climb: bfloat16 on cards that have it (compute capability 8), float16 on older ones, else float32."""
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(device)[0] >= 8 else torch.float16


def _rounded(model: VisionModel, precision: torch.dtype) -> VisionModel:
    """The model in ``precision``, for slopes: a card waits for memory more than it computes, and this halves what is moved.

    Pictures, their means and the loss stay in float32, and so does all that is reported: curves and scores. Made for each
    ascent, so that it is never of other weights than the model has now.
    """
    if precision is torch.float32:
        return model
    rounded = copy(model)
    rounded.module = deepcopy(model.module).to(precision)
    return rounded


def _out_of_memory(error: BaseException) -> bool:
    said = str(error)  # Apple's and the CPU's allocators raise a plain RuntimeError
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in said or "can't allocate memory" in said
