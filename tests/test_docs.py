"""The documentation is true: programs run, command lines compose, names exist, tables are up to date."""

import ast
import dataclasses
import importlib.util
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import hydra
import pytest
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from configs.schema import RunConfig
from configs.strict import from_dict, to_dict
from launch.cli import main

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("cispo", "configs", "launch", "model", "rewards", "rollout", "sandbox")
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md")), *sorted(DOCS.glob("decisions/*.md"))]


def by_name(path):
    return str(path.relative_to(ROOT))


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), flags=re.S | re.M)


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate_configs", DOCS / "generate_configs.py")
    module = importlib.util.module_from_spec(spec)
    patch = pytest.MonkeyPatch()
    patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    patch.undo()


def test_the_experiment_that_the_page_shows_composes(tmp_path):
    (shown,) = blocks(DOCS / "configs.md", "yaml")
    shutil.copytree(ROOT / "configs", tmp_path / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "configs" / "experiment" / "mine.yaml").write_text(shown)
    ConfigStore.instance().store(name="schema", node=to_dict(RunConfig()))
    with hydra.initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
        composed = hydra.compose("train", overrides=["experiment=mine"])
    config = from_dict(RunConfig, OmegaConf.to_container(composed))
    assert (config.name, config.steps, config.mask_above, config.learner.lr) == ("mine", 80, 1.28, 1e-4)


def test_the_audit_of_the_rewards_page_finds_no_fault(tmp_path, monkeypatch, capsys):
    page = DOCS / "rewards.md"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text(*blocks(page, "jsonl prompts.jsonl"))
    first, *_ = [line for block in blocks(page, "console") for line in block.splitlines()]
    assert first.startswith("cispo rewards audit")
    assert main(shlex.split(first)[1:]) == 0, capsys.readouterr().out


def test_the_reference_is_that_of_the_code(generator):
    page = generator.PAGE.read_text()
    assert generator.with_tables(page, generator.reference()) == page, (
        "docs/configs.md is out of date: run `python docs/generate_configs.py`"
    )
    assert generator.KEYS.read_text() == generator.key_list(), "configs/keys.txt is out of date, as above"


def test_the_command_line_page_is_that_of_the_parser(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import generate_command_line

    assert generate_command_line.PAGE.read_text() == generate_command_line.page(), (
        "docs/command_line.md is out of date: run `python docs/generate_command_line.py`"
    )


def test_the_tables_of_logic_tasks_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import generate_logic

    page = generate_logic.PAGE.read_text()
    assert generate_logic.with_tables(page) == page, "docs/logic.md is out of date: run `python docs/generate_logic.py`"


def test_the_tables_of_the_scaling_page_are_those_of_the_formulas(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import generate_scaling

    page = generate_scaling.PAGE.read_text()
    shown = set(re.findall(r"<!-- (\w+): docs/generate_scaling.py -->", page))
    assert shown == set(generate_scaling.TABLES)
    assert generate_scaling.with_tables(page) == page, (
        "docs/scaling.md is out of date: run `python docs/generate_scaling.py`"
    )


def test_the_precision_page_shows_the_recorded_numbers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import precision

    page = precision.PAGE.read_text()
    assert precision.with_tables(page, json.loads(precision.RESULTS.read_text())) == page


def test_the_reference_takes_the_defaults_of_the_group_and_not_of_its_class(generator):
    keys = {key.path: key for key in generator.walk(RunConfig, RunConfig())}
    assert keys["learner.optimizer.betas"].default == "`[0.9, 0.95]`"
    assert keys["sft.optimizer.betas"].default == "`[0.9, 0.98]`"
    assert keys["task.files.<name>.path"].default == "required"
    assert keys["mask_above"].meaning == keys["mask_below"].meaning


def test_a_field_without_a_line_is_an_error_and_so_is_a_line_without_a_field(generator):
    @dataclasses.dataclass
    class Example:
        """Attributes:
        told: has its line.
        gone: was a field once.
        """

        told: int = 0
        silent: int = 0

    with pytest.raises(generator.UndocumentedField, match=r"a line: \['silent'\], without a field: \['gone'\]"):
        list(generator.walk(Example))


def named_paths(page):
    """What stands in backquotes and looks like a path of the repository; patterns and placeholders are left out."""
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M))
    inside = (*(f"{package}/" for package in PACKAGES), "tests/", "docs/", "benchmarks/", ".ci/")
    return [span for span in spans if span.startswith(inside) and not re.search(r"[*<\s]", span)]


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_path_function_and_test_that_a_page_names_exists(page):
    missing = []
    for name in named_paths(page):
        file, _, what = name.replace("::", ":").partition(":")
        path = ROOT / file
        if not path.exists() or what and what not in defined(path):
            missing.append(name)
    assert not missing, f"{by_name(page)} names what is not there: {', '.join(missing)}"


def defined(path):
    """Functions and classes of a file, and methods as Class.method."""
    tree = ast.parse(path.read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in ast.walk(node) if isinstance(part, ast.FunctionDef)}
    return names


def test_the_map_names_every_module():
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    unnamed = sorted(modules - set(named_paths(DOCS / "map.md")))
    assert not unnamed, f"docs/map.md has no line for {', '.join(unnamed)}"


def anchors(page):
    """The link targets of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        if not path.exists() or anchor and anchor not in anchors(path):
            broken.append(target)
    assert not broken, f"{by_name(page)} has broken links: {', '.join(broken)}"


def test_decisions_are_short_pages_of_one_form():
    for page in sorted(DOCS.glob("decisions/*.md")):
        text = page.read_text()
        assert all(word in text for word in ("**Context.**", "**Decision.**", "**Consequences.**")), page.name
        assert 15 <= len(text.splitlines()) <= 25, page.name
