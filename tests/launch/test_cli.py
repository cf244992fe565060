"""Whatever goes wrong, the user reads one clear sentence, the status is not 0, and no file is lost."""

import shutil
from pathlib import Path

import pytest

from launch.cli import main, make_parser
from launch.inference import generate_text, text_of


@pytest.fixture
def told(capsys):
    """told(*arguments): run a command that fails, and return what the user reads of it."""

    def run(*arguments):
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 1
        output = capsys.readouterr()
        assert "Traceback" not in output.err
        assert output.err.startswith("cispo: ")
        assert output.err.count("cispo: ") == 1
        return output.err

    return run


def content(folder):
    """Every file below a folder, byte for byte, but the log of who drove the run, with which changes."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = [path for path in files if path.name != "attempts.jsonl" and not path.match("code-*.diff")]
    return {path.relative_to(folder): path.read_bytes() for path in files}


@pytest.fixture
def copied_run(tmp_path, whole_run):
    """A finished run of this test's own, to be spoilt."""
    return Path(shutil.copytree(whole_run, tmp_path / "copy"))


def test_a_wrong_key_is_answered_with_the_nearest_right_one(told):
    assert "unknown key 'group_sise': did you mean 'group_size'?" in told("train", "group_sise=4")
    assert "did you mean 'learner.optimizer.betas'?" in told("train", "learner.optimizer.beta=1")


def test_settings_may_stand_behind_an_option(told, capsys):
    assert "'group_sise'" in told("rewards", "audit", "chain", "--max-prompts", 3, "group_sise=4")
    assert "'group_sise'" in told("rewards", "audit", "chain", "steps=2", "--max-prompts", 3, "group_sise=4")
    for stray in (["audit", "chain", "--max-prompt"], ["audit", "chain", "--jsn", "x"]):
        with pytest.raises(SystemExit):
            main(["rewards", *stray])
    assert "--jsn" in capsys.readouterr().err


def test_all_faults_of_a_command_line_are_told_at_once(told):
    message = told(
        "train", "stepz=3", "cluster=locl", "seed=x", "ratio_cap=0.2", "engine.num_slots=true", "task.files.m.task=t"
    )
    for fault in (
        "unknown key 'stepz': did you mean 'steps'?",
        "cluster=locl: did you mean 'local'?",
        "seed must be a whole number; got 'x'.",
        "engine.num_slots must be a whole number; got True.",
        "task.files.m.path is needed",
        "ratio_cap must be at least 1",
    ):
        assert fault in message


def test_a_ratio_cap_written_as_an_epsilon_is_explained(told):
    assert "write ratio_cap=1.2" in told("train", "ratio_cap=0.2")


def test_an_override_without_a_value_is_explained(told):
    assert "key=value" in told("train", "steps")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("task.files.mine.path=/nowhere/mine.jsonl", "task.mixture.mine=1"), "/nowhere/mine.jsonl does not exist"),
        (("model.path=/nowhere",), "model.path=/nowhere is not a folder"),
        (("rewards.custom=/nowhere.py:reward",), "there is no such file"),
    ],
)
def test_a_missing_file_ends_the_run_before_it_has_a_folder(overrides, says, told, tmp_path, small):
    assert says in told("train", *small(tmp_path / "runs", "name=a"), *overrides)
    assert not (tmp_path / "runs").exists()


def test_a_folder_without_weights_or_tokenizer_is_no_model(told, tmp_path, small):
    (tmp_path / "empty").mkdir()
    message = told("train", *small(tmp_path / "runs", "name=a"), f"model.path={tmp_path / 'empty'}")
    assert "A model folder needs tokenizer.json" in message


@pytest.mark.parametrize("command", [("eval",), ("generate", "1+1=")])
def test_a_policy_that_does_not_exist_is_named(command, told, tmp_path):
    assert f"{tmp_path / 'nobody'} holds no policy" in told(command[0], "--policy", tmp_path / "nobody", *command[1:])


def test_a_folder_that_is_no_run_is_neither_resumed_nor_reported(told, tmp_path):
    assert f"{tmp_path} is not the folder of a run" in told("train", "--resume", tmp_path)
    assert "has none of them: name a folder such as runs/<name>" in told("report", tmp_path)


def test_an_existing_run_is_not_touched_by_a_new_one(told, whole_run, small):
    before = content(whole_run)
    message = told("train", *small(whole_run.parent, "name=whole", "seed=7"))
    assert f"cispo train --resume {whole_run}" in message
    assert content(whole_run) == before


def flip_a_byte(checkpoint):
    path = checkpoint / "learner" / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(checkpoint):
    path = checkpoint / "learner" / ".metadata"
    path.write_bytes(path.read_bytes()[:-100])


def remove_a_file(checkpoint):
    (checkpoint / "rollouts" / "ledger.json").unlink()


def remove_the_manifest(checkpoint):
    (checkpoint / "manifest.json").unlink()


def spoil_the_manifest(checkpoint):
    (checkpoint / "manifest.json").write_text("[1, 2")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (flip_a_byte, "learner/__0_0.distcp is missing or changed"),
        (truncate, "learner/.metadata is missing or changed"),
        (remove_a_file, "rollouts/ledger.json is missing or changed"),
        (remove_the_manifest, "the manifest of checkpoint"),
        (spoil_the_manifest, "the manifest of checkpoint"),
    ],
)
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_offered(damage, names, told, copied_run):
    damage(copied_run / "checkpoints" / "step_5")
    before = content(copied_run)
    message = told("train", "--resume", copied_run, "steps=6")
    assert names in message
    assert f"delete {copied_run / 'checkpoints' / 'step_5'} to resume from the checkpoint before it" in message
    assert content(copied_run) == before


def test_the_checkpoint_before_a_corrupt_one_serves(copied_run, whole_run, lines_of):
    shutil.rmtree(copied_run / "checkpoints" / "step_5")
    assert main(["train", "--resume", str(copied_run)]) == 0
    assert lines_of(copied_run) == lines_of(whole_run)


def test_metrics_without_a_checkpoint_are_not_overwritten(told, copied_run):
    shutil.rmtree(copied_run / "checkpoints")
    before = content(copied_run)
    assert "has metrics up to step 5 but no checkpoint" in told("train", "--resume", copied_run)
    assert content(copied_run) == before


def test_a_prompt_file_with_too_many_bad_rows_is_refused_by_line(told, tmp_path, small):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        '{"prompt": "1+1=", "reference": "2"}\n{"prompt": 3}\nnot json\n{"prompt": "2+2=", "reference": "4"}\n'
    )
    mine = (f"task.files.mine.path={path}", "task.mixture.mine=1", "task.max_bad_rows=1")
    message = told("train", *small(tmp_path / "runs", "name=a"), *mine)
    assert f"{path} has more than max_bad_rows=1" in message
    assert f"{path}:2: 'prompt' must be a non-empty string" in message
    assert f"{path}:3: the line is not JSON" in message
    assert not (tmp_path / "runs").exists()


REWARDS = """
def raises(prompt, text, reference, **info):
    raise KeyError("no such thing")

def is_nan(prompt, text, reference, **info):
    return float("nan")
"""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("raises", "raised KeyError"),
        ("is_nan", "must be a finite number"),
    ],
)
def test_a_faulty_reward_ends_the_run_with_its_line_and_the_way_on(name, says, told, tmp_path, small):
    path = tmp_path / "faulty.py"
    path.write_text(REWARDS)
    message = told("train", *small(tmp_path, "name=a"), f"rewards.custom={path}:{name}")
    assert f"The reward function {name} in {path}, line" in message
    assert says in message
    assert f"`cispo train --resume {tmp_path / 'a'}` goes on from step 0." in message
    mended = path.with_name("mended.py")
    mended.write_text("def mended(prompt, text, reference, **info):\n    return len(text) % 3\n")
    resumed = ["train", "--resume", str(tmp_path / "a"), f"rewards.custom={mended}:mended", "steps=1"]
    assert main(resumed) == 0


def test_a_reward_that_does_not_exist_is_told_before_the_run_has_a_folder(told, tmp_path, small):
    path = tmp_path / "faulty.py"
    path.write_text(REWARDS)
    message = told("train", *small(tmp_path / "runs", "name=a"), f"rewards.custom={path}:nobody")
    assert "no function of that name" in message
    assert not (tmp_path / "runs").exists()


def test_a_machine_without_bubblewrap_is_told_what_to_install(told, tmp_path, small, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    message = told("train", *small(tmp_path / "runs", "name=a"), "task=program")
    assert "IsolationError" in message
    assert "apt-get install" in message
    assert not (tmp_path / "runs").exists()


def test_a_place_where_nothing_can_be_written_is_told(told, small, whole_run):
    assert "'/proc/nowhere'" in told("train", *small("/proc/nowhere", "name=a"))
    assert "'/proc/nowhere'" in told("eval", "--policy", whole_run, "--output", "/proc/nowhere/answers.jsonl")


def test_overrides_of_a_resumed_run_last_once_it_has_saved_a_step(told, copied_run):
    assert main(["train", "--resume", str(copied_run), "steps=6"]) == 0
    assert main(["train", "--resume", str(copied_run)]) == 0  # six steps are done: no seventh, and no way back to five
    assert "steps: 6\n" in (copied_run / "config.yaml").read_text()
    flip_a_byte(copied_run / "checkpoints" / "step_6")
    told("train", "--resume", copied_run, "steps=9")
    assert "steps: 6\n" in (copied_run / "config.yaml").read_text()


def test_weights_and_prompts_that_do_not_fit_the_engine_are_told(told):
    assert "engine.max_length must exceed sampling.max_new_tokens" in told("train", "engine.max_length=20")


def test_generate_refuses_what_it_cannot_sample(told, whole_run):
    assert "at least one token" in told("generate", "--policy", whole_run, "")
    assert "temperature must be 0" in told("generate", "--policy", whole_run, "1=", "--temperature", "-1")


def test_generate_writes_the_same_text_twice(whole_run, capsys):
    command = ["generate", "--policy", str(whole_run), "1+2=", "--temperature", "1", "--max-new-tokens", "9"]
    texts = []
    for _ in range(2):
        assert main(command) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert len(texts[0]) > 1


def test_generate_reads_a_prompt_from_a_file_piece_by_piece(whole_run, tmp_path, capsys, monkeypatch):
    from launch import inference

    text = "1+2=<think>naïve \n" * 40
    (tmp_path / "prompt.txt").write_text(text, newline="")
    options = ["--temperature", "1", "--max-new-tokens", "9"]
    assert main(["generate", "--policy", str(whole_run), text, *options]) == 0
    wanted = capsys.readouterr().out
    pieces = inference._file_pieces
    monkeypatch.setattr(inference, "_file_pieces", lambda path: pieces(path, size=7))
    assert main(["generate", "--policy", str(whole_run), "--prompt-file", str(tmp_path / "prompt.txt"), *options]) == 0
    assert capsys.readouterr().out == wanted


def test_generate_goes_on_from_its_state_and_tells_what_does_not_fit(whole_run, told, tmp_path, capsys):
    state = tmp_path / "state"
    command = ["generate", "--policy", str(whole_run), "1+2=", "--temperature", "1", "--max-new-tokens", "9"]
    assert main(command) == 0
    wanted = capsys.readouterr().out
    options = make_parser().parse_args([*command, "--state", str(state), "--save-seconds", "0"])
    stopped = generate_text(whole_run, ["1+2="], options)
    begun = [next(stopped) for _ in range(3)]
    kept = state.read_bytes()  # as a kill would leave it
    stopped.close()
    state.write_bytes(kept)
    assert wanted.startswith("".join(begun))
    assert "another seed" in told(*command, "--state", state, "--seed", "1")
    assert main([*command, "--state", str(state)]) == 0
    assert capsys.readouterr().out == wanted
    assert not state.exists()
    assert "one prompt" in told("generate", "--policy", whole_run, "--state", state)
    assert "not both" in told("generate", "--policy", whole_run, "1=", "--prompt-file", state)
    assert "cannot be read" in told("generate", "--policy", whole_run, "--prompt-file", tmp_path / "nowhere")


def test_text_comes_in_whole_characters_and_none_twice():
    text = "a é ☃ 𝄞 b"

    def decode(ids):
        return bytes(ids).decode(errors="replace")

    assert list(text_of(text.encode(), decode)) == list(text)


def test_eval_measures_what_the_run_did_and_writes_every_answer(whole_run, tmp_path, capsys):
    import json

    output = tmp_path / "answers.jsonl"
    assert main(["eval", "--policy", str(whole_run), "--output", str(output)]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    last = json.loads((whole_run / "metrics.jsonl").read_text().splitlines()[-1])
    assert {name: float(value) for name, value in shown.items()} == {
        name: pytest.approx(value, abs=1e-4) for name, value in last.items() if name.startswith("eval/")
    }
    first, *answers = [json.loads(line) for line in output.read_text().splitlines()]
    assert set(first) == set(shown)
    assert len(answers) == 4 * 2  # prompts times samples


def test_eval_takes_other_prompts_than_those_of_the_run(whole_run, tmp_path, capsys):
    """Prompts from a file have no demonstrations, which only a cold start would need."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "{i}+1=", "reference": "{i + 1}"}}\n' for i in range(9)))
    overrides = ["task=files", f"task.files.mine.path={prompts}", "task.eval_fraction=0.5"]
    assert main(["eval", "--policy", str(whole_run), *overrides]) == 0
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert {"eval/mine/greedy", "eval/all/greedy"} <= set(shown)
    assert not any("chain" in name for name in shown)


def test_sft_alone_leaves_a_policy_that_generates(tmp_path, small, capsys):
    assert main(["sft", *small(tmp_path, "name=cold")]) == 0
    assert main(["generate", "--policy", str(tmp_path / "cold"), "1=", "--max-new-tokens", "2"]) == 0


def test_report_is_made_anew(copied_run, capsys):
    (copied_run / "report.html").unlink()
    assert main(["report", str(copied_run)]) == 0
    assert "</html>" in (copied_run / "report.html").read_text()


def test_the_names_of_runs_that_nobody_named_are_free_ones(tmp_path, small):
    for name in ("embedded", "embedded-2"):
        assert main(["sft", *small(tmp_path, "sft.steps=0")]) == 0
        assert (tmp_path / name / "export").is_dir()
