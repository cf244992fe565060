"""The corpus of repository tasks: each bug fails exactly its tests, each gold patch mends it, nothing else is paid."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from cispo.types import Verdict
from launch.build import make_reference_check, read_data
from launch.compose import compose
from rewards.repository_tests import RepositoryTests, check_reference
from sandbox import Limits, SandboxPool

FOLDER = Path(__file__).parents[2] / "examples" / "swe"


def load_builder():
    spec = importlib.util.spec_from_file_location("swe_build", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


build = load_builder()
BUGS = build.read_bugs()


@pytest.fixture(scope="module")
def verifier():
    with SandboxPool(1, Limits(cpu_seconds=10, wall_seconds=60)) as pool:
        yield RepositoryTests(pool)


def test_the_corpus_is_large_enough():
    assert len(BUGS) >= 24
    assert len({tuple(bug.mended) for bug in BUGS}) >= 4
    assert max(len(bug.prompt()) for bug in BUGS) < 6000


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_a_bug_fails_exactly_its_tests_and_the_gold_patch_mends_it(bug, verifier):
    assert build.faults(bug, verifier) == []


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.id)
def test_nothing_else_is_paid(bug, verifier):
    reverse = "".join(build._diff(name, bug.mended[name], bug.buggy[name]) for name in bug.mended)
    shown = bug.shown[0]
    first = bug.buggy[shown].decode().splitlines()[0]
    harmless = f"--- a/{shown}\n+++ b/{shown}\n@@ -1 +1,2 @@\n+# new\n {first}\n"
    for answer in ("", "I cannot.", "```diff\n```", f"```diff\n{reverse}```", bug.row()["gold"].removesuffix("```")):
        assert verifier.score(answer, bug.reference()).verdict is Verdict.UNPARSEABLE
    score = verifier.score(f"```diff\n{harmless}```", bug.reference())
    assert (score.value, score.correct) == (0.0, False)


def test_a_prompt_shows_the_faulty_text_and_no_test():
    for bug in BUGS:
        changed = [name for name in bug.mended if bug.mended[name] != bug.buggy[name]]
        assert set(changed) <= set(bug.shown), bug.id
        assert bug.issue.startswith("# "), bug.id
        for name in bug.fail_to_pass:
            assert name.rpartition("::")[2] not in bug.prompt(), bug.id


def test_a_run_reads_the_prompts(tmp_path):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps(bug.row()) + "\n" for bug in BUGS))
    config = compose(
        [
            "task=files",
            f"task.files.mine.path={rows}",
            "+rewards.verifiers.swe=repository",
            "sft.steps=0",
            "task.max_prompt_tokens=8000",
            "engine.max_length=8192",
            "sampling.max_new_tokens=128",
        ]  # fmt: skip
    )
    for bug in BUGS:
        check_reference(bug.reference())
        make_reference_check(config)("swe", bug.reference())
    data = read_data(config)
    prompts = [data.prompts.next() for _ in range(len(BUGS))]
    assert {prompt.task for prompt in prompts} == {"swe"}
    assert len({prompt.text for prompt in prompts} | {prompt.text for prompt in data.held_out}) == len(BUGS)
