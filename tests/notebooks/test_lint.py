"""Every notebook keeps the rules that make it open well on GitHub, Colab, Binder and JupyterLab, and for everyone."""

import importlib.util
import json
import re
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from .refresh import course, neighbors

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("publish_command", ROOT / "notebooks" / "publish.py")
publish = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(publish)
END, REPOSITORY_LINE, START = publish.END, publish.REPOSITORY_LINE, publish.START
NOTEBOOKS = publish.find_notebooks()
TEXTS = [ROOT / "README.md", *sorted(path for top in ("data", "notebooks", "tests") for path in (ROOT / top).rglob("*.md"))]
LOCAL_PATH = re.compile(r"(?<![\w.:/-])/(?:work|home|root|Users)\b|\bC:\\")
WIDGET = "application/vnd.jupyter.widget-view+json"
COURSE = course(ROOT)
SEE = "What you should see (open it after your own look)"
CARD = re.compile(r"^\*Difficulty: (easy|medium|hard)\. Importance: (high|medium|low).*\. Time: \d+ minutes\.\*$", re.MULTILINE)
FOLD = re.compile(r"<details><summary>(.*?)</summary>(.*?)</details>", re.DOTALL)
QUESTION = re.compile(r"^\d+\. ", re.MULTILINE)
OPENS_WITH = {
    "a question in bold": r"\*\*[^*]+\?\*\*",
    "the paper": r"\(https://arxiv\.org\b",
    "what the learner will be able to do": r"^\*\*At the end you will be able to\*\* ",
    "what is needed": r"^\*\*You need\*\* ",
    "the time to read and to run, on CPU and GPU": r"^\*\*Time\*\*: about \d+ minutes\. .*minute.* CPU.* GPU",
}
PRIVATE_WORDS = re.compile(  # for which the field has its own: object, gradient, position, spatial frequency, adversarial …
    r"\b(?:things?|excit(?:e[sd]?|ing|ation)|climb(?:s|ed|ing)?|slopes?|waves?|(?<!typographic )attack(?:s|ed|ing)?|by lot|told"
    r"|minds?|minded|places?|ground|surroundings|alike|likeness|news|rightly|(?:right|wrong) answers|goes by|cares? for"
    r"|usual training)\b", re.IGNORECASE)
SLIDERS = re.compile(r"\b(?:interactive|explore|TaskWidget)\(")


def problems(path: Path, root: Path) -> list[str]:
    """What a notebook of the checkout ``root`` does wrong, one sentence each."""
    text = path.read_text("utf-8")
    content = json.loads(text)
    if content.get("nbformat") != 4:
        return ["not nbformat 4"]
    if not all(cell.get("id") for cell in content["cells"]):
        return ["a cell has no id"]  # asked first, as nbformat makes up missing ones
    notebook = nbformat.reads(text, as_version=4)
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return [f"not valid: {error.message}"]
    found = []
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    markdown = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    prose = [re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL) for text in markdown]

    if "widgets" in notebook.metadata:
        found.append("metadata.widgets is stored: GitHub may refuse the whole notebook")
    if sum(len(re.findall(r"^# ", text, re.MULTILINE)) for text in prose) != 1:
        found.append("not exactly one H1")
    if sum(len(REPOSITORY_LINE.findall(cell.source)) for cell in code) != 1:
        found.append("not exactly one REPOSITORY line for notebooks/publish.py")
    if any(cell.outputs for cell in code) and [c.execution_count for c in code] != [*range(1, len(code) + 1)]:
        found.append("outputs are stored, but not of one run from top to bottom: counts are not 1, 2, 3 ...")
    found += badge_problems(notebook.cells[0] if notebook.cells else None, path.relative_to(root).as_posix())
    for text in prose:
        found += picture_problems(text) + link_problems(text, path.parent)
    for cell in code:
        found += output_problems(cell)
    texts = [cell.source for cell in notebook.cells]
    texts += [text for cell in code for output in cell.outputs for text in output_texts(output)]
    found += [f"a path of one machine: {m[0]}" for text in texts for m in [LOCAL_PATH.search(text)] if m]
    return found


def badge_problems(cell: dict | None, name: str) -> list[str]:
    """``cell`` is the first one: it has the markers, with nothing or the badges of the notebook ``name`` between."""
    if cell is None or cell.cell_type != "markdown" or not re.search(f"{START}.*{END}", cell.source, re.DOTALL):
        return ["the first cell does not have the badge markers"]
    between = cell.source.partition(START)[2].partition(END)[0].strip()
    if between and (between.count("[![") != 3 or unquote(between).count(name) != 3):
        return ["the badges do not open this notebook: run notebooks/publish.py"]
    return []


def picture_problems(text: str) -> list[str]:
    """Markdown and HTML pictures need an alternative text."""
    tags = re.findall(r"<img\b[^>]*>", text)
    bare = [tag for tag in tags if not re.search(r"""alt=(["'])\s*[^"'\s]""", tag)]
    bare += re.findall(r"!\[\s*\]\([^)]*\)", text)
    return [f"a picture without alt text: {picture[:60]}" for picture in bare]


def link_problems(text: str, folder: Path) -> list[str]:
    """Relative links lead to files that exist."""
    targets = re.findall(r"\]\(([^)\s]+)", text) + re.findall(r"""(?:src|href)=["']([^"']+)""", text)
    local = [t for t in targets if not re.match(r"[a-z]+:|#|//", t)]
    return [f"a link to a missing file: {t}" for t in local if not (folder / unquote(t.split("#")[0])).exists()]


def output_problems(cell: dict) -> list[str]:
    """Stored outputs: no errors, no widgets; a picture only on purpose, and described."""
    data = [output.get("data", {}) for output in cell.outputs]
    found = [p for d in data for p in picture_problems("".join(d.get("text/html", "")))]
    if any(output.output_type == "error" for output in cell.outputs):
        found.append("an error is stored")
    if any(WIDGET in d for d in data):
        found.append("a widget's output is stored: readers would see 'Error displaying widget'")
    if any(kind.startswith("image/") for d in data for kind in d):
        found.append("a picture is stored as an image, whose alt text JupyterLab drops: python tests/notebooks/refresh.py")
    if own := [unescape(alt) for d in data for alt in re.findall(r'<img alt="([^"]*)"', "".join(d.get("text/html", "")))]:
        if "figure" not in cell.metadata.get("tags", []):
            found.append("a picture is stored in a cell without the tag 'figure'")
        if len(cell.metadata.get("alt", "").strip()) < 20:
            found.append("a cell with a stored picture has no metadata.alt of 20 characters or more")
        elif any(alt != cell.metadata["alt"] for alt in own):
            found.append("a stored picture's own alt text is not its cell's: python tests/notebooks/refresh.py --alt")
    return found


def output_texts(output: dict) -> list[str]:
    """The texts that an output shows, without the pictures inside, whose base64 may spell anything."""
    data = {kind: text for kind, text in output.get("data", {}).items() if kind.startswith("text/")}
    texts = ["".join(text) for text in [output.get("text", ""), *data.values()]]
    return [re.sub(r"data:image/[^\"')]*", "", text) for text in texts]


def private_words(path: Path) -> list[str]:
    """Words of a notebook or a text, without code, that a reader of the field would have to translate; in alt texts, too."""
    cells = nbformat.read(path, as_version=4).cells if path.suffix == ".ipynb" else []
    texts = [cell.source for cell in cells if cell.cell_type == "markdown"] if cells else [path.read_text("utf-8")]
    texts = [re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL) for text in texts]
    return PRIVATE_WORDS.findall("\n".join([*texts, *(cell.metadata.get("alt", "") for cell in cells)]))


@dataclass
class Section:
    """What stands under one heading: its markdown, and its code cells."""

    level: int
    title: str
    text: str = ""
    after: str = ""  # the part of the markdown that follows the first figure or widget
    code: list = field(default_factory=list)

    def write(self, text: str) -> None:
        self.text += f"\n{text}"
        self.after += f"\n{text}" * self.shows

    @property
    def shows(self) -> bool:
        return any("figure" in cell.metadata.get("tags", []) or SLIDERS.search(cell.source) for cell in self.code)


def folds(text: str) -> dict[str, str]:
    return {summary: hidden.strip() for summary, hidden in FOLD.findall(text)}


def sections(cells: list) -> list[Section]:
    """A notebook's sections of levels 1 to 3 in order; what stands before the first heading belongs to none."""
    found = [Section(0, "")]
    for cell in cells:
        if cell.cell_type == "code":
            found[-1].code.append(cell)
            continue
        before, *rest = re.split(r"^(#{1,3}) (.+)$", re.sub(r"```.*?```", "", cell.source, flags=re.DOTALL), flags=re.MULTILINE)
        found[-1].write(before)
        found += [Section(len(level), title, text) for level, title, text in zip(*[iter(rest)] * 3, strict=True)]
    return found[1:]


def skeleton_problems(path: Path) -> list[str]:
    """What a notebook of the course, from 01 on, lacks of the skeleton that a learner may count on, one sentence each."""
    notebook, number, found = nbformat.read(path, as_version=4), path.stem[:2], []
    parts = sections(notebook.cells)
    opening, main = parts[0], [part for part in parts if part.level == 2]
    titles = [part.title for part in main]
    exercises = [part for part in main if part.title.startswith("Exercise ")]
    last = {part.title: part for part in main[-3:]}

    if not opening.title.startswith(f"{number}. "):
        found.append(f"the title does not begin with {number}.")
    found += [f"the opening lacks {what}" for what, form in OPENS_WITH.items() if not re.search(form, opening.text, re.M)]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if titles[:2] != ["Set up", "The answer first"] or not main[0].code or main[0].code[0] is not code[0]:
        found.append("it does not begin with the sections Set up, with the first code cell, and The answer first")
    elif not main[1].shows:
        found.append("The answer first shows no figure")
    if "vv.load(" not in code[0].source:
        found.append("the first code cell does not name the model")
    if "**Predict" not in "".join(part.text for part in parts):
        found.append("nothing is predicted: no **Predict**")
    if [part.title.split(":")[0] for part in exercises] != [f"Exercise {i + 1}" for i in range(max(3, len(exercises)))]:
        found.append(f"not at least three exercises, 1, 2, 3, …: {[part.title for part in exercises]}")
    for i, part in enumerate(exercises):
        found += exercise_problems(part, f"{number}.{i + 1}")
    for part in parts:
        if part.shows and part not in [*main[:2], *exercises] and not folds(part.after).get(SEE):
            found.append(f"{part.title}: no fold '{SEE}' after its figure")
    found += twin_problems(notebook.cells)
    if list(last) != ["Summary", "Quiz", "References"]:
        return [*found, f"it does not end with Summary, Quiz and References, but with {list(last)}"]
    if "**What did not work**" not in last["Summary"].text:
        found.append("the Summary does not say what did not work")
    answers = folds(last["Quiz"].text).get("Answers", "")
    if not answers or 2 * len(QUESTION.findall(answers)) != len(QUESTION.findall(last["Quiz"].text)):
        found.append("the Quiz has not one answer a question, in a fold Answers")
    if not re.search(r"arXiv.*\b(?:section|figure|table)s? \d", last["References"].text):
        found.append("the References do not say which section or figure of the paper")
    return found


def exercise_problems(part: Section, number: str) -> list[str]:
    """A card: difficulty, importance and minutes in words, a hint, a solution, and the check."""
    found = []
    if not CARD.search(part.text):
        found.append(f"{part.title}: no line '*Difficulty: easy. Importance: high. Time: 5 minutes.*'")
    found += [f"{part.title}: no fold {name}" for name in ("Hint", "Solution") if not folds(part.text).get(name)]
    if not any(f'vv.check("{number}", ' in cell.source for cell in part.code):
        found.append(f'{part.title}: no cell vv.check("{number}", …)')
    return found


def twin_problems(cells: list) -> list[str]:
    """After a widget comes the same for readers without a kernel: a picture, or a cell whose figure is stored."""
    found = []
    for i, cell in enumerate(cells):
        if cell.cell_type == "code" and SLIDERS.search(cell.source):
            texts = [k for k in range(i + 1, len(cells)) if cells[k].cell_type == "markdown"]
            text, *after = cells[texts[0]:texts[0] + 2] if texts else [{"source": ""}]
            stored = any("figure" in c.metadata.get("tags", []) for c in after)
            if not re.search(r"without a (running )?kernel", text["source"]) or not (stored or "![" in text["source"]):
                found.append(f"no picture 'without a running kernel' follows {cell.source.splitlines()[-1]}")
    return found


def test_there_is_a_first_notebook():
    assert (ROOT / "notebooks/00_start_here.ipynb") in NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_keeps_the_rules(path):
    assert problems(path, ROOT) == []


@pytest.mark.parametrize("path", [*NOTEBOOKS, *TEXTS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_notebooks_and_texts_speak_the_fields_english(path):
    assert len(private_words(path)) <= 2


@pytest.mark.parametrize("path", COURSE[1:], ids=lambda path: path.stem)
def test_notebook_of_the_course_keeps_to_the_skeleton(path):
    assert skeleton_problems(path) == []


@pytest.mark.parametrize("path", COURSE, ids=lambda path: path.stem)
def test_notebook_links_to_its_neighbors(path):
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    opening = next(text for text in cells if re.search("^# ", text, re.MULTILINE)).split("\n# ")[-1]
    assert [opening.splitlines()[2], cells[-1].splitlines()[-1]] == [neighbors(path, COURSE)] * 2, \
        "run python tests/notebooks/refresh.py --links"


def test_the_contents_list_every_notebook_in_order_with_its_minutes():
    text = (ROOT / "notebooks" / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| \[(\d\d_\w+)\]\(\1\.ipynb\) \| (\d+) \| ", text, re.MULTILINE)
    minutes = [re.search(r"\*\*Time\*\*: about (\d+) minutes", path.read_text("utf-8")) for path in COURSE]
    assert listed == [(path.stem, found[1]) for path, found in zip(COURSE, minutes, strict=True)]
    assert link_problems(text, ROOT / "notebooks") == []


# The rules themselves: a good notebook passes, and each way to spoil it is noticed.

PROSE = """# One
See [it](x.md#part), `# not one`, ![a drawing](x.md) and https://x.org/home
```
# nor this
```"""
FIGURE = {"tags": ["figure"], "alt": "A grid of sixteen pictures, most show stripes."}
PICTURE = {"output_type": "display_data", "metadata": {}, "data": {
    "text/html": f'<img alt="{FIGURE["alt"]}" src="data:image/png;base64,aGk/work">', "text/plain": "<Figure>"}}
ERROR = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}


def cell(kind: str, source: str | list[str], **more) -> dict:
    return {"cell_type": kind, "id": f"cell-{len(source)}", "metadata": {}, "source": source, **more}


GOOD = json.dumps({
    "cells": [
        cell("markdown", f"{START}\n{END}"),
        cell("markdown", PROSE.splitlines(keepends=True)),  # Jupyter saves lines
        cell("code", 'REPOSITORY = ""  # written by notebooks/publish.py', execution_count=1, outputs=[]),
        cell("code", "draw()", execution_count=2, outputs=[PICTURE], metadata=FIGURE),
    ],
    "metadata": {}, "nbformat": 4, "nbformat_minor": 5,
})  # fmt: skip


def check(notebook: str, root: Path) -> list[str]:
    path = root / "notebooks/one.ipynb"
    path.parent.mkdir()
    (path.parent / "x.md").touch()
    path.write_text(notebook)
    return problems(path, root)


def test_good_notebook_has_no_problems(tmp_path):
    assert check(GOOD, tmp_path) == []


@pytest.mark.parametrize(("problem", "good", "bad"), [
    ("not nbformat 4", '"nbformat": 4', '"nbformat": 3'),
    ("not valid", '"metadata": {}, "nbformat"', '"extra": 1, "metadata": {}, "nbformat"'),
    ("no id", '"id": "cell-6", ', ""),
    ("metadata.widgets", '"metadata": {}, "nbformat"', '"metadata": {"widgets": {}}, "nbformat"'),
    ("H1", "# One", "## One"),
    ("H1", "See ", "\\n# Two\\n"),
    ("REPOSITORY", "REPOSITORY", "repository"),
    ("REPOSITORY", "draw()", 'REPOSITORY = \\"a/b\\"  # written by notebooks/publish.py'),
    ("1, 2, 3", '"execution_count": 1', '"execution_count": 3'),
    ("1, 2, 3", '"execution_count": 1', '"execution_count": null'),
    ("markers", "<!-- badges -->", ""),
    ("badges do not open", "\\n<!-- /b", "\\n[![a](https://x.org/a)](https://x.org/two.ipynb)\\n<!-- /b"),
    ("alt text", "![a drawing]", "![]"),
    ("alt text", "See ", "<img src='x.md'>"),
    ("alt text", "See ", "<img alt='' src='x.md'>"),
    ("alt text", 'img alt=\\"A grid of sixteen pictures, most show stripes.\\" ', "img "),
    ("stored as an image", '"text/plain"', '"image/png": "aGk/work", "text/plain"'),
    ("missing file", "(x.md#part)", "(gone.md#part)"),
    ("missing file", "See ", "<a href='../gone.md'>"),
    ("one machine: /work", "See ", "in /work/main"),
    ("one machine: C:", "draw()", "open('C:\\\\x')"),
    ("one machine: /root", "<Figure>", "saved to /root/x"),
    ("error is stored", '"outputs": [{', '"outputs": [' + json.dumps(ERROR) + ", {"),
    ("widget's output", '"text/plain"', f'"{WIDGET}": {{}}, "text/plain"'),
    ("'figure'", '["figure"]', "[]"),
    ("metadata.alt", "of sixteen pictures, most show stripes.", ""),
    ("not its cell's", "stripes", "spots"),
])  # fmt: skip
def test_spoilt_notebook_is_noticed(problem, good, bad, tmp_path):
    assert good in GOOD
    found = check(GOOD.replace(good, bad, 1), tmp_path)
    assert len(found) == 1
    assert problem in found[0]


def test_private_words_are_found_in_prose_and_alt_texts_but_not_in_code(tmp_path):
    text = GOOD.replace("draw()", "thing()").replace("See ", "Slopes excite `a thing`; typographic attacks. ")
    (tmp_path / "one.ipynb").write_text(text.replace("most show stripes", "none attacked, all foreground"))
    assert private_words(tmp_path / "one.ipynb") == ["Slopes", "excite", "attacked"]


OPENING = """# 01. A finding
Is it so? **Is it really so?** The paper says yes ([arXiv](https://arxiv.org), section 3).

**At the end you will be able to** say so.

**You need** notebook 00.

**Time**: about 30 minutes. Running every cell takes about a minute on two CPU cores and seconds on a GPU."""
LOOK = f"<details><summary>{SEE}</summary>\n\nStripes.\n</details>"
TWIN = "Readers without a running kernel see no sliders:"
CARD_TEXT = """*Difficulty: easy. Importance: high. Time: 5 minutes.*

<details><summary>Hint</summary>

Look.
</details>

<details><summary>Solution</summary>

Six.
</details>"""
CLOSING = """## Summary
It is so. **What did not work**: the rest.

## Quiz
1. Is it?
2. Why?

<details><summary>Answers</summary>

1. It is.
2. See above.
</details>

## References
* [arXiv](https://arxiv.org): figures 1 and 4.

Contents: [README](README.md)"""


def lesson() -> str:
    """The smallest notebook that has the whole skeleton."""
    drawn = {"metadata": FIGURE, "outputs": [], "execution_count": None}
    code = {"outputs": [], "execution_count": None}
    parts = [
        cell("markdown", f"{START}\n{END}"), cell("markdown", OPENING), cell("markdown", "## Set up"),
        cell("code", 'model = vv.load("emoji-vit")', **code), cell("markdown", "## The answer first"),
        cell("code", "answer()", **drawn), cell("markdown", "## By depth\n**Predict.** Will it rise?"),
        cell("code", "plot()", **drawn), cell("markdown", f"{LOOK}\n\n## Slide it"), cell("code", "vv.interactive(draw)", **code),
        cell("markdown", TWIN), cell("code", "twin()", **drawn), cell("markdown", f"{LOOK}\nSo it is."),
        *(part for k in (1, 2, 3) for part in (cell("markdown", f"## Exercise {k}: a thing\n{CARD_TEXT}"),
                                               cell("code", f'vv.check("01.{k}", 0, model)', **code))),
        cell("markdown", CLOSING),
    ]
    for i, part in enumerate(parts):
        part["id"] = f"cell-{i}"
    return json.dumps({"cells": parts, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})


def lacks(notebook: str, folder: Path) -> list[str]:
    path = folder / "01_a_finding.ipynb"
    path.write_text(notebook)
    return skeleton_problems(path)


def test_lesson_has_the_skeleton(tmp_path):
    assert lacks(lesson(), tmp_path) == []


@pytest.mark.parametrize(("problem", "good", "bad"), [
    ("begin with 01.", "# 01. A", "# 1. A"),
    ("able to do", "will be able to", "can"),
    ("needed", "**You need**", "Needs:"),
    ("CPU", "two CPU cores", "a machine"),
    ("the time", "about 30 minutes", "not long"),
    ("the paper", "([arXiv](https://arxiv.org), section 3)", ""),
    ("question in bold", "**Is it really so?**", "Is it really so?"),
    ("Set up", "## Set up", "## Before you begin"),
    ("Set up", "## The answer first", "## First"),
    ("shows no figure", "figure", "sketch"),
    ("name the model", "vv.load(", "load("),
    ("predicted", "**Predict.**", "Guess."),
    ("three exercises", "## Exercise 2: a", "## Exercise 4: a"),
    ("no line", "*Difficulty: easy. Importance: high.", "*Difficulty: ★★."),
    ("no line", "Time: 5 minutes.", "Time: ten minutes."),
    ("no fold Hint", "<summary>Hint<", "<summary>Clue<"),
    ("no fold Solution", "Six.", ""),
    ('vv.check("01.2"', "01.2", "01.1"),
    ("By depth: no fold", "Stripes.", ""),
    ("By depth: no fold", f"{LOOK}\n\n## Slide it", "## Slide it"),
    ("Slide it: no fold", f"{LOOK}\nSo it is.", "So it is."),
    ("follows vv.interactive(draw)", TWIN, "Sliders:"),
    ("end with Summary", "## Quiz", "## Questions"),
    ("what did not work", "**What did not work**", "The rest"),
    ("one answer a question", "2. See above.", "See above."),
    ("one answer a question", "<summary>Answers<", "<summary>Right<"),
    ("which section", "figures 1 and 4", "some figures"),
])  # fmt: skip
def test_lesson_without_a_part_of_it_is_noticed(problem, good, bad, tmp_path):
    written = lesson()
    good, bad = (json.dumps(text)[1:-1] for text in (good, bad))
    assert good in written
    found = lacks(written.replace(good, bad, 1), tmp_path)
    assert len(found) == 1
    assert problem in found[0]


def test_a_fold_before_its_figure_is_noticed(tmp_path):
    fold, written = json.dumps(LOOK)[1:-1], lesson()
    written = written.replace(fold, "", 1).replace("Will it rise?", f"Will it rise?\\n{fold}")
    assert lacks(written, tmp_path) == [f"By depth: no fold '{SEE}' after its figure"]


def test_neighbors_of_a_notebook_are_those_before_and_after_it():
    course = [Path(f"{name}.ipynb") for name in ("00_a", "03_b", "05_c")]
    assert neighbors(course[0], course) == "Contents: [README](README.md) · Next: [03_b](03_b.ipynb)"
    assert neighbors(course[1], course) == ("Previous: [00_a](00_a.ipynb) · Contents: [README](README.md) · "
                                             "Next: [05_c](05_c.ipynb)")
    assert neighbors(course[2], course) == "Previous: [03_b](03_b.ipynb) · Contents: [README](README.md)"
