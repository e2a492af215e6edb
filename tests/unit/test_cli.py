"""The command line, in this process: what it writes, and one clear line for all that a user can get wrong."""

import hashlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import Tensor

from vitviz_nb import cli
from vitviz_nb.training import loop
from vitviz_nb.utils import cache, files, paths
from vitviz_nb.visualize import visualizer

RENDER = ["render", "emoji-vit", "--layer", "-1", "--neurons", "0-2", "--steps", "2", "--device", "cpu"]


@pytest.fixture(autouse=True)
def showwarning_is_put_back():
    """The command shows warnings in its own way, and never returns in real use."""
    with warnings.catch_warnings():
        yield


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of three images, smaller work than the 1,024 scenes that scores are otherwise measured against."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for color in ("red", "green", "blue"):
        Image.new("RGB", (40, 40), color).save(folder / f"{color}.png")
    return folder


def code(arguments: list) -> int:
    """The exit code; argparse leaves with SystemExit, the rest returns it."""
    try:
        return cli.main([str(a) for a in arguments])
    except SystemExit as error:
        return error.code


def complaint(arguments: list, capsys: pytest.CaptureFixture) -> str:
    """The one line a failing command says on stderr; argparse puts its usage before it."""
    assert code(arguments) == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    usage = [line for line in lines if line.startswith(("usage:", " "))]
    assert len(lines) - len(usage) == 1, captured.err
    assert "Traceback" not in captured.err + captured.out
    assert lines[-1].startswith("vitviz")
    return lines[-1]


def test_doctor_says_what_there_is(capsys: pytest.CaptureFixture, tmp_path: Path):
    assert code(["doctor"]) == 0
    out = capsys.readouterr().out
    for line in ("Computes on:", "torch:", "timm:", "ipywidgets:", "Embedded models:", str(tmp_path / "vitviz_cache"),
                 "Kit's data:      complete and unchanged"):
        assert line in out


def test_doctor_names_each_problem_and_exits_with_1(capsys: pytest.CaptureFixture, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch):
    data = tmp_path / "data"
    (data / "models").mkdir(parents=True)
    (data / "models" / "a.json").write_text("damaged")
    (data / "SHA256SUMS").write_text(f"{'0' * 64}  models/a.json\n{'0' * 64}  models/b.json\n"
                                     f"{hashlib.sha256(b'right').hexdigest()}  c.csv\n# 3 files\n")
    (data / "c.csv").write_bytes(b"right")
    monkeypatch.setattr(paths, "data_dir", lambda: data)
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file" / "cache"))
    assert code(["doctor"]) == 1
    out = capsys.readouterr().out
    assert out.count("PROBLEM: ") == 3 and "a.json is damaged" in out and "b.json is missing" in out and "c.csv" not in out
    assert "cannot be written" in out and "git checkout -- data" in out
    whole = (data / "SHA256SUMS").read_text()
    for cut in ("", whole.split("\n", 1)[1], whole.rsplit("#", 1)[0]):
        (data / "SHA256SUMS").write_text(cut)
        assert code(["doctor"]) == 1 and "SHA256SUMS is missing or damaged" in capsys.readouterr().out
    (data / "SHA256SUMS").unlink()
    assert code(["doctor"]) == 1 and "SHA256SUMS is missing or damaged" in capsys.readouterr().out


def test_models_lists_embedded_ones_with_their_accuracy(shelf, capsys: pytest.CaptureFixture):
    assert code(["models"]) == 0
    first, hint = capsys.readouterr().out.splitlines()
    assert first.startswith("emoji-vit ") and "accuracy on unoccluded scenes 25.0 % (95 % interval 17.5 to 34.3)" in first
    assert "vitviz models" in hint
    assert code(["models", "*patch32_clip_quickgelu*"]) == 0
    assert "vit_base_patch32_clip_quickgelu_224.openai" in capsys.readouterr().out.splitlines()


def test_cache_shows_what_it_holds_and_clears_it(capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VITVIZ_CACHE_LIMIT", "3MB")
    (tmp_path / "vitviz_cache" / "weights").mkdir(parents=True)
    (tmp_path / "vitviz_cache" / "weights" / "resnet50.pth").write_bytes(bytes(2_000_000))
    for i in range(2):
        cache.write(cache.path_of({"i": i}, "renderings"), {"a": np.arange(9)})
    assert code(["cache"]) == 0
    out = capsys.readouterr().out
    assert f"2 results in {tmp_path / 'vitviz_cache'}: 0.0 MB of at most 3 MB" in out
    assert code(["cache", "--clear"]) == 0
    assert capsys.readouterr().out.startswith("0 results in ") and cache.read(cache.path_of({"i": 0}, "renderings")) is None
    assert (tmp_path / "vitviz_cache" / "weights" / "resnet50.pth").exists()
    monkeypatch.setenv("VITVIZ_CACHE_LIMIT", "much")
    assert "VITVIZ_CACHE_LIMIT is a size such as 500MB or 2GB, got 'much'" in complaint(["cache"], capsys)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file"))
    assert "file, is no folder" in complaint(["cache"], capsys)


def test_render_writes_sheet_pictures_and_manifest(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    out = tmp_path / "new" / "out"
    assert code([*RENDER, "--images", photos, "--out", out]) == 0
    assert f"3 pictures of emoji-vit mlp layer 1 in {out}" in capsys.readouterr().out
    assert {file.name for file in out.iterdir()} == {
        "sheet.png", "neuron_0.png", "neuron_1.png", "neuron_2.png", "pictures.npz", "manifest.json"}
    for neuron in range(3):
        with Image.open(out / f"neuron_{neuron}.png") as picture:
            assert picture.size == (55, 55) and picture.mode == "RGB" and len(set(picture.getdata())) > 100
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 3 * 100 and sheet.height > 100
    manifest = json.loads((out / "manifest.json").read_text())
    assert (manifest["model"], manifest["kind"], manifest["layer"]) == ("emoji-vit", "mlp", 1)
    assert manifest["neurons"] == [0, 1, 2] and manifest["steps"] == [2, 2, 2] and manifest["recipe"]["steps"] == 2
    assert manifest["scores"]["reference"] == "3 images"
    for score in ("activation", "percentile", "rank", "status"):
        assert len(manifest["scores"][score]) == 3


def test_render_is_scored_against_emoji_world_unless_told_otherwise(shelf, tmp_path: Path):
    assert code(["render", "emoji-vit", "--layer", 0, "--kind", "key", "--neurons", "1,5", "--steps", "1", "--untrained",
                 "--seed", 3, "--device", "cpu", "--out", tmp_path / "out"]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["scores"]["reference"] == "1,024 Emoji World scenes"
    assert (manifest["model"], manifest["kind"], manifest["seed"]) == ("emoji-vit (untrained)", "key", 3)
    assert manifest["neurons"] == [1, 5]


@pytest.mark.parametrize(("change", "says"), [
    (["render", "emoji-vti"], "no model called 'emoji-vti'. Did you mean emoji-vit"),
    (["--layer", "99"], "emoji-vit has no mlp layer 99; its layers are 0 to 1 (or -1 for the last)"),
    (["--layer", "-3"], "emoji-vit has no mlp layer -3; its layers are 0 to 1"),
    (["--layer", "last"], "invalid int value: 'last'"),
    (["--neurons", "120-130"], "mlp layer 1 has neurons 0 to 127; neuron 128 is out of range"),
    (["--neurons", "0,1,0"], "the same neuron twice"),
    (["--neurons", "5-"], "'5-' is not a list of numbers and ranges such as 0-15 or 2,5,7-9"),
    (["--neurons", "7-5"], "'7-5' is not a list of numbers"),
    (["--neurons", ""], "'' is not a list of numbers"),
    (["--neurons", "٣"], "'٣' is not a list of numbers"),
    (["--neurons", "9" * 5000], "is not a list of numbers"),
    (["--neurons", ",".join(["0-999999999"] * 30)], "neuron 128 is out of range"),
    (["--out", ""], "the value is a path, such as 'out', got ''"),
    (["--out", "~nobody-of-this-name/x"], "begins with a home folder that does not exist: '~nobody-of-this-name/x'"),
    (["--kind", "channel"], "no sites of kind 'channel'; it has mlp, query, key, value, attention, residual"),
    (["--kind", "querry"], "Did you mean query"),
    (["--steps", "0"], "steps is a whole number from 1 to 100000, got 0"),
    (["--steps", "-5"], "steps is a whole number from 1 to 100000, got -5"),
    (["--steps", "100000000"], "steps is a whole number from 1 to 100000, got 100000000"),
    (["--recipe", "slow"], "argument --recipe: invalid choice: 'slow' (choose from "),
    (["--device", "gpu"], "device 'gpu' cannot be used here"),
    (["--images", "nowhere"], "nowhere does not exist"),
    (["--frobnicate"], "unrecognized arguments: --frobnicate"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_arguments_of_render_get_one_line_and_make_nothing(change: list[str], says: str, shelf, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture):
    arguments = [*change, *RENDER[2:]] if change[0] == "render" else [*RENDER, *change]
    assert says in complaint([*arguments, "--out", tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_images_gets_one_line(shelf, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    line = complaint([*RENDER, "--images", tmp_path / "empty", "--out", tmp_path / "out"], capsys)
    assert f"No image in {tmp_path / 'empty'} can be read" in line and "JPEG, PNG, WebP or BMP" in line


def test_a_bad_image_among_good_ones_is_named_and_left_out(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (photos / "text.png").write_text("a text file named .png")
    warnings.simplefilter("always")
    assert code([*RENDER, "--images", photos, "--out", tmp_path / "out"]) == 0
    named = [line for line in capsys.readouterr().err.splitlines() if "text.png" in line]
    assert len(named) == 1 and named[0].startswith("vitviz: 1 of 4 images ")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["scores"]["reference"] == "3 images"


def test_a_cache_that_cannot_be_written_gets_one_line(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                      monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("VITVIZ_CACHE", str(tmp_path / "file" / "cache"))
    line = complaint([*RENDER, "--images", photos, "--out", tmp_path / "out"], capsys)
    assert f"cache folder {tmp_path / 'file' / 'cache'} cannot be written" in line and "VITVIZ_CACHE" in line


def test_an_out_that_is_a_file_gets_one_line_and_stays(shelf, tmp_path: Path, capsys: pytest.CaptureFixture):
    (tmp_path / "out").write_text("mine")
    assert "out cannot be written (File exists); name a folder" in complaint([*RENDER, "--out", tmp_path / "out"], capsys)
    assert (tmp_path / "out").read_text() == "mine"


def test_an_out_that_cannot_be_made_is_refused_before_the_work(shelf, photos: Path, tmp_path: Path,
                                                               capsys: pytest.CaptureFixture):
    (tmp_path / "file").write_text("not a folder")
    line = complaint([*RENDER, "--images", photos, "--out", tmp_path / "file" / "out"], capsys)
    assert "file/out cannot be written (Not a directory); name a folder" in line
    assert not (tmp_path / "vitviz_cache" / "renderings").exists()


@pytest.mark.parametrize(("arguments", "says"), [
    ([], "required: COMMAND"),
    (["rendr"], "invalid choice: 'rendr'"),
    (["train", "emoji-vti"], "A recipe to train is one of emoji-vit; got 'emoji-vti'. Did you mean emoji-vit?"),
    (["train", "emoji-vit", "--steps", "0"], "steps is a whole number from 1 to 1000000000, got 0"),
    ([*RENDER, "--seed", "-1", "--out", "out"], "seed is a whole number from 0 to 9223372036854775807, got -1"),
    ([*RENDER, "--seed", str(2**63), "--out", "out"], "seed is a whole number from 0 to 9223372036854775807"),
    (["models", "*no such model*"], "No pretrained timm model matches '*no such model*'"),
    (["atlas", "emoji-vti", "--out", "out"], "no model called 'emoji-vti'. Did you mean emoji-vit"),
    (["atlas", "emoji-vit"], "required: --out"),
    (["grade", "."], "required: --out"),
    (["gallery", "emoji-vti", "--out", "site"], "emoji-vti holds no atlas"),
    (["gallery", "emoji-vit"], "required: --out"),
    (["grade", "handed_in", "--out", "grades.csv"], "There is no notebook (.ipynb) in handed_in; name the folder"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_arguments_of_other_commands_get_one_line(arguments: list[str], says: str, shelf, tmp_path: Path,
                                                      capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert says in complaint(arguments, capsys)


def test_an_interrupted_training_exits_with_130(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def interrupt(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "train", interrupt)
    assert code(["train", "emoji-vit"]) == 130
    assert capsys.readouterr().err.strip() == "vitviz: interrupted; what was finished is kept, and the same command goes on."


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT to send")
def test_an_interruption_while_torch_loads_exits_with_130_and_one_line():
    code = "import signal, sys, vitviz_nb.cli\n" \
           "signal.signal(signal.SIGINT, signal.default_int_handler)\n" \
           "class Stop:\n    def find_spec(self, name, *_):\n" \
           "        if name == 'torch':\n            try:\n                signal.raise_signal(signal.SIGINT)\n" \
           "            except BaseException:\n                raise ImportError('as numpy and torch do') from None\n" \
           "sys.meta_path.insert(0, Stop())\nsys.exit(vitviz_nb.cli.main(['models']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (130, 1) and "vitviz: interrupted" in done.stderr


def test_an_interrupted_render_keeps_what_there_is(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture,
                                                   monkeypatch: pytest.MonkeyPatch, passes: list[int]):
    counted = visualizer.tokens

    def interrupted(*arguments) -> Tensor:
        if len(passes) == 1:
            raise KeyboardInterrupt
        return counted(*arguments)

    monkeypatch.setattr(visualizer, "tokens", interrupted)
    assert code([*RENDER, "--images", photos, "--out", tmp_path / "out"]) == 130
    assert "interrupted: the same command makes" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["steps"] == [1, 1, 1]


@pytest.fixture
def hasty(shelf):
    """The embedded model asks for pictures of one step."""
    card = json.loads(shelf.card.read_text())
    shelf.card.write_text(json.dumps({**card, "pictures": {"steps": 1, "copies": 1}}))


@pytest.mark.slow
def test_atlas_writes_what_can_be_opened(hasty, tmp_path: Path, capsys: pytest.CaptureFixture):
    from vitviz_nb.visualize.atlas import Atlas

    out = tmp_path / "new" / "atlas"
    for layers, meant in (("-1", [1]), ("all", [0, 1])):  # the second goes on where the first has ended
        assert code(["atlas", "emoji-vit", "--layers", layers, "--device", "cpu", "--out", out]) == 0
        assert f"{128 * len(meant)} pictures of emoji-vit in {out} (" in capsys.readouterr().out
        atlas = Atlas.open(out)
        assert (atlas.facts["model"], atlas.facts["kind"], atlas.facts["layers"]) == ("emoji-vit", "mlp", meant)
        assert atlas.facts["recipe"]["steps"] == atlas.facts["recipe"]["copies"] == 1
        for layer in meant:
            rendering = atlas.rendering(layer, list(range(128)))
            assert rendering.pictures.shape == (128, 3, 32, 32) and len(rendering.scores.rank) == 128


@pytest.mark.slow
def test_an_atlas_of_some_neurons_of_ones_own_weights_at_a_size_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture):
    import timm
    from safetensors.torch import save_file

    from vitviz_nb.visualize.atlas import Atlas

    weights, out = tmp_path / "mine.safetensors", tmp_path / "atlas"
    save_file(timm.create_model("test_vit").state_dict(), weights)
    arguments = ["atlas", "test_vit", "--checkpoint", weights, "--image-size", "32", "--layers", "0", "--count", "2", "--photos",
                 "--title", "Mine", "--device", "cpu", "--out", out]
    assert code(arguments) == 0 and "2 pictures of test_vit" in capsys.readouterr().out
    atlas = Atlas.open(out)
    assert (atlas.facts["model"], atlas.facts["reference"]) == ("Mine", "319 photographs of vv.photos()")
    assert len(atlas.neurons(0)) == 2 and atlas.rendering(0, 0).pictures.shape == (1, 3, 55, 55)  # larger than the input
    assert code(["render", "test_vit", "--checkpoint", weights, "--image-size", "32", "--layer", "0", "--neurons", "0", "--steps",
                 "1", "--out", tmp_path / "pictures"]) == 0


@pytest.mark.parametrize(("change", "says"), [
    (["--count", "0"], "neurons is a whole number from 1"),
    (["--image-size", "48"], "are for timm's models"),
    (["--layers", "2"], "emoji-vit has no mlp layer 2; its layers are 0 to 1"),
    (["--layers", "0-5"], "no mlp layer 2"),
    (["--layers", "last"], "argument --layers: 'last' is not a list of numbers and ranges"),
    (["--layers", "1-0"], "'1-0' is not a list"),
    (["--layers", ""], "'' is not a list"),
    (["--layers", "-2"], "'-2' is not a list"),
    (["--recipe", "papre"], "argument --recipe: invalid choice: 'papre' (choose from "),
    (["--device", "gpu"], "device 'gpu' cannot be used here"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_bad_arguments_of_atlas_get_one_line_and_make_nothing(change: list[str], says: str, hasty, tmp_path: Path,
                                                              capsys: pytest.CaptureFixture):
    assert says in complaint(["atlas", "emoji-vit", "--device", "cpu", "--out", tmp_path / "out", *change], capsys)
    assert not (tmp_path / "out").exists()


def test_gallery_writes_one_page_and_says_which(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert code(["gallery", "vit-small-dinov2-saliency", "--out", tmp_path / "site"]) == 0
    assert f"{tmp_path / 'site' / 'index.html'} (" in capsys.readouterr().out
    assert 'id="browser"' in (tmp_path / "site" / "index.html").read_text("utf-8")


@pytest.mark.parametrize("command", [[], ["doctor"], ["models"], ["render"], ["train"], ["atlas"], ["background"],
                                     ["cache"], ["grade"], ["gallery"]], ids=" ".join)
def test_help_is_worth_reading(command: list[str], capsys: pytest.CaptureFixture):
    assert code([*command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(" ".join(["usage: vitviz", *command])) and len(out) > 100
    if command == ["render"]:
        for word in ("0-15", "quick (default", "examples:", "manifest.json", "-1 is the last"):
            assert word in out


def shell(command: str, **environment) -> subprocess.CompletedProcess:
    """A command line of a POSIX shell, where ``$VITVIZ`` is the kit's command."""
    environment |= {"VITVIZ": f"{sys.executable} -m vitviz_nb", "PYTHONUNBUFFERED": ""}
    return subprocess.run(["bash", "-c", command], cwd=Path(cli.__file__).parents[1], env={**os.environ, **environment},
                          capture_output=True, text=True, errors="replace")


def test_the_package_is_the_command_and_a_reader_that_has_left_is_no_error():
    done = shell("$VITVIZ cache; $VITVIZ cache | true; echo ${PIPESTATUS[0]}")
    first, exit_code = done.stdout.splitlines()
    assert first.startswith("0 results in ") and exit_code == "0" and done.stderr == ""


def test_a_full_disk_under_the_output_is_one_line():
    done = shell("$VITVIZ cache > /dev/full")
    assert (done.returncode, done.stderr) == (2, "vitviz: [Errno 28] No space left on device\n")


def test_names_that_a_console_cannot_show_are_written_with_escapes():
    done = shell("VITVIZ_CACHE=$'/tmp/ph\\xf6t\\xc3\\xb6s' $VITVIZ cache", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0 and done.stdout.startswith("0 results in /tmp/ph\\udcf6t\\xf6s: ")


def test_a_card_without_accuracy_is_named(shelf, capsys: pytest.CaptureFixture):
    card = json.loads(shelf.card.read_text())
    for accuracy in ({}, {"unoccluded": None}):
        shelf.card.write_text(json.dumps(card | {"accuracy": accuracy}))
        assert "card of emoji-vit has no accuracy" in complaint(["models"], capsys)


@pytest.mark.parametrize("out", ["photos", "photos/pictures/new"])
def test_pictures_do_not_become_reference_images(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, out: str):
    assert "is in the folder of --images" in complaint([*RENDER, "--images", photos, "--out", tmp_path / out, "--force"], capsys)
    assert len(list(photos.iterdir())) == 3


def test_the_table_does_not_replace_the_boxes(tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "b.csv").write_text("file,left,top,right,bottom\n")
    monkeypatch.chdir(tmp_path)
    line = complaint(["background", "emoji-vit", "--images", ".", "--boxes", tmp_path / "b.csv", "--out", "b.csv", "--force"],
                     capsys)
    assert "is the file of --boxes, which would be lost" in line
    assert (tmp_path / "b.csv").read_text() == "file,left,top,right,bottom\n"


@pytest.mark.parametrize("name", ["sheet.png", "manifest.json", "pictures.npz", "neuron_1.png"])
def test_files_of_others_stay_where_pictures_go(shelf, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture, name: str):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"kind": "an atlas, say"}')
    arguments = [*RENDER, "--images", photos, "--out", out]
    line = complaint(arguments, capsys)
    assert f"{name} exists, and is nothing that this command made; name another, or say --force" in line
    assert [file.name for file in out.iterdir()] == [name] and (out / name).read_text() == '{"kind": "an atlas, say"}'
    assert not (tmp_path / "vitviz_cache" / "renderings").exists()  # refused before the work


def test_pictures_replace_earlier_ones_and_by_force_anything(shelf, photos: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sheet.png").write_text("mine")
    assert code([*RENDER, "--images", photos, "--out", out, "--force"]) == 0
    before = (out / "sheet.png").read_bytes()
    assert code([*RENDER, "--images", photos, "--out", out, "--seed", "1"]) == 0
    assert (out / "sheet.png").read_bytes() != before != b"mine"


def test_a_table_of_others_stays(tmp_path: Path, capsys: pytest.CaptureFixture):
    boxes, table = tmp_path / "b.csv", tmp_path / "t.csv"
    table.write_text("name,age\n")
    boxes.write_text("file,left,top,right,bottom\n")
    line = complaint(["background", "emoji-vit", "--images", tmp_path, "--boxes", boxes, "--out", table], capsys)
    assert "t.csv exists, and is nothing that this command made" in line and table.read_text() == "name,age\n"


def test_no_image_of_each_class_is_refused_before_anything_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture):
    line = complaint(["background", "emoji-vit", "--images", tmp_path / "none", "--boxes", tmp_path / "b.csv", "--out",
                      tmp_path / "new" / "t.csv", "--per-class", "0"], capsys)
    assert "--per-class is a whole number from 1" in line and not (tmp_path / "new").exists()


def test_pictures_are_written_again_where_that_was_interrupted(shelf, photos: Path, tmp_path: Path,
                                                               monkeypatch: pytest.MonkeyPatch):
    write, arguments = files.write, [*RENDER, "--images", photos, "--out", tmp_path / "out"]

    def interrupted(path: Path, *content, **more) -> Path:
        if path.name == "neuron_1.png":
            raise KeyboardInterrupt
        return write(path, *content, **more)

    with monkeypatch.context() as patch:
        patch.setattr(files, "write", interrupted)
        assert code(arguments) == 130
    assert not (tmp_path / "out" / "neuron_1.png").exists()
    assert code(arguments) == 0 and (tmp_path / "out" / "neuron_1.png").exists()
