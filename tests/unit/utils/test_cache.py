"""Results on disk are found again only by the state of the model that made them; the cache has a size."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vitviz_nb.utils import cache
from vitviz_nb.utils.errors import VitvizError


class Model:
    def __init__(self, state):
        self.state = lambda: state


def entries(root: Path) -> list[Path]:
    return list(root.rglob("*.npz"))


def test_an_entry_is_found_by_the_state_of_the_model_and_by_the_facts(tmp_path: Path):
    arrays = {"a": np.arange(3), "name": np.array("emoji-vit")}
    path = cache.entry(Model({"weights": "1"}), {"layer": 3}, "references")
    cache.write(path, arrays)
    stored = cache.read(cache.entry(Model({"weights": "1"}), {"layer": 3}, "references"))
    assert stored["a"].tolist() == [0, 1, 2] and str(stored["name"]) == "emoji-vit"
    for state, facts, folder in (({"weights": "2"}, {"layer": 3}, "references"), ({"weights": "1"}, {"layer": 4}, "references"),
                                 ({"weights": "1", "in force": ["isolate_cls"]}, {"layer": 3}, "references"),
                                 ({"weights": "1"}, {"layer": 3}, "renderings")):
        assert cache.read(cache.entry(Model(state), facts, folder)) is None


def test_nothing_is_kept_of_a_model_whose_state_is_unknown(tmp_path: Path):
    path = cache.entry(Model(None), {"layer": 3}, "references")
    cache.write(path, {"a": np.zeros(3)})
    assert path is None and cache.read(path) is None and not entries(tmp_path)


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: content[: len(content) // 2], lambda content: b"text",
                                    lambda content: content[:60] + b"\xff" * 20 + content[80:]])
def test_a_damaged_entry_is_dropped(tmp_path: Path, damage):
    path = cache.path_of({}, "references")
    cache.write(path, {"a": np.random.rand(100)})
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read(path) is None and not path.exists()


def test_an_entry_that_is_not_finite_is_dropped_where_that_is_asked_for(tmp_path: Path):
    path = cache.path_of({}, "references")
    for bad in (np.nan, np.inf):
        cache.write(path, {"a": np.array([1, bad]), "names": np.array(["x"])})
        assert cache.read(path) is not None
        assert cache.read(path, finite=True) is None and not path.exists()
    cache.write(path, {"a": np.zeros(2), "names": np.array(["x"])})
    assert cache.read(path, finite=True) is not None


def test_the_least_recently_used_go_first_and_weights_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VITVIZ_CACHE_LIMIT", "100 kB")
    weights = tmp_path / "vitviz_cache" / "weights" / "ab" / "net.npz.pth"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(10**6))
    paths = [cache.path_of({"i": i}, "renderings") for i in range(40)]
    for i, path in enumerate(paths):  # 10 kB each
        cache.write(path, {"a": np.random.default_rng(i).random(1250)})
        os.utime(path, (1000 + i, 1000 + i))
        if i >= 5:
            assert cache.read(paths[5]) is not None  # used all the time
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= 110_000
    left = [i for i, path in enumerate(paths) if path.exists()]
    assert left[0] == 5 and left[1:] == list(range(41 - len(left), 40)) and len(left) >= 8
    assert weights.exists()


@pytest.mark.parametrize(("text", "size"), [("500MB", 5 * 10**8), ("2 gb", 2 * 10**9), ("1.5G", 1_500_000_000), ("10k", 10_000),
                                            ("0", 0), ("", 10**9)])
def test_the_limit_is_read_as_people_write_sizes(monkeypatch: pytest.MonkeyPatch, text: str, size: int):
    monkeypatch.setenv("VITVIZ_CACHE_LIMIT", text)
    assert cache.limit() == size


@pytest.mark.parametrize("text", ["much", "-1", "1 GB or so", "1e9", "٣GB", "MB"])
def test_a_limit_that_is_no_size_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch, text: str):
    monkeypatch.setenv("VITVIZ_CACHE_LIMIT", text)
    with pytest.raises(VitvizError, match="VITVIZ_CACHE_LIMIT is a size such as 500MB or 2GB"):
        cache.ready()


def test_what_killed_writers_left_goes(tmp_path: Path):
    path = cache.path_of({}, "renderings")
    cache.write(path, {"a": np.zeros(3)})
    orphan = path.with_name(f".{path.name}.0123abcd.partial")
    orphan.write_bytes(b"half")
    cache.evict(0)
    assert orphan.exists()  # it may be another's, being written now
    os.utime(orphan, (time.time() - 7200,) * 2)
    cache.evict(0)
    assert not orphan.exists() and not path.exists() and cache.contents() == []


@pytest.mark.parametrize("name", ["results/v1/mine.npz", "renderings/v1/mine.npz", "renderings/ab/mine.npz", "weights/ab/a.npz",
                                  f"renderings/ab/{'cd' * 16}.npz", f"mine/ab/{'ab' * 16}.npz",
                                  "results/v1/.mine.0123abcd.partial"])
def test_files_of_others_in_the_cache_folder_stay(tmp_path: Path, name: str):
    mine, entry = tmp_path / "vitviz_cache" / name, cache.path_of({}, "renderings")
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    os.utime(mine, (0, 0))
    cache.write(entry, {"a": np.zeros(3)})
    assert cache.evict(0) == 0 and mine.exists() and not entry.exists()


def test_a_home_is_expanded_and_a_missing_one_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VITVIZ_CACHE", "~/kept")
    assert cache.cache_dir() == tmp_path / "kept"
    monkeypatch.setenv("VITVIZ_CACHE", "~nobody-of-this-name/kept")
    with pytest.raises(VitvizError, match="set the environment variable VITVIZ_CACHE to a folder"):
        cache.ready()


def test_a_cache_that_cannot_be_written_only_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="A result was not cached: .* cannot be written"):
        cache.write(cache.path_of({}, "renderings"), {"a": np.zeros(3)})
    with pytest.raises(VitvizError, match=r"\$VITVIZ_CACHE, the cache folder .*file cannot be written"):
        cache.ready()


BUSY = """
import sys
import numpy as np
from vitviz_nb.utils import cache
for i in range(100):
    path = cache.path_of({"i": (i * int(sys.argv[1])) % 41}, "renderings")
    stored = cache.read(path)
    assert stored is None or (stored["a"] == path.name.__len__()).all()
    cache.write(path, {"a": np.full(2000, len(path.name)), "b": np.random.rand(100)})
"""


@pytest.mark.slow
def test_processes_share_a_cache_that_is_full_all_the_time(tmp_path: Path):
    environment = os.environ | {"VITVIZ_CACHE_LIMIT": "20kB"}
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", BUSY, str(factor)], env=environment)
                 for factor in (1, 3, 7)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not list(tmp_path.rglob("*.partial"))


def numbers(**changed) -> dict[str, np.ndarray]:
    return {"layer0": np.array([[0.5, 1.0]], np.float32), "counts": np.array([3]), **changed}


SHAPES = {"layer0": (1, None), "counts": (1,)}


@pytest.mark.parametrize("damaged", [
    numbers(layer0=np.array([[np.nan, 1]])), numbers(layer0=np.array([[np.inf, 1]])), numbers(layer0=np.array([[-1, 1]])),
    numbers(layer0=np.array([["a", "b"]])), numbers(layer0=np.array([0.5, 1])), numbers(layer0=np.array([[0.5], [1]])),
    numbers(counts=np.array(["x"])), numbers(layer1=np.zeros((1, 2))), {"counts": np.array([3])}])
def test_an_entry_that_does_not_fit_is_measured_again(damaged):
    model = Model({"weights": "1"})
    cache.write(cache.entry(model, {}, "kinds"), damaged)
    for make in (numbers, lambda: pytest.fail("measured twice")):
        stored = cache.made(model, {}, "kinds", make, SHAPES, low=0)
        assert stored.keys() == SHAPES.keys() and stored["layer0"].tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize(("before", "after"), [({"weights": "1"}, {"weights": "2"}), ({"weights": "1"}, None),
                                               (None, {"weights": "1"})])
def test_what_a_model_that_changes_meanwhile_makes_is_refused_and_kept_nowhere(tmp_path: Path, before, after):
    model = Model(before)
    model.name = "emoji-vit"

    def measure() -> dict[str, np.ndarray]:
        model.state = lambda: after
        return numbers()

    with pytest.raises(VitvizError, match="emoji-vit was changed .* while it was measured, .*measure them again"):
        cache.made(model, {}, "kinds", measure, SHAPES)
    assert not entries(tmp_path)
