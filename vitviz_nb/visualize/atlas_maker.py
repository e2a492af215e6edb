"""Making an atlas: every neuron of whole layers, on one machine or on many, killed and gone on with at any moment.

A layer is cut into chunks of neurons that are made together, as many as fit the memory of the machine that made the first. How
long they are is in the manifest before the first picture is made: so a picture is made beside the same others however often
the run is stopped and on however many machines, and rounding, which may depend on what else is in a batch, is the same too.

Finished chunks lie, without loss, in ``unfinished-KEY`` until their layer is complete; KEY is a hash of all that fixes the
pictures. Workers hand their chunks back and one process writes: then workers need no disk in common, no two processes write
one file, and a full disk is met in one place. A chunk costs a worker far longer than its journey (16 pictures of 64 px are
0.2 MB).
"""

import errno
import hashlib
import json
import os
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..models.loading import load
from ..models.sites import Site, find_site, find_sites
from ..models.vision_model import VisionModel
from ..utils import cache
from ..utils.cache import FORMAT
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from .atlas import QUALITY, STRONGEST, Atlas, cut, file_name, forget, paste, per_sheet
from .recipe import Recipe
from .scores import STATUS, Scores, reference_activations, score
from .visualizer import Visualizer

TRIES = 3  # of one chunk, before a worker that dies is more than bad luck
_OUTSTANDING = 128  # chunks given to workers and not yet written: enough to keep 64 busy, few enough to wait in memory
_PROBE_STEPS = 5


@dataclass(frozen=True)
class Job:
    """What is to be made, as a worker is told it: few words, not weights."""

    model: str
    trained: bool
    weights: str
    kind: str
    recipe: Recipe
    seed: int


def render_chunk(job: Job, layer: int, first: int, end: int, model: VisionModel | None = None) -> dict[str, np.ndarray]:
    """Neurons ``first`` to ``end - 1`` of a layer: ``pictures`` uint8 (K, 3, S, S), ``curve_steps`` (n,), ``curves`` (K, n).

    A worker loads the job's model by its name, once, unless it is given.
    """
    visualizer = Visualizer(model or _load(job), job.recipe, atlas=False, keep=False)
    made = visualizer.optimize(layer, range(first, end), job.kind, job.seed)
    return {"pictures": (made.pictures * 255).round().byte().numpy(), "curve_steps": np.int32(made.curve_steps),
            "curves": made.curves.numpy()}


def probe(job: Job, layer: int, units: int, model: VisionModel | None = None) -> tuple[int, float]:
    """How many pictures this machine makes together, and how many seconds each will take; tried for a few steps."""
    model, seconds = model or _load(job), {}
    together = Visualizer(model, job.recipe, atlas=False, keep=False).batch_size
    some = min(units, together)
    for steps in (1, 1, 1 + _PROBE_STEPS):  # the first is to warm up
        begun = time.perf_counter()
        render_chunk(replace(job, recipe=replace(job.recipe, steps=steps)), layer, 0, some, model)
        seconds[steps] = time.perf_counter() - begun
    step = max(0.0, seconds[1 + _PROBE_STEPS] - seconds[1]) / _PROBE_STEPS
    return together, (seconds[1] + (job.recipe.steps - 1) * step) / some


def _load(job: Job) -> VisionModel:
    model = _loaded(job.model, job.trained)
    if model.weights_hash != job.weights:
        raise VitvizError(f"Workers load {job.model} by its name, and theirs has other weights than yours. An executor needs a "
                          f"model that vv.load({job.model!r}) gives on every machine; make other atlases without one.")
    return model


@lru_cache(maxsize=1)
def _loaded(name: str, trained: bool) -> VisionModel:
    return load(name, pretrained=trained)


def make_atlas(model: VisionModel, layers, folder: str | Path, recipe: Recipe | None = None, seed: int = 0,
               executor: Executor | Callable[[], Executor] | None = None) -> Atlas:
    """Render every neuron of ``layers``, of the model's first kind (``mlp``, or ``channel`` of a CNN), into ``folder``.

    Says how long it will take before it begins. Killed at any moment, the same call goes on: a chunk that was finished is never
    made again, and the atlas is the same, file for file. Layers that are complete can be read meanwhile. A call with other
    layers adds them to the atlas.

    Args:
        layers: numbers of layers.
        executor: any of ``concurrent.futures``, whose workers then make the pictures: ``Client.get_executor()`` of Dask, or
            mpi4py's ``MPIPoolExecutor()``. A chunk whose worker died is tried again, up to 3 times in all. Executors that do
            not outlive a worker's death (``ProcessPoolExecutor``) are given as a function that makes one, to be called again:
            ``functools.partial(ProcessPoolExecutor, 8)``.

    Raises:
        VitvizError: a folder that cannot be written, a full disk; a folder whose pictures were made otherwise; an executor
            that cannot be used, or fails three times at one chunk.
    """
    folder, kind = Path(folder), next(iter(find_sites(model)))
    sites = {site.layer: site for site in sorted((find_site(model, layer, kind) for layer in layers), key=lambda p: p.layer)}
    visualizer = Visualizer(model, recipe, atlas=False, keep=False)
    facts = {"model": model.title, "weights": model.weights_hash, "kind": kind, "layers": [],
             "recipe": visualizer.recipe.as_dict(), "seed": int(seed), "size": model.image_size,
             "reference": visualizer.reference.name, "format": FORMAT, "version": __version__,
             "sheet": per_sheet(model.image_size)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # before any work is done in vain
            pass
        facts |= _found(folder, facts, model)
        _fill(visualizer, sites, folder, facts, executor)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise VitvizError(f"There is no room left for the atlas in {folder} ({error.strerror}). Make room, and the same call "
                              f"goes on; layers that are complete ({_listed(facts['layers'])}) can be read.") from None
        raise VitvizError(f"The atlas cannot be written to {folder} ({error.strerror}); name a folder you may write to."
                          ) from None
    finally:
        forget()
    return Atlas.open(folder)


def _found(folder: Path, facts: dict, model: VisionModel) -> dict:
    """What the folder's manifest says, if it has one; VitvizError if its pictures are not those that ``facts`` asks for."""
    if not (folder / "manifest.json").exists():
        return {}
    try:
        found = Atlas.open(folder).facts
    except VitvizError:
        raise VitvizError(f"{folder} has a manifest.json that is no atlas's; name another folder for the atlas.") from None
    old = {**found, "recipe": Recipe(**found["recipe"]).as_dict()}
    if "sheet" not in old and all(find_sites(model)[old["kind"]][layer].units <= facts["sheet"] for layer in old["layers"]
                                  if old["weights"] == facts["weights"]):
        old["sheet"] = facts["sheet"]  # from before there were several sheets to a layer
    changed = [f"{name} {old['recipe'][name]}, now {value}" for name, value in facts["recipe"].items()
               if old["recipe"][name] != value]
    changed += [f"{name} {old.get(name)}, now {value}" for name, value in facts.items()
                if name not in ("layers", "recipe") and old.get(name) != value]
    if changed:
        raise VitvizError(f"The pictures in {folder} were made otherwise ({'; '.join(changed)}), so they are left as they are: "
                          f"name another folder, or delete this one.")
    return old


def _fill(visualizer: Visualizer, sites: dict[int, Site], folder: Path, facts: dict, executor) -> None:
    """Make what is missing."""
    model, kind = visualizer.model, facts["kind"]
    for pattern in ("manifest.json.partial", f"{kind}_*.partial", f"unfinished-*/{kind}_*.partial"):
        for left in folder.glob(pattern):  # of a run that was killed while it wrote
            left.unlink()
    if "chunk" in facts:  # it may have been killed before it could remove the chunks of a complete layer
        _clear(_parts(folder, facts), [find_sites(model)[kind][layer] for layer in facts["layers"]], facts)
        with suppress(OSError):  # chunks of other layers are in it
            _parts(folder, facts).rmdir()
    missing = [site for layer, site in sites.items() if layer not in facts["layers"]]
    if not missing:
        return
    job = Job(model.name, model.trained, model.weights_hash, kind, visualizer.recipe, facts["seed"])
    team = _Team(executor, model)
    try:
        tried = [missing[i] for i in sorted({0, len(missing) // 2, len(missing) - 1})]
        probes = {call[1]: found for call, found in team.run(probe, [(job, site.layer, site.units) for site in tried])}
        facts.setdefault("chunk", min(together for together, _ in probes.values()))
        parts = _parts(folder, facts)
        parts.mkdir(exist_ok=True)
        _write_manifest(folder, facts)
        waiting = {site.layer: [first for first in range(0, site.units, facts["chunk"])
                                 if not (parts / file_name(kind, site.layer, "npz", first)).exists()] for site in missing}
        calls = [(job, layer, first, min(first + facts["chunk"], sites[layer].units))
                 for layer, firsts in waiting.items() for first in firsts]
        every, left = sum(site.units for site in missing), sum(end - first for _, _, first, end in calls)
        if left:
            known = sorted((layer, seconds) for layer, (_, seconds) in probes.items())
            takes = sum((end - first) * np.interp(layer, *zip(*known, strict=True)) for _, layer, first, end in calls)
            tqdm.write(f"{left:,} of {every:,} pictures of {model.title} are to be made: about {_duration(takes)}"
                       f"{' of one worker' if executor else ''}, as {_PROBE_STEPS} steps in {_number(len(tried), 'layer')} took.")
        for site in missing:
            if not waiting[site.layer]:
                _complete(visualizer, site, folder, parts, facts)
        with tqdm(total=every, initial=every - left, unit="picture", desc=f"atlas of {model.name}", leave=False) as bar:
            for (_, layer, first, end), chunk in team.run(render_chunk, calls):
                _write_arrays(parts / file_name(kind, layer, "npz", first), chunk)
                bar.update(end - first)
                waiting[layer].remove(first)
                if not waiting[layer]:
                    _complete(visualizer, sites[layer], folder, parts, facts)
        with suppress(OSError):
            parts.rmdir()
    finally:
        team.close()


def _parts(folder: Path, facts: dict) -> Path:
    key = hashlib.sha256(json.dumps({**facts, "layers": None}, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"unfinished-{key}"


def _complete(visualizer: Visualizer, site: Site, folder: Path, parts: Path, facts: dict) -> None:
    """Put a layer's chunks onto sheets, score the pictures as they are stored, and add the layer to the manifest."""
    model, chunk, found, curves = visualizer.model, facts["chunk"], [], []
    for first in range(0, site.units, facts["sheet"]):
        end, begun = min(first + facts["sheet"], site.units), first - first % chunk
        made = [_part(parts / file_name(site.kind, site.layer, "npz", start)) for start in range(begun, end, chunk)]
        pictures, steps = torch.from_numpy(np.concatenate([part["pictures"] for part in made])), made[0]["curve_steps"]
        curves.append(np.concatenate([part["curves"] for part in made])[first - begun : end - begun])
        sheet, file = BytesIO(), folder / file_name(site.kind, site.layer, "webp", first)
        paste(pictures[first - begun : end - begun]).save(sheet, "webp", quality=QUALITY, method=6)
        _write(file, sheet.getvalue())
        stored = cut.__wrapped__(file, model.image_size)[: end - first].float() / 255
        found.append(score(model, site, list(range(first, end)), stored, visualizer.reference))
        release_memory()
    scores = {field.name: sum((getattr(part, field.name) for part in found), []) for field in fields(Scores)
              if field.name != "reference"}
    best = reference_activations(model, site, visualizer.reference).topk(STRONGEST, dim=0)
    _write_arrays(folder / file_name(site.kind, site.layer, "npz"), {
        "activation": np.float32(scores["activation"]), "percentile": np.float32(scores["percentile"]),
        "rank": np.int32(scores["rank"]), "status": np.uint8([STATUS.index(s) for s in scores["status"]]), "curve_steps": steps,
        "curves": np.concatenate(curves), "top": best.indices.T.to(torch.int32).numpy(), "top_activation": best.values.T.numpy()})
    layers = sorted([*facts["layers"], site.layer])
    _write_manifest(folder, {**facts, "layers": layers})
    facts["layers"] = layers
    _clear(parts, [site], facts)


def _part(path: Path) -> dict[str, np.ndarray]:
    arrays = cache.read(path)
    if arrays is None:
        raise VitvizError(f"{path} was damaged and is gone; the same call makes its pictures again.")
    return arrays


def _clear(parts: Path, sites: list[Site], facts: dict) -> None:
    """Remove the chunks of layers that are complete."""
    for site in sites:
        for first in range(0, site.units, facts["chunk"]):
            (parts / file_name(site.kind, site.layer, "npz", first)).unlink(missing_ok=True)


def _write_manifest(folder: Path, facts: dict) -> None:
    _write(folder / "manifest.json", (json.dumps(facts, indent=1) + "\n").encode())


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    _write(path, file.getvalue())


def _write(path: Path, content: bytes) -> None:
    """The whole file or none, whenever the process is killed."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def _number(n: int, what: str) -> str:
    return f"{n} {what}{'s' * (n != 1)}"


def _listed(layers: list[int]) -> str:
    return ", ".join(map(str, layers)) or "none yet"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{max(1, round(seconds))} s"


class _Team:
    """Those who work: this process, or the workers of an executor, of which one may die."""

    def __init__(self, executor, model: VisionModel):
        if executor is not None and not callable(executor) and not hasattr(executor, "submit"):
            raise VitvizError("executor is one of concurrent.futures, such as Client.get_executor() of Dask, or a function that "
                              f"makes one; got {executor!r}.")
        self._model, self._make = model, executor if callable(executor) else None
        self._executor = self._make() if self._make else executor

    def run(self, function: Callable, calls: list[tuple]) -> Iterator[tuple[tuple, object]]:
        """(call, ``function(*call)``) of each of ``calls``, as they come."""
        if self._executor is None:
            for call in calls:
                yield call, function(*call, model=self._model)
            return
        waiting, running, failed = deque(calls), {}, Counter()
        try:
            while waiting or running:
                lost = []
                while waiting and len(running) < _OUTSTANDING and not lost:
                    call = waiting.popleft()
                    try:
                        running[self._executor.submit(_attempt, function, call, failed[call])] = call, self._executor
                    except BrokenExecutor as error:
                        lost.append((call, self._executor, error))
                for future in [] if lost else wait(running, return_when=FIRST_COMPLETED).done:
                    call, executor = running.pop(future)
                    try:
                        result = future.result()
                    except VitvizError:  # would come again
                        raise
                    except Exception as error:  # every executor has its own for a worker that died
                        lost.append((call, executor, error))
                    else:
                        yield call, result
                for call, executor, error in reversed(lost):
                    failed[call] += 1
                    if failed[call] == TRIES:
                        raise VitvizError(f"Workers failed {TRIES} times at {function.__name__}{call[1:]} "
                                          f"({type(error).__name__}: {error}). What is finished is kept, and the same call goes "
                                          f"on.") from error
                    if isinstance(error, BrokenExecutor) and executor is self._executor:
                        self._renew(error)
                    waiting.appendleft(call)
        finally:
            for future in running:
                future.cancel()

    def _renew(self, error: BrokenExecutor) -> None:
        if not self._make:
            raise VitvizError(f"A worker died, and its executor with it ({error}). What is finished is kept, and the same call "
                              f"goes on; give a function that makes the executor, such as functools.partial(ProcessPoolExecutor, "
                              f"8), and a new one is made when that happens.") from error
        self.close()
        self._executor = self._make()

    def close(self) -> None:
        if self._make:  # others' executors are theirs to close
            self._executor.shutdown(wait=False)


def _attempt(function: Callable, call: tuple, number: int):
    """What a worker runs. ``number`` tells a second try from the first: Dask answers equal calls with the first one's result."""
    return function(*call)
