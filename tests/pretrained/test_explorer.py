"""The Explorer on the real ViT, in JupyterLab in a browser: the two cells that a user writes."""

import re
from pathlib import Path

import pytest
from real_vit import NAME

pytest.importorskip("playwright", reason="no playwright: python -m pip install -e '.[ci]'")
nbformat = pytest.importorskip("nbformat")
from lab import Chromium, Lab, find_chromium  # noqa: E402

STATUS, PICTURE, SCENES = ".vitviz-status", ".vitviz-picture", ".vitviz-scenes"
RUN = 300  # s, the longest wait for a picture; a slow machine is not a failure
CELLS = (f'import vitviz_nb as vv\n\nmodel = vv.load("{NAME}", image_size=112)',
         "vv.explore(model, images=vv.ImageSet(model, vv.photos(), 319))")


@pytest.fixture(scope="module")
def nb(hub, tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("no Chromium: install Debian's `chromium`, or set VITVIZ_CHROMIUM to a browser")
    folder: Path = tmp_path_factory.mktemp("lab") / "mine"
    folder.mkdir()
    kernel = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, folder / "real.ipynb")
    with Chromium() as browser, Lab([folder]) as lab, lab.open("mine/real.ipynb", browser) as opened:
        opened.run_all(timeout=RUN)
        opened.wait_text(STATUS, ": finished", timeout=RUN)
        yield opened


def test_the_first_picture_and_its_strongest_photographs_are_there(nb):
    assert re.search(r"layer 11, neuron \d+: finished.* by selectivity \(\d of its top images show", nb.text(STATUS))
    assert nb.pixels(PICTURE).std() > 20, "near gray"
    assert "photographs of vv.photos()" in nb.text(SCENES)
    assert nb.page.locator(f"{SCENES} img").count() == 12  # top images and their activation maps
    assert nb.page_errors == []


def test_the_sliders_span_the_network_and_another_layer_has_another_picture(nb):
    layer, neuron = nb.slider("Layer"), nb.slider("Neuron")
    assert (layer.max, neuron.max) == (11, 1535)
    before = nb.pixels(PICTURE)
    moved = layer.type(3)
    nb.wait_text(STATUS, r"layer 3, neuron \d+: finished", after=moved, timeout=RUN)
    nb.page.wait_for_timeout(300)
    after = nb.pixels(PICTURE)
    assert abs(after.astype(float) - before.astype(float)).mean() > 10 and after.std() > 20


def test_its_memory_stays_within_that_of_a_free_notebook(nb):
    assert nb.kernel_memory() < 2.0  # GB
