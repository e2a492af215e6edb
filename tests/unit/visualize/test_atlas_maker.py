"""Atlases are made to the end whatever happens meanwhile, and come out the same, file for file."""

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models import loading
from vitviz_nb.models.sites import find_site
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import atlas_maker
from vitviz_nb.visualize.atlas import Atlas, cut, file_name, paste
from vitviz_nb.visualize.atlas_maker import make_atlas
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.scores import reference_set, score
from vitviz_nb.visualize.visualizer import Visualizer

SIZE, UNITS, LAYERS = 16, 48, [2, 0]
RECIPE = Recipe(steps=3, copies=1, jitter=0)
CHUNKS = [(layer, first, first + 16) for layer in (0, 2) for first in range(0, UNITS, 16)]
FILES = ["manifest.json", "mlp_00.npz", "mlp_00.webp", "mlp_00_32.webp", "mlp_02.npz", "mlp_02.webp", "mlp_02_32.webp"]


def make_model(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    model = VisionModel(VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4),
                        "tiny", SIZE)
    return with_few_images(model)


def with_few_images(model: VisionModel) -> VisionModel:
    """A reference that is quickly answered."""
    size = model.image_size
    images = torch.rand(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    model.remember("reference set", lambda: ImageSet(model, images), weights=False)
    return model


def make(model: VisionModel, folder: Path, layers=LAYERS, recipe: Recipe = RECIPE, **more) -> Atlas:
    return make_atlas(model, layers, folder, recipe, **more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def model() -> VisionModel:
    return make_model()


@pytest.fixture(autouse=True)
def small_sheets(monkeypatch) -> None:
    monkeypatch.setattr(atlas_maker, "per_sheet", lambda size: 32)


@pytest.fixture
def rendered(monkeypatch) -> list[tuple[int, int, int]]:
    """(layer, first, end) of every chunk that is made here."""
    made, real = [], atlas_maker.render_chunk

    @cache
    def known(*job):
        return real(*job)

    def counted(*job):
        chunk = known(*job)
        made.append(job[-3:])
        return chunk

    monkeypatch.setattr(atlas_maker, "render_chunk", counted)
    return made


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> dict[str, bytes]:
    """The files of an atlas that was made without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atlas_maker, "per_sheet", lambda size: 32)
        patch.setenv("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        return contents(make(model, tmp_path_factory.mktemp("whole")).folder)


# What is made


def test_two_runs_write_the_same_files_and_leave_no_others(model, whole, rendered, tmp_path):
    atlas = make(model, tmp_path / "again")
    assert contents(atlas.folder) == whole and sorted(whole) == FILES and rendered == CHUNKS
    assert sorted(path.name for path in atlas.folder.iterdir()) == FILES  # no empty folder, too
    assert not (tmp_path / "vitviz_cache" / "renderings").exists()  # an atlas keeps its pictures itself


def test_pictures_and_scores_are_the_visualizers_on_every_sheet(model, tmp_path):
    atlas, order = make(model, tmp_path / "out"), [40, 3, 31, 32]
    stored, made = atlas.rendering(2, order), Visualizer(model, RECIPE).render(2, order)
    assert torch.equal(stored.curves, made.curves) and stored.neurons == order
    distance = torch.cdist(stored.pictures.flatten(1), made.pictures.flatten(1))
    assert distance.argmin(1).tolist() == [0, 1, 2, 3]
    again = score(model, find_site(model, 2), order, stored.pictures, reference_set(model))
    assert stored.scores.activation == pytest.approx(again.activation, abs=1e-5) and stored.scores.rank == again.rank
    every = make(model, tmp_path / "out").rendering(2, list(range(UNITS)))
    whole = paste((Visualizer(model, RECIPE).render(2, range(UNITS)).pictures * 255).round().byte())
    for first in (0, 32):
        sheet = cut(atlas.folder / file_name("mlp", 2, "webp", first), SIZE, min(32, UNITS - first))
        assert torch.equal((every.pictures[first : first + 32] * 255).round().byte(), sheet[: len(every.pictures[first:])][:32])
    assert whole.size == (32 * SIZE, 2 * SIZE)


def test_layers_are_added_to_an_atlas(model, whole, rendered, tmp_path):
    assert make(model, tmp_path, [0]).facts["layers"] == [0]
    assert make(model, tmp_path, [-1]).facts["layers"] == [0, 2] and contents(tmp_path) == whole
    make(model, tmp_path, [0, 2])
    assert rendered == CHUNKS


def test_chunks_are_as_long_as_in_the_first_run(model, whole, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(atlas_maker, "render_chunk", stop)
        make(model, tmp_path)
    monkeypatch.setattr(atlas_maker, "chunk_length", lambda *arguments: 7)
    make(model, tmp_path)
    assert contents(tmp_path) == whole


# Killed


class Killed(BaseException):
    pass


class Steps:
    """Kills before the ``last`` step that changes the folder's files; None counts them."""

    def __init__(self, patch: pytest.MonkeyPatch, last: int | None = None):
        self.taken = 0
        for name in ("replace", "unlink"):
            patch.setattr(os, name, self._watched(name, last))

    def _watched(self, name, last):
        real = getattr(os, name)

        def step(path, *arguments, **more):
            if name == "unlink" and name_of(path).startswith("."):  # a lock or temporary file, which no dead owner removes
                return real(path, *arguments, **more)
            if self.taken == last:
                raise Killed
            self.taken += 1
            return real(path, *arguments, **more)

        return step


def name_of(path) -> str:
    return os.path.basename(os.fspath(path))


@pytest.mark.slow
def test_killed_at_any_step_it_goes_on_and_makes_no_finished_chunk_again(model, whole, rendered, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        steps = Steps(patch)
        make(model, tmp_path / "counted")
    assert steps.taken >= 15 + 6  # files that are kept, chunks that go
    for last in range(steps.taken):
        rendered.clear()
        out = tmp_path / str(last)
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
            Steps(patch, last)
            make(model, out)
        there = {(int(path.parent.name[-2:]), int(path.stem)) for path in out.glob("unfinished-*/*.npz")}
        layers = Atlas.open(out).facts["layers"] if (out / "manifest.json").exists() else []
        if layers:  # what is complete can be read
            Atlas.open(out).rendering(0, [0, 47])
        before = len(rendered)
        make(model, out)
        assert contents(out) == whole and not list(out.glob("unfinished*")), last
        again = [(layer, first) for layer, first, _ in rendered[before:] if layer in layers or (layer, first) in there]
        assert again == [] and len(rendered) <= len(CHUNKS) + 1, last


_KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_atlas_maker as this
this.atlas_maker.per_sheet = lambda size: 32
write, written = this.atlas_maker.files.write, []
def killing(path, content):
    written.append(path)
    if len(written) == 4:  # the manifest and two chunks are there, and half of the third
        path.with_name(f".{path.name}.12345678.partial").write_bytes(content[: len(content) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)
this.atlas_maker.files.write = killing
this.make(this.make_model(), this.Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_kill_9(model, whole, rendered, tmp_path):
    here = Path(__file__).parent
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", _KILLED, here, tmp_path / "out"], cwd=here.parents[1], capture_output=True,
                          text=True, env={**os.environ, **threads})
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "out").glob("unfinished-*/*.npz"))) == 2
    assert list((tmp_path / "out").glob("unfinished-*/.*.partial")) and (tmp_path / "out" / ".vitviz.lock").exists()
    make(model, tmp_path / "out")
    assert contents(tmp_path / "out") == whole and rendered == CHUNKS[2:]


def test_a_full_disk_stops_it_and_leaves_what_can_be_read(model, whole, tmp_path, monkeypatch):
    real = os.replace

    def full(source, target):
        if name_of(target) == "mlp_02.webp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(VitvizError, match=r"mlp_02.webp cannot be written \(No space left on device\); free some space"):
            make(model, tmp_path)
    assert not list(tmp_path.rglob("*.partial"))
    partial = Atlas.open(tmp_path)
    assert partial.facts["layers"] == [0] and partial.rendering(0, [47]).finished and len(partial.table()) == UNITS
    make(model, tmp_path)
    assert contents(tmp_path) == whole


def test_a_damaged_chunk_is_made_again(model, whole, rendered, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Steps(patch, 4)  # manifest and three chunks
        make(model, tmp_path)
    (damaged,) = tmp_path.glob("unfinished-*-00/16.npz")
    damaged.write_bytes(b"half")
    with pytest.raises(VitvizError, match="16.npz was damaged and is gone; the same call makes its pictures again"):
        make(model, tmp_path)
    make(model, tmp_path)
    assert contents(tmp_path) == whole and rendered.count((0, 16, 32)) == 2


# Kept apart


@pytest.mark.parametrize(("change", "says"), [
    ("weights", "weights [0-9a-f]{16}, now [0-9a-f]{16}"), ("recipe", r"steps 3, now 4; tv 0.0047, now 0.5"),
    ("seed", "seed 0, now 1"), ("version", "version 0.0.9, now"), ("format", "format 1, now 2")])
def test_other_settings_leave_the_pictures_alone(model, whole, rendered, tmp_path, change, says):
    for name, content in whole.items():
        (tmp_path / name).write_bytes(content)
    if change in ("version", "format"):
        facts = json.loads(whole["manifest.json"]) | {"version": "0.0.9"} if change == "version" else \
            json.loads(whole["manifest.json"]) | {"format": 1}
        (tmp_path / "manifest.json").write_text(json.dumps(facts))
    before = contents(tmp_path)
    with pytest.raises(VitvizError, match=f"were made otherwise .*{says}.* name another folder, or delete this one"):
        make(make_model(1) if change == "weights" else model, tmp_path, recipe=replace(RECIPE, steps=4, tv=0.5) if
             change == "recipe" else RECIPE, seed=int(change == "seed"))
    assert contents(tmp_path) == before and rendered == []


def test_chunks_of_other_settings_are_never_used(model, rendered, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        Steps(patch, 4)
        make(model, tmp_path, seed=1)
    (tmp_path / "manifest.json").unlink()  # as if to begin anew
    rendered.clear()
    make(model, tmp_path)
    assert rendered == CHUNKS


def test_a_folder_that_cannot_be_written_gets_one_sentence_before_any_work(model, passes, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "new"):
        with pytest.raises(VitvizError, match="The atlas folder .* cannot be written .*name a folder that you may write to"):
            make(model, folder)
    assert passes == [] and (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(("name", "message"), [
    ("manifest.json", "has a manifest.json that is no atlas's; name another folder"),
    ("mlp_02.npz", "mlp_02.npz exists, and is nothing that this command made"),
    ("mlp_00_32.webp", "mlp_00_32.webp exists, and is nothing that this command made"),
])
def test_a_file_that_is_no_atlas_s_is_left_alone(model, passes, tmp_path, name, message):
    (tmp_path / name).write_text("{}")
    with pytest.raises(VitvizError, match=message):
        make(model, tmp_path)
    assert passes == [] and contents(tmp_path) == {name: b"{}"}


def test_a_folder_in_which_another_makes_an_atlas_names_who(model, passes, whole, tmp_path, monkeypatch):
    locked = atlas_maker.files.locked
    monkeypatch.setattr(atlas_maker.files, "locked", lambda folder, what: locked(folder, what, wait=0))
    with locked(tmp_path, "making an atlas of emoji-vit"):
        with pytest.raises(VitvizError, match=f"in use .making an atlas of emoji-vit; process {os.getpid()} on .*wait until"):
            make(model, tmp_path)
    assert passes == []
    make(model, tmp_path)
    assert contents(tmp_path) == whole


def test_an_atlas_without_sha256_is_gone_on_with(model, whole, rendered, tmp_path):
    make(model, tmp_path, [0])
    facts = json.loads((tmp_path / "manifest.json").read_text())
    del facts["files"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    assert set(make(model, tmp_path).facts["files"]) == {"mlp_02.npz", "mlp_02.webp", "mlp_02_32.webp"}
    assert rendered == CHUNKS and {**contents(tmp_path), "manifest.json": b""} == {**whole, "manifest.json": b""}


def test_a_changed_model_gets_no_atlas(passes, tmp_path):
    model = make_model()
    handle = model.module.blocks[0].register_forward_hook(lambda module, arguments, output: output * 0)
    with pytest.raises(VitvizError, match="has hooks or changes in force"):
        make(model, tmp_path)
    handle.remove()
    assert passes == [] and contents(tmp_path) == {}


@pytest.mark.parametrize(("arguments", "message"), [
    ({"layers": []}, "at least one layer"), ({"layers": [7]}, "no mlp layer 7"), ({"layers": "a"}, "a layer is a number"),
    ({"layers": None}, "A layer is a whole number"), ({"seed": -1}, "A seed is a whole number"), ({"folder": ""}, "is a path"),
    ({"folder": 3}, "is a path"), ({"recipe": "quick"}, "a Recipe"), ({"model": "tiny"}, "model"),
])
def test_wrong_arguments_are_refused(model, tmp_path, arguments, message):
    with pytest.raises(VitvizError, match=message):
        make_atlas(**{"model": model, "layers": [0], "folder": tmp_path / "out", "recipe": RECIPE} | arguments)
    assert not (tmp_path / "out").exists()


# Many workers


class Here(Executor):
    """Runs each call at once, in this process; ``fails`` says what to raise instead, by number of the call."""

    def __init__(self, fails=None, breaks: bool = False):
        self.fails, self.breaks, self.calls, self.closed = fails or {}, breaks, 0, False

    def submit(self, function, /, *arguments):
        if self.closed:
            raise BrokenProcessPool("it is broken")
        future = Future()
        self.calls += 1
        if error := self.fails.get(self.calls):
            self.closed = self.breaks
            future.set_exception(error)
        else:
            future.set_result(function(*arguments))
        return future


@pytest.fixture
def workers_here(model, monkeypatch) -> None:
    """Workers in this process find the model by its name."""
    known = {("tiny", True, model.image_size): model}
    monkeypatch.setattr(loading, "load", lambda name, pretrained, image_size: known[name, pretrained, image_size])


def test_any_executor_makes_the_same_files(model, whole, rendered, workers_here, tmp_path):
    executor = Here()
    make(model, tmp_path / "one", executor=executor)
    assert contents(tmp_path / "one") == whole and rendered == CHUNKS and executor.calls == 1 + 6


def test_a_chunk_whose_worker_died_is_tried_again_at_most_three_times(model, whole, workers_here, tmp_path):
    for times in (1, 2):
        fails = dict.fromkeys(range(4, 4 + times), RuntimeError("KilledWorker"))
        make(model, tmp_path / str(times), executor=Here(fails))
        assert contents(tmp_path / str(times)) == whole
    every = dict.fromkeys(range(4, 400), RuntimeError("KilledWorker"))
    says = r"failed at layer and neurons \([02], [0-9]+, [0-9]+\), tries: 3 \(RuntimeError: KilledWorker\).* same call goes on"
    with pytest.raises(VitvizError, match=says):
        make(model, tmp_path / "never", executor=Here(every))
    make(model, tmp_path / "never")
    assert contents(tmp_path / "never") == whole


def test_a_broken_executor_is_made_anew_where_that_can_be(model, whole, workers_here, tmp_path):
    made = []

    def maker():
        made.append(Here({3: BrokenProcessPool("a process died")}, breaks=True) if len(made) < 2 else Here())
        return made[-1]

    make(model, tmp_path / "out", executor=maker)
    assert contents(tmp_path / "out") == whole and len(made) == 3
    with pytest.raises(VitvizError, match="BrokenProcessPool: .* give an executor that breaks when .* as a function that makes"):
        make(model, tmp_path / "other", executor=Here({3: BrokenProcessPool("a process died")}, breaks=True))
    with pytest.raises(VitvizError, match="executor is one of concurrent.futures.*got 8"):
        make(model, tmp_path / "other", executor=8)


def test_a_worker_whose_model_has_other_weights_is_told_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda name, pretrained, image_size: make_model(1))
    loading.load_same.cache_clear()
    with pytest.raises(VitvizError, match=r"theirs has other weights than yours.*vv.load\('tiny'\)"):
        make(model, tmp_path, executor=Here())


BY_NAME = Recipe(steps=1, copies=1, jitter=0)  # of emoji-pit, which workers load by its name: 192 units, so 12 chunks


@pytest.fixture(scope="module")
def by_name() -> VisionModel:
    return with_few_images(vv.load("emoji-pit", device="cpu"))


@pytest.fixture(scope="module")
def alone(by_name, tmp_path_factory) -> dict[str, bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITVIZ_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(atlas_maker, "per_sheet", lambda size: 32)
        torch.set_num_threads(1)
        return contents(make(by_name, tmp_path_factory.mktemp("alone"), [0], BY_NAME).folder)


def kill_when_half_done(monkeypatch, kill) -> list[Path]:
    """Calls ``kill`` when 6 of the 12 chunks have come back."""
    write, came = atlas_maker.files.write, []

    def written(path, content):
        write(path, content)
        if path.suffix == ".npz":
            came.append(path)
        if len(came) == 6:
            kill()

    monkeypatch.setattr(atlas_maker.files, "write", written)
    return came


class Deadly(ProcessPoolExecutor):
    """The first of them kills the worker that is given the 6th call, while it works: one that dies while it hands over a
    result can leave CPython's pool waiting for the rest of it."""

    made: list["Deadly"] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.calls = 0
        self.made.append(self)

    def submit(self, function, /, *arguments):
        self.calls += 1
        if len(self.made) == 1 and self.calls == 6:
            return super().submit(signal.raise_signal, signal.SIGKILL)
        return super().submit(function, *arguments)


@pytest.mark.slow
def test_processes_of_which_one_is_killed_half_way(by_name, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(Deadly, "made", [])
    context = get_context("forkserver")
    context.set_forkserver_preload(["vitviz_nb.visualize.atlas_maker"])  # torch and timm are imported once, not by each worker
    came = kill_when_half_done(monkeypatch, lambda: None)
    atlas = make(by_name, tmp_path, [0], BY_NAME, executor=lambda: Deadly(2, context))
    assert len(Deadly.made) == 2 and len(set(came)) == len(came) == 12 + 1  # the table, too
    assert contents(atlas.folder) == alone


@pytest.mark.slow
def test_dask_with_two_workers_of_which_one_is_killed_half_way(by_name, alone, tmp_path, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with (distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
          distributed.Client(cluster) as client):
        before = client.run(os.getpid)
        came = kill_when_half_done(monkeypatch, lambda: os.kill(next(iter(before.values())), signal.SIGKILL))
        atlas = make(by_name, tmp_path, [0], BY_NAME, executor=client.get_executor())
        client.wait_for_workers(2, timeout=120)  # by default it waits for ever
        assert len(set(before.values())) == 2 and set(client.run(os.getpid).values()) != set(before.values())
    assert len(set(came)) == len(came) == 12 + 1
    assert contents(atlas.folder) == alone
