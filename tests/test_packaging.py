"""The wheel: it builds, holds hf_distill and nothing else, and imports alone; and the files that go with it."""

import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy: setuptools would leave its build/ and egg-info in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = [
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "hf_distill",
        "recipes",
        "tests",
        "accelerate_configs",
    ]
    source.mkdir()
    for name in tracked:
        if (REPOSITORY / name).exists():
            subprocess.run(["cp", "-R", str(REPOSITORY / name), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    built = subprocess.run([*command, "-w", str(folder), str(source)], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
    folders = {name.split("/")[0] for name in names}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"hf_distill"}
    assert "hf_distill/py.typed" in names
    assert any(re.fullmatch(r"hf_distill-[^/]+\.dist-info/licenses/LICENSE", name) for name in names)
    unknown = [
        name for name in names if name.startswith("hf_distill/") and not name.endswith((".py", "py.typed"))
    ]
    assert not unknown
    assert not [name for name in names if "__pycache__" in name or "/test" in name]


def test_wheel_holds_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name for name in archive.namelist() if name.startswith("hf_distill/") and name.endswith(".py")
        }
    sources = {str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "hf_distill").rglob("*.py")}
    assert packed == sources  # a folder without __init__.py would be left out


def test_wheel_metadata(metadata):
    assert metadata["Name"] == "hf-distill"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.10"
    required = {Requirement(line).name for line in metadata.get_all("Requires-Dist") if "extra" not in line}
    assert {"transformers", "torch", "datasets", "accelerate", "evaluate", "scikit-learn"} <= required
    assert {"test", "docs", "trackers"} <= set(metadata.get_all("Provides-Extra"))


def test_wheel_imports_alone(wheel, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:  # what installing a pure wheel does
        archive.extractall(installed)
    code = "import hf_distill as h; assert all(hasattr(h, name) for name in h.__all__); print(h.__file__)"
    # PYTHONPATH comes before what an editable install adds, and the folder is not the checkout.
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    assert Path(output.stdout.strip()).is_relative_to(installed)


def test_constraints_fit_the_requirements(project):
    pinned = {}
    for line in (REPOSITORY / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", line
            pinned[requirement.name.lower().replace("_", "-")] = Version(specifier.version)
    tested = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    for requirement in map(Requirement, tested):
        if requirement.name != "hf-distill":
            name = requirement.name.lower().replace("_", "-")
            assert name in pinned, f"constraints.txt lacks {name}"
            assert pinned[name] in requirement.specifier, f"{pinned[name]} is not in {requirement}"


def test_the_lowest_transformers_that_ci_runs_is_the_one_promised(project):
    (transformers,) = [
        Requirement(line) for line in project["dependencies"] if line.startswith("transformers")
    ]
    (specifier,) = transformers.specifier
    assert specifier.operator == ">="
    lowest = Version(specifier.version)
    ran = re.search(r"transformers==([\d.]+)", (REPOSITORY / ".ci" / "run").read_text())
    assert ran is not None
    assert Version(ran[1]) == lowest


def test_changelog_has_the_version(project):
    assert f"## {project['version']}" in (REPOSITORY / "CHANGELOG.md").read_text()
