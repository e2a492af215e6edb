"""A class shares one visualizer: the same pictures as on one's own, each made once, everybody's turn, nothing lost."""

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, closing
from itertools import count
from multiprocessing import get_context
from unittest.mock import AsyncMock

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

import vitviz_nb as vv
from vitviz_nb.datasets.image_set import ImageSet
from vitviz_nb.models import loading
from vitviz_nb.models.vision_model import VisionModel
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize import shared
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.top_images import top_images
from vitviz_nb.visualize.visualizer import Visualizer

pytestmark = pytest.mark.slow
dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")
RECIPE, SIZE = Recipe(steps=12, copies=1, jitter=0), 16
LONG = Recipe(steps=100_000, copies=1, jitter=0)  # never finished by a test


def tiny(seed: int = 0) -> VisionModel:
    torch.manual_seed(seed)
    model = VisionModel(VisionTransformer(img_size=SIZE, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4),
                        "tiny", SIZE)
    images = torch.rand(16, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    model.remember("reference set", lambda: ImageSet(model, images), weights=False)
    return model


def load(name: str, **more) -> VisionModel:
    """What workers in this process load by name."""
    if name != "tiny":
        raise VitvizError(f"There is no model called {name!r}.")
    return tiny()


def one_worker():
    return distributed.LocalCluster(n_workers=1, threads_per_worker=512, processes=False, protocol="tcp://",
                                    dashboard_address="127.0.0.1:0")


@pytest.fixture(scope="module")
def cluster():
    with one_worker() as made:
        yield made


@pytest.fixture
def desk(cluster, monkeypatch):
    """The desk of the one worker, whose passes are counted: (neuron, seed) of each."""
    monkeypatch.setattr(loading, "load", load)
    loading.load_same.cache_clear()
    from vitviz_nb.visualize.desk import Desk

    worker, = cluster.workers.values()
    worker.vitviz_desk = Desk(worker)
    passes, real = [], worker.vitviz_desk._pass

    def counted(model, recipe, batch):
        passes.append([(ticket.client, ticket.facts["neuron"]) for ticket in batch])
        return real(model, recipe, batch)

    worker.vitviz_desk._pass = counted
    worker.vitviz_desk.passes = passes
    return worker.vitviz_desk


@pytest.fixture
def connect(cluster):
    clients = []

    def another():
        clients.append(vv.connect(cluster.scheduler_address))
        return clients[-1]

    yield another
    for client in clients:
        client.close()


@pytest.fixture
def client(connect, desk):
    return connect()


def until(condition, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that in time"
        time.sleep(0.01)


def waiting(desk) -> list:
    return [ticket for ticket in desk._waiting if not ticket.done.done()]


# What comes back


@pytest.mark.parametrize("neurons", [[3, 7, 11], torch.eye(48)[:2] + 0.5], ids=["neurons", "directions"])
def test_the_pictures_and_scores_are_those_of_ones_own_machine_bit_for_bit(client, neurons):
    model = tiny()
    one, many = (Visualizer(model, RECIPE, keep=False, client=where).render(1, neurons, seed=4) for where in (None, client))
    assert torch.equal(one.pictures, many.pictures) and torch.equal(one.curves, many.curves) and one.scores == many.scores
    assert {**vars(one), "pictures": 0, "curves": 0, "directions": 0} == {**vars(many), "pictures": 0, "curves": 0,
                                                                        "directions": 0}
    assert torch.equal(Visualizer(model, RECIPE, keep=False, client=client).optimize(1, neurons, seed=4).pictures, one.pictures)


def test_a_spectrum_and_variants_come_back_the_same(client):
    recipe = Recipe(**{**vars(Recipe.fourier()), "steps": 3})
    one, many = (Visualizer(tiny(), recipe, keep=False, client=where).render(-1, 5, variants=2) for where in (None, client))
    assert torch.equal(one.pictures, many.pictures) and one.labels == many.labels and one.scores == many.scores


def test_images_of_ones_own_stay_and_are_scored_here(client, desk):
    images = torch.rand(9, 3, SIZE, SIZE)
    one, many = (Visualizer(tiny(), RECIPE, images, keep=False, client=where).render(0, [1]) for where in (None, client))
    assert one.scores == many.scores and torch.equal(one.pictures, many.pictures) and len(desk.passes) == 1


def test_top_images_are_found_by_workers(client, monkeypatch):
    model = tiny()
    here = top_images(model, 1, 6, k=3)
    monkeypatch.setattr("vitviz_nb.visualize.top_images.strongest", None)  # what would compute here
    there = top_images(model, 1, 6, k=3, client=client)
    assert here.indices == there.indices and here.activations == there.activations and here.title == there.title
    assert torch.equal(here.maps, there.maps) and torch.equal(here.images, there.images)


def test_previews_stream_back(client, monkeypatch):
    monkeypatch.setattr("vitviz_nb.visualize.desk._BETWEEN", 0.05)
    with closing(Visualizer(tiny(), LONG, client=client).stream(1, [3, 4])) as frames:
        first = next(frames)
        seen = next(frame for frame in frames if min(frame.steps) > 0)
    assert first.steps == [0, 0] and not seen.finished and not seen.scores
    assert not torch.equal(first.pictures, seen.pictures) and seen.pictures.shape == (2, 3, SIZE, SIZE)


# Once for all


def test_a_picture_is_made_once_for_all_and_kept_on_the_schedulers_machine(client, connect, desk, tmp_path):
    first = Visualizer(tiny(), RECIPE, client=client).render(1, [3, 4])
    assert len(list((tmp_path / "vitviz_cache" / "shared").rglob("*.npz"))) == 2 and len(desk.passes) == 1
    start = time.monotonic()
    second = Visualizer(tiny(), RECIPE, client=connect()).render(1, [4, 3])
    assert len(desk.passes) == 1 and second.scores.activation == first.scores.activation[::-1]
    assert torch.equal(first.pictures, second.pictures.flip(0)) and time.monotonic() - start < 2
    for entry in (tmp_path / "vitviz_cache" / "shared").rglob("*.npz"):
        entry.write_bytes(b"damaged")
    assert torch.equal(Visualizer(tiny(), RECIPE, client=client).render(1, [3, 4]).pictures, first.pictures)
    assert len(desk.passes) == 2


def test_two_who_ask_at_once_share_one_task_and_one_may_leave(cluster, client, connect, desk):
    gate = threading.Event()
    real, desk._pass = desk._pass, lambda *job: gate.wait(10) and real(*job)
    a, b = (Visualizer(tiny(), RECIPE, client=each).stream(1, [3]) for each in (client, connect()))
    next(a), next(b)
    until(lambda: [len(task.who_wants) for task in cluster.scheduler.tasks.values()] == [2])
    a.close()
    gate.set()
    *_, last = b
    assert last.scores and desk.passes == [[(client.id, 3)]]


@pytest.mark.parametrize("pause", [0, 0.15], ids=["one submission for Dask", "several"])
def test_waiting_neurons_of_one_layer_are_made_in_one_pass_client_by_client(pause, connect, desk, monkeypatch):
    monkeypatch.setattr("vitviz_nb.visualize.hardware.batch_size", lambda model, copies: 4)
    gate, model = threading.Event(), tiny()
    real, desk._pass = desk._pass, lambda *job: gate.wait(10) and real(*job)
    greedy, modest, other = clients = [connect() for _ in range(3)]
    asked = [(greedy, 0, [40]), (greedy, 1, range(8)), (modest, 1, [20]), (other, 1, [30, 31]), (other, 2, [5])]
    streams = [Visualizer(model, RECIPE, client=who).stream(layer, neurons) for who, layer, neurons in asked]
    for already, stream in zip((1, 9, 10, 12, 13), streams, strict=True):
        next(stream)
        until(lambda n=already: len(waiting(desk)) == n)
        time.sleep(pause)  # Dask counts what comes within a tenth of a second as one submission
    gate.set()
    assert all([*stream][-1].scores for stream in streams)
    names = dict(zip((each.id for each in clients), "gmo", strict=True))
    who = [sorted(names[client] for client, _ in each) for each in desk.passes]
    assert who == [["g"], ["g", "m", "o", "o"], ["g"] * 4, ["o"], ["g"] * 3]  # one that was served is behind others


@pytest.fixture
def gated(monkeypatch):
    """Workers that wait for a gate and take ``at_once`` pictures in a pass: the gate, and who made which neuron, in order."""
    monkeypatch.setattr(loading, "load", load)
    loading.load_same.cache_clear()
    from vitviz_nb.visualize import desk

    gate, made, real = threading.Event(), [], desk.Desk._pass

    def passed(self, model, recipe, batch):
        gate.wait(20)
        made.extend((self._worker.address, ticket.facts["neuron"]) for ticket in batch)
        time.sleep(0.1)  # else one worker is done with all before another has begun
        return real(self, model, recipe, batch)

    def begin(at_once):
        monkeypatch.setattr("vitviz_nb.visualize.hardware.batch_size", lambda model, copies: at_once)
        monkeypatch.setattr(desk.Desk, "_pass", passed)
        return gate, made

    return begin


def test_a_worker_that_joins_takes_its_share_of_what_waits_at_another(gated):
    gate, made = gated(at_once=2)
    with one_worker() as cluster, closing(vv.connect(cluster.scheduler_address)) as client:
        stream = Visualizer(tiny(), RECIPE, client=client).stream(1, range(24))
        next(stream)
        until(lambda: sum(map(len, client.processing().values())) == 24)
        first, = client.processing()
        cluster.scale(2)
        client.wait_for_workers(2, timeout=60)
        gate.set()
        *_, last = stream
    assert last.finished and sorted(neuron for _, neuron in made) == [*range(24)]  # none twice
    assert 8 <= sum(worker == first for worker, _ in made) <= 16


async def lose(address: str, dask_scheduler=None) -> None:
    await dask_scheduler.remove_worker(address, stimulus_id="test")


def test_a_request_left_by_a_lost_worker_goes_before_those_that_were_made_later(gated, monkeypatch):
    gate, made = gated(at_once=1)
    monkeypatch.setattr("vitviz_nb.visualize.desk.Desk._share", AsyncMock())  # every request stays where it was sent
    with one_worker() as cluster, ExitStack() as clients:
        cluster.scale(2)
        first, *others = (clients.enter_context(closing(vv.connect(cluster.scheduler_address))) for _ in range(7))
        first.wait_for_workers(2, timeout=60)
        streams = []
        for neuron, client in enumerate([first, *others]):
            streams.append(Visualizer(tiny(), RECIPE, client=client).stream(1, [neuron]))
            next(streams[-1])
            until(lambda n=neuron: sum(map(len, first.processing().values())) == n + 1)
            time.sleep(0.15)  # Dask counts what comes within a tenth of a second as one submission
        # The scheduler sends them to the workers in turns; that with three is lost.
        lost = min(first.processing().items(), key=lambda each: len(each[1]))[0]
        first.run_on_scheduler(lose, lost)
        until(lambda: sum(map(len, first.processing().values())) == 7 and len(first.processing()) == 1, 30)
        gate.set()
        assert all([*stream][-1].finished for stream in streams)
    assert [neuron for _, neuron in made if neuron >= 2][-5:] == [2, 3, 4, 5, 6]


def test_on_a_cpu_a_pass_is_of_at_most_four_pictures_so_that_nobody_waits_for_many(client, desk):
    assert client is not None
    gate, real = threading.Event(), desk._pass
    desk._pass = lambda *job: gate.wait(10) and real(*job)
    stream = Visualizer(tiny(), RECIPE, client=client).stream(1, range(10))
    next(stream)
    until(lambda: len(waiting(desk)) == 10)
    gate.set()
    assert [*stream][-1].finished
    assert max(map(len, desk.passes)) == 4


def test_a_worker_that_cannot_ask_how_busy_others_are_answers_all_that_waits(client, desk, monkeypatch):
    from vitviz_nb.visualize import desk as module

    scheduler, asked = desk._worker.scheduler, []
    real = scheduler.run_function

    async def unreachable(function, args):
        if function != module.dumps(module._tasks_by_worker):
            return await real(function=function, args=args)
        asked.append(function)
        raise OSError("Timed out")

    monkeypatch.setattr(scheduler, "run_function", unreachable, raising=False)
    made: list = []
    viewer = Visualizer(tiny(), RECIPE, client=client)
    threading.Thread(target=lambda: made.append(viewer.render(2, range(20, 30))), daemon=True).start()
    until(lambda: made, 30)
    assert asked and made[0].finished and made[0].scores


# Stop, and limits


def test_a_stop_and_a_clients_end_free_the_worker_at_once(connect, desk):
    stopped, vanished = connect(), connect()
    with closing(Visualizer(tiny(), LONG, client=stopped).stream(1, [3])) as frames:
        next(frames)
        until(lambda: desk.passes)
    frames = Visualizer(tiny(), LONG, client=vanished).stream(1, [4])
    next(frames)
    until(lambda: len(desk.passes) == 2)  # the first has left it
    vanished.close()
    until(lambda: not waiting(desk) and desk._working.done())


def test_an_interrupted_rendering_is_scored_as_far_as_it_is(client, monkeypatch):
    monkeypatch.setattr("vitviz_nb.visualize.desk._BETWEEN", 0.01)
    ticks = count()

    def sleep(seconds, real=time.sleep):
        real(seconds)
        if any(shared._previews.values()) and next(ticks) == 2:  # by then it is on the page
            raise KeyboardInterrupt

    monkeypatch.setattr(shared.time, "sleep", sleep)
    made = Visualizer(tiny(), LONG, client=client).render(1, [3])
    assert 0 < made.steps[0] < LONG.steps and made.scores.reference == "16 images" and not shared._previews


def test_calls_beyond_the_limit_are_refused_with_a_sentence(client):
    streams = [Visualizer(tiny(), LONG, client=client).stream(1, [neuron]) for neuron in range(shared.CALLS + 1)]
    for stream in streams[:-1]:
        next(stream)
    with pytest.raises(VitvizError, match="8 calls of this notebook wait.*as many as one may have"):
        next(streams[-1])
    for stream in streams:
        stream.close()
    assert Visualizer(tiny(), RECIPE, client=client).render(1, [3]).finished


def test_one_request_that_fails_does_not_fail_those_beside_it(client, connect, desk, monkeypatch):
    gate, real = threading.Event(), desk._pass

    def spoiled(model, recipe, batch):
        gate.wait(10)
        if any(ticket.facts["neuron"] == 7 for ticket in batch):
            raise VitvizError("A picture became NaN.")
        return real(model, recipe, batch)

    desk._pass = spoiled
    good, bad = (Visualizer(tiny(), RECIPE, client=each).stream(1, [n]) for each, n in ((client, 3), (connect(), 7)))
    next(good), next(bad)
    until(lambda: len(waiting(desk)) == 2)
    gate.set()
    assert [*good][-1].scores
    with pytest.raises(VitvizError, match="A picture became NaN"):
        list(bad)


# What goes wrong


def test_a_lost_scheduler_leaves_the_notebook_working_here(monkeypatch):
    monkeypatch.setattr(loading, "load", load)
    loading.load_same.cache_clear()
    from vitviz_nb.visualize.desk import Desk

    gate = threading.Event()
    monkeypatch.setattr(Desk, "_pass", lambda self, model, recipe, batch: gate.wait(10) and {})
    cluster, model = one_worker(), tiny()
    client = vv.connect(cluster.scheduler_address)
    visualizer = Visualizer(model, RECIPE, client=client)
    frames = visualizer.stream(1, [3])
    next(frames)
    cluster.close()
    with pytest.warns(UserWarning, match="The shared visualizer is out of reach.*this machine computes"):
        *_, last = frames
    gate.set()
    assert torch.equal(last.pictures, Visualizer(model, RECIPE, keep=False).render(1, [3]).pictures) and last.scores
    assert "out of reach" in visualizer.note
    with pytest.warns(UserWarning, match="out of reach"):
        assert top_images(model, 1, 3, k=2, client=client).indices == top_images(model, 1, 3, k=2).indices
    client.close()


def test_models_that_workers_cannot_load_are_refused_with_a_sentence(client, monkeypatch):
    with pytest.raises(VitvizError, match="theirs has other weights than yours"):
        Visualizer(tiny(1), RECIPE, client=client).render(1, [3])
    own = tiny()
    own.name = "my own"
    with pytest.raises(VitvizError, match="Workers load a model by its name, and cannot load my own: There is no model"):
        Visualizer(own, RECIPE, client=client).render(1, [3])
    changed = tiny()
    with changed.changed("a change"), pytest.raises(VitvizError, match="tiny has hooks or changes in force"):
        Visualizer(changed, RECIPE, client=client).render(1, [3])
    with changed.changed("a change"), pytest.raises(VitvizError, match="hooks or changes in force"):
        top_images(changed, 1, 3, client=client)


def test_another_version_of_the_kit_is_refused_with_a_sentence(client, connect, monkeypatch):
    monkeypatch.setattr("vitviz_nb.visualize.shared.version", lambda: "0.0.1")
    with pytest.raises(VitvizError, match="version .* here and 0.0.1 at the scheduler of tcp://.*install the same"):
        connect()
    monkeypatch.undo()
    future = client.submit(__import__("vitviz_nb.visualize.desk", fromlist=["answer"]).answer, "0.0.1", "x", {})
    with pytest.raises(VitvizError, match="0.0.1 at the notebook that asks"):
        future.result()


def test_what_cannot_be_served_is_refused_with_a_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for more, match in (({"port": 99999}, "--port is a whole number from 0 to 65535"),
                            ({"workers": -1}, "--workers is a whole number from 0"),
                            ({"host": "0.0.0.0"}, "To listen at 0.0.0.0 a certificate is needed"),
                            ({"port": taken.getsockname()[1], "workers": 0}, "cannot be started at 127.0.0.1, port")):
            with pytest.raises(VitvizError, match=match):
                shared.serve(**{"port": 0, **more})


def test_addresses_that_nobody_answers_are_refused_with_a_sentence(tmp_path):
    for address, match in {"tcp://127.0.0.1:1": "No shared visualizer answers at tcp://127.0.0.1:1", "gpu": "missing port number",
                           "ftp://gpu:1": "unknown address scheme",
                           "tls://127.0.0.1:1": "does it need the certificate that it made"}.items():
        with pytest.raises(VitvizError, match=match):
            vv.connect(address, timeout=0.3)
    for wrong in (3, ""):
        with pytest.raises(VitvizError, match=f"An address is a text.*got {wrong!r}"):
            vv.connect(wrong)
    with pytest.raises(VitvizError, match="There is no certificate"):
        vv.connect("tls://127.0.0.1:1", tmp_path / "none.pem")
    (tmp_path / "class.pem").write_text("no certificate")
    for use in (lambda: vv.connect("tls://127.0.0.1:1", tmp_path / "class.pem"),
                lambda: shared.serve("0.0.0.0", 0, certificate=tmp_path / "class.pem")):
        with pytest.raises(VitvizError, match="class.pem holds no key with its certificate .* or delete it where it is made"):
            use()
    with pytest.raises(VitvizError, match="is not a file that can be replaced; name another"):
        shared.serve("0.0.0.0", 0, certificate=tmp_path)
    for door in (lambda: Visualizer(tiny(), client="tcp://127.0.0.1:1"), lambda: top_images(tiny(), 0, 0, client=8786),
                 lambda: vv.explore(tiny(), client="gpu")):
        with pytest.raises(VitvizError, match=r"client is what vv.connect\(address\) returns"):
            door()


def test_workers_of_which_one_is_killed_behind_a_certificate(tmp_path, monkeypatch):
    pytest.importorskip("cryptography")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("distributed.utils._forkserver_preload_set", True)
    get_context("forkserver").set_forkserver_preload(["vitviz_nb.visualize.desk"])  # imported once, not by each worker
    certificate, other = tmp_path / "class.pem", tmp_path / "other.pem"
    forked = dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"})
    with forked, shared.serve(port=0, workers=2, certificate=certificate) as cluster:
        assert cluster.scheduler_address.startswith("tls://127.0.0.1:") and certificate.stat().st_mode & 0o077 == 0
        with shared.serve(port=0, workers=0, certificate=other):
            pass
        for wrong in (None, other):
            with pytest.raises(VitvizError, match="No shared visualizer answers"):
                vv.connect(cluster.scheduler_address, wrong, timeout=5)
        client = vv.connect(cluster.scheduler_address, certificate)
        model, recipe = vv.load("emoji-pit"), Recipe(steps=20, copies=1)
        images = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # scored here, which is quick
        frames = Visualizer(model, recipe, images, client=client).stream(0, range(8))
        next(frames)
        until(lambda: all(client.processing().values()), 60)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        *_, last = frames
        client.close()
    assert last.finished and np.isfinite(last.scores.activation).all()
