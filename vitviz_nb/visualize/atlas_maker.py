"""Making an atlas: layer by layer, on one machine or on many; killed at any moment, the same call continues.

A layer is cut into chunks of neurons that are optimized together, as many as fit the memory of the machine asked first. Their
length is in the manifest before the first picture is made: so rounding, which may depend on the batch, is the same however often
the run is stopped and on however many machines.

Finished chunks lie, without loss, in ``unfinished-KEY-LAYER`` until their layer is complete; KEY is a hash of all that fixes the
pictures. Workers hand their chunks back and one process, which holds the folder's lock, writes: workers need no common disk.
"""

import hashlib
import json
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import closing
from dataclasses import asdict
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .. import __version__
from ..datasets.image_set import AT_ONCE, ImageSet
from ..datasets.photographs import Photos
from ..models.loading import load_same
from ..models.reading import tokens
from ..models.sites import Site, find_site
from ..models.vision_model import VisionModel
from ..utils import cache, files, validate
from ..utils.cache import FORMAT
from ..utils.errors import VitvizError
from ..utils.memory import release_memory
from . import hardware
from .atlas import QUALITY, STRONGEST, Atlas, cut, evenly_spaced, file_name, paste, per_sheet
from .recipe import Recipe
from .rendering import packed
from .scores import STATUS, reference_activations, score
from .visualizer import Visualizer

TRIES = 3  # of one chunk, before a worker that dies is more than bad luck
_ALL = 10**9  # neurons of a layer: as many as there are
_OUTSTANDING = 128  # chunks given to workers and not yet written: enough to keep 64 busy, few enough to wait in memory


def render_chunk(model: VisionModel | tuple, recipe: Recipe, kind: str, seed: int, count: int, layer: int, first: int,
                 end: int) -> dict[str, np.ndarray]:
    """Rows ``first`` to ``end - 1`` of a layer: ``pictures`` uint8 (K, 3, S, S), ``curve_steps`` (n,), ``curves`` (K, n).

    Args:
        model: for a worker, what it needs to load it: (name, trained, weights' hash, size if it is a timm model's).
    """
    model = _loaded(model)
    neurons = evenly_spaced(find_site(model, layer, kind).units, count)[first:end]
    made = Visualizer(model, recipe, atlas=False, keep=False).optimize(layer, neurons, kind, seed)
    return {"pictures": (made.pictures * 255).round().byte().numpy(), "curve_steps": np.int32(made.curve_steps),
            "curves": made.curves.numpy()}


def chunk_length(model: VisionModel | tuple, recipe: Recipe) -> int:
    """Number of pictures that this machine optimizes together."""
    return hardware.batch_size(_loaded(model), recipe.copies)


def _loaded(model: VisionModel | tuple) -> VisionModel:
    return model if isinstance(model, VisionModel) else load_same(*model)


def make_atlas(model: VisionModel, layers: Iterable[int], folder: str | Path, recipe: Recipe | None = None, seed: int = 0,
               executor: Executor | Callable[[], Executor] | None = None, neurons: int | None = None, images=None,
               title: str | None = None) -> Atlas:
    """The atlas of the neurons of ``layers``, of the model's own kind (``mlp``, or ``channel`` of a CNN), made in ``folder``.

    Killed at any moment, the same call continues: a chunk that was finished is never made again, and the atlas is the same, file
    for file. Layers that are complete can be read meanwhile. A call with other layers adds them to the atlas.

    Args:
        executor: any of ``concurrent.futures``, whose workers then make the pictures: ``Client.get_executor()`` of Dask, or
            mpi4py's ``MPIPoolExecutor()``. A chunk whose worker died is tried again, up to 3 times in all. One that breaks when
            a worker dies is given as a function that makes it: ``functools.partial(ProcessPoolExecutor, 8)``.
        neurons: how many of each layer, evenly spaced; by default all.
        images: reference images, anything an ``ImageSet`` takes; by default scenes of Emoji World. The six of them that
            activate each neuron most are stored, of ``vv.photos()`` with its activation at every patch.
        title: what captions call the model; by default its own title.

    Raises:
        VitvizError: a folder that cannot be written, or in which another process makes an atlas; a full disk; a folder that
            holds other files, or pictures made otherwise; a model with hooks or changes in force; an executor that cannot be
            used, or fails three times at one chunk.
    """
    folder, layers = validate.path("folder", folder), layers if isinstance(layers, Iterable) else [layers]
    if isinstance(model, VisionModel):  # what else it is, find_site refuses; hooks would change what it finds
        _check_unchanged(model)
    sites = {site.layer: site for site in sorted((find_site(model, layer) for layer in layers), key=lambda site: site.layer)}
    if not sites:
        raise VitvizError("An atlas needs at least one layer; none was named.")
    visualizer = Visualizer(model, recipe, images, atlas=False, keep=False)
    size = visualizer.recipe.side(model.image_size)
    facts = {"model": title or model.title, "weights": model.weights_hash, "kind": find_site(model).kind, "layers": [],
             "recipe": asdict(visualizer.recipe), "seed": validate.whole("A seed", seed), "size": size,
             "reference": visualizer.reference.name, "format": FORMAT, "version": __version__, "sheet": per_sheet(size)}
    facts |= {} if neurons is None else {"neurons": validate.whole("neurons", neurons, 1)}
    facts |= {"photos": visualizer.reference.source.sha256} if isinstance(visualizer.reference.source, Photos) else {}
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
            for name in [file_name(site.kind, site.layer, "npz"), *_sheets(site, facts)]:
                files.check_target(folder / name, lambda path: False)
        return {}
    try:
        old = Atlas.open(folder).facts
    except VitvizError:
        raise VitvizError(f"{folder} has a manifest.json that is no atlas's; name another folder for the atlas.") from None
    old["recipe"] = asdict(Recipe(**old["recipe"]))
    known, wanted = ({**each, **each["recipe"], "layers": None, "recipe": None} for each in (old, facts))
    changed = [f"{name} {known.get(name)}, now {value}" for name, value in wanted.items() if known.get(name) != value]
    if changed:
        raise VitvizError(f"The pictures in {folder} were made otherwise ({'; '.join(changed)}), so they are left as they are: "
                          f"name another folder, or delete this one.")
    return old


def _make_missing(visualizer: Visualizer, sites: dict[int, Site], folder: Path, facts: dict, executor) -> None:
    """Render the chunks that are missing, and complete their layers."""
    model = visualizer.model
    _clear(folder, facts)  # it may have been killed before it could remove the chunks of a complete layer
    missing = [site for layer, site in sites.items() if layer not in facts["layers"]]
    if not missing:
        return
    size = None if model.card else model.image_size
    job = (model if executor is None else (model.name, model.trained, facts["weights"], size)), visualizer.recipe
    with closing(_Workers(executor)) as workers:
        if "chunk" not in facts:
            [(_, facts["chunk"])] = workers.run(partial(chunk_length, *job), [()])
            _write_manifest(folder, facts)
        calls = [(site.layer, first, min(first + facts["chunk"], len(_neurons(site, facts))))
                 for site in missing for first in range(0, len(_neurons(site, facts)), facts["chunk"])
                 if not _part(folder, facts, site.layer, first).exists()]
        left = Counter(layer for layer, _, _ in calls)
        for site in missing:
            files.tidy(_part(folder, facts, site.layer).parent, 0)
            if not left[site.layer]:
                _complete(visualizer, site, folder, facts)
        with tqdm(total=sum(end - first for _, first, end in calls), unit="picture", desc=f"atlas of {model.name}",
                  leave=False) as bar:
            render = partial(render_chunk, *job, facts["kind"], facts["seed"], facts.get("neurons", _ALL))
            for (layer, first, end), chunk in workers.run(render, calls):
                files.write(_part(folder, facts, layer, first), packed(chunk))
                bar.update(end - first)
                left[layer] -= 1
                if not left[layer]:
                    _complete(visualizer, sites[layer], folder, facts)


def _part(folder: Path, facts: dict, layer: int, first: int = 0) -> Path:
    """Where the chunk of a layer that begins with row ``first`` lies until the layer is complete."""
    fixed = {name: value for name, value in facts.items() if name not in ("files", "layers")}
    key = hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]
    return folder / f"unfinished-{key}-{layer:02d}" / f"{first}.npz"


def _neurons(site: Site, facts: dict) -> list[int]:
    return evenly_spaced(site.units, facts.get("neurons", _ALL))


def _sheets(site: Site, facts: dict) -> dict[str, int]:
    """The name of each sheet of a layer, and its first row."""
    rows = range(0, len(_neurons(site, facts)), facts["sheet"])
    return {file_name(site.kind, site.layer, "webp", first): first for first in rows}


def _complete(visualizer: Visualizer, site: Site, folder: Path, facts: dict) -> None:
    """Put a layer's chunks onto sheets, score the pictures as they are stored, and add the layer to the manifest."""
    model, chunk, neurons = visualizer.model, facts["chunk"], _neurons(site, facts)
    tables, contents = [], {}
    for name, first in _sheets(site, facts).items():
        end, start = min(first + facts["sheet"], len(neurons)), first - first % chunk
        chunks = [_read(_part(folder, facts, site.layer, begin)) for begin in range(start, end, chunk)]
        pictures, steps = torch.from_numpy(np.concatenate([part["pictures"] for part in chunks])), chunks[0]["curve_steps"]
        sheet = BytesIO()
        paste(pictures[first - start : end - start]).save(sheet, "webp", quality=QUALITY, method=6)
        contents[name] = sheet.getvalue()
        files.write(folder / name, contents[name])
        stored = cut.__wrapped__(folder / name, facts["size"], end - first).float() / 255
        scores = score(model, site, neurons[first:end], stored, visualizer.reference)
        tables.append({"activation": np.float32(scores.activation), "percentile": np.float32(scores.percentile),
                       "rank": np.int32(scores.rank), "status": np.uint8([STATUS.index(s) for s in scores.status]),
                       "curves": np.concatenate([part["curves"] for part in chunks])[first - start : end - start]})
        release_memory()
    _check_unchanged(model, facts["weights"])
    best = reference_activations(model, site, visualizer.reference)[:, neurons].topk(STRONGEST, dim=0)
    table = {name: np.concatenate([part[name] for part in tables]) for name in tables[0]}
    table |= {"curve_steps": steps, "top": best.indices.T.to(torch.int32).numpy(), "top_activation": best.values.T.numpy()}
    table |= {"neurons": np.int32(neurons), "units": np.int32(site.units)} if "neurons" in facts else {}
    table |= {"maps": _maps(model, site, neurons, visualizer.reference, table["top"])} if "photos" in facts and site.grid else {}
    name = file_name(site.kind, site.layer, "npz")
    contents[name] = packed(table)
    files.write(folder / name, contents[name])
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    facts |= {"layers": sorted([*facts["layers"], site.layer]), "files": dict(sorted((facts.get("files", {}) | digests).items()))}
    _write_manifest(folder, facts)
    _clear(folder, facts)


def _maps(model: VisionModel, site: Site, neurons: list[int], reference: ImageSet, top: np.ndarray) -> np.ndarray:
    """Each neuron's activation at every patch of its strongest images (K, 6, rows, columns), each map from 0 to 255."""
    wanted, maps = np.unique(top), {}
    with torch.inference_mode():
        for some in np.array_split(wanted, -(-len(wanted) // AT_ONCE)):
            seen = tokens(model, site, model.normalize(reference.batch(some).to(model.device)))[..., neurons].float().cpu()
            maps |= dict(zip(some.tolist(), seen, strict=True))
    rows = torch.stack([torch.stack([maps[i][:, k] for i in row]) for k, row in enumerate(top.tolist())])
    low, high = rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True)
    scaled = 255 * (rows - low) / (high - low).clamp_min(1e-12)
    return scaled.round().byte().view(*top.shape, *site.grid).numpy()


def _read(part: Path) -> dict[str, np.ndarray]:
    arrays = cache.read(part, finite=True)
    if arrays is None:
        raise VitvizError(f"{part} was damaged and is gone; the same call makes its pictures again.")
    return arrays


def _clear(folder: Path, facts: dict) -> None:
    """Remove the chunks of layers that are complete."""
    for layer in facts["layers"]:
        shutil.rmtree(_part(folder, facts, layer).parent, ignore_errors=True)


def _write_manifest(folder: Path, facts: dict) -> None:
    files.write(folder / "manifest.json", json.dumps(facts, indent=1) + "\n")


class _Workers:
    """This process, or the workers of an executor, any of which may die."""

    def __init__(self, executor):
        self._make = executor if callable(executor) else None
        self._executor = self._make() if self._make else executor
        if not (self._executor is None or hasattr(self._executor, "submit")):
            raise VitvizError("executor is one of concurrent.futures, such as Client.get_executor() of Dask, or a function that "
                              f"makes one; got {validate.shown(executor)}.")

    def run(self, function: Callable, calls: list[tuple]) -> Iterator[tuple[tuple, object]]:
        """(call, ``function(*call)``) of each of ``calls``, as they come."""
        if self._executor is None:
            yield from ((call, function(*call)) for call in calls)
            return
        waiting, running, failed = deque(calls), {}, Counter()
        try:
            while waiting or running:
                while waiting and len(running) < _OUTSTANDING:
                    call = waiting.popleft()
                    running[self._submit(_attempt, function, call, failed[call])] = call, self._executor
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    call, executor = running.pop(future)
                    try:
                        result = future.result()
                    except VitvizError:  # would come again
                        raise
                    except Exception as error:  # every executor has its own for a worker that died
                        failed[call] += 1
                        broken = isinstance(error, BrokenExecutor)
                        if failed[call] == TRIES or broken and not self._make:
                            raise VitvizError(f"Workers failed at layer and neurons {call}, tries: {failed[call]} "
                                              f"({type(error).__name__}: {error}). What is finished is kept, and the same call "
                                              f"goes on; give an executor that breaks when a worker dies as a function that "
                                              f"makes one: functools.partial(ProcessPoolExecutor, 8).") from error
                        if broken and executor is self._executor:
                            self.close()
                            self._executor = self._make()
                        waiting.appendleft(call)
                    else:
                        yield call, result
        finally:
            for future in running:
                future.cancel()

    def _submit(self, *call) -> Future:
        try:
            return self._executor.submit(*call)
        except BrokenExecutor as error:
            future = Future()
            future.set_exception(error)
            return future

    def close(self) -> None:
        if self._make:  # others' executors are theirs to close
            self._executor.shutdown(wait=False)


def _attempt(function: Callable, call: tuple, number: int):
    """What a worker runs. ``number`` tells a second try from the first: Dask answers equal calls with the first one's result."""
    return function(*call)
