"""The data of the report: nothing lost between a run's files and the page, and what is missing or damaged is said."""

import base64
import gzip
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cispo.errors import DataError
from launch.accuracy_chart import Curve, accuracy_svg
from launch.cli import main
from launch.report import curves_svg, default_output, packed_json, run_labels, write_report
from launch.report_run import ReportRun, accuracy_curves
from launch.report_traces import LOGP_UNKNOWN, RATIO_UNKNOWN, by_rank, logp_codes, ratio_codes, read_traces
from launch.trackers import JsonlTracker
from tests.launch.report_runs import HOSTILE, trace, write_run


@pytest.fixture
def run_folder(tmp_path):
    return write_run(tmp_path / "runs" / "a <b> & c")


def report_data(folder):
    return ReportRun.read(folder, folder.name, max_traces=10_000, max_tokens=100_000).data()


def traces_of(folder, max_traces=10_000, max_tokens=100_000):
    return read_traces(folder, max_traces=max_traces, max_tokens=max_tokens)


def unpacked(page, name):
    [text] = [text for attributes, text in page.scripts if attributes.get("id") == f"packed-{name}"]
    return gzip.decompress(base64.b64decode(text))


class Page(HTMLParser):
    """What a browser would see: elements, what they refer to, and the text of each script."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.references, self.scripts, self.styles, self.heading = [], [], [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input", "link", "img"):
            self.open.append(tag)
        self.references += [value for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        self.references += [tag] if tag in ("link", "img", "iframe", "object", "embed", "base") else []
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        elif self.open and self.open[-1] == "style":
            self.styles.append(data)
        elif self.open and self.open[-1] == "h1":
            self.heading += data


@pytest.fixture
def page(run_folder):
    return Page(write_report(run_folder).read_text(encoding="utf-8"))


def test_page_is_well_formed_and_refers_to_nothing_outside(page):
    assert page.open == []
    assert page.references == ["#traces", "#curves", "#traces", "#configuration"]
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert {attributes["id"] for attributes, _ in page.scripts if attributes} == {
        "packed-page", "packed-plotly", "packed-run-0", "packed-streams-0",
    }  # fmt: skip


def test_page_forbids_requests(run_folder):
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "default-src 'none'" in text[: text.index("<style>")]


def test_hostile_text_reaches_the_page_only_packed(page):
    assert page.heading == "a <b> & c"
    scripts = [text for attributes, text in page.scripts if not attributes]
    assert len(scripts) == 1 and "owned" not in scripts[0]
    assert all(re.fullmatch(r"[A-Za-z0-9+/=]+", text) for attributes, text in page.scripts if attributes)


def test_packed_data_round_trips(page, run_folder):
    assert json.loads(unpacked(page, "run-0")) == json.loads(json.dumps(report_data(run_folder)))
    assert unpacked(page, "streams-0") == traces_of(run_folder).streams
    assert json.loads(gzip.decompress(base64.b64decode(packed_json(HOSTILE)))) == HOSTILE


def test_plotly_is_embedded_once_and_smaller_than_it_is(page):
    assert b"plotly.js v" in unpacked(page, "plotly")[:200]
    [text] = [text for attributes, text in page.scripts if attributes.get("id") == "packed-plotly"]
    assert len(text) < 0.5 * len(unpacked(page, "plotly"))


def test_data_has_columns_curves_lengths_and_traces(run_folder):
    data = report_data(run_folder)
    assert data["missing"] == []
    assert data["metrics"]["step"] == [0, 1, 2, 3]
    assert data["metrics"]["reward/mean"] == [None, 1 / 3, 2 / 3, 1.0]
    assert data["metrics"]["ratio/max"] == [None] * 4
    assert data["lengths"] == [{"step": 1, "num_tokens": [1] * 4}, {"step": 3, "num_tokens": [3] * 4}]
    assert (len(data["traces"]), data["num_traces"], data["ratio_cap"]) == (12, 12, 3.0)
    first = data["traces"][0]
    assert (first["step"], first["lowest_logp"], first["highest_ratio"]) == (1, -0.123, 1.235)
    assert data["prompts"][first["prompt"]] == ("p/0", f"{HOSTILE}=")
    assert "text" not in first  # the tokens give it


def test_streams_have_each_token_of_each_trace_with_its_numbers(tmp_path):
    tracker = JsonlTracker(tmp_path)
    tracker.rollouts(1, [trace(tokens=("a", "b"), ids=[5, 6], logp=[-1.5, None], ratio=[2.0, None])])
    tracker.rollouts(2, [trace(tokens=("b",), ids=[6], logp=[-70.0], ratio=None)])
    traces = traces_of(tmp_path)
    assert (traces.vocabulary, [record["length"] for record in traces.kept]) == ([(5, "a"), (6, "b")], [2, 1])
    planes = np.frombuffer(traces.streams, np.uint8).reshape(8, 3).astype(int)
    assert (planes[0] + 256 * planes[1]).tolist() == [0, 1, 1]
    assert (planes[4] + 256 * planes[5]).tolist() == [1500, LOGP_UNKNOWN, LOGP_UNKNOWN - 1]
    assert (planes[6] + 256 * planes[7]).tolist() == [32768 + 693, RATIO_UNKNOWN, RATIO_UNKNOWN]


@given(st.lists(st.floats(-65, 0), min_size=1), st.floats(1e-12, 1e12))
def test_numbers_come_back_to_a_thousandth_of_a_nat(logps, ratio):
    assert np.abs(logp_codes(np.array(logps)) / -1000.0 - logps).max() <= 0.00051
    [code] = ratio_codes(np.array([ratio]))
    assert abs((int(code) - 32768) / 1000 - np.log(ratio)) <= 0.00051
    assert by_rank(np.array([0x0102, 0x0304], "<u2")) == bytes([2, 4, 1, 3])


def test_text_stays_where_the_tokens_do_not_give_it(tmp_path):
    JsonlTracker(tmp_path).rollouts(1, [trace(text="something else")])
    assert traces_of(tmp_path).kept[0]["text"] == "something else"


def test_a_huge_token_and_a_huge_prompt_are_cut_and_say_so(tmp_path):
    JsonlTracker(tmp_path).rollouts(1, [trace(tokens=("x" * 1_002_000,), prompt="y" * 100_007)])
    traces = traces_of(tmp_path)
    assert traces.vocabulary[0][1].endswith("x… [1,000,000 more characters]")
    assert traces.prompts[0][1].endswith("y… [7 more characters]")
    assert len(write_report(tmp_path).read_text()) < 3_000_000


def test_accuracy_curves_add_the_mean_over_sets():
    lines = [
        {"step": 0, "eval/a/mean@4": 0.2, "eval/b/mean@4": 0.4, "eval/a/greedy": 0.5},
        {"step": 5, "reward/mean": 1.0},
        {"step": 9, "eval/a/mean@4": 0.6, "eval/b/mean@4": None, "eval/a/greedy": 0.7},
    ]
    curves = accuracy_curves(lines)
    assert curves["all/mean@4"] == Curve([0], [pytest.approx(0.3)])
    assert curves["a/greedy"] == Curve([0, 9], [0.5, 0.7])
    assert "all/greedy" not in curves


def test_bounds_thin_every_step_alike_and_keep_at_least_one(tmp_path):
    tracker = JsonlTracker(tmp_path)
    for step in (1, 2):
        tracker.rollouts(step, [trace(number, tokens=("x",) * 100) for number in range(10)])
    by_count = traces_of(tmp_path, max_traces=6)
    assert [record["step"] for record in by_count.kept] == [1, 1, 1, 2, 2, 2]
    assert by_count.num_traces == 20
    by_tokens = traces_of(tmp_path, max_tokens=500)
    assert [record["step"] for record in by_tokens.kept] == [1, 1, 2, 2]
    assert len(traces_of(tmp_path, max_traces=1, max_tokens=1).kept) == 1, "the bound counts, not a trace of every step"


def test_a_run_too_long_for_a_trace_of_every_step_leaves_out_steps_evenly(tmp_path):
    tracker = JsonlTracker(tmp_path)
    for step in range(1, 101):
        tracker.rollouts(step, [trace(tokens=("a",) * 40, ids=[5] * 40, logp=[-1.0] * 40, ratio=None)] * 2)
    traces = traces_of(tmp_path, max_tokens=400)
    steps = [record["step"] for record in traces.kept]
    assert steps == [1, 12, 23, 34, 45, 56, 67, 78, 89, 100] and sum(record["length"] for record in traces.kept) <= 400
    assert traces.num_traces == 200
    assert [record["step"] for record in traces_of(tmp_path, max_traces=3).kept] == [1, 51, 100]


def test_report_of_a_run_that_has_just_begun(tmp_path):
    JsonlTracker(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/me')
    assert write_report(tmp_path).exists()
    missing = " ".join(report_data(tmp_path)["missing"])
    assert re.search(r"no line yet.*config.yaml is missing.*summary.json is missing.*no trace", missing)


def test_damaged_files_give_a_page_with_the_rest_and_say_what_is_damaged(run_folder):
    with (run_folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, \xff\n{"no": 1}\n[1]\n')
    with (run_folder / "rollouts" / "step_2.jsonl").open("a") as file:
        file.write(
            'nonsense\n{"group": 1}\n' + json.dumps(trace(logp=[1.0])) + "\n" + json.dumps(trace(parts=[])) + "\n"
        )
    (run_folder / "config.yaml").write_text("a: [")
    (run_folder / "summary.json").write_text("{")
    data = report_data(run_folder)
    assert (data["metrics"]["step"], len(data["traces"])) == ([0, 1, 2, 3], 12)
    for said in (
        "metrics.jsonl is damaged: 2 lines from line 5 on are left out", "1 lines without a step",
        "config.yaml cannot be read", "summary.json is damaged", "rollouts/step_2.jsonl is damaged: line 5 is left out",
        "rollouts/step_2.jsonl has 3 lines that are no trajectories",
    ):  # fmt: skip
        assert any(said in sentence for sentence in data["missing"]), (said, data["missing"])
    assert write_report(run_folder).exists()


@pytest.mark.parametrize("gone", ["metrics.jsonl", "config.yaml", "summary.json", "rollouts"])
def test_any_file_may_be_missing_and_the_page_says_which(run_folder, gone):
    path = run_folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(gone in sentence for sentence in report_data(run_folder)["missing"])
    assert write_report(run_folder).exists()


def test_records_of_older_runs_have_neither_ids_nor_versions_nor_observations(tmp_path):
    record = {name: value for name, value in trace().items() if name not in ("ids", "versions", "observations")}
    JsonlTracker(tmp_path).rollouts(1, [record])
    traces = traces_of(tmp_path)
    assert traces.vocabulary[0] == (None, "7") and traces.kept[0]["versions"] == []


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="has none of them: name a folder such as runs/<name>"):
        write_report(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        write_report(tmp_path / "nowhere")


def test_several_runs_go_beside_the_first_unless_told_otherwise(run_folder, tmp_path, capsys):
    other = write_run(tmp_path / "elsewhere" / "b")
    assert write_report(run_folder, other) == run_folder.parent / "a <b> & c-vs-b.html"
    assert main(["report", str(run_folder), str(other), "--output", str(tmp_path / "new" / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "new" / "page.html")
    assert (tmp_path / "new" / "page.html").exists()
    assert default_output([Path("runs/a")]) == Path("runs/a/report.html")
    assert run_labels([Path("x/a"), Path("y/a"), Path("b")]) == ["x/a", "y/a", "b"]
    assert run_labels([Path("x/s/a"), Path("y/s/a"), Path("y/s/b")]) == ["x/s/a", "y/s/a", "b"]


def test_runs_that_cannot_be_compared_are_refused(run_folder, tmp_path, capsys):
    with pytest.raises(DataError, match="named twice"):
        write_report(run_folder, run_folder)
    with pytest.raises(DataError, match="at most 8 runs"):
        write_report(*(tmp_path / str(i) for i in range(9)))
    assert main(["report", str(run_folder), "--svg", "x.svg", "--output", "y.html"]) == 1
    assert "leave --output out" in capsys.readouterr().err


def test_comparison_has_settings_that_differ_and_results(run_folder, tmp_path):
    other = write_run(tmp_path / "b", config="ratio_cap: 5.0\n")
    data = json.loads(unpacked(Page(write_report(run_folder, other).read_text()), "page"))
    assert data["comparison"]["settings"] == [["ratio_cap", "3.0", "5.0"]]
    assert ["sampled accuracy", "0.300 → 0.900", "0.300 → 0.900"] in data["comparison"]["results"]


def test_svg_is_xml_with_a_point_per_measurement(run_folder, tmp_path):
    path = curves_svg(run_folder, tmp_path / "accuracy.svg")
    root = ElementTree.parse(path).getroot()
    points = {line.get("stroke"): line.get("points").split() for line in root.findall(".//{*}polyline")}
    assert [len(line) for line in points.values()] == [2, 2, 2]
    labels = ["".join(text.itertext()) for text in root.findall(".//{*}text")]
    assert {"chain 80 %", "program 100 %", "all 90 %", "RL step", "sampled accuracy"} <= set(labels)


def test_svg_heights_are_proportional():
    root = ElementTree.fromstring(accuracy_svg({"all": Curve([0, 5, 10], [0.0, 0.5, 1.0])}, title="t"))
    [line] = root.findall(".//{*}polyline")
    (x0, y0), (x1, y1), (x2, y2) = ([float(n) for n in point.split(",")] for point in line.get("points").split())
    assert x1 - x0 == pytest.approx(x2 - x1) and y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2


def test_svg_without_evaluations_says_what_to_set(tmp_path):
    JsonlTracker(tmp_path).log(1, {"reward/mean": 0.5})
    with pytest.raises(DataError, match="eval_every"):
        curves_svg(tmp_path, tmp_path / "x.svg")


def test_reading_a_run_imports_no_heavy_library():
    code = "import launch.report, sys; assert not {'plotly', 'wandb', 'ray', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
