import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement

import vitviz_nb
from vitviz_nb.course.setup import damaged_files
from vitviz_nb.utils.paths import data_dir

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
CONDA_NAME = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}
IMPORT_NAME = {"pillow": "PIL", "ipython": "IPython"}


def requirements(*lists: list[str]) -> dict[str, Requirement]:
    return {r.name: r for r in (Requirement(line) for lines in lists for line in lines)}


def conda(path: str) -> dict[str, tuple[str, str]]:
    """Name -> (version, reason) of the packages in an environment file."""
    lines = (ROOT / path).read_text().split("dependencies:\n")[1].splitlines()
    found = [re.fullmatch(r"  - ([a-z0-9_-]+)([<>=!].*?)?(?:  # (.+))?", line).groups(default="") for line in lines]
    return {name: (version, reason) for name, version, reason in found}


def test_only_lower_bounds():
    for requirement in requirements(PROJECT["project"]["dependencies"], *EXTRAS.values()).values():
        assert [s.operator for s in requirement.specifier] == [">="], requirement
    assert PROJECT["project"]["requires-python"] == ">=3.11"


def test_binder_has_the_root_environment_and_cpu_torch():
    root, binder = conda("environment.yml"), conda("binder/environment.yml")
    assert "pytorch-cpu" in binder
    del binder["pytorch-cpu"]
    assert binder == root
    names = [(ROOT / path).read_text().split("name:")[1].split("dependencies:")[0] for path in
             ("environment.yml", "binder/environment.yml")]  # fmt: skip
    assert names[0] == names[1]  # name and channels


def test_environment_has_the_packages_dependencies():
    environment = conda("environment.yml")
    for name, requirement in requirements(PROJECT["project"]["dependencies"], EXTRAS["lab"]).items():
        assert environment[CONDA_NAME.get(name, name)][0] == str(requirement.specifier)


@pytest.mark.parametrize("path", ["environment.yml", "binder/environment.yml"])
def test_every_conda_package_has_its_reason(path):
    assert not [name for name, (_, reason) in conda(path).items() if len(reason) < 10]


def test_post_build_stops_at_errors_and_installs_without_dependencies():
    script = ROOT / "binder/postBuild"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/bash\n")
    assert "\nset -ex\n" in script.read_text()
    assert "pip install --no-deps --no-cache-dir ." in script.read_text()


def test_every_import_of_the_package_is_declared():
    imported, cluster = {"vitviz_nb"}, {"dask"}  # which comes with distributed
    for path in (ROOT / "vitviz_nb").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(node.module.split(".")[0])
    declared = {IMPORT_NAME.get(name, name) for name in requirements(PROJECT["project"]["dependencies"])}
    cluster |= set(requirements(PROJECT["project"]["optional-dependencies"]["cluster"]))
    assert imported - declared - cluster - set(sys.stdlib_module_names) == {"vitviz_nb"}


@pytest.mark.slow
def test_all_but_the_worker_of_a_shared_visualizer_imports_without_dask():
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "vitviz_nb").rglob("*.py")
               if path.name not in ("__main__.py", "desk.py")]
    code = ("import importlib, sys; sys.modules['distributed'] = sys.modules['dask'] = None\n"
            f"for name in {modules!r}: importlib.import_module(name.removesuffix('.__init__'))\nprint('all')")
    assert fresh(code) == "all"


def fresh(code: str, folder: Path = ROOT) -> str:
    """What the code prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def test_import_is_light():
    heavy = "{'torch', 'numpy', 'timm', 'matplotlib', 'ipywidgets', 'anywidget', 'PIL', 'pandas'}"
    assert fresh(f"import sys, vitviz_nb, vitviz_nb.cli; print({heavy} & set(sys.modules))") == "set()"


@pytest.mark.slow
def test_every_name_that_a_text_or_a_docstring_mentions_works_in_a_fresh_process():
    """Public names and what is written as vv.NAME or vv.NAME.NAME, in README, notebooks, teaching, data and code."""
    texts = [ROOT / "README.md", *(path for folder in ("notebooks", "data", "vitviz_nb") for path in (ROOT / folder).rglob("*")
                                   if path.suffix in (".md", ".ipynb", ".py") and ".ipynb_checkpoints" not in path.parts)]
    names = {f"vv.{name}" for name in vitviz_nb.__all__}
    for path in texts:
        names |= set(re.findall(r"\bvv(?:\.[A-Za-z]\w*){1,2}", path.read_text(encoding="utf-8")))
    assert {"vv.sites.KINDS", "vv.load", "vv.Atlas.open", "vv.make_atlas"} <= names
    code = f"import vitviz_nb as vv\nfor name in {sorted(names)!r}:\n    try:\n        eval(name)\n" \
           "    except AttributeError as error:\n        print(name, error)"
    assert fresh(code) == ""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])))


@pytest.mark.slow
def test_wheel_carries_its_data_and_nothing_of_the_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path)
    assert "vitviz_nb/data/emoji_world/concepts.csv" in names
    assert "vitviz_nb/data/emoji_world/LICENSES.md" in names
    assert f"vitviz_nb-{vitviz_nb.__version__}.dist-info/licenses/LICENSE" in names
    assert {name.split("/")[0] for name in names} == {"vitviz_nb", f"vitviz_nb-{vitviz_nb.__version__}.dist-info"}
    assert "__pycache__" not in "".join(names)
    assert "vitviz_nb/data/SHA256SUMS" in names
    assert {f"vitviz_nb/widgets/browser.{suffix}" for suffix in ("py", "js", "css", "html")} <= set(names)
    code = "from vitviz_nb.utils.paths import data_dir; print((data_dir() / 'emoji_world' / 'concepts.csv').resolve())"
    assert Path(fresh(code, tmp_path)) == (tmp_path / "vitviz_nb/data/emoji_world/concepts.csv").resolve()


def test_editable_install_reads_the_checkout(tmp_path):
    editable = next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"]))
    with zipfile.ZipFile(editable) as archive:
        names = archive.namelist()
        pth = [name for name in names if name.endswith(".pth")]
        assert [archive.read(name).decode().strip() for name in pth] == [str(ROOT)]
    assert not [name for name in names if name.startswith("vitviz_nb/")]  # no second copy of code or data
    assert data_dir() == ROOT / "data"


@pytest.mark.slow
def test_command_is_installed(wheel):
    with zipfile.ZipFile(wheel) as archive:
        entry = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert "vitviz = vitviz_nb.cli:main" in archive.read(entry).decode()


def test_every_shipped_file_has_its_sum():
    """Complete and current; otherwise run the command that stands in vitviz_nb/course/setup.py."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT / "data", capture_output=True, text=True, check=True).stdout
    shipped = {name for name in tracked.split("\0") if name and (ROOT / "data" / name).exists()
               and not name.endswith((".md", ".py", "SHA256SUMS"))}
    *lines, _ = (ROOT / "data" / "SHA256SUMS").read_text(encoding="utf-8").splitlines()  # the last counts them
    listed = [line.split("  ", 1)[1] for line in lines]
    assert set(listed) == shipped and len(listed) == len(shipped)
    assert damaged_files(ROOT / "data") == []
