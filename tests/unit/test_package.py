"""The shape of the package: what it exports, and what its import costs and brings along."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from importlib.metadata import version
from types import ModuleType

import pytest

import tornadose

MODULES = ["tornadose"] + [
    module.name for module in pkgutil.walk_packages(tornadose.__path__, "tornadose.")
]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_the_module_defines_or_re_exports(name: str) -> None:
    module = importlib.import_module(name)
    exported: tuple[str, ...] = module.__all__
    assert type(exported) is tuple
    assert list(exported) == sorted(exported, key=_constants_first)
    for attribute in exported:
        assert hasattr(module, attribute)
    if not hasattr(module, "__path__"):
        assert public_definitions(module) <= set(exported)


def _constants_first(name: str) -> tuple[int, str]:
    return (0 if name.isupper() else 1 if name[0].isupper() else 2, name)


def public_definitions(module: ModuleType) -> set[str]:
    """Return the public classes that this module itself defines."""
    return {
        name
        for name, value in vars(module).items()
        if isinstance(value, type)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }


def test_the_version_is_that_of_the_installed_package() -> None:
    assert tornadose.__version__ == version("tornadose")


def test_importing_it_loads_no_redis() -> None:
    code = "import sys, tornadose; sys.exit('redis' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("module", ["tornadose", "tornadose.stores"])
@pytest.mark.parametrize("name", ["RedisStore", "RedisStreamStore"])
def test_without_redis_py_a_redis_store_says_how_to_get_it(module: str, name: str) -> None:
    code = f"import sys; sys.modules['redis'] = None; from {module} import {name}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    (*_, error) = done.stderr.splitlines()
    assert error == f'ImportError: {name} needs redis-py: pip install "tornadose[redis]"'


def test_the_core_loads_no_tornado() -> None:
    code = (
        "import sys, types; package = types.ModuleType('tornadose');"
        f"package.__path__ = {list(tornadose.__path__)!r}; sys.modules['tornadose'] = package;"
        "import tornadose.subscription, tornadose.stores, tornadose.fanout, tornadose.wire;"
        "sys.exit('tornado' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
