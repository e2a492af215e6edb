"""``python notebooks/teaching/website.py FOLDER``: the course as a website, whose links and anchors all lead somewhere."""

import html
import importlib.util
import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from vitviz_nb.utils.errors import VitvizError

from .test_lint import COURSE, ROOT

pytest.importorskip("furo", reason='needs the extra "site"')
pytest.importorskip("myst_nb", reason='needs the extra "site"')
SPEC = importlib.util.spec_from_file_location("website_command", ROOT / "notebooks" / "teaching" / "website.py")
command = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(command)
pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # of Sphinx's next version, by MyST
GALLERY = "vit-small-dinov2-saliency"  # the one that takes least


class Page(HTMLParser):
    """What a page links to, loads and names."""

    def __init__(self, path: Path):
        super().__init__()
        self.links, self.loads, self.images, self.ids = [], [], [], set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.ids |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag == "img":
            self.images.append(found)
        if tag in ("script", "img", "link"):
            self.loads += [name for name in (found.get("src"), found.get("href")) if name and not name.startswith("#")]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    before = subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT)
    first = command.build(tmp_path_factory.mktemp("website"), [GALLERY])
    assert subprocess.check_output(["git", "status", "--porcelain"], cwd=ROOT) == before, "the build left files in the checkout"
    return Path(first).parent


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html") if "galleries" not in path.relative_to(site).parts}


def test_every_link_and_anchor_leads_somewhere(site, pages):
    known = {path.resolve(): page for path, page in pages.items()}
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = link.partition("#")
            if re.match(r"[a-z]+:", link):
                continue
            target = path.parent / unquote(name) if name else path
            assert target.is_file(), f"{path.relative_to(site)} links to {link}"
            if anchor and target.resolve() in known:
                assert unquote(anchor) in known[target.resolve()].ids, f"{path.relative_to(site)} links to {link}"


def test_nothing_is_loaded_from_the_network(site, pages):
    for path, page in pages.items():
        assert not [name for name in page.loads if "//" in name and not name.startswith("data:")]
        assert all((path.parent / unquote(name.split("?")[0])).is_file() for name in page.loads if not name.startswith("data:"))
    assert not re.findall(r"@import|url\(['\"]?(?:https?:)?//", "".join(p.read_text("utf-8") for p in site.rglob("*.css")))


@pytest.mark.parametrize("source", COURSE, ids=lambda path: path.stem)
def test_a_notebook_shows_its_stored_figures_with_their_alt_texts(source, site, pages):
    shown = [image.get("alt") for image in pages[site / f"{source.stem}.html"].images]
    cells = nbformat.read(source, as_version=4).cells
    alts = [cell.metadata["alt"] for cell in cells for output in cell.get("outputs", [])]
    assert alts and all(shown.count(html.unescape(alt)) == alts.count(alt) for alt in alts)
    assert all(shown)


def test_glossary_terms_are_linked(site, pages):
    links = [link for path in COURSE for link in pages[site / f"{path.stem}.html"].links]
    terms = {link.partition("#")[2] for link in links if link.startswith("GLOSSARY.html#")}
    assert len(terms) > 30 and terms <= pages[site / "GLOSSARY.html"].ids


def test_solutions_are_linked_from_exercises_but_in_no_contents_and_no_search(site, pages):
    assert "solutions/05_solutions.html" in pages[site / "05_finding_pooling.html"].links
    for path in (site / "README.html", site / "GLOSSARY.html", site / "kit.html"):
        assert not [link for link in pages[path].links if "solutions/" in link]
    index = json.loads((site / "searchindex.js").read_text("utf-8").removeprefix("Search.setIndex(").removesuffix(")"))
    hidden = {i for i, name in enumerate(index["docnames"]) if name.startswith("solutions/")}
    found = set()
    for pages_of_a_word in [*index["terms"].values(), *index["titleterms"].values()]:
        found |= {pages_of_a_word} if isinstance(pages_of_a_word, int) else set(pages_of_a_word)
    assert hidden and found == set(range(len(index["docnames"]))) - hidden


def test_the_gallery_is_there_and_the_contents_list_all(site, pages):
    assert (site / "galleries" / GALLERY / "index.html").is_file()
    names = {Path(link).name for link in pages[site / "index.html"].links}
    assert {f"{path.stem}.html" for path in COURSE} | {"GLOSSARY.html", "galleries.html", "kit.html", "rubric.html"} <= names
    assert (site / "search.html").is_file()


def test_a_broken_link_stops_the_build(tmp_path, monkeypatch, capfd):
    broken = tmp_path / "page.md"
    monkeypatch.setattr(command, "pages", lambda: [ROOT / "notebooks" / "README.md"])
    monkeypatch.setattr(command, "relinked", lambda text, path, linked: "# Course\n\n[gone](nowhere.md)\n")
    with pytest.raises(VitvizError, match="faults"):
        command.build(broken.with_suffix(""), [])
    assert "nowhere.md" in capfd.readouterr().err
