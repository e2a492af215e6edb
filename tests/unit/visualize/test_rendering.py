"""Renderings: what they show of themselves, and that nothing is lost on disk."""

import json
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest
import torch
from PIL import Image

from vitviz_nb import __version__
from vitviz_nb.utils import files
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.visualize.rendering import Rendering
from vitviz_nb.visualize.scores import Scores

COLORS = [(255, 0, 0), (0, 200, 0), (0, 0, 255)]
ALARM = (0xA3, 0x3A, 0x00)
SCORES = Scores([1.234, -0.5, 3.0], [100.0, 88.06, 12.5], [1, 4, 300], ["alive", "weak", "dead"], "1,024 Emoji World scenes")


@pytest.fixture
def rendering() -> Rendering:
    """Three pictures of one color each; the last was stopped."""
    pictures = (torch.tensor(COLORS) / 255).view(3, 3, 1, 1).expand(3, 3, 16, 16).contiguous()
    curves = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, float("nan")]])
    return Rendering("emoji-vit (untrained)", "mlp", 5, [7, 30, 2], pictures, [20, 20, 13], [10, 20], curves,
                     Recipe(steps=20, copies=3, tv=0.25), seed=9, scores=SCORES)


def assert_same(a: Rendering, b: Rendering) -> None:
    assert torch.equal(a.pictures, b.pictures) and torch.equal(a.curves.nan_to_num(-9), b.curves.nan_to_num(-9))
    assert vars(replace(a, pictures=None, curves=None)) == vars(replace(b, pictures=None, curves=None))


def colors_of(image: Image.Image) -> dict[tuple, int]:
    """How many pixels have each color."""
    return {color: n for n, color in image.getcolors(maxcolors=2**24)}


def test_what_is_saved_is_what_is_loaded(rendering, tmp_path):
    folder = rendering.save(tmp_path / "a" / "b")
    assert folder == tmp_path / "a" / "b"
    assert sorted(p.name for p in folder.iterdir()) == [
        "manifest.json", "neuron_2.png", "neuron_30.png", "neuron_7.png", "pictures.npz", "sheet.png"]
    assert_same(Rendering.load(folder), rendering)
    unscored = replace(rendering, scores=None)
    unscored.save(str(folder))  # over the other
    assert_same(Rendering.load(str(folder)), unscored)


def test_saved_pictures_are_the_pictures(rendering, tmp_path):
    folder = rendering.save(tmp_path)
    for neuron, color in zip(rendering.neurons, COLORS, strict=True):
        with Image.open(folder / f"neuron_{neuron}.png") as image:
            assert image.size == (16, 16) and colors_of(image) == {color: 256}
    with Image.open(folder / "sheet.png") as image:
        assert np.array_equal(np.asarray(image), np.asarray(rendering.sheet()))


def test_manifest_says_how_to_make_it_again(rendering, tmp_path):
    manifest = json.loads((rendering.save(tmp_path) / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["model"] == "emoji-vit (untrained)"
    assert (manifest["kind"], manifest["layer"], manifest["neurons"]) == ("mlp", 5, [7, 30, 2])
    assert Recipe(**manifest["recipe"]) == rendering.recipe and manifest["seed"] == 9
    assert manifest["steps"] == [20, 20, 13] and manifest["version"] == __version__
    assert manifest["scores"]["percentile"] == SCORES.percentile and manifest["scores"]["reference"] == SCORES.reference


def without_a_fact(manifest: bytes) -> bytes:
    return json.dumps({name: value for name, value in json.loads(manifest).items() if name != "recipe"}).encode()


@pytest.mark.parametrize(("name", "damage"), [
    ("manifest.json", lambda whole: b""), ("manifest.json", lambda whole: b"[]"), ("manifest.json", lambda whole: b"\xff\xfe\0"),
    ("manifest.json", without_a_fact), ("manifest.json", lambda whole: b'{"weather": "fine", ' + whole[1:]),
    ("pictures.npz", lambda whole: b""), ("pictures.npz", lambda whole: whole[: len(whole) // 2]),
    ("pictures.npz", lambda whole: whole[:60] + 10 * b"\0" + whole[70:]),
])
def test_damaged_folder_is_an_error_that_names_it(rendering, tmp_path, name, damage):
    folder = rendering.save(tmp_path / "out")
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(VitvizError, match="out holds no complete rendering .*manifest.json and pictures.npz"):
        Rendering.load(folder)


@pytest.mark.parametrize("missing", ["manifest.json", "pictures.npz", "all"])
def test_folder_without_a_rendering_is_an_error(rendering, tmp_path, missing):
    folder = rendering.save(tmp_path / "nowhere")
    for file in [*folder.iterdir()] if missing == "all" else [folder / missing]:
        file.unlink()
    with pytest.raises(VitvizError, match="nowhere holds no complete rendering"):
        Rendering.load(folder)


def test_folder_that_cannot_be_written_is_an_error(rendering, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(VitvizError, match="file.* cannot be written .*name another folder that you may write to"):
            rendering.save(folder)
    assert (tmp_path / "file").read_text() == "in the way"


@pytest.mark.parametrize("folder", ["", 3, None])
def test_a_folder_that_is_none_is_refused(rendering, folder):
    for use in (rendering.save, Rendering.load):
        with pytest.raises(VitvizError, match="folder is a path, such as 'out', got"):
            use(folder)


@pytest.mark.parametrize("name", ["sheet.png", "neuron_7.png", "pictures.npz", "manifest.json"])
def test_a_file_that_no_rendering_wrote_is_left_alone(rendering, tmp_path, name):
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(VitvizError, match=f"{name} exists, and is nothing that this command made; .*force=True"):
        rendering.save(tmp_path)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"mine")]
    assert_same(Rendering.load(rendering.save(tmp_path, force=True)), rendering)


@pytest.mark.parametrize("name", ["neuron_3.png", "neuron_7.png", "sheet.png", "pictures.npz"])
def test_beside_a_manifest_too_only_what_a_rendering_wrote_is_replaced(rendering, tmp_path, name):
    replace(rendering, neurons=[7, 30, 8]).save(tmp_path)
    (tmp_path / name).write_bytes(b"mine")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(VitvizError, match=f"{name} exists, and is nothing that this command made"):
        replace(rendering, neurons=[7, 30, 3]).save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_files_of_neurons_that_the_next_rendering_lacks_go_and_those_of_others_stay(rendering, tmp_path):
    rendering.save(tmp_path)
    (tmp_path / "neuron_2.png").write_bytes(b"mine")
    (tmp_path / "neuron_99.png").write_bytes(b"mine")
    replace(rendering, neurons=[7, 8, 9]).save(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("neuron_*")) == [
        "neuron_2.png", "neuron_7.png", "neuron_8.png", "neuron_9.png", "neuron_99.png"]


def test_a_save_that_was_interrupted_is_done_again_without_force(rendering, tmp_path, monkeypatch):
    rendering.save(tmp_path)
    other, write = replace(rendering, pictures=rendering.pictures.flip(0)), files.write

    def interrupted(path, content):
        if path.name == "neuron_30.png":
            raise KeyboardInterrupt
        return write(path, content)

    monkeypatch.setattr(files, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.save(tmp_path)
    monkeypatch.undo()
    assert_same(Rendering.load(rendering.save(tmp_path)), rendering)


def test_an_atlas_s_manifest_is_left_alone(rendering, tmp_path):
    manifest = json.dumps({"model": "emoji-vit", "layers": [0], "recipe": vars(rendering.recipe)})
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(VitvizError, match="manifest.json exists, and is nothing that this command made"):
        rendering.save(tmp_path)
    assert (tmp_path / "manifest.json").read_text() == manifest


def test_pictures_of_another_save_are_not_taken_for_those_of_the_manifest(rendering, tmp_path):
    rendering.save(tmp_path / "a")
    replace(rendering, pictures=rendering.pictures.flip(0)).save(tmp_path / "b")
    (tmp_path / "a" / "pictures.npz").write_bytes((tmp_path / "b" / "pictures.npz").read_bytes())  # as if killed in between
    with pytest.raises(VitvizError, match="its pictures are not the manifest's"):
        Rendering.load(tmp_path / "a")


def test_a_rendering_from_before_there_was_a_sha256_can_be_read(rendering, tmp_path):
    facts = json.loads((rendering.save(tmp_path) / "manifest.json").read_text())
    del facts["files"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    assert_same(Rendering.load(tmp_path), rendering)


def test_sheet_shows_every_picture(rendering):
    counts = colors_of(rendering.sheet())
    assert [counts[color] for color in COLORS] == [160 * 160] * 3
    many = replace(rendering, neurons=list(range(11)), pictures=rendering.pictures[[0] * 11], steps=[20] * 11, scores=None)
    assert colors_of(many.sheet())[COLORS[0]] == 11 * 160 * 160


def test_caption_names_neuron_score_and_what_is_wrong(rendering):
    assert rendering.caption(0) == ["neuron 7", "1.23, above 100.0 %"]
    assert rendering.caption(1) == ["neuron 30", "weak: -0.5, above 88.1 %"]
    assert rendering.caption(2) == ["neuron 2", "dead: 3, above 12.5 %", "stopped at step 13"]
    assert replace(rendering, scores=None).caption(0) == ["neuron 7"]


def test_weak_and_dead_pictures_are_captioned_in_another_color(rendering):
    assert ALARM in colors_of(rendering.sheet())
    for status in ("weak", "dead"):
        one_bad = replace(SCORES, status=["alive", "alive", status])
        assert ALARM in colors_of(replace(rendering, scores=one_bad).sheet())
    all_good = replace(SCORES, status=["alive"] * 3)
    assert ALARM not in colors_of(replace(rendering, scores=all_good).sheet())


def test_title_says_what_it_is_made_from_and_measured_against(rendering):
    assert rendering.title == ("emoji-vit (untrained), mlp layer 5, 20 steps of 3 copies, seed 9, "
                               "percentiles among 1,024 Emoji World scenes")
    assert replace(rendering, scores=None).title == "emoji-vit (untrained), mlp layer 5, 20 steps of 3 copies, seed 9"


def test_notebook_shows_the_sheet_with_alternative_text(rendering):
    data = rendering._repr_mimebundle_()
    assert data["image/png"].startswith(b"\x89PNG")
    alt = unescape(re.match('<img alt="(.*?)"', data["text/html"])[1])
    assert alt == data["text/plain"] == f"Pictures of neurons 7, 30, 2: {rendering.title}"
    assert "untrained" in alt


def test_rendering_is_finished_when_every_picture_is(rendering):
    assert not rendering.finished
    finished = replace(rendering, steps=[20, 20, 20])
    assert finished.finished and finished.require_finished() is finished


def test_an_unfinished_rendering_is_refused_with_what_is_left_and_what_to_do(rendering):
    with pytest.raises(VitvizError, match=r"1 of 3 pictures .* unfinished \(53 of 60 steps done\).*The same call continues"):
        rendering.require_finished()
