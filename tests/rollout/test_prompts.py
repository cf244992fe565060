"""Streams of prompts: the held-out split, cursors, mixtures, and files with all the ways in which a row can be bad."""

import dataclasses
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cispo.errors import CheckpointError, ConfigError, DataError
from configs.strict import from_dict
from rollout.chain_task import ChainConfig
from rollout.program_task import ProgramConfig
from rollout.prompt_files import FileConfig, PromptLimit
from rollout.prompts import (
    TaskConfig,
    check_tasks,
    demonstration_source,
    eval_sets,
    prompt_source,
    read_file_set,
    read_file_sets,
    task_words,
)
from rollout.tasks import TaskParameters

ROOT = Path(__file__).parents[2]


class CodePoints:
    """A tokenizer that anybody can check by hand: one token a character, ASCII only."""

    def encode(self, text):
        if not text.isascii():
            raise ValueError(f"no token for {text!r}")
        return [ord(character) for character in text]

    def render(self, messages):
        return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


TOKENIZER = CodePoints()


def draw(source, num):
    return [source.next() for _ in range(num)]


def write_jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def questions(num, start=0):
    return [{"prompt": f"question {at}", "reference": str(at)} for at in range(start, start + num)]


def file_config(path, *, name="mine", **changes):
    """Only the file set `name`; keys of FileConfig go there, the rest to TaskConfig."""
    keys = {field.name for field in dataclasses.fields(FileConfig)}
    files = FileConfig(path=str(path), **{key: value for key, value in changes.items() if key in keys})
    rest = {key: value for key, value in changes.items() if key not in keys}
    return TaskConfig(mixture={name: 1.0}, files={name: files}, **rest)


# --- the held-out split ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("task", "num_texts"), [("chain", 200), ("program", 48)])
def test_training_and_cold_start_never_see_an_eval_prompt(task, num_texts):
    # Spaces so small that 3,000 draws meet every prompt.
    parameters = TaskParameters(chain=ChainConfig(min_length=2, max_length=3), program=ProgramConfig(2, 2, max_digit=3))
    config = TaskConfig(mixture={task: 1.0}, parameters=parameters)
    held = {prompt.text for prompt in eval_sets(config, TOKENIZER, 1000, seed=1)[task]}
    trained = {prompt.text for prompt in draw(prompt_source(config, TOKENIZER, seed=1), 3000)}
    shown = {example.prompt_text for example in draw(demonstration_source(config, seed=1), 3000)}
    assert not held & trained
    assert not held & shown
    assert len(held | trained) == num_texts  # the two sides together are the whole space
    assert num_texts / 20 < len(held)


def test_split_seed_holds_out_other_prompts():
    def held(split_seed):
        config = TaskConfig(mixture={"chain": 1.0}, split_seed=split_seed)
        return {prompt.text for prompt in eval_sets(config, TOKENIZER, 100, seed=1)["chain"]}

    assert held(0) == held(0)
    assert len(held(0) & held(1)) < 50


def test_eval_sets_are_distinct_and_repeatable():
    first, again = (eval_sets(TaskConfig(), TOKENIZER, 50, seed=3) for _ in range(2))
    assert first == again
    assert {name: len({prompt.text for prompt in prompts}) for name, prompts in first.items()} == {
        "chain": 50,
        "program": 50,
    }
    assert first["chain"][7].id == "chain/eval/000007"
    assert first["chain"] != eval_sets(TaskConfig(), TOKENIZER, 50, seed=4)["chain"]


def test_a_task_with_nothing_on_one_side_says_so():
    tiny = TaskParameters(chain=ChainConfig(2, 2, min_operand=0, max_operand=0))  # 20 prompts
    with pytest.raises(DataError, match="20 prompts.*eval_fraction=1e-09"):
        eval_sets(TaskConfig({"chain": 1.0}, parameters=tiny, eval_fraction=1e-9), TOKENIZER, 4, seed=1)
    almost_all = TaskConfig({"chain": 1.0}, parameters=tiny, eval_fraction=1 - 1e-9)
    with pytest.raises(DataError, match="for training"):
        prompt_source(almost_all, TOKENIZER, seed=1).next()
    with pytest.raises(DataError, match="for the cold start"):
        demonstration_source(almost_all, seed=1).next()


# --- cursors and mixtures --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    path = write_jsonl(tmp_path_factory.mktemp("mixed") / "mine.jsonl", questions(9))
    files = {"mine": FileConfig(path=str(path))}
    return TaskConfig(mixture={"chain": 1.0, "program": 1.0, "mine": 2.0}, files=files, eval_fraction=0.3)


@settings(max_examples=25, deadline=None)
@given(before=st.integers(0, 40), after=st.integers(1, 15), seed=st.integers(0, 2**40))
def test_a_restored_source_goes_on_exactly(mixed, before, after, seed):
    source = prompt_source(mixed, TOKENIZER, seed)
    draw(source, before)
    state = json.loads(json.dumps(source.state()))
    expected = draw(source, after)
    other = prompt_source(mixed, TOKENIZER, seed=0)
    draw(other, 3)  # wherever it stood
    other.restore(state)
    assert draw(other, after) == expected
    assert other.state() == source.state()


@settings(max_examples=10, deadline=None)
@given(before=st.integers(0, 40), seed=st.integers(0, 100))
def test_restored_demonstrations_go_on_exactly(before, seed):
    source, other = demonstration_source(TaskConfig(), seed), demonstration_source(TaskConfig(), seed + 1)
    draw(source, before)
    other.restore(json.loads(json.dumps(source.state())))
    assert draw(other, 5) == draw(source, 5)


def test_the_seed_decides_the_stream(mixed):
    texts = {seed: [prompt.text for prompt in draw(prompt_source(mixed, TOKENIZER, seed), 20)] for seed in (1, 2)}
    assert texts[1] == [prompt.text for prompt in draw(prompt_source(mixed, TOKENIZER, 1), 20)]
    assert texts[1] != texts[2]


def test_ids_never_repeat(mixed):
    ids = [prompt.id for prompt in draw(prompt_source(mixed, TOKENIZER, 1), 200)]
    assert len(set(ids)) == 200
    assert "chain/train/000000" in ids


def test_mixture_follows_its_weights(mixed):
    counts = Counter(prompt.task for prompt in draw(prompt_source(mixed, TOKENIZER, 1), 2000))
    for task, share in {"chain": 0.25, "program": 0.25, "mine": 0.5}.items():
        assert abs(counts[task] / 2000 - share) < 0.04  # four standard deviations


def test_weight_zero_leaves_a_task_out():
    config = TaskConfig(mixture={"chain": 1.0, "program": 0.0})
    assert {prompt.task for prompt in draw(prompt_source(config, TOKENIZER, 1), 50)} == {"chain"}
    assert set(eval_sets(config, TOKENIZER, 5, seed=1)) == {"chain"}
    assert "x" not in "".join(example.prompt_text for example in draw(demonstration_source(config, 1), 50))


def test_demonstrations_can_have_a_mixture_of_their_own():
    config = TaskConfig(mixture={"chain": 1.0, "program": 1.0}, demonstration_mixture={"program": 1.0})
    examples = draw(demonstration_source(config, 1), 50)
    assert all(example.completion_text.startswith("f=lambda") for example in examples)


def test_file_epochs_visit_every_row_once_in_a_new_order(tmp_path):
    config = file_config(write_jsonl(tmp_path / "train.jsonl", questions(12)), eval_fraction=0.3)
    train, _ = read_file_set("mine", config, TOKENIZER)
    source = prompt_source(config, TOKENIZER, seed=1)
    epochs = [[prompt.text for prompt in draw(source, len(train))] for _ in range(3)]
    assert all(sorted(epoch) == sorted(row.text for row in train) for epoch in epochs)
    assert epochs[0] != epochs[1]


def test_a_cursor_is_refused_when_the_data_changed(tmp_path, mixed):
    path = write_jsonl(tmp_path / "train.jsonl", questions(12))
    state = prompt_source(file_config(path), TOKENIZER, seed=1).state()
    write_jsonl(path, questions(12, start=1))
    with pytest.raises(CheckpointError, match="not those of the checkpoint"):
        prompt_source(file_config(path), TOKENIZER, seed=1).restore(state)
    with pytest.raises(CheckpointError, match=r"\['mine'\]"):
        prompt_source(mixed, TOKENIZER, seed=1).restore(state)


def test_words_of_all_tasks_come_once():
    both = TaskConfig(mixture={"chain": 1.0, "program": 0.0}, demonstration_mixture={"program": 1.0, "chain": 1.0})
    assert task_words(both) == ("<think>", "</think>", "\\boxed{", "f=lambda x,y:")
    assert task_words(TaskConfig(mixture={"program": 1.0})) == ("f=lambda x,y:",)


# --- files -----------------------------------------------------------------------------------------------------


ROWS = [
    {"prompt": "2+2=", "reference": "4", "task": "math", "id": "a"},
    {"prompt": "3+3=", "reference": "6", "task": "math", "id": "b"},
    {"prompt": "4+4=", "reference": "8", "task": "math", "id": "c"},
]


def as_jsonl(folder):
    return write_jsonl(folder / "rows.jsonl", ROWS)


def as_parquet(folder):
    import datasets

    path = folder / "rows.parquet"
    datasets.Dataset.from_list(ROWS).to_parquet(path)
    return path


def as_saved_data_set(folder):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(folder / "rows")
    return folder / "rows"


def as_saved_splits(folder):
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}).save_to_disk(folder / "rows")
    return folder / "rows"


def as_folder_of_files(folder):
    (folder / "rows").mkdir()
    write_jsonl(folder / "rows" / "train.jsonl", ROWS)
    return folder / "rows"


@pytest.mark.parametrize("write", [as_jsonl, as_parquet, as_saved_data_set, as_saved_splits, as_folder_of_files])
def test_every_file_form_gives_the_same_prompts(tmp_path, write):
    evaluation = write_jsonl(tmp_path / "eval.jsonl", [{"prompt": "1+1=", "reference": "2"}])
    config = file_config(write(tmp_path), eval_path=str(evaluation))
    prompts = sorted(draw(prompt_source(config, TOKENIZER, seed=1), 3), key=lambda prompt: prompt.id)
    assert [(p.id, p.task, p.text, p.reference) for p in prompts] == [
        ("mine/train/0/a", "math", "2+2=", "4"),
        ("mine/train/0/b", "math", "3+3=", "6"),
        ("mine/train/0/c", "math", "4+4=", "8"),
    ]
    assert prompts[0].token_ids == tuple(b"2+2=")
    (held,) = eval_sets(config, TOKENIZER, 10, seed=1)["mine"]
    assert (held.id, held.task, held.text, held.reference) == ("mine/eval/1", "mine", "1+1=", "2")


def test_a_split_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="'validation'"):
        read_file_set("mine", file_config(as_saved_splits(tmp_path), split="validation"), TOKENIZER)


def test_messages_are_rendered_and_columns_can_be_renamed(tmp_path):
    rows = [{"chat": [{"role": "user", "content": f"Say {at}"}], "gold": at, "kind": "echo"} for at in range(20)]
    columns = {"messages": "chat", "reference": "gold", "task": "kind"}
    config = file_config(write_jsonl(tmp_path / "rows.jsonl", rows))
    files = config.files["mine"]
    files = dataclasses.replace(files, columns=dataclasses.replace(files.columns, **columns))
    train, held = read_file_set("mine", dataclasses.replace(config, files={"mine": files}), TOKENIZER)
    found = {row.text: (row.task, row.reference) for row in train + held}
    assert found == {f"<user>Say {at}<assistant>": ("echo", at) for at in range(20)}


def test_a_row_without_a_task_takes_the_file_sets(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(20))
    assert {prompt.task for prompt in draw(prompt_source(file_config(path, task="math"), TOKENIZER, 1), 5)} == {"math"}


def test_references_can_be_json_in_a_string(tmp_path):
    tests = {"entry": "f", "tests": [{"args": [1], "returns": 2}]}
    rows = [{"prompt": f"p{at}", "reference": json.dumps(tests)} for at in range(20)]
    config = file_config(write_jsonl(tmp_path / "rows.jsonl", rows), reference_is_json=True)
    assert prompt_source(config, TOKENIZER, 1).next().reference == tests


@pytest.mark.parametrize("start", range(0, 60, 3))
def test_a_file_of_three_lines_has_both_sides(tmp_path, caplog, start):
    """By the hash alone two of three such files had nothing held out, and were refused."""
    three = write_jsonl(tmp_path / "three.jsonl", questions(3, start))
    train, held = read_file_set("mine", file_config(three), TOKENIZER)
    assert (len(train), len(held)) in ((2, 1), (1, 2))
    assert f"{len(held)} of 3 rows are held out, so one answer moves the accuracy by" in caplog.text


def test_a_file_whose_lines_are_all_the_same_has_one_side_alone(tmp_path):
    same = write_jsonl(tmp_path / "same.jsonl", questions(1) * 3)
    with pytest.raises(DataError, match="leave 3 rows for training and 0 for evaluation"):
        read_file_set("mine", file_config(same), TOKENIZER)


def test_equal_prompts_are_on_one_side_and_eval_prompts_leave_the_training_file(tmp_path, caplog):
    twice = write_jsonl(tmp_path / "twice.jsonl", questions(40) + questions(40))
    train, held = read_file_set("mine", file_config(twice, eval_fraction=0.3), TOKENIZER)
    assert len(train) + len(held) == 80
    assert not {row.text for row in train} & {row.text for row in held}
    evaluation = write_jsonl(tmp_path / "eval.jsonl", questions(5))
    train, held = read_file_set("mine", file_config(twice, eval_path=str(evaluation)), TOKENIZER)
    assert (len(train), len(held)) == (70, 5)
    assert f"{twice}: 10 rows are prompts of {evaluation}" in caplog.text


BAD = {
    '{"prompt": "2+2=", "reference"': "not JSON",
    "[1, 2]": "must be a JSON object",
    '{"reference": "4"}': "neither",
    '{"prompt": "p", "messages": [{"role": "user", "content": "c"}], "reference": "4"}': "both",
    '{"prompt": "  ", "reference": "4"}': "non-empty string",
    '{"prompt": 7, "reference": "4"}': "non-empty string, got 7",
    '{"prompt": "2+2="}': "'reference' is missing",
    '{"prompt": "2+2=", "reference": ""}': "'reference' is missing or empty",
    '{"prompt": "2+2=", "reference": NaN}': "must be a JSON value",
    '{"prompt": "2+2=", "reference": "4", "task": 1.5}': "'task' must be",
    '{"prompt": "2+2=", "reference": "4", "id": ""}': "'id' must be",
    '{"prompt": "2+2=", "reference": "4", "id": "first"}': "'first' was used before",
    '{"prompt": "caf\\u00e9", "reference": "4"}': "cannot be tokenised",
    json.dumps(
        {"prompt": "long " * 50, "reference": "4"}
    ): "has 250 tokens, and 1 to 100 are allowed by task.max_prompt_tokens=100",
    '{"messages": [], "reference": "4"}': "non-empty list",
    '{"messages": "hello", "reference": "4"}': "non-empty list",
    '{"messages": ["hello"], "reference": "4"}': "messages[0] must be {role, content}",
    '{"messages": [{"role": "user"}], "reference": "4"}': "must have role and content",
    '{"messages": [{"role": "user", "content": "c", "name": "n"}], "reference": "4"}': "nothing else",
    '{"messages": [{"role": "robot", "content": "c"}], "reference": "4"}': "role of system, user, assistant, tool",
    '{"messages": [{"role": "user", "content": ["c"]}], "reference": "4"}': "non-empty string as content",
    '{"messages": [{"role": "assistant", "content": "c"}], "reference": "4"}': "must be the user's",
    "[" * 100_000: "not JSON",
}


@pytest.mark.parametrize(("line", "said"), BAD.items(), ids=range(len(BAD)))
def test_a_bad_row_is_reported_with_its_line_and_skipped(tmp_path, caplog, line, said):
    good = [{"prompt": "first", "reference": "1", "id": "first"}, *questions(20)]
    path = write_jsonl(tmp_path / "rows.jsonl", [good[0], "", line, *good[1:]])
    train, held = read_file_set("mine", file_config(path, max_bad_rows=1, max_prompt_tokens=100), TOKENIZER)
    assert sorted(row.text for row in train + held) == sorted(row["prompt"] for row in good)
    (report,) = [record.getMessage() for record in caplog.records if "bad row skipped" in record.getMessage()]
    assert f"{path}:3: " in report
    assert said in report
    assert "1 bad rows skipped" in caplog.text
    with pytest.raises(DataError, match="max_bad_rows=0") as error:
        read_file_set("mine", file_config(path, max_bad_rows=0, max_prompt_tokens=100), TOKENIZER)
    assert said in str(error.value)


def test_a_limit_from_elsewhere_is_named_in_the_reason(tmp_path, caplog):
    path = write_jsonl(tmp_path / "rows.jsonl", [*questions(20), {"prompt": "x" * 81, "reference": "1"}])
    limit = PromptLimit(80, "engine.max_length=128 less sampling.max_new_tokens=48")
    train, held = read_file_set("mine", file_config(path), TOKENIZER, limit=limit)
    assert len(train + held) == 20
    said = "has 81 tokens, and 1 to 80 are allowed by engine.max_length=128 less sampling.max_new_tokens=48"
    assert f"{path}:21: the prompt {said}" in caplog.text


@pytest.mark.parametrize("kind", [DataError, ValueError])
def test_a_reference_that_the_verifier_refuses_is_a_bad_row(tmp_path, caplog, kind):
    def check(task, reference):
        if task == "math" and not isinstance(reference, str):
            raise kind("needs a string")

    unusable = [{"prompt": "bad", "reference": {"answer": 2}, "task": task} for task in ("math", "custom")]
    path = write_jsonl(tmp_path / "rows.jsonl", [*questions(20), *unusable])
    train, held = read_file_set("mine", file_config(path), TOKENIZER, check_reference=check)
    assert [row.task for row in train + held].count("custom") == 1
    assert len(train + held) == 21
    assert f"{path}:21: the verifier of task 'math' cannot use the reference: needs a string" in caplog.text


def test_files_that_were_read_are_not_read_again(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(20))
    config = file_config(path)
    file_sets = read_file_sets(config, TOKENIZER)
    wanted = draw(prompt_source(config, TOKENIZER, 1), 5), eval_sets(config, TOKENIZER, 3, 1)
    path.unlink()
    given = {"file_sets": file_sets}
    assert (
        draw(prompt_source(config, TOKENIZER, 1, **given), 5),
        eval_sets(config, TOKENIZER, 3, 1, **given),
    ) == wanted


def test_only_files_of_the_mixture_are_read(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(20))
    files = {"mine": FileConfig(str(path)), "other": FileConfig("/nowhere.jsonl")}
    config = TaskConfig(mixture={"chain": 1.0, "mine": 1.0, "other": 0.0}, files=files)
    assert set(read_file_sets(config, TOKENIZER)) == {"mine"}


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path, caplog):
    path = write_jsonl(tmp_path / "rows.jsonl", questions(20))
    path.write_bytes(path.read_bytes() + b'{"prompt": "\xff", "reference": "1"}\n')
    read_file_set("mine", file_config(path), TOKENIZER)
    assert f"{path}:21: the line is not JSON" in caplog.text


def test_the_first_three_bad_rows_are_named(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", ["{}", *questions(5), "{", "{", "{", *questions(5)])
    with pytest.raises(DataError) as error:
        read_file_set("mine", file_config(path, max_bad_rows=3), TOKENIZER)
    assert "more than max_bad_rows=3" in str(error.value)
    assert [f":{line}: " in str(error.value) for line in (1, 7, 8, 9)] == [True, True, True, False]


def test_bad_rows_of_parquet_are_named_by_row(tmp_path, caplog):
    import datasets

    path = tmp_path / "rows.parquet"
    datasets.Dataset.from_list([*questions(20), {"prompt": None, "reference": "1"}]).to_parquet(path)
    read_file_set("mine", file_config(path), TOKENIZER)
    assert f"{path}:21: " in caplog.text


def test_a_missing_file_is_answered_with_the_nearest_one(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", questions(3))
    with pytest.raises(DataError, match=r"trian\.jsonl does not exist; did you mean .*/train\.jsonl\?"):
        read_file_set("mine", file_config(tmp_path / "trian.jsonl"), TOKENIZER)
    with pytest.raises(DataError, match="nothing in .* has a name like 'zzz'"):
        read_file_set("mine", file_config(tmp_path / "zzz" / "train.jsonl"), TOKENIZER)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match="no usable prompt"):
        read_file_set("mine", file_config(tmp_path / "rows.jsonl"), TOKENIZER)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,reference\n")
    with pytest.raises(DataError, match=r"neither \.jsonl"):
        read_file_set("mine", file_config(tmp_path / "rows.csv"), TOKENIZER)
    (tmp_path / "rows.parquet").write_text("this is not parquet")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        read_file_set("mine", file_config(tmp_path / "rows.parquet"), TOKENIZER)


def test_one_row_cannot_be_on_both_sides(tmp_path):
    with pytest.raises(DataError, match="both need some"):
        read_file_set("mine", file_config(write_jsonl(tmp_path / "rows.jsonl", questions(1))), TOKENIZER)


# --- configuration ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixture": {}}, "at least one task"),
        ({"mixture": {"chain": 0.0}}, "at least one task"),
        ({"mixture": {"chain": -1.0}}, "task.mixture.chain"),
        ({"mixture": {"chain": float("nan")}}, "task.mixture.chain"),
        ({"mixture": {"chian": 1.0}}, "did you mean 'chain'"),
        ({"demonstration_mixture": {"mine": 1.0}, "files": {"mine": FileConfig("x.jsonl")}}, "'mine'"),
        ({"eval_fraction": 0.0}, "eval_fraction"),
        ({"eval_fraction": 1.0}, "eval_fraction"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens"),
        ({"max_bad_rows": -1}, "max_bad_rows"),
    ],
)
def test_impossible_configurations_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        TaskConfig(**changes)


def test_all_faults_are_told_at_once():
    with pytest.raises(ConfigError) as error:
        TaskConfig(mixture={"chian": -1.0}, eval_fraction=2.0)
    assert len(error.value.faults) == 4


def test_a_prompt_beyond_the_limit_is_an_error_of_the_task():
    with pytest.raises(DataError, match="max_prompt_tokens=3"):
        prompt_source(TaskConfig(max_prompt_tokens=3), TOKENIZER, 1).next()


def test_tasks_beyond_the_limit_are_refused_at_the_start_all_at_once():
    config = TaskConfig(mixture={"chain": 1.0, "sort": 1.0, "program": 0.0})
    check_tasks(config, TOKENIZER, PromptLimit(11, "x=11"))  # "sort:12345=" and shorter "0-2+2-1+1="
    with pytest.raises(ConfigError) as error:
        check_tasks(config, TOKENIZER, PromptLimit(9, "x=9"))
    assert [("has 10 tokens" in fault, "has 11 tokens" in fault) for fault in error.value.faults] == [
        (True, False),
        (False, True),
    ]
    assert "1 to 9 are allowed by x=9" in str(error.value)


def test_the_cold_start_of_files_alone_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="only files"):
        demonstration_source(file_config(write_jsonl(tmp_path / "rows.jsonl", questions(9))), 1)


@pytest.mark.parametrize(
    ("files", "own"),
    [
        ({"chain": FileConfig("x.jsonl")}, {}),
        ({}, {"chain": "x.py:X"}),
        ({"x": FileConfig("x.jsonl")}, {"x": "x.py:X"}),
    ],
)
def test_every_name_is_given_once(files, own):
    with pytest.raises(ConfigError, match="is given twice"):
        TaskConfig(files=files, own=own)


@pytest.fixture
def documented(tmp_path, monkeypatch):
    """docs/data.md's named blocks as files in an empty folder, and its nameless Python blocks in order."""
    text = (ROOT / "docs" / "data.md").read_text()
    programs = []
    for language, name, block in re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", text, flags=re.S | re.M):
        if name:
            (tmp_path / name).write_text(block)
        elif language == "python":
            programs.append(block)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return programs


def test_the_examples_of_the_documentation_run(documented):
    assert len(documented) >= 4
    names = {}
    for program in documented:
        exec(program, names)


@pytest.fixture
def composed(tmp_path):
    """The group `task`, composed by Hydra as a run would."""
    import hydra
    import omegaconf

    shutil.copytree(ROOT / "configs" / "task", tmp_path / "task")
    (tmp_path / "root.yaml").write_text("defaults:\n  - task: embedded\n")

    def compose(*overrides):
        with hydra.initialize_config_dir(str(tmp_path), version_base=None):
            config = hydra.compose("root", overrides=list(overrides))
        return omegaconf.OmegaConf.to_container(config.task)

    return compose


@pytest.mark.parametrize(
    ("overrides", "drawn"),
    [
        ([], {"chain", "program"}),
        (["task=chain"], {"chain"}),
        (["task=program", "task.parameters.program.max_digit=5"], {"program"}),
        (["task=files", "task.files.mine.path=mine.jsonl"], {"mine"}),
        (["+task.own.parity=my_tasks.py:Parity", "+task.mixture.parity=1"], {"chain", "program", "parity"}),
    ],
)
def test_the_command_lines_of_the_documentation_compose(composed, overrides, drawn):
    config = from_dict(TaskConfig, composed(*overrides))
    assert {name for name, weight in config.mixture.items() if weight > 0} == drawn


def test_the_yaml_files_name_every_field_with_the_defaults_of_the_code(composed):
    def plain(value):
        if dataclasses.is_dataclass(value):
            return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return value

    assert composed() == plain(TaskConfig())
    assert composed("task=files", "task.files.mine.path=x")["files"]["mine"] == plain(FileConfig("x"))
