"""The report: one file, no requests, hostile text harmless, nothing lost between the run's files and the page."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cispo.errors import DataError
from launch.accuracy_chart import Curve, accuracy_svg
from launch.report import accuracy_curves, curves_svg, read_traces, report_data, script_json, write_report
from launch.trackers import JsonlTracker

HOSTILE = "</script><script>document.title='owned'</script><!-- <img src=x onerror=alert(1)> {{data}} \u2028"


def trace(number=0, tokens=("7", "+", "</think>", HOSTILE), **changes):
    return {
        "group": number, "member": 0, "prompt_id": f"p/{number}", "task": "chain", "prompt": f"{HOSTILE}=",
        "text": "".join(tokens), "tokens": list(tokens), "logp": [-0.12345] * len(tokens),
        "ratio": [1.23456] * len(tokens), "mean_ratio": 1.23456, "reward": 1.0, "parts": {HOSTILE: 1.0},
        "verdict": "correct", "note": HOSTILE, "correct": True, "advantage": 0.5, "version": 0,
        "stop_reason": "stop", "num_tokens": len(tokens),
    } | changes  # fmt: skip


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "runs" / "a <b> & c"
    tracker = JsonlTracker(folder)
    (folder / "config.yaml").write_text(f"name: {HOSTILE}\nratio_cap: 3.0\n")
    tracker.log(0, {"eval/chain/mean@4": 0.2, "eval/program/mean@4": 0.4, "eval/chain/greedy": 0.5})
    for step in (1, 2, 3):
        tracker.log(step, {"reward/mean": step / 3, "ratio/max": float("nan"), "timing_s/rollout": 1.0, HOSTILE: 1.0})
        tracker.rollouts(step, [trace(number, num_tokens=step) for number in range(4)])
    tracker.log(3, {"eval/chain/mean@4": 0.8, "eval/program/mean@4": 1.0})
    tracker.finish({"seed": 1, "seconds": {"total": 12.0}, "tokens": {"generated": 30, "trained": 20}})
    return folder


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
    assert page.references == ["#curves", "#traces", "#configuration"]
    assert not re.search(r"@import|url\(", "".join(page.styles))
    assert len(page.scripts) == 4


def test_page_forbids_requests(run_folder):
    text = write_report(run_folder).read_text(encoding="utf-8")
    assert "default-src 'none'" in text[: text.index("<style>")]


def test_hostile_text_reaches_the_page_only_as_data(page, run_folder):
    assert page.heading == "a <b> & c"
    texts = [text for attributes, text in page.scripts if attributes.get("type") != "application/json"]
    assert not any("document.title='owned'" in text for text in texts)
    [embedded] = [text for attributes, text in page.scripts if attributes.get("type") == "application/json"]
    assert "<" not in embedded and ">" not in embedded


def test_embedded_json_round_trips(page, run_folder):
    [embedded] = [text for attributes, text in page.scripts if attributes.get("id") == "run-data"]
    assert json.loads(embedded) == report_data(run_folder)
    assert json.loads(script_json({"text": HOSTILE})) == {"text": HOSTILE}


def test_plotly_is_inlined_once(page):
    assert sum("plotly.js v" in text for _, text in page.scripts) == 1


def test_data_has_columns_curves_lengths_and_traces(run_folder):
    data = report_data(run_folder)
    assert data["metrics"]["step"] == [0, 1, 2, 3]
    assert data["metrics"]["reward/mean"] == [None, 1 / 3, 2 / 3, 1.0]
    assert data["metrics"]["ratio/max"] == [None] * 4
    assert data["lengths"] == [{"step": 1, "num_tokens": [1] * 4}, {"step": 3, "num_tokens": [3] * 4}]
    assert (len(data["traces"]), data["num_traces"]) == (12, 12)
    first = data["traces"][0]
    assert (first["step"], first["logp"][0], first["ratio"][0]) == (1, -0.123, 1.235)
    assert "text" not in first  # the tokens give it


def test_text_stays_where_the_tokens_do_not_give_it(tmp_path):
    JsonlTracker(tmp_path).rollouts(1, [trace(text="something else")])
    assert read_traces(tmp_path).kept[0]["text"] == "something else"


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
    by_count = read_traces(tmp_path, max_traces=6)
    assert [record["step"] for record in by_count.kept] == [1, 1, 1, 2, 2, 2]
    assert by_count.num_traces == 20
    by_tokens = read_traces(tmp_path, max_tokens=500)
    assert [record["step"] for record in by_tokens.kept] == [1, 1, 2, 2]
    assert len(read_traces(tmp_path, max_traces=1, max_tokens=1).kept) == 2


def test_report_of_a_run_that_has_just_begun(tmp_path):
    JsonlTracker(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/me')
    assert write_report(tmp_path).exists()
    assert report_data(tmp_path)["summary"] is None


def test_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="metrics.jsonl"):
        write_report(tmp_path)


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


@pytest.mark.skipif(
    not shutil.which("chromium"), reason="chromium is not installed: the page is not opened in a browser"
)
def test_page_runs_in_a_browser_and_hostile_text_stays_text(run_folder, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'browser'}",
        "--virtual-time-budget=3000", "--dump-dom", write_report(run_folder).as_uri(),
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    body = re.sub(r"<script.*?</script>", "", dom, flags=re.DOTALL)
    assert "<title>a &lt;b&gt; &amp; c" in body
    assert body.count("<li") == 12
    assert 'class="main-svg"' in body
    assert 'data-token="3"' in body
    assert "<img" not in body
