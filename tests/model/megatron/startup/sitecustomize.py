"""On the PYTHONPATH of a run, lets megatron work on CPUs in whichever of its processes imports it.

Python imports this file as it starts. It costs nothing until somebody imports megatron: then what megatron_on_cpu.py
does before and after goes around that import.
"""

import importlib.abc
import importlib.util
import sys
from pathlib import Path

SHIM = Path(__file__).parents[1] / "megatron_on_cpu.py"


class AroundMegatron(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "megatron.core":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        spec.loader = AroundLoader(spec.loader)
        return spec


class AroundLoader(importlib.abc.Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        shim_spec = importlib.util.spec_from_file_location("megatron_on_cpu", SHIM)
        self.shim = importlib.util.module_from_spec(shim_spec)
        shim_spec.loader.exec_module(self.shim)
        self.shim.before_import()
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        self.shim.after_import()


sys.meta_path.insert(0, AroundMegatron())
