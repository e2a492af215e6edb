"""A visualizer for a class: notebooks ask, Dask's workers (where the GPU is) compute, and its scheduler keeps what was made.

``connect`` gives a Dask client; ``Visualizer``, ``explore`` and ``top_images`` take it. What travels to a worker is the name of
``desk.answer`` with names, numbers and a recipe; what comes back, arrays. A request's key is a hash of all that fixes its answer,
so those who ask for the same share one task, and the scheduler's cache folder answers who asks later.
"""

import asyncio
import os
import ssl
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from io import BytesIO
from pathlib import Path
from threading import BoundedSemaphore
from types import ModuleType
from typing import TYPE_CHECKING
from uuid import uuid4
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image as Pillow
from torchvision.transforms.functional import to_tensor

from .. import __version__
from ..models.sites import Site
from ..models.vision_model import VisionModel
from ..utils import cache, files, validate
from ..utils.errors import VitvizError, first_line
from .rendering import Rendering
from .request import Request
from .scores import Scores

if TYPE_CHECKING:
    from distributed import Client, Future, LocalCluster, Security

LOOPBACK = ("127.0.0.1", "localhost", "::1")
CALLS = 8  # unfinished calls of one client, before it is refused another
_WINDOW = 64  # pictures of one call that wait at the workers; the others wait here
_POLL = 0.05  # s
_places: WeakKeyDictionary["Client", BoundedSemaphore] = WeakKeyDictionary()
_previews: dict[str, tuple[int, bytes] | None] = {}  # by key, of what waits: the latest step and its picture, WebP


class OutOfReach(Exception):
    """The scheduler cannot be reached: what was asked is computed here instead."""


def connect(address: str, certificate: str | Path | None = None, timeout: float = 10.0) -> "Client":
    """A Dask client for ``Visualizer``, ``explore`` and ``top_images`` (``client=``), from what ``vitviz serve`` printed.

    Args:
        address: of the scheduler, such as "tcp://127.0.0.1:8786", or "tls://gpu.example.org:8786" with a certificate.
        certificate: the file that ``vitviz serve`` made. Whoever has it can run any code on the workers; so can they on yours.
        timeout: s.

    Raises:
        VitvizError: nobody answers there, or not to this certificate; Dask is missing; another version of the kit.
    """
    if not isinstance(address, str) or not address:
        raise VitvizError(f"An address is a text such as 'tcp://127.0.0.1:8786', got {validate.shown(address)}.")
    dask, timeout = _dask(), validate.real("timeout", timeout, 0.1, 600)
    security = None if certificate is None else security_of(validate.path("certificate", certificate))
    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's own has a running loop
            thread.submit(asyncio.run, _knock(address, security or dask.Security(), timeout)).result()
        client = dask.Client(address, security=security, timeout=timeout, set_as_default=False)
    except Exception as error:  # Dask's, Tornado's, OpenSSL's: no common base
        secret = "does it need the certificate that it made" if certificate is None else f"is {certificate} its certificate"
        raise VitvizError(f"No shared visualizer answers at {address} ({first_line(error)[:200]}). Is vitviz serve running "
                          f"there, at this port, and {secret}?") from None
    try:
        versions = {"the scheduler": client.run_on_scheduler(version), **client.run(version)}
    except Exception as error:  # a kit that has no such function, or none at all
        client.close()
        raise VitvizError(f"What answers at {address} lacks vitviz_nb {__version__} ({first_line(error)[:200]}); install the "
                          f"version of the kit that you have on every machine.") from None
    for place, other in versions.items():
        check_version(other, f"{place} of {address}")
    return client


async def _knock(address: str, security: "Security", timeout: float) -> None:
    """Connect once, for a Client that cannot leaves threads behind which can hang Python as it ends."""
    from distributed.comm import connect

    await (await connect(address, timeout, **security.get_connection_args("client"))).close()


def _dask() -> ModuleType:
    try:
        import distributed
    except ImportError:
        raise VitvizError("A shared visualizer needs Dask; run: python -m pip install distributed cryptography") from None
    return distributed


def version() -> str:
    """Of the kit, where this is run."""
    return __version__


def check_version(other: str, place: str) -> None:
    if other != __version__:
        raise VitvizError(f"vitviz_nb has version {__version__} here and {other} at {place}; install the same on both.")


def check_client(client) -> "Client | None":
    """The client itself; VitvizError if it is neither None nor one of Dask's."""
    if client is not None and not (hasattr(type(client), "run_on_scheduler") and hasattr(type(client), "submit")):
        raise VitvizError(f"client is what vv.connect(address) returns, got {validate.shown(client)}.")
    return client


def security_of(certificate: Path) -> "Security":
    """TLS for scheduler, workers and clients by one file: a key, and its certificate, which is also the only authority."""
    if not certificate.is_file():
        raise VitvizError(f"There is no certificate {certificate}; copy the file that vitviz serve made.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate)
    except OSError as error:  # ssl.SSLError is one
        raise VitvizError(f"{certificate} holds no key with its certificate ({first_line(error)}); copy the file that vitviz "
                          f"serve made, or delete it where it is made, and start vitviz serve again.") from None
    names = ("tls_ca_file", "tls_client_cert", "tls_scheduler_cert", "tls_worker_cert")
    return _dask().Security(require_encryption=True, **dict.fromkeys(names, str(certificate)))


def key_of(facts: dict) -> str:
    """A request's key, the same on every machine."""
    return f"vitviz-{cache.path_of(facts, 'shared').stem}"


def kept(several: list[dict]) -> list[dict[str, np.ndarray] | None]:
    """Answers to several requests from this machine's cache folder; run on the scheduler."""
    return [cache.read(cache.path_of(facts, "shared")) for facts in several]


def keep(facts: dict, content: bytes) -> None:
    """Keep an answer, as the content of an ``.npz``, in this machine's cache folder; run on the scheduler, for a worker."""
    cache.write_packed(cache.path_of(facts, "shared"), content)


def frames(client: "Client", model: VisionModel, request: Request, frame: Rendering, scored: bool) -> Iterator[Rendering]:
    """The pictures of a request as workers make them: ``frame``, which shows how they begin, as it fills, at least every 0.05 s.

    The last has scores, if ``scored``. Closed early, it takes back what still waits.

    Raises:
        OutOfReach: the scheduler is lost.
        VitvizError: a model that is not what its name says; too many unfinished calls.
    """
    common = {"do": "picture", "model": _named(model), "kind": request.site.kind, "layer": request.site.layer,
              "recipe": asdict(frame.recipe), "scored": scored}
    asked = [{**common, "neuron": number, "seed": seed} for number, seed in request.images]
    weights = [None] * len(asked) if request.directions is None else request.directions.numpy()
    waiting, futures, answers, shown = deque(range(len(asked))), {}, {}, {}
    with _place(client):
        try:
            while True:
                before = len(answers), *(shown.get(k) for k in futures)
                some = [waiting.popleft() for _ in range(min(len(waiting), _WINDOW - len(futures)))]
                for k, arrays in zip(some, _kept(client, [asked[k] for k in some]), strict=True):
                    if arrays:
                        answers[k] = arrays
                    else:
                        futures[k] = _submit(client, asked[k], weights[k])
                        _previews.setdefault(futures[k].key, None)
                        client.subscribe_topic(_topic(futures[k].key), _on_preview)
                for k, future in [*futures.items()]:
                    shown[k] = _previews.get(future.key)
                    if future.done():
                        answers[k] = _result(future)
                        _previews.pop(future.key, None)
                        futures.pop(k).release()
                if (len(answers), *(shown.get(k) for k in futures)) != before:
                    frame = _filled(frame, answers, shown)
                yield frame
                if len(answers) == len(asked):
                    return
                time.sleep(_POLL)
        finally:
            for future in futures.values():
                _previews.pop(future.key, None)
                future.release()


def _ask(client: "Client", model: VisionModel, site: Site, do: str, extra=None, **facts) -> dict[str, np.ndarray]:
    """One answer of another kind than a picture (see ``desk``); with ``extra``, the arrays it is about, it is never kept."""
    facts = {"do": do, "model": _named(model), "kind": site.kind, "layer": site.layer, **facts}
    facts |= {} if extra is None else {"once": uuid4().hex}
    with _place(client):
        [arrays] = _kept(client, [facts])
        return arrays or _result(_submit(client, facts, extra))


def scores(client: "Client", model: VisionModel, site: Site, neurons: list[int], pictures: torch.Tensor,
           directions: torch.Tensor | None) -> Scores:
    """As ``scores.score`` against the default reference, measured by a worker."""
    arrays = [pictures.numpy(), None if directions is None else directions.numpy()]
    answer = _ask(client, model, site, "scores", arrays, neurons=neurons)
    return Scores(**{name: array.tolist() for name, array in answer.items()})


def strongest(client: "Client", model: VisionModel, site: Site, neuron: int,
              k: int) -> tuple[list[int], list[float], torch.Tensor | None]:
    """As ``top_images.strongest`` of the default reference, found by a worker."""
    answer = _ask(client, model, site, "top", neuron=neuron, k=k)
    maps = torch.from_numpy(answer["maps"]) if "maps" in answer else None
    return answer["numbers"].tolist(), answer["values"].tolist(), maps


def _named(model: VisionModel) -> list:
    """What ``load_same`` needs: the model's name, whether it is trained, its weights' hash, its size if it is timm's."""
    if not model.unchanged:
        raise VitvizError(f"Workers compute models as vv.load gives them, and {model.name} has hooks or changes in force, or "
                          f"another precision; leave client= away to compute it here.")
    return [model.name, model.trained, model.weights_hash, None if model.card else model.image_size]


@contextmanager
def _place(client: "Client") -> Iterator[None]:
    place = _places.setdefault(client, BoundedSemaphore(CALLS))
    if not place.acquire(blocking=False):
        raise VitvizError(f"{CALLS} calls of this notebook wait for the shared visualizer, as many as one may have; wait for one "
                          f"of them, or stop it.")
    try:
        yield
    finally:
        place.release()


def _kept(client: "Client", several: list[dict]) -> list[dict[str, np.ndarray] | None]:
    if not several:
        return []
    _check_reachable(client)
    try:
        return client.run_on_scheduler(kept, several)
    except OSError as error:
        raise OutOfReach(first_line(error)) from None


def _submit(client: "Client", facts: dict, extra) -> "Future":
    from .desk import answer

    _check_reachable(client)
    return client.submit(answer, __version__, client.id, facts, extra, key=key_of(facts))


def _check_reachable(client: "Client") -> None:
    if client.status != "running":
        raise OutOfReach(f"its client is {client.status}")


def _result(future: "Future") -> dict[str, np.ndarray]:
    """A task's answer, awaited."""
    try:
        return future.result()
    except VitvizError:
        raise
    except Exception as error:  # what a worker met, or KilledWorker after four of them died at it
        if future.status in ("cancelled", "lost"):  # by the client, which has lost its scheduler
            raise OutOfReach("its connection is lost") from None
        raise VitvizError(f"The shared visualizer failed ({type(error).__name__}: {first_line(error)[:200]}); ask again, or "
                          f"leave client= away to compute here.") from error


def _topic(key: str) -> str:
    """Of previews: one of 16, for the scheduler remembers topics for ever."""
    return f"vitviz-previews-{key[-1]}"


def _on_preview(event: tuple) -> None:
    key, *preview = event[1]
    if key in _previews:
        _previews[key] = tuple(preview)


def preview(key: str, step: int, picture: torch.Tensor) -> tuple[str, tuple]:
    """Topic and message of a picture (3, S, S) that forms."""
    file = BytesIO()
    Pillow.fromarray((255 * picture).round().byte().permute(1, 2, 0).numpy()).save(file, "webp", quality=85, method=0)
    return _topic(key), (key, step, file.getvalue())


def _filled(frame: Rendering, answers: dict[int, dict], shown: dict[int, tuple | None]) -> Rendering:
    """A rendering with the pictures that have come, and previews of others."""
    pictures, steps = frame.pictures.clone(), list(frame.steps)
    for k, seen in shown.items():
        if seen and k not in answers:
            steps[k], pictures[k] = seen[0], to_tensor(Pillow.open(BytesIO(seen[1])).convert("RGB"))
    for k, arrays in answers.items():
        steps[k], pictures[k] = frame.recipe.steps, torch.from_numpy(arrays["picture"])
    curves = [dict(zip(a["curve_steps"].tolist(), a["curve"].tolist(), strict=True)) if (a := answers.get(k)) else {}
              for k in range(len(steps))]
    read = sorted({step for curve in curves for step in curve})
    scores = None
    if len(answers) == len(steps) and "reference" in answers[0]:
        scores = Scores(**{name: [answers[k][name].item() for k in range(len(steps))]
                           for name in ("activation", "percentile", "rank", "status")}, reference=str(answers[0]["reference"]))
    return replace(frame, pictures=pictures, steps=steps, curve_steps=read, scores=scores,
                   curves=torch.tensor([[curve.get(step, float("nan")) for step in read] for curve in curves]))


def serve(host: str = "127.0.0.1", port: int = 8786, workers: int = 1, certificate: Path | None = None) -> "LocalCluster":
    """A scheduler and workers on this machine; each worker is started again if it dies.

    With a ``certificate``, without which it listens to this machine alone, all is encrypted, and who lacks the file is
    refused; it is made where there is none.
    """
    dask = _dask()
    from dask import config

    from .desk import AT_ONCE

    if certificate is None and host not in LOOPBACK:
        raise VitvizError(f"To listen at {host} a certificate is needed; name the file that has it, or is to have it.")
    if certificate is not None and not certificate.is_file():
        _make(certificate)
    threads = os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // max(1, workers)))
    settings = {"distributed.admin.low-level-log-length": 50,  # of messages, previews among them
                "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads}
    try:
        with config.set(settings):
            return dask.LocalCluster(
                n_workers=validate.whole("--workers", workers, 0, 1024), threads_per_worker=AT_ONCE, processes=True, host=host,
                preload=["vitviz_nb.visualize.desk"],  # so that a worker is ready when it joins
                scheduler_port=validate.whole("--port", port, 0, 65535), dashboard_address=None,
                security=None if certificate is None else security_of(certificate),
                # Dask's own pages, which are not encrypted, stay on this machine.
                worker_dashboard_address="127.0.0.1:0", scheduler_kwargs={"dashboard_address": "127.0.0.1:0"})
    except (OSError, RuntimeError) as error:
        raise VitvizError(f"A shared visualizer cannot be started at {host}, port {port} ({first_line(error)[:200]}); name "
                          f"another --host or --port.") from None


def _make(certificate: Path) -> None:
    """Write a new key and its certificate into one file, which only its owner can read; valid for a year."""
    try:
        made = _dask().Security.temporary()  # self-signed, by the library cryptography
    except ImportError:
        raise VitvizError("To listen beyond this machine a certificate is needed, which the library cryptography makes; run: "
                          "python -m pip install cryptography") from None
    files.write(certificate, made.tls_scheduler_key + made.tls_scheduler_cert, mode=0o600)
