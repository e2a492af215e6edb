"""What runs together where two processes share the tests (``--dist=loadgroup``)."""

import pytest

APART = ("test_run.py", "test_notebooks.py")  # each test takes minutes and needs no other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file, whose fixtures serve all of it; or the folder of the browser, of which there is one. What is long comes first."""
    items.sort(key=lambda item: ("pretrained" in item.path.parts, item.path.name not in APART))
    for item in items:
        group = item.nodeid if item.path.name in APART else item.path.parent if item.path.parent.name == "browser" else item.path
        item.add_marker(pytest.mark.xdist_group(str(group)))
