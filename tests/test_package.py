"""What holds for the package as a whole."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
import subprocess
import sys

import pytest

import omni_core
from omni_core import errors

HEAVY = {"torch", "diffusers", "transformers"}


@pytest.mark.parametrize(
    "statement",
    ["import omni_core", "from omni_core import OmniDiffusionConfig; OmniDiffusionConfig()", "from omni_core import *"],
)
def test_importing_is_light(statement: str) -> None:
    code = f"{statement}\nimport sys; print(sorted({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def test_every_public_name_is_there_and_documented() -> None:
    for name in omni_core.__all__:
        value = getattr(omni_core, name)
        assert name == "hookimpl" or inspect.getdoc(value), name
    assert set(omni_core.__all__) <= set(dir(omni_core))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = omni_core.Nonsense


def test_every_module_can_be_imported() -> None:
    for module in pkgutil.walk_packages(omni_core.__path__, "omni_core."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert omni_core.__version__ == version("omni-core")


def test_errors_are_one_tree_and_travel() -> None:
    found = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]
    assert len(found) > 15
    for kind in found:
        assert issubclass(kind, errors.OmniError)
        copy = pickle.loads(pickle.dumps(kind("what happened", worker_traceback="where")))
        assert type(copy) is kind
        assert copy.message == "what happened"
        assert "where" in str(copy)
