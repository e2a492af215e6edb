"""A report is a folder that shows everything added to it, without the kit."""

import re
from base64 import b64encode
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from PIL import Image

import vitviz_nb as vv
from vitviz_nb.course.report import Report
from vitviz_nb.experiments.result import Result
from vitviz_nb.plotting.alt_text import bundle, png
from vitviz_nb.utils.errors import VitvizError

PNG_TEXT = b64encode(png(Image.new("RGB", (4, 4)))).decode()
FINDING = Result("How much <b>is</b> seen", "seen (%)", pd.DataFrame({"layer": [0, 1], "value": [1.0, 2], "low": [0.0, 1],
                                                                       "high": [2.0, 3], "n": [9, 9]}))


def test_every_kind_of_item_is_written_and_shown(tmp_path: Path, tiny_vit):
    rendering = vv.Visualizer(tiny_vit, vv.Recipe(steps=1, jitter=0), images=torch.rand(3, 3, 32, 32)).render(0, [0, 1])
    figure = plt.figure()
    twins = type("Twins", (), {"_repr_mimebundle_": lambda self, **_: bundle(Image.new("RGB", (4, 4)), "Two <b>images</b>")})()
    report = Report(tmp_path / "mine", "What <i>I</i> found", "Ada")
    open_before = plt.get_fignums()
    for item, heading in ((rendering, "Neurons"), (FINDING, "Numbers"), (figure, "A figure"), (Image.new("RGB", (4, 4)), "Été!"),
                          (twins, "Twins"), (None, "In words")):
        assert report.add(item, heading, "First.\n\nSecond <script>.") is report
    assert plt.get_fignums() == open_before  # the figure given stays open, the finding's own is closed
    plt.close(figure)
    assert report.items[1] == ("Numbers", FINDING, "First.\n\nSecond <script>.") and report.items[-1].shown is None
    page = report.page.read_text(encoding="utf-8")
    assert len(report.items) == page.count("<h2>") == 6
    assert "Ada" in page and page.count("What &lt;i&gt;I&lt;/i&gt; found") == 2  # title and heading
    assert page.count("<p>Second &lt;script&gt;.</p>") == 6
    shown = re.findall(r'<img src="([^"]+)" alt="([^"]+)">', page)
    names = ["01_neurons/sheet.png", "02_numbers.png", "03_a_figure.png", "04_t.png", "05_twins.png"]
    assert [name for name, _ in shown] == names
    for name, _ in shown:
        Image.open(report.folder / name).verify()
    assert (report.folder / "02_numbers.csv").exists() and len(vv.Rendering.load(report.folder / "01_neurons").neurons) == 2
    assert "How much &lt;b&gt;is&lt;/b&gt; seen" in page and "Two &lt;b&gt;images" in page and "6 items" in report._repr_html_()


def test_a_report_is_not_lost_to_another_by_accident(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    Report(tmp_path, "One").add(None, "Something")
    with pytest.raises(VitvizError, match="holds a report already; name another folder, or say force=True"):
        Report(tmp_path, "Two")
    again = Report(tmp_path, "Two", force=True)
    assert again.items == [] and "Something" not in again.page.read_text() and (tmp_path / "notes.txt").read_text() == "mine"


def test_pictures_of_others_in_the_folder_stay(tmp_path: Path):
    (tmp_path / "01_holidays.png").write_bytes(b"mine")
    report = Report(tmp_path, "One")
    with pytest.raises(VitvizError, match="01_holidays.png exists, and is nothing that this command made"):
        report.add(Image.new("RGB", (4, 4)), "Holidays")
    assert (tmp_path / "01_holidays.png").read_bytes() == b"mine" and report.items == []
    Report(tmp_path, "One", force=True).add(Image.new("RGB", (4, 4)), "Holidays")
    Image.open(tmp_path / "01_holidays.png").verify()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I;16"])
def test_images_of_any_mode_are_shown(tmp_path: Path, mode: str):
    Report(tmp_path, "One").add(Image.new(mode, (4, 4)), "Image")
    Image.open(tmp_path / "01_image.png").verify()


@pytest.mark.parametrize("bundle", [{"image/png": png(Image.new("RGB", (4, 4)))}, ({"image/png": PNG_TEXT}, {}), None, {}])
def test_objects_show_themselves_in_any_way_that_jupyter_takes(tmp_path: Path, bundle):
    item = type("Mine", (), {"_repr_mimebundle_": lambda self, include=None, exclude=None: bundle})()
    report = Report(tmp_path, "One")
    if bundle:
        report.add(item, "Item")
        Image.open(tmp_path / "01_item.png").verify()
    else:
        with pytest.raises(VitvizError, match="Mine is none of these"):
            report.add(item, "Item")


def test_what_cannot_be_shown_or_written_is_said(tmp_path: Path):
    report = Report(tmp_path, "One")
    for arguments, says in (((3, "Three"), "a Rendering, a Result, .* int is none of these"), ((None, " "), "needs a heading"),
                            ((None, None), "heading of a report is text, got NoneType"),
                            ((None, "Text", 3), "text of a report is text, got int")):
        with pytest.raises(VitvizError, match=says):
            report.add(*arguments)
    assert report.items == [] and "<h2>" not in report.page.read_text()
    (tmp_path / "file").write_text("")
    for arguments, says in (((tmp_path / "file" / "below", "Two"), "file.*cannot be written"), (("", "Two"), "folder is a path"),
                            ((tmp_path / "two", None), "title of a report is text"),
                            ((tmp_path / "two", "Two", None), "author of a report is text")):
        with pytest.raises(VitvizError, match=says):
            Report(*arguments)
    assert not (tmp_path / "two").exists()
