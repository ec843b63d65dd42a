"""What is built for others: the wheel and the sdist."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(target)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    return target


def test_the_wheel_contains_the_package_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("tornadose-1.0.0-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = Parser().parsestr(archive.read("tornadose-1.0.0.dist-info/METADATA").decode())
    source = ROOT / "src"
    package = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix == ".py" or path.name == "py.typed"
    }
    extra = {f"tornadose-1.0.0.dist-info/{n}" for n in ("METADATA", "RECORD", "WHEEL")}
    assert names == package | extra | {"tornadose-1.0.0.dist-info/licenses/LICENSE"}
    assert "tornadose/py.typed" in names
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    required = [line for line in metadata.get_all("Requires-Dist", []) if "extra" not in line]
    assert required == ["tornado>=6.6", "typing-extensions>=4.9"]
    assert metadata.get_all("Provides-Extra") == ["demo", "redis"]
    redis = [line for line in metadata.get_all("Requires-Dist", []) if "'redis'" in line]
    assert redis == ["redis[hiredis]<9,>=5.0.1; extra == 'redis'"]


def test_the_sdist_contains_what_the_tests_need(built: Path) -> None:
    (sdist,) = built.glob("tornadose-1.0.0.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix("tornadose-1.0.0/") for name in archive.getnames()}
    for name in ("LICENSE", "README.md", "CHANGELOG.md", "tox.ini", "pyproject.toml"):
        assert name in names
    for folder in ("src/tornadose", "tests/unit", "demos", "docs"):
        assert any(name.startswith(folder + "/") for name in names)
    assert not any(
        "__pycache__" in name or name.startswith(".") for name in names - {".gitignore"}
    )
