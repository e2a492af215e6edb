"""What runs together where two processes share the tests (``--dist=loadgroup``): a file, whose fixtures serve all of it."""

import pytest

APART = ("test_run.py", "test_notebooks.py")  # each test takes minutes and needs no other


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(item.nodeid if item.path.name in APART else str(item.path)))
