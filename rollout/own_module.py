"""A user's own Python file or package, named in the configuration."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_module(name: str) -> ModuleType:
    """The module `path/to/file.py` or `package.module`; raises whatever its import raises."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    # A name that nothing else has: a file random.py must not take the place of Python's.
    spec = importlib.util.spec_from_file_location(f"cispo_own_{Path(name).stem}", name)
    assert spec is not None and spec.loader is not None, f"Python has a loader for every .py file, but not for {name}"
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look a class's module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
