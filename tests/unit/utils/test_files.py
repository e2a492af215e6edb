"""Files are written whole or not at all, and never over what the kit did not make; a folder has one owner at a time."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError


def test_a_file_is_written_with_its_folder_and_nothing_beside_it(tmp_path: Path):
    path = tmp_path / "new" / "ö" / "a.txt"
    assert files.write(path, "größer\n") == path and path.read_bytes() == "größer\n".encode()
    path.chmod(0o640)
    files.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and path.stat().st_mode & 0o777 == 0o640
    assert [file.name for file in path.parent.iterdir()] == ["a.txt"]


def test_a_name_that_is_no_text_does_not_keep_a_table_from_being_written(tmp_path: Path):
    assert files.write(tmp_path / "t.csv", "ph\udcf6to,1\n").read_text("utf-8") == "ph\\udcf6to,1\n"


def test_what_a_link_points_to_is_replaced_and_the_link_stays(tmp_path: Path):
    (tmp_path / "there").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "there")
    files.write(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there").read_text() == "new"


def test_a_file_that_another_process_removes_meanwhile_is_written_all_the_same(tmp_path: Path):
    """A cache that is full loses entries at any moment, also those that are being replaced."""
    path, done = tmp_path / "a.npz", threading.Event()

    def remove() -> None:
        while not done.is_set():
            path.unlink(missing_ok=True)

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(500):
            path.touch()
            files.write(path, b"new")
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize("ours", [lambda path: False, lambda path: path.read_text("ascii") == ""], ids=["foreign", "unreadable"])
def test_what_is_not_ours_is_overwritten_only_by_force(tmp_path: Path, ours):
    path = tmp_path / "a.txt"
    files.write(path, "ü", ours=ours)
    for refuse in (lambda: files.write(path, "new", ours=ours), lambda: files.check_target(path, ours)):
        with pytest.raises(VitvizError, match=r"a.txt exists, and is nothing that this command made.*--force.*force=True"):
            refuse()
    assert path.read_text("utf-8") == "ü"
    files.write(path, "new", ours=ours, force=True)
    files.write(path, "newer", ours=lambda path: True)
    assert path.read_text() == "newer"


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path):
    """In a process of its own, which may write no file of more than 4 kB."""
    (tmp_path / "a.txt").write_text("old")
    code = f"""
import resource, signal
from pathlib import Path
from vitviz_nb.utils import files
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    files.write(Path({str(tmp_path)!r}) / "a.txt", bytes(10_000))
except files.VitvizError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.search(r"a.txt cannot be written \(File too large\); free some space", done.stdout)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_folders_and_files_in_the_way_are_named(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(VitvizError, match="is not a file that can be replaced"):
        files.write(tmp_path, "new")
    with pytest.raises(VitvizError, match="file/below cannot be written"):
        files.write(tmp_path / "file" / "below", "new")
    with pytest.raises(VitvizError, match="--out .*file/below cannot be written .*name a folder that you may write to"):
        files.ready(tmp_path / "file" / "below", "--out")
    assert files.ready(tmp_path / "a" / "b", "--out").is_dir() and not list((tmp_path / "a" / "b").iterdir())


def test_only_old_temporary_files_of_writers_are_tidied_away(tmp_path: Path):
    names = [".a.npz.0123abcd.partial", ".b.npz.0123abcd.partial", "notes.partial"]
    for name in names:
        (tmp_path / name).write_text("")
    for name in names[1:]:
        os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    files.tidy(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {names[0], names[2]}
    files.tidy(tmp_path, 0)
    assert {file.name for file in tmp_path.iterdir()} == {names[2]}


HOLD = """
import sys, time
from pathlib import Path
from vitviz_nb.utils import files
with files.locked(Path(sys.argv[1]), "making an atlas"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_owner_is_told_of_the_first_and_a_killed_one_is_none(tmp_path: Path):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(VitvizError, match=rf"is in use \(making an atlas; process {owner.pid} on .+; -c .+\); wait until"):
            with files.locked(tmp_path, "rendering", wait=0.2):
                pass
        owner.kill()
        owner.wait()
        with files.locked(tmp_path, "rendering", wait=0.2):
            pass
    assert not list(tmp_path.iterdir())


ADD = """
import sys
from pathlib import Path
from vitviz_nb.utils import files
number = Path(sys.argv[1]) / "number"
for _ in range(50):
    with files.locked(number.parent, "counting", wait=60):
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_no_count_is_lost_between_processes(tmp_path: Path):
    (tmp_path / "number").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", ADD, tmp_path]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "number").read_text() == "150"


def test_sha256_is_that_of_the_content(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"abc")  # FIPS 180-2, B.1
    assert files.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
