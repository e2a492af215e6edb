"""Fixtures of the browser tests: one JupyterLab and one Chromium a file, a page and a kernel per notebook.

Without a browser or playwright the tests are skipped, with the reason; with ``VITVIZ_REQUIRE_BROWSER=1`` (as in
``.ci/run``) they fail instead. Screenshots of failures go to ``$VITVIZ_ARTEFACTS`` or the temporary folder.
"""

import contextlib
import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab import Chromium, Lab, find_chromium  # noqa: E402

_measured: list[str] = []
_open: list = []


def pytest_configure(config):
    config.addinivalue_line("markers", "browser: drives JupyterLab in headless Chromium")


def pytest_collection_modifyitems(items):
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.browser)


def _missing() -> str | None:
    for package in ("playwright", "jupyterlab", "psutil"):
        if importlib.util.find_spec(package) is None:
            return f"no {package}: python -m pip install -e '.[ci]'"
    if find_chromium() is None:
        return "no Chromium: install Debian's `chromium`, or set VITVIZ_CHROMIUM to a browser"
    return None


@pytest.fixture(scope="module")
def chromium():
    """The headless browser."""
    reason = _missing()
    if reason and os.environ.get("VITVIZ_REQUIRE_BROWSER", "") not in ("", "0"):
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)
    with Chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def lab(chromium):
    """A JupyterLab over a copy of the repository's ``notebooks``."""
    with Lab(["notebooks"]) as server:
        yield server


@contextlib.contextmanager
def _opened(lab, chromium, path, **options):
    with lab.open(path, chromium, **options) as notebook:
        _open.append(notebook)
        try:
            yield notebook
        finally:
            _open.remove(notebook)


@pytest.fixture(scope="module")
def open_notebook(lab, chromium):
    """``open_notebook(path)``: the notebook in a page of its own, with its own kernel, both closed after the module."""
    with contextlib.ExitStack() as stack:
        yield lambda path, **options: stack.enter_context(_opened(lab, chromium, path, **options))


@pytest.fixture(scope="session")
def measured():
    """``measured(what, value, unit)``: a figure for the summary of the run. Information; no test depends on it."""

    def note(what: str, value: float, unit: str = "s") -> None:
        _measured.append(f"{what}: {value:.2f} {unit}")

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and _open:
        folder = Path(os.environ.get("VITVIZ_ARTEFACTS") or Path(tempfile.gettempdir()) / "vitviz-browser-failures")
        for number, notebook in enumerate(_open):
            with contextlib.suppress(Exception):
                report.sections.append((f"notebook {notebook.path}", notebook.report()))
                name = re.sub(r"\W+", "_", f"{item.name}_{report.when}_{number}")
                report.sections.append(("screenshot", str(notebook.screenshot(folder / f"{name}.png"))))
    return report


def pytest_terminal_summary(terminalreporter):
    if _measured:
        terminalreporter.section("measured in the browser (information)")
        for line in _measured:
            terminalreporter.write_line(line)
