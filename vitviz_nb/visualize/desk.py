"""The worker's side of a shared visualizer: requests wait at a desk, and those that fit are answered in one pass."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from io import BytesIO
from math import ceil
from threading import Lock

import numpy as np
import torch
from distributed import Reschedule, Worker, get_worker
from distributed.protocol.pickle import dumps

from ..models.loading import load_same
from ..models.sites import find_site
from ..models.vision_model import VisionModel
from . import hardware
from .recipe import Recipe
from .rendering import Rendering
from .request import Request
from .scores import reference_set, score
from .shared import check_version, keep, key_of, preview
from .top_images import strongest
from .visualizer import Visualizer

AT_ONCE = 512  # tasks of a worker, which Dask calls threads: they wait at the desk and take none
_GATHER = 0.05  # s in which the others of a call come, too, before a pass begins
_BETWEEN = 0.5  # s between two previews
_SHOWN = 16  # previews at a time: on a card, where a pass has many pictures, encoding them would take longer than making them
_ON_CPU = 4  # pictures of a pass at most: more together are no faster there, and whoever comes meanwhile waits for all of them
_loading = Lock()


async def answer(version: str, client: str, facts: dict, extra=None) -> dict[str, np.ndarray]:
    """The task that notebooks submit: what ``facts`` asks for. Nothing else of the kit is run by name on a worker.

    Args:
        facts: ``do``, one of "picture", "scores" and "top", and all that fixes the answer; see ``shared``.
        extra: the direction (units,) of a picture; for scores, the pictures and the directions they are of, or None.
    """
    worker = get_worker()
    check_version(version, "the notebook that asks")
    if not hasattr(worker, "vitviz_desk"):
        worker.vitviz_desk = Desk(worker)
    done = asyncio.get_running_loop().create_future()
    return await worker.vitviz_desk.answer(_Ticket(key_of(facts), client, facts, extra, done))


@dataclass(eq=False)
class _Ticket:
    """A request at the desk."""

    key: str
    client: str
    facts: dict
    extra: np.ndarray | list | None
    done: asyncio.Future
    asked: int = 0  # Dask's number of the submission: later ones have larger numbers, on whichever worker they end up

    @property
    def like(self) -> str:
        """What pictures of one pass have in common."""
        return json.dumps({**self.facts, "neuron": self.extra is None, "seed": None}, sort_keys=True)


class Desk:
    """Requests of one worker. Pictures are made in one thread, as many in a pass as fit; what is quick, in another beside it.

    Clients take turns. First comes one request of each, that which waits longest first, on whichever worker it has waited; who
    was served waits since then. Then come second requests, of who was served longest ago first, and so on.
    """

    def __init__(self, worker: Worker):
        self._worker, self._waiting, self._turn, self._served, self._latest = worker, [], 0, {}, 0
        self._maker, self._side = ThreadPoolExecutor(1, "vitviz"), ThreadPoolExecutor(1, "vitviz-side")
        self._working = None

    async def answer(self, ticket: _Ticket) -> dict[str, np.ndarray]:
        if ticket.facts["do"] == "picture":
            ticket.asked = self._worker.state.tasks[ticket.key].priority[1]
            self._latest = max(self._latest, ticket.asked)
            self._waiting.append(ticket)
            if self._working is None or self._working.done():
                self._working = asyncio.create_task(self._work())
            arrays = await ticket.done
        else:
            arrays = await self._run(self._side, _quick, ticket)
        if "once" not in ticket.facts:  # kept before it is answered, so that nobody's repeat comes between
            file = BytesIO()
            np.savez(file, **arrays)  # not compressed: noise hardly shrinks, and takes long
            await self._worker.scheduler.run_function(function=dumps(keep), args=dumps((ticket.facts, file.getvalue())))
        return arrays

    async def _run(self, pool: ThreadPoolExecutor, function, *arguments):
        return await asyncio.get_running_loop().run_in_executor(pool, function, *arguments)

    async def _work(self) -> None:
        while tickets := self._in_turn():
            first = tickets[0]
            try:
                model, _ = await asyncio.gather(self._run(self._maker, _model, first.facts), asyncio.sleep(_GATHER))
            except Exception as error:
                for ticket in tickets:
                    if ticket.facts["model"] == first.facts["model"]:
                        self._settle(ticket, error)
                continue
            recipe = Recipe(**first.facts["recipe"])
            batch = [ticket for ticket in self._in_turn() if ticket.like == first.like]  # also who came while it was loaded
            most = hardware.batch_size(model, recipe.copies)
            batch = batch[: min(most, _ON_CPU) if model.device.type == "cpu" else most]
            if len(batch) < len(tickets):
                await self._share([ticket for ticket in self._in_turn() if ticket not in batch])
            self._turn += 1
            self._served |= {ticket.client: (self._latest, self._turn) for ticket in batch}
            await self._make(model, recipe, batch)

    async def _share(self, tickets: list[_Ticket]) -> None:
        """Send back, from the last, what other workers have time for: a worker that dies leaves all its tasks to those that
        live, and the one started in its place none. The scheduler gives them to whoever has the fewest.
        """
        try:
            counted = await self._worker.scheduler.run_function(function=dumps(_tasks_by_worker), args=dumps(()))
        except OSError:  # the scheduler cannot be reached just now: whoever waits here is answered here
            return
        counts = counted["result"]
        above = counts.get(self._worker.address, 0) - ceil(sum(counts.values()) / max(1, len(counts)))
        for ticket in tickets[-above:] if above > 1 else []:  # one more or less is not worth its way
            self._settle(ticket, Reschedule())

    async def _make(self, model: VisionModel, recipe: Recipe, batch: list[_Ticket]) -> None:
        try:
            for ticket, arrays in (await self._run(self._maker, self._pass, model, recipe, batch)).items():
                self._settle(ticket, arrays)
        except Exception as error:
            for ticket in batch:  # one may have spoiled it for all
                if len(batch) == 1:
                    self._settle(ticket, error)
                else:
                    await self._make(model, recipe, [ticket])

    def _settle(self, ticket: _Ticket, result: dict | Exception) -> None:
        if not ticket.done.done():
            (ticket.done.set_exception if isinstance(result, Exception) else ticket.done.set_result)(result)

    def _in_turn(self) -> list[_Ticket]:
        """Who waits: one of each client, then a second of each …; those whom nobody waits for any more are sent away."""
        for ticket in filter(self._is_dropped, self._waiting):
            self._settle(ticket, Reschedule())  # Dask forgets the task, or begins it anew if it was asked for again
        self._waiting = [ticket for ticket in self._waiting if not ticket.done.done()]
        rounds, ranks = Counter(), {}
        for ticket in self._waiting:
            (served, turn), before = self._served.get(ticket.client, (0, 0)), rounds[ticket.client]
            ranks[ticket] = before, 0 if before else max(served, ticket.asked), turn
            rounds[ticket.client] += 1
        return sorted(self._waiting, key=ranks.get)

    def _is_dropped(self, ticket: _Ticket) -> bool:
        """Whether its clients took it back, or vanished: Dask then marks the task, which it cannot stop."""
        return getattr(self._worker.state.tasks.get(ticket.key), "state", None) != "executing"

    def _pass(self, model: VisionModel, recipe: Recipe, batch: list[_Ticket]) -> dict[_Ticket, dict]:
        """Pictures of one layer, made together; those that are dropped meanwhile leave the pass at its next step."""
        facts, site = batch[0].facts, find_site(model, batch[0].facts["layer"], batch[0].facts["kind"])
        visualizer = Visualizer(model, recipe, atlas=False, keep=False)
        request, previewed = Request(site, [], None, None, model.state(), {}), time.monotonic()
        every = 1 if model.device.type == "cpu" else 16  # steps between two looks; on a card each waits for it
        while left := [ticket for ticket in batch if not self._is_dropped(ticket)]:
            directions = None if left[0].extra is None else torch.from_numpy(np.stack([ticket.extra for ticket in left]))
            request = replace(request, images=[(t.facts["neuron"], t.facts["seed"]) for t in left], directions=directions)
            for frame in visualizer.frames(request, every):
                if frame.finished:
                    return dict(zip(left, _each(visualizer.score(frame) if facts["scored"] else frame), strict=True))
                if time.monotonic() > previewed + _BETWEEN:
                    previewed = time.monotonic()
                    for k, ticket in enumerate(left[:_SHOWN]):
                        self._worker.log_event(*preview(ticket.key, frame.steps[k], frame.pictures[k]))
                if any(map(self._is_dropped, left)):
                    break
        return {}


def _tasks_by_worker(dask_scheduler=None) -> dict[str, int]:
    """How many tasks each worker has, by its address; run on the scheduler."""
    return {address: len(worker.processing) for address, worker in dask_scheduler.workers.items()}


def _each(made: Rendering) -> list[dict[str, np.ndarray]]:
    scores = asdict(made.scores) if made.scores else {}
    return [_arrays(picture=made.pictures[k].numpy(), curve_steps=made.curve_steps, curve=made.curves[k].numpy(),
                    **{name: values if name == "reference" else values[k] for name, values in scores.items()})
            for k in range(len(made.neurons))]


def _arrays(**values) -> dict[str, np.ndarray]:
    return {name: np.array(value) for name, value in values.items()}


def _model(facts: dict) -> VisionModel:
    with _loading:
        return load_same(*facts["model"])


def _scores(model: VisionModel, facts: dict, extra: list) -> dict:
    site = find_site(model, facts["layer"], facts["kind"])
    pictures, directions = (value if value is None else torch.from_numpy(value) for value in extra)
    return asdict(score(model, site, facts["neurons"], pictures, reference_set(model), directions))


def _top(model: VisionModel, facts: dict, extra: None) -> dict:
    site = find_site(model, facts["layer"], facts["kind"])
    numbers, values, maps = strongest(model, site, facts["neuron"], reference_set(model), facts["k"])
    return {"numbers": numbers, "values": values} | ({} if maps is None else {"maps": maps.numpy()})


def _quick(ticket: _Ticket) -> dict[str, np.ndarray]:
    return _arrays(**{"scores": _scores, "top": _top}[ticket.facts["do"]](_model(ticket.facts), ticket.facts, ticket.extra))
