"""What runs together, and in which order, where two processes share the tests (``--dist=loadscope``, see ``.ci/run``)."""

from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

APART = ("test_run.py", "test_notebooks.py")  # each test takes minutes and needs no other


class Groups(LoadScopeScheduling):
    """A file, whose fixtures serve all of it; or the folder of the browser, of which there is one."""

    def _split_scope(self, nodeid: str) -> str:  # as xdist's own schedulers for files and groups
        path = nodeid.partition("::")[0]
        return nodeid if path.endswith(APART) else "browser" if "/browser/" in path else path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> Groups | None:
    return Groups(config, log) if config.getvalue("dist") == "loadscope" else None


@pytest.hookimpl(tryfirst=True)  # before -m looks at marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests are marked as such; what is long comes first."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent / "unit"):
            item.add_marker("unit")
    items.sort(key=lambda item: ("pretrained" in item.path.parts, item.path.name not in APART))
