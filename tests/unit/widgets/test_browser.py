"""The browser of an atlas says what the atlas says, in a notebook and as a page, and answers without a model."""

import base64
import json
import re
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitviz_nb as vv
from vitviz_nb.experiments.faithfulness import selectivity
from vitviz_nb.models.sites import find_site
from vitviz_nb.utils.errors import VitvizError
from vitviz_nb.visualize.atlas import Atlas, embedded, embedded_atlases
from vitviz_nb.visualize.recipe import Recipe
from vitviz_nb.widgets import browser as module
from vitviz_nb.widgets.browser import contents, export, image

REAL = "vit-small-dinov2-saliency"
SHIPPED = [*embedded_atlases(), REAL]


@pytest.fixture(scope="module")
def real() -> Atlas:
    return Atlas.open(REAL)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST", 1e9)
        return export(REAL, tmp_path_factory.mktemp("site")).read_text("utf-8")


def state(page: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="state">(.*?)</script>', page, re.S)[1])


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_atlas_can_be_browsed_and_its_page_holds_what_the_table_says(name: str):
    browser, table = vv.browse(name), Atlas.open(name).table()
    page = json.loads(json.dumps(browser.page))  # as the front end gets it
    neurons = page["neurons"]
    assert {len(column) for column in neurons.values()} == {len(table)}
    for column in ("layer", "neuron", "activation", "percentile", "rank", "status"):
        assert neurons[column] == table[column].tolist()
    concepts = [tuple(page["concepts"][page["shows"][str(i)]] for i in top) for top in neurons["top"]]
    assert concepts == table["scenes"].tolist()
    assert browser.layer == page["layers"][-1] == max(table["layer"]) and browser.opened is None


@pytest.mark.slow
def test_thumbnails_are_cut_from_the_sheet_where_the_picture_lies(real: Atlas):
    page = contents(real)
    for at in range(0, len(page["neurons"]["row"]), 7):
        layer, neuron, row = (page["neurons"][name][at] for name in ("layer", "neuron", "row"))
        sheet = Image.open(BytesIO(image(real, f"sheet {layer} {row // page['sheet']}"))).convert("RGB")
        y, x = (page["size"] * i for i in divmod(row % page["sheet"], page["columns"]))  # as browser.js does
        shown = np.asarray(sheet.crop((x, y, x + page["size"], y + page["size"]))) / 255
        assert np.allclose(shown, real.rendering(layer, neuron).pictures[0].permute(1, 2, 0), atol=1e-3)


def test_top_images_and_maps_are_those_of_the_atlas(real: Atlas):
    page, photos = contents(real), vv.photos()
    layer, neuron, top, maps = (page["neurons"][name][40] for name in ("layer", "neuron", "top", "maps"))
    assert top == real.strongest(layer, neuron)[0]
    bytes_ = np.frombuffer(base64.b64decode(maps), np.uint8).reshape(6, *page["grids"][layer])
    assert torch.equal(torch.from_numpy(bytes_ / np.float32(255)), real.maps(layer, neuron))
    small = Image.open(BytesIO(image(real, f"reference {top[0]}"))).convert("RGB")
    large = photos[top[0]][0].convert("RGB").resize(small.size)
    assert small.size == (112, 112) and abs(np.asarray(small, float) - np.asarray(large)).mean() < 8


def test_a_scene_of_emoji_world_is_the_one_the_model_saw():
    shown = Image.open(BytesIO(image(embedded("emoji-vit"), "reference 17"))).convert("RGB")
    scene = vv.EmojiWorld("val", size=64).batch([17]).images[0].permute(1, 2, 0).numpy()
    assert shown.size == (64, 64) and abs(np.asarray(shown) / 255 - scene).mean() < 0.03


def test_settings_follow_the_page_and_it_answers_a_request_with_the_image(monkeypatch: pytest.MonkeyPatch):
    browser = vv.browse(REAL)
    browser.set_state({"layer": "all", "sort": "percentile", "concept": "li", "opened": [3, 0]})  # what a front end sends
    assert (browser.layer, browser.sort, browser.concept, browser.opened) == ("all", "percentile", "li", (3, 0))
    sent = []
    monkeypatch.setattr(browser, "send", lambda content, buffers: sent.append((content, buffers)))
    browser._handle_custom_msg({"image": "sheet 3 0"}, [])
    assert sent == [({"image": "sheet 3 0"}, [image(browser.atlas, "sheet 3 0")])]
    for name, value in (("layer", 99), ("opened", (3, 1)), ("opened", (99, 0))):
        with pytest.raises(VitvizError, match="The atlas in .* (lacks layer 99|has .* neurons of layer 3)"):
            setattr(browser, name, value)


def test_selectivity_is_there_where_it_is_stored_of_these_weights(monkeypatch: pytest.MonkeyPatch):
    model, atlas = vv.load("emoji-vit"), embedded("emoji-vit")
    page, rows = contents(atlas), [row for row, layer in enumerate(atlas.table()["layer"]) if layer == 4]
    measured = selectivity(model, find_site(model, 4))
    assert [page["neurons"]["selectivity"][row] for row in rows] == measured.strength.tolist()
    assert [page["neurons"]["preferred"][row] for row in rows] == [model.class_names[i] for i in measured.concept]
    assert "selectivity" in page["orders"] and "selectivity" not in contents(Atlas.open(REAL))["orders"]
    monkeypatch.setitem(atlas.facts, "weights", "others")
    assert "selectivity" not in contents(atlas)["orders"]


def test_an_order_that_the_atlas_lacks_is_refused():
    browser = vv.browse(REAL)  # without stored selectivity, which the page would look for in vain
    for order in ("selectivity", "beauty"):
        with pytest.raises(VitvizError, match=f"sort is one of number, percentile, activation, agreement; got '{order}'"):
            browser.sort = order
    assert browser.sort == "number"


def test_a_concept_is_searched_in_all_layers_or_in_one():
    browser = vv.browse("emoji-vit", concept="owl")
    assert (browser.layer, browser.concept) == ("all", "owl")
    assert vv.browse("emoji-vit", 3, "mlp", "owl").layer == 3
    with pytest.raises(VitvizError, match="No reference scene shows 'owk'.*Did you mean owl"):
        vv.browse("emoji-vit", concept="owk")


def test_what_is_no_atlas_or_not_in_it_gets_a_sentence(tiny_vit, tmp_path: Path):
    with pytest.raises(VitvizError, match="got the model tiny-vit; vv.make_atlas makes one"):
        vv.browse(tiny_vit)
    tiny_vit.name = "emoji-vit"
    with pytest.raises(VitvizError, match=re.escape("vv.browse('emoji-vit') shows the one that ships")):
        vv.browse(tiny_vit)
    with pytest.raises(VitvizError, match="holds no atlas .*vitviz atlas MODEL --out"):
        vv.browse(tmp_path)
    with pytest.raises(VitvizError, match="lacks layer 6; its layers: 0, 1, 2, 3, 4, 5"):
        vv.browse("emoji-vit", 6)
    with pytest.raises(VitvizError, match="This atlas has kind mlp, not query; vv.explore"):
        vv.browse("emoji-vit", kind="query")
    with pytest.raises(VitvizError, match="kind is one of"):
        vv.browse("emoji-vit", kind="mpl")


def test_an_atlas_scored_on_images_of_ones_own_shows_none_of_the_kits_in_their_place(tiny_vit, tmp_path: Path):
    vv.make_atlas(tiny_vit, [0], tmp_path, Recipe(steps=1, copies=1), images=torch.rand(8, 3, 32, 32), neurons=2)
    page = contents(Atlas.open(tmp_path))
    assert page["concepts"] == [] and page["neurons"]["top"] == [[], []] and "does not have the 8 images" in page["note"]
    assert "data:image/webp" in export(tmp_path, tmp_path / "site").read_text("utf-8")


class Tags(HTMLParser):
    """The start tags of a page, each with its attributes; the text of scripts is not looked at."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes) -> None:
        self.tags.append((tag, dict(attributes)))


def test_the_page_is_one_file_that_asks_no_network_and_has_every_image(page: str):
    tags, held = Tags(page).tags, state(page)
    assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|url\((?!\$)", page)
    assert not [attributes for _, attributes in tags if {"src", "href"} & attributes.keys()]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids)) and ("html", {"lang": "en"}) in tags
    wanted = {f"reference {i}" for top in held["page"]["neurons"]["top"] for i in top}
    wanted |= {f"sheet {layer} {i}" for layer, n in held["page"]["sheets"].items() for i in range(n)}
    assert held["images"].keys() == wanted
    for address in held["images"].values():
        assert base64.b64decode(address.removeprefix("data:image/webp;base64,"))[8:12] == b"WEBP"
    assert "Bill Kendrick" in page  # whoever shows the photographs names their authors
    assert [tag for tag, attributes in tags if tag == "img" and not attributes.get("alt")] == []
    assert re.findall(r'make\("img", \{ (\w+)', page) == ["alt"]  # the one place where images are made has a text for each


def test_widget_and_page_are_the_same_module_and_stylesheet(page: str):
    script, style = (Path(module.__file__).with_name(f"browser.{suffix}").read_text("utf-8") for suffix in ("js", "css"))
    assert str(module.Browser._esm) == script and script in page and str(module.Browser._css) == style and style in page
    assert len(script.splitlines()) <= 250


def test_a_larger_page_has_its_images_beside_it(real: Atlas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_MOST", 1e6)
    page = export(real, tmp_path)
    images = state(page.read_text("utf-8"))["images"]
    assert page.stat().st_size < 1e6 and images["sheet 3 0"] == "images/sheet_3_0.webp"
    assert all((tmp_path / address).read_bytes() == image(real, name) for name, address in list(images.items())[:20])


@pytest.mark.slow
def test_a_page_replaces_its_like_and_nothing_else(tmp_path: Path):
    path = tmp_path / "index.html"
    path.write_text("<!doctype html> my homepage")
    with pytest.raises(VitvizError, match="nothing that this command made"):
        export(REAL, tmp_path)
    assert path.read_text() == "<!doctype html> my homepage"
    export(REAL, tmp_path, force=True)
    assert export(REAL, tmp_path) == path and "vitviz gallery" in path.read_text("utf-8")
