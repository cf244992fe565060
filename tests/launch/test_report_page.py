"""The report in a real Chromium: it opens from its file without a request, and what it offers works."""

import json
import re

import pytest

from launch.report import write_report
from tests.launch.chromium import CHROMIUM, MISSING, Window, browser
from tests.launch.report_runs import trace, write_run

pytestmark = pytest.mark.skipif(not CHROMIUM, reason=MISSING)


@pytest.fixture(scope="module")
def chromium():
    with browser() as chromium:
        yield chromium


def answers(step):
    """Two groups of two trajectories: one that is right, one that is wrong, cut off, or used a tool."""
    tool = {"start": 2, "stop": 3, "tool": "python", "verdict": "TLE", "is_error": True, "note": "too slow"}
    return [
        trace(0, ("4", "2"), prompt="6*7=", reward=1.0, parts={"answer": 1.0, "format": 0.5}, advantage=1.0,
              logp=[-0.1, -3.0], ratio=[1.0, 3.5], note="fine", version=step - 1, versions=[[0, step - 1]]),
        trace(0, ("4", "1"), member=1, prompt="6*7=", reward=-0.5, parts={"answer": 0.0}, verdict="wrong",
              correct=False, stop_reason="length", advantage=-1.0, logp=[-0.1, -0.2], ratio=[1.0, 0.5],
              note="expected 42, got 41"),
        trace(1, ("a", "b", "4\n", "c"), task="program", prompt="Übung=", verdict="unparseable", correct=False,
              reward=0.0, logp=[-0.1, -0.1, None, -0.1], ratio=[1.0, 1.0, None, 1.0], observations=[tool], version=0,
              versions=[[0, 0], [3, step - 1]], note=""),
        trace(1, ("ok",), member=1, task="program", prompt="Übung=", reward=1.0, note="", ids=[999]),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return write_run(folder / "a", records=answers), write_run(folder / "b", records=answers, config="ratio_cap: 2.0\n")


@pytest.fixture(scope="module")
def window(chromium, runs):
    return Window(chromium, write_report(runs[0]))


@pytest.fixture(autouse=True)
def nothing_was_said_or_asked_for(request):
    yield
    if "window" in request.fixturenames:
        window = request.getfixturevalue("window")
        assert (window.said, window.requests_beyond()) == ([], [])
        window.page.evaluate("() => { at('filters').reset(); }")
        assert window.listed() == "12 traces"


def test_curves_are_drawn_and_numbers_are_shown(window):
    titles = window.texts(".chart h3")
    wanted = ("Held-out accuracy", "Reward in training", "Response length", "Importance ratio", "Verdicts", "Where")
    assert all(any(title.startswith(name) for title in titles) for name in (*wanted, "Mismatch"))
    assert window.page.locator(".plot .main-svg").count() >= len(titles)
    points = window.page.evaluate("() => at('charts').querySelector('.plot').data.map(({name, y}) => [name, y])")
    assert ["all mean@4", [pytest.approx(0.3), pytest.approx(0.9)]] in points
    bars = window.page.evaluate("""() => [...document.querySelectorAll('.plot')].map((plot) => plot.data)
        .find((data) => data[0].type === 'bar').map(({name, x, y}) => [name, x, y])""")
    assert bars == [["rollout", [1, 2, 3], [1, 1, 1]], ["update", [1, 2, 3], [0.5, 0.5, 0.5]]]
    assert "30 % → 90 %" in window.text("#headlines")
    assert window.page.locator("#missing").is_hidden()


@pytest.mark.parametrize(
    "fields, count",
    [
        ({"filter_text": "übung"}, 6), ({"filter_text": "Got 41"}, 3), ({"filter_text": "p/0"}, 6),
        ({"filter_text": "prompt:p/0"}, 6), ({"filter_text": "prompt:p/"}, 0),
        ({"filter_text": "ab4\nc"}, 3), ({"filter_text": "nowhere"}, 0), ({"filter_task": "program"}, 6),
        ({"filter_verdict": "unparseable"}, 3), ({"filter_correct": "yes"}, 6), ({"filter_stop": "cut off"}, 3),
        ({"filter_stop": "stop"}, 9), ({"step_from": "2"}, 8), ({"step_from": "2", "step_to": "2"}, 4),
        ({"reward_from": "0.5"}, 6), ({"reward_to": "-0.1"}, 3),
        ({"filter_task": "chain", "filter_correct": "no", "step_to": "1"}, 1),
    ],
)  # fmt: skip
def test_filters_keep_what_they_should(window, fields, count):
    if "\n" in fields.get("filter_text", ""):
        fields = {"filter_text": fields["filter_text"].split("\n")[0]}  # a field has one line
    said = window.filter(**fields)
    assert said == (f"{count} of 12 traces" if count else "No trace fits these filters.")
    assert window.page.locator(".row").count() == count


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([None, 1, None, 3, None, 5], [1, 3, 5]),  # logged now and then: drawn through
        ([None, 1, 2, 3, None, 5, 6, 7, None], [1, 2, 3, 4, 5, 6, 7]),  # a hole, and nothing before it began
        ([None, None], []),
    ],
)
def test_a_curve_has_a_hole_where_nearly_every_step_has_a_number(window, values, shown):
    assert window.page.evaluate("(values) => drawn(values)", values) == shown


@pytest.mark.parametrize(
    ("values", "ticks"),
    [([1e-12, 1e-2], {"dtick": 2}), ([2e-4, 2e-3], {"dtick": "D2"}), ([1.0, 1.8], {"nticks": 5}), ([], {"nticks": 5})],
)
def test_logarithmic_axes_have_few_labels(window, values, ticks):
    assert window.page.evaluate("(y) => logTicks([{y: [null, 0, ...y]}, {y: [1e9], yaxis: 'y2'}])", values) == ticks


def test_orders(window):
    window.filter(sort="lowest reward")
    assert "wrong −0.50" in window.texts(".row")[0]
    window.filter(sort="highest ratio of a token")
    window.page.keyboard.press("Escape")
    assert window.page.evaluate(
        "() => filtering.matches.slice(0, 3).every(({ highest_ratio }) => highest_ratio === 3.5)"
    )


def test_a_trace_shows_every_part_of_its_reward_its_verdict_and_its_numbers(window):
    window.filter(filter_text="fine", step_to="1")
    assert window.texts(".parts li") == ["answer1.00", "format0.50"]
    assert window.text(".verdict-line").startswith("correct")
    window.page.locator("#tokens [data-token='1']").hover()
    facts = window.text("#token-facts")
    for said in ("2 of 2", "“2”", "−3.000 (5.0 %)", "−1.747", "3.50", "1.000", "0, 0 old"):
        assert said in facts, (said, facts)


def test_colours_change_with_what_they_stand_for(window):
    window.filter(filter_text="fine", step_to="1")
    seen = {}
    for name in ("logp", "ratio", "advantage", "version", "none"):
        window.page.click(f"[data-colouring={name}]")
        assert window.page.locator(f"[data-colouring={name}]").get_attribute("aria-pressed") == "true"
        spans = window.page.locator("#tokens [data-token]")
        seen[name] = spans.evaluate_all("spans => spans.map((span) => span.style.backgroundColor)")
        assert (window.text("#legend") == "") == (name == "none")
    assert seen["logp"][0] != seen["logp"][1]
    assert seen["ratio"][0] == "" and seen["ratio"][1] != ""
    assert seen["advantage"][0] == seen["advantage"][1] != ""
    assert seen["none"] == ["", ""]
    window.page.click("[data-colouring=ratio]")
    assert window.page.locator("#tokens .capped").inner_text() == "2"


def test_what_a_tool_said_is_marked_and_has_no_colour(window):
    window.filter(filter_verdict="unparseable", step_from="3")
    assert window.text("#tokens .verdict") == "python · TLE · too slow"
    observed = window.page.locator("#tokens .observation")
    assert observed.inner_text().startswith("4↵") and observed.evaluate("span => span.style.backgroundColor") == ""
    observed.hover()
    assert "not chosen by the policy" in window.text("#token-facts")
    window.page.click("[data-colouring=version]")
    colours = window.page.locator("#tokens [data-token]").evaluate_all("s => s.map((x) => x.style.backgroundColor)")
    assert colours[0] == colours[1] != "" and colours[2] == colours[3] == ""  # two versions old, and the newest


def test_keys_and_the_place_in_the_address(window):
    keyboard = window.page.keyboard
    window.page.evaluate("() => choose(filtering.matches[0])")
    keyboard.press("j")
    assert "trace=0.1" in window.page.evaluate("() => location.hash")
    keyboard.press("k")
    keyboard.press("g")
    assert window.page.locator(".card").count() == 2
    keyboard.press("g")
    keyboard.press("/")
    keyboard.type("ok")
    window.page.wait_for_function("() => at('count').textContent === '3 of 12 traces'")
    keyboard.press("Escape")
    keyboard.press("j")
    assert "step=2&trace=1.1" in window.page.evaluate("() => location.hash")


def test_an_address_leads_to_a_trace_with_its_colours(chromium, runs):
    window = Window(chromium, write_report(runs[0]), anchor="#step=3&trace=1.0&colour=advantage", ready=("reader",))
    assert "step 3 · program" in window.text(".verdict-line")
    assert window.page.locator("[data-colouring=advantage]").get_attribute("aria-pressed") == "true"
    window.page.close()


def test_two_runs_side_by_side(chromium, runs):
    window = Window(chromium, write_report(*runs), color_scheme="dark")
    assert window.texts("#runs button") == ["a", "b"]
    assert ["ratio_cap", "3.0", "2.0"] in [row.split("\t") for row in window.texts("#settings tr")]
    curves = "() => at('charts').querySelector('.plot').data.map(({name, line}) => [name, line.color])"
    drawn = [pair for pair in window.page.evaluate(curves) if "mean@4" in pair[0]]
    assert [name for name, _ in drawn] == ["a · all mean@4", "b · all mean@4"] and drawn[0][1] != drawn[1][1]
    assert window.filter(filter_run="1") == "12 of 24 traces"
    window.page.click("[data-tab=elsewhere]")
    assert window.texts(".columns section h3") == ["a", "b"]
    assert window.page.locator(".columns .card").count() == 6 + 2  # three steps there, this step here
    window.page.click("#runs button >> nth=0")
    window.page.wait_for_function(
        "() => at('charts').querySelector('.plot').data?.every(({name}) => name.startsWith('b'))"
    )
    assert (window.said, window.requests_beyond()) == ([], [])
    window.page.close()


def test_the_page_of_a_real_run(chromium, whole_run, tmp_path):
    window = Window(chromium, write_report(whole_run, output=tmp_path / "page.html"))
    titles = window.texts(".chart h3")
    for title in (
        "Held-out accuracy",
        "Reward in training",
        "Importance ratio",
        "Mismatch",
        "Verdicts",
        "Where the time",
    ):
        assert any(title in found for found in titles), titles
    points = window.page.evaluate("() => at('charts').querySelector('.plot').data.map(({y}) => y.length)")
    assert points and all(points)
    records = [json.loads(line) for path in (whole_run / "rollouts").glob("*.jsonl") for line in path.open()]
    assert window.listed() == f"{len(records)} traces"
    verdict = records[0]["verdict"]
    num_like_it = sum(record["verdict"] == verdict for record in records)
    assert window.filter(filter_verdict=verdict).split()[0] == str(num_like_it)
    window.page.click("[data-colouring=logp]")
    colours = window.page.locator("#tokens [data-token]").evaluate_all(
        "all => all.map((one) => one.style.backgroundColor)"
    )
    assert colours and any(colours)
    assert (window.said, window.requests_beyond()) == ([], [])


def test_hostile_text_stays_text(chromium, tmp_path):
    window = Window(chromium, write_report(write_run(tmp_path / "<img src=x onerror=document.title='owned'>")))
    assert window.page.title().startswith("<img") and window.page.locator("img").count() == 0
    shown = window.text("#tokens")
    for said in ("</script><script>", "⟨U+202E⟩evil", "␀␛[31m", "⟨U+D800⟩", "⟨U+2028⟩"):
        assert said in shown, said
    assert "<img src=x" in window.text(".parts")
    window.page.select_option("#any-metric", index=0)
    assert (window.said, window.requests_beyond()) == ([], [])
    window.page.close()


def test_a_damaged_run_says_what_is_missing(chromium, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.5}\n')
    window = Window(chromium, write_report(tmp_path))
    assert re.search(r"config.yaml is missing.*summary.json is missing.*no trace", window.text("#missing"), flags=re.S)
    assert window.page.locator("#reader").is_hidden() and window.page.locator(".plot .main-svg").count() > 0
    assert window.said == []
    window.page.close()


def test_ten_thousand_traces_open_and_only_the_rows_in_view_are_in_the_document(chromium, tmp_path):
    words = ["<think>", "8-1=7", ";", "7-1=6", "</think>", "\\boxed{7}"] * 5
    (tmp_path / "rollouts").mkdir()
    for step in range(1, 11):
        lines = (json.dumps(trace(i, words, note=f"answer {step * i}", prompt=f"{i}=")) for i in range(1000))
        (tmp_path / "rollouts" / f"step_{step}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    window = Window(chromium, write_report(tmp_path))
    assert window.listed() == "10,000 traces"
    assert window.page.locator(".row").count() < 40
    assert window.filter(filter_text="answer 999") == "4 of 10,000 traces"
    window.filter(filter_text="")
    window.page.focus("#trace-list")
    window.page.keyboard.press("End")
    assert window.page.locator(".row[aria-selected=true]").get_attribute("aria-posinset") == "10000"
    window.page.close()
