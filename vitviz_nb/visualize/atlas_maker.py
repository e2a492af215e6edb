"""Making an atlas: every neuron of whole layers, on one machine or on many; killed at any moment, the same call continues.

A layer is cut into chunks of neurons that are optimized together, as many as fit the memory of the machine that made the first.
Their length is in the manifest before the first picture is made: so a picture is in a batch with the same others however often
the run is stopped and on however many machines, and rounding, which may depend on the batch, is the same too.

Finished chunks lie, without loss, in ``unfinished-KEY`` until their layer is complete; KEY is a hash of all that fixes the
pictures. Workers hand their chunks back and one process, which holds the folder's lock, writes: then workers need no disk in
common, no two processes write one file, and a full disk is met in one process.
"""

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
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
from ..models.sites import Site, find_site
from ..models.vision_model import VisionModel
from ..utils import cache, files, validate
from ..utils.cache import FORMAT
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from .atlas import QUALITY, STRONGEST, Atlas, cut, file_name, paste, per_sheet
from .recipe import Recipe
from .scores import STATUS, Scores, reference_activations, score
from .visualizer import Visualizer

TRIES = 3  # of one chunk, before a worker that dies is more than bad luck
_OUTSTANDING = 128  # chunks given to workers and not yet written: enough to keep 64 busy, few enough to wait in memory
_PROBE_STEPS = 5


@dataclass(frozen=True)
class Job:
    """What a worker is sent: a model's name and hash, not its weights."""

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
    """This machine's batch size, and the seconds a picture will take, extrapolated from a few steps."""
    model, seconds = model or _load(job), {}
    together = Visualizer(model, job.recipe, atlas=False, keep=False).batch_size
    tried = min(units, together)
    for steps in (1, 1, 1 + _PROBE_STEPS):  # the first is to warm up
        start = time.perf_counter()
        render_chunk(replace(job, recipe=replace(job.recipe, steps=steps)), layer, 0, tried, model)
        seconds[steps] = time.perf_counter() - start
    step = max(0.0, seconds[1 + _PROBE_STEPS] - seconds[1]) / _PROBE_STEPS
    return together, (seconds[1] + (job.recipe.steps - 1) * step) / tried


def _load(job: Job) -> VisionModel:
    model = _loaded(job.model, job.trained)
    if model.weights_hash != job.weights:
        raise VitvizError(f"Workers load {job.model} by its name, and theirs has other weights than yours. An executor needs a "
                          f"model that vv.load({job.model!r}) gives on every machine; make other atlases without one.")
    return model


@lru_cache(maxsize=1)
def _loaded(name: str, trained: bool) -> VisionModel:
    return load(name, pretrained=trained)


def make_atlas(model: VisionModel, layers: Iterable[int], folder: str | Path, recipe: Recipe | None = None, seed: int = 0,
               executor: Executor | Callable[[], Executor] | None = None) -> Atlas:
    """The atlas of every neuron of ``layers``, of the model's own kind (``mlp``, or ``channel`` of a CNN), made in ``folder``.

    Prints how long it will take before it begins. Killed at any moment, the same call continues: a chunk that was finished is
    never made again, and the atlas is the same, file for file. Layers that are complete can be read meanwhile. A call with other
    layers adds them to the atlas.

    Args:
        executor: any of ``concurrent.futures``, whose workers then make the pictures: ``Client.get_executor()`` of Dask, or
            mpi4py's ``MPIPoolExecutor()``. A chunk whose worker died is tried again, up to 3 times in all. Executors that do
            not outlive a worker's death (``ProcessPoolExecutor``) are given as a function that makes one, to be called again:
            ``functools.partial(ProcessPoolExecutor, 8)``.

    Raises:
        VitvizError: a folder that cannot be written, or in which another process makes an atlas; a full disk; a folder that
            holds other files, or pictures made otherwise; a model with hooks or changes in force; an executor that cannot be
            used, or fails three times at one chunk.
    """
    folder, layers = validate.path("folder", folder), layers if isinstance(layers, Iterable) else [layers]
    sites = {site.layer: site for site in sorted((find_site(model, layer) for layer in layers), key=lambda site: site.layer)}
    if not sites:
        raise VitvizError("An atlas needs at least one layer; none was named.")
    visualizer, kind = Visualizer(model, recipe, atlas=False, keep=False), next(iter(sites.values())).kind
    _check_unchanged(model)
    facts = {"model": model.title, "weights": model.weights_hash, "kind": kind, "layers": [],
             "recipe": visualizer.recipe.as_dict(), "seed": validate.whole("A seed", seed), "size": model.image_size,
             "reference": visualizer.reference.name, "format": FORMAT, "version": __version__,
             "sheet": per_sheet(model.image_size)}
    with files.locked(files.ready(folder, "The atlas folder"), f"making an atlas of {model.name}"):
        files.tidy(folder, 0)
        facts |= _manifest(folder, facts, sites)
        _make_missing(visualizer, sites, folder, facts, executor)
        return Atlas.open(folder)


def _check_unchanged(model: VisionModel, weights: str | None = None) -> None:
    if not model.unchanged or weights not in (None, model.weights_hash):
        raise VitvizError(f"An atlas is of one set of float32 weights, and {model.name} has hooks or changes in force, or other "
                          f"weights than when its atlas was begun; load it again.")


def _manifest(folder: Path, facts: dict, sites: dict[int, Site]) -> dict:
    """What the folder's manifest says, if it has one; VitvizError if its pictures are not those that ``facts`` asks for."""
    if not (folder / "manifest.json").exists():
        for site in sites.values():
            for name in [file_name(site.kind, site.layer, "npz"), *_sheets(site, facts["sheet"])]:
                files.check_target(folder / name, lambda path: False)
        return {}
    try:
        stored = Atlas.open(folder).facts
    except VitvizError:
        raise VitvizError(f"{folder} has a manifest.json that is no atlas's; name another folder for the atlas.") from None
    old = {**stored, "recipe": Recipe(**stored["recipe"]).as_dict()}
    changed = [f"{name} {old['recipe'][name]}, now {value}" for name, value in facts["recipe"].items()
               if old["recipe"][name] != value]
    changed += [f"{name} {old.get(name)}, now {value}" for name, value in facts.items()
                if name not in ("layers", "recipe") and old.get(name) != value]
    if changed:
        raise VitvizError(f"The pictures in {folder} were made otherwise ({'; '.join(changed)}), so they are left as they are: "
                          f"name another folder, or delete this one.")
    return old


def _make_missing(visualizer: Visualizer, sites: dict[int, Site], folder: Path, facts: dict, executor) -> None:
    """Render the chunks that are missing, and complete their layers."""
    model, kind = visualizer.model, facts["kind"]
    _clear(folder, facts)  # it may have been killed before it could remove the chunks of a complete layer
    missing = [site for layer, site in sites.items() if layer not in facts["layers"]]
    if not missing:
        return
    job = Job(model.name, model.trained, facts["weights"], kind, visualizer.recipe, facts["seed"])
    team = _Team(executor, model)
    try:
        probed = [missing[i] for i in sorted({0, len(missing) // 2, len(missing) - 1})]
        probes = {call[1]: result for call, result in team.run(probe, [(job, site.layer, site.units) for site in probed])}
        facts.setdefault("chunk", min(together for together, _ in probes.values()))
        _write_manifest(folder, facts)
        parts = _parts(folder, facts)
        files.tidy(parts, 0)
        waiting = {site.layer: [first for first in range(0, site.units, facts["chunk"])
                                if not (parts / file_name(kind, site.layer, "npz", first)).exists()] for site in missing}
        calls = [(job, layer, first, min(first + facts["chunk"], sites[layer].units))
                 for layer, firsts in waiting.items() for first in firsts]
        total, left = sum(site.units for site in missing), sum(end - first for _, _, first, end in calls)
        if left:
            known = sorted((layer, seconds) for layer, (_, seconds) in probes.items())
            seconds = sum((end - first) * np.interp(layer, *zip(*known, strict=True)) for _, layer, first, end in calls)
            tqdm.write(f"{left:,} of {total:,} pictures of {model.title} are to be made: about {_duration(seconds)}"
                       f"{' of one worker' if executor else ''}, as {_PROBE_STEPS} steps in {len(probed)} "
                       f"layer{'s' * (len(probed) != 1)} took.")
        for site in missing:
            if not waiting[site.layer]:
                _complete(visualizer, site, folder, facts)
        with tqdm(total=total, initial=total - left, unit="picture", desc=f"atlas of {model.name}", leave=False) as bar:
            for (_, layer, first, end), chunk in team.run(render_chunk, calls):
                files.write(parts / file_name(kind, layer, "npz", first), _packed(chunk))
                bar.update(end - first)
                waiting[layer].remove(first)
                if not waiting[layer]:
                    _complete(visualizer, sites[layer], folder, facts)
    finally:
        team.close()


def _parts(folder: Path, facts: dict) -> Path:
    fixed = {name: value for name, value in facts.items() if name != "files"} | {"layers": None}
    key = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"unfinished-{key}"


def _sheets(site: Site, sheet: int) -> list[str]:
    return [file_name(site.kind, site.layer, "webp", first) for first in range(0, site.units, sheet)]


def _complete(visualizer: Visualizer, site: Site, folder: Path, facts: dict) -> None:
    """Put a layer's chunks onto sheets, score the pictures as they are stored, and add the layer to the manifest."""
    model, chunk, parts = visualizer.model, facts["chunk"], _parts(folder, facts)
    scores, curves, contents = [], [], {}
    for name, first in zip(_sheets(site, facts["sheet"]), range(0, site.units, facts["sheet"]), strict=True):
        end, start = min(first + facts["sheet"], site.units), first - first % chunk
        chunks = [_part(parts / file_name(site.kind, site.layer, "npz", begin)) for begin in range(start, end, chunk)]
        pictures, steps = torch.from_numpy(np.concatenate([part["pictures"] for part in chunks])), chunks[0]["curve_steps"]
        curves.append(np.concatenate([part["curves"] for part in chunks])[first - start : end - start])
        sheet = BytesIO()
        paste(pictures[first - start : end - start]).save(sheet, "webp", quality=QUALITY, method=6)
        contents[name] = sheet.getvalue()
        files.write(folder / name, contents[name])
        stored = cut.__wrapped__(folder / name, model.image_size, end - first).float() / 255
        scores.append(score(model, site, list(range(first, end)), stored, visualizer.reference))
        release_memory()
    _check_unchanged(model, facts["weights"])
    joined = {field.name: sum((getattr(part, field.name) for part in scores), []) for field in fields(Scores)
              if field.name != "reference"}
    best = reference_activations(model, site, visualizer.reference).topk(STRONGEST, dim=0)
    table = file_name(site.kind, site.layer, "npz")
    contents[table] = _packed({
        "activation": np.float32(joined["activation"]), "percentile": np.float32(joined["percentile"]),
        "rank": np.int32(joined["rank"]), "status": np.uint8([STATUS.index(s) for s in joined["status"]]), "curve_steps": steps,
        "curves": np.concatenate(curves), "top": best.indices.T.to(torch.int32).numpy(), "top_activation": best.values.T.numpy()})
    files.write(folder / table, contents[table])
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    facts |= {"layers": sorted([*facts["layers"], site.layer]), "files": dict(sorted((facts.get("files", {}) | digests).items()))}
    _write_manifest(folder, facts)
    _clear(folder, facts)


def _part(path: Path) -> dict[str, np.ndarray]:
    arrays = cache.read(path, finite=True)
    if arrays is None:
        raise VitvizError(f"{path} was damaged and is gone; the same call makes its pictures again.")
    return arrays


def _clear(folder: Path, facts: dict) -> None:
    """Remove the chunks of layers that are complete, and their folder if none are left in it."""
    parts = _parts(folder, facts)
    with suppress(OSError):
        for layer in facts["layers"]:
            for part in [file_name(facts["kind"], layer, "npz"), *parts.glob(f"{facts['kind']}_{layer:02d}_*.npz")]:
                (parts / part).unlink(missing_ok=True)
        parts.rmdir()  # fails while it holds other layers' chunks


def _write_manifest(folder: Path, facts: dict) -> None:
    files.write(folder / "manifest.json", json.dumps(facts, indent=1) + "\n")


def _packed(arrays: dict[str, np.ndarray]) -> bytes:
    file = BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.{1 if seconds < 10 * length else 0}f} {unit}"
    return f"{max(1, round(seconds))} s"


class _Team:
    """This process, or the workers of an executor, any of which may die."""

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
