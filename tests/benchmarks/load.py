"""A class at one shared visualizer: ``python tests/benchmarks/load.py`` (3 minutes; needs the extra ``cluster``).

Starts ``vitviz serve`` on loopback with an empty cache. Every student, a thread with a client of its own, asks every 5 seconds
for a picture of ``emoji-vit``: of a new neuron, or one time in three of one that somebody has seen. Half-way a worker is killed.
"""

import argparse
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

import vitviz_nb as vv
from vitviz_nb.models.sites import find_site
from vitviz_nb.utils.paths import cache_dir


class Student(threading.Thread):
    """Asks until the end; ``waits`` has (when, s, whether it was a repeat) of each answer, ``lost`` what went wrong."""

    made: list[tuple[int, int]] = []  # layer and neuron of what anybody has seen

    def __init__(self, number: int, address: str, model, recipe, every: float, end: float):
        super().__init__(daemon=True)
        self.random, self.client = random.Random(number), vv.connect(address, timeout=60)
        self.model, self.every, self.end, self.waits, self.lost = model, every, end, [], []
        self.viewer = vv.Visualizer(model, recipe, client=self.client, atlas=False, keep=False)

    def run(self) -> None:
        time.sleep(self.random.uniform(0, self.every))
        while (start := time.monotonic()) < self.end:
            repeat = bool(self.made) and self.random.random() < 1 / 3
            layer = self.random.randrange(3)
            new = layer, self.random.randrange(find_site(self.model, layer).units)
            what = self.random.choice(self.made) if repeat else new
            known = what in self.made  # by now, so that it is kept
            try:
                for frame in self.viewer.stream(*what):  # noqa: B007
                    pass
                assert frame.finished and frame.scores and not self.viewer.note
                self.waits.append((start, time.monotonic() - start, known))
                self.made.append(what)
            except Exception as error:
                self.lost.append(f"{type(error).__name__}: {error}")
            time.sleep(max(0, start + self.every - time.monotonic()))


def megabytes(process: psutil.Process) -> list[float]:
    """Resident memory of the scheduler, and of each worker."""
    sizes = []
    for each in (process, *process.children(recursive=True)):
        try:
            if each == process or "spawn_main" in " ".join(each.cmdline()):
                sizes.append(each.memory_info().rss / 1e6)
        except psutil.Error:
            pass
    return sizes


def main() -> int:
    ask = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    ask.add_argument("--students", type=int, default=30)
    ask.add_argument("--seconds", type=float, default=180)
    ask.add_argument("--every", type=float, default=5, help="s from one question of a student to the next (default 5)")
    ask.add_argument("--workers", type=int, default=2)
    ask.add_argument("--steps", type=int, default=128, help="of the quick recipe (default 128: all)")
    given = ask.parse_args()
    folder, known = tempfile.TemporaryDirectory(), cache_dir() / "references"
    if known.exists():  # activations over the reference scenes, measured earlier: half a minute that is not asked about here
        shutil.copytree(known, Path(folder.name) / "references")
    os.environ["VITVIZ_CACHE"] = folder.name
    port = random.randrange(20000, 30000)
    served = subprocess.Popen([sys.executable, "-m", "vitviz_nb", "serve", "--port", str(port), "--workers", str(given.workers)],
                              stdout=subprocess.PIPE, stderr=open(Path(folder.name) / "log", "w"), text=True)
    try:
        address = re.search(r"'(tcp://.*?)'", served.stdout.readline())[1]
        model = vv.load("emoji-vit", device="cpu")
        recipe = vv.Recipe(**{**vars(vv.Recipe.quick(model)), "steps": given.steps})
        client = vv.connect(address, timeout=60)
        vv.Visualizer(model, recipe, client=client, atlas=False, keep=False).render(0, range(2), seed=1)  # also the reference
        begin = time.monotonic() + 2
        students = [Student(i, address, model, recipe, given.every, begin + given.seconds) for i in range(given.students)]
        sizes, pids = [], client.run(os.getpid)
        for student in students:
            student.start()
        killed = False
        while any(student.is_alive() for student in students) and time.monotonic() < begin + 3 * given.seconds + 60:
            sizes.append((time.monotonic() - begin, megabytes(psutil.Process(served.pid))))
            if not killed and time.monotonic() > begin + given.seconds / 2:
                killed, victim = True, next(iter(pids.values()))
                os.kill(victim, signal.SIGKILL)
            time.sleep(1)
        return report(students, sizes, given)
    finally:
        served.terminate()  # SIGINT is ignored by what a shell starts in the background
        served.wait(30)
        folder.cleanup()


def report(students: list[Student], sizes: list[tuple[float, list[float]]], given) -> int:
    answers = [wait for student in students for wait in student.waits]
    new, repeats = ([s for _, s, again in answers if again is which] or [math.nan] for which in (False, True))
    lost = [error for student in students for error in student.lost]
    unanswered = sum(student.is_alive() for student in students)
    each = [len(student.waits) for student in students]
    early = [max(scheduler) for at, scheduler in sizes if given.seconds * 0.2 < at < given.seconds * 0.45]
    late = [max(scheduler) for at, scheduler in sizes if given.seconds * 0.75 < at < given.seconds]
    median, longest = statistics.median(new), max(new)
    worst = sorted(repeats)[int(0.99 * len(repeats))]
    ordered = sorted(new)
    rows = [
        ("answers, lost", f"{len(answers)}, {len(lost) + unanswered}", "0 lost", not lost and not unanswered),
        ("of one student, fewest to most", f"{min(each)} to {max(each)}", "", None),
        ("new picture, s: median, 95 %, longest", f"{median:.2f}, {ordered[int(0.95 * len(new))]:.2f}, {longest:.2f}", "", None),
        ("longest by median", f"{longest / median:.1f}", "at most 3", longest <= 3 * median),
        ("repeat, s: median, 99 %, longest", f"{statistics.median(repeats):.2f}, {worst:.2f}, {max(repeats):.2f}", "at most 0.3",
         max(repeats) <= 0.3),
        ("largest process, MB: first half, last quarter", f"{max(early):.0f}, {max(late):.0f}", "10 % more",
         max(late) <= 1.1 * max(early)),
    ]
    print(f"{given.students} students, {given.seconds:g} s, {given.workers} workers, one killed half-way, emoji-vit's quick "
          f"recipe with {given.steps} steps, a question every {given.every:g} s, load of the machine {os.getloadavg()[0]:.1f}\n")
    print("| | measured | wanted | |\n| --- | --- | --- | --- |")
    for name, value, wanted, met in rows:
        print(f"| {name} | {value} | {wanted} | {'' if met is None else 'met' if met else '**missed**'} |")
    print(*[f"\nlost: {error}" for error in lost[:5]], sep="")
    return 0 if all(met in (None, True) for *_, met in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
