"""The house rules of imports, names and docstrings: who may import whom, and which library stays in which place.

The tables below are the rule. Imports for the type checker alone are free; an import inside a function counts, for it
binds two packages as much as one at the top. `faults_of` is itself tested on made-up sources that break the rules.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("cispo", "configs", "launch", "model", "rewards", "rollout", "sandbox")

# What a folder may import of ours, by module or package. A deeper folder's entry stands instead of its parent's.
OWN = {
    "model": ("model",),
    "sandbox": ("sandbox",),
    "cispo": ("cispo",),
    "cispo/learner": ("cispo", "model"),
    "rewards": ("rewards", "cispo.types", "cispo.errors", "sandbox"),
    "rollout": ("rollout", "cispo.types", "cispo.errors", "cispo.protocols", "cispo.schedule", "model", "sandbox"),
    "configs": tuple(package for package in PACKAGES if package != "launch"),
    "launch": PACKAGES,
}

# What a folder may import of others, besides the standard library.
OUTSIDE = {
    "model": {"torch", "safetensors", "tokenizers", "jinja2"},
    "model/kernels": {"torch", "triton", "fla"},
    "model/megatron": {"torch", "safetensors", "megatron"},
    "sandbox": set(),
    "cispo": {"torch", "numpy"},
    "cispo/learner": {"torch", "numpy", "safetensors", "deepspeed", "megatron"},
    "rewards": {"math_verify", "latex2sympy2_extended", "sympy"},
    "rollout": {"torch", "numpy", "tokenizers", "datasets", "vllm", "openai", "reasoning_gym"},
    "configs": set(),
    "launch": {"torch", "numpy", "ray", "hydra", "omegaconf", "wandb", "rich", "plotly", "yaml", "argcomplete"},
}

# Heavy libraries that one file or folder alone may touch.
ONLY_IN = {
    "ray": "launch/",
    "hydra": "launch/",
    "omegaconf": "launch/",
    "wandb": ("launch/wandb_client.py", "launch/wandb_mode.py", "launch/wandb_rows.py", "launch/wandb_tracker.py"),
    "deepspeed": "cispo/learner/deepspeed.py",
    "megatron": ("cispo/learner/megatron.py", "model/megatron/"),
    "jinja2": "model/tokenizer.py",  # chat templates are written in it, and torch brings it
    "triton": "model/kernels/",
    "fla": "model/kernels/",
    "vllm": "rollout/vllm_engine.py",
    "openai": "rollout/openai_engine.py",
    "reasoning_gym": "rollout/gym_task.py",
}

EMPTY_NAMES = {"utils", "util", "common", "base", "core", "helpers", "helper", "misc"}


def python_files() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def imported_names(node: ast.AST) -> list[str]:
    """The dotted names that a statement or call imports; `from cispo import loss` is cispo.loss."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        return [f"{base}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in (
        "importlib.import_module",
        "import_module",
        "__import__",
    ):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
    return []


def runtime_nodes(tree: ast.AST, *, functions: bool) -> Iterator[ast.AST]:
    """Every node that runs, `if TYPE_CHECKING:` left out; with functions=False only what runs on import."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) and not functions:
            continue
        yield node
        yield from runtime_nodes(node, functions=functions)


def imports(source: str, *, functions: bool = True) -> list[str]:
    tree = ast.parse(source)
    return [name for node in runtime_nodes(tree, functions=functions) for name in imported_names(node)]


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def faults_of(file: str, source: str) -> list[str]:
    """Every import in `source`, as the content of `file`, that breaks a rule."""
    folder = max((entry for entry in OWN | OUTSIDE if file.startswith(entry + "/")), key=len)
    package = file.split("/")[0]
    own = OWN.get(folder, OWN[package])
    faults = []
    for name in imports(source):
        top = name.split(".")[0]
        if name.startswith("."):
            faults.append(f"{file}: the relative import {name}; imports are written in full")
        elif top in PACKAGES:
            if not within(name, own):
                faults.append(f"{file}: {name}; {folder} may import {', '.join(own)} of ours")
        elif top not in sys.stdlib_module_names and top not in OUTSIDE[folder]:
            faults.append(f"{file}: {name}; {folder} may import {', '.join(sorted(OUTSIDE[folder])) or 'no library'}")
        elif top in ONLY_IN and not file.startswith(ONLY_IN[top]):
            faults.append(f"{file}: {name}; {top} stays in {ONLY_IN[top]}")
    return faults


def test_imports_keep_their_direction():
    faults = [fault for file in python_files() for fault in faults_of(file, (ROOT / file).read_text())]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "file, source",
    [
        ("model/hybrid.py", "from cispo.types import Group"),
        ("model/hybrid.py", "import triton"),
        ("sandbox/sandbox.py", "import numpy as np"),
        ("sandbox/sandbox.py", "from cispo.errors import CispoError"),
        ("cispo/loss.py", "from model import HybridLM"),
        ("cispo/trainer.py", "import ray"),
        ("cispo/trainer.py", "def f():\n    import wandb"),
        ("cispo/trainer.py", "from omegaconf import DictConfig"),
        ("cispo/learner/local.py", "import deepspeed"),
        ("rewards/reward.py", "from cispo.trainer import train"),
        ("rewards/reward.py", "from rollout.engine import Engine"),
        ("rollout/engine.py", "from cispo import loss"),
        ("rollout/engine.py", "import importlib\nimportlib.import_module('ray')"),
        ("rollout/engine.py", "import vllm"),
        ("configs/schema.py", "from launch.train import run_training"),
        ("launch/train.py", "try:\n    import wandb\nexcept ImportError:\n    pass"),
        ("launch/train.py", "from . import build"),
    ],
)
def test_a_forbidden_import_is_found(file, source):
    assert len(faults_of(file, source)) == 1


@pytest.mark.parametrize(
    "file, source",
    [
        ("cispo/loss.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from model import HybridLM"),
        ("cispo/learner/local.py", "from model import HybridLM\nimport torch"),
        ("cispo/learner/deepspeed.py", "import deepspeed"),
        ("model/kernels/triton_lightning.py", "import triton.language as tl\nfrom model.row import Row"),
        ("rewards/code_tests.py", "from cispo.types import Score\nfrom sandbox import SandboxPool"),
        ("launch/wandb_tracker.py", "def f():\n    import wandb"),
    ],
)
def test_an_allowed_import_is_no_fault(file, source):
    assert faults_of(file, source) == []


def test_no_modules_import_each_other_in_a_circle():
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in python_files()}

    def needed(file: str) -> set[str]:
        names = imports((ROOT / file).read_text(), functions=False)
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        return {name for name in found if name in modules}

    graph = {module: needed(file) - {module} for module, file in modules.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_script_hides_a_package():
    """A script's own folder comes first on its path: benchmarks/sandbox.py would be what `import sandbox` finds."""
    scripts = {path.stem for folder in ("benchmarks", "docs", "examples") for path in (ROOT / folder).glob("*.py")}
    assert not scripts & set(PACKAGES)


def test_names_say_what_is_inside():
    paths = [path for package in PACKAGES for path in [ROOT / package, *(ROOT / package).rglob("*")]]
    empty = [str(path.relative_to(ROOT)) for path in paths if path.stem in EMPTY_NAMES]
    assert not empty, f"names that say nothing: {', '.join(empty)}"


def test_every_module_says_why_it_exists():
    silent = [file for file in python_files() if not ast.get_docstring(ast.parse((ROOT / file).read_text()))]
    assert not silent, f"no module docstring: {', '.join(silent)}"


def run_python(program: str) -> str:
    """Run `program` in a fresh interpreter that sees this checkout; its output, errors included."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr


ABSENT = """
import sys
absent = {"ray", "hydra", "omegaconf", "wandb", "datasets", "transformers", "plotly", "math_verify", "sympy", "rich",
          "pyarrow", "latex2sympy2_extended", "jinja2", "yaml", "deepspeed", "megatron",
          "vllm", "openai", "triton", "fla", "reasoning_gym"}
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_policy_algorithm_and_engine_need_torch_numpy_and_safetensors_only():
    program = ABSENT + "import model, cispo.loss, cispo.trainer, cispo.learner.local, rollout.engine\nprint('imported')"
    assert run_python(program) == "imported"


@pytest.mark.parametrize(
    "modules, unwanted",
    [
        ("sandbox", ("torch", "numpy")),
        ("cispo.types, cispo.protocols, rewards.grader_worker, rollout.prompts", ("torch",)),
    ],
    ids=["the sandbox loads the standard library alone", "helper processes do not pay for torch"],
)
def test_light_modules_stay_light(modules, unwanted):
    program = f"import sys, {modules}\nprint([name for name in {unwanted!r} if name in sys.modules])"
    assert run_python(program) == "[]"
