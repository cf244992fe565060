// Curves, drawn with Plotly. One run has a colour for each metric. Several runs have a colour each, a dash for each metric,
// and of sets and rewards only the whole: "Any metric" has the rest. Plotly reads "<" in a label as markup, so plain() takes it away.

const plain = (text) => visible(String(text)).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const hidden = new Set(); // runs that were switched off
const runsShown = () => RUNS.filter((run) => !hidden.has(run));
const many = () => RUNS.length > 1;
const DASHES = ["solid", "dash", "longdashdot", "dashdot"]; // dotted is the second axis

const names = (run, pattern) => Object.keys(run.metrics).filter((name) => pattern.test(name));

// What is logged now and then is drawn through; of what nearly every step logs, a hole is a value that was no number.
const MOSTLY = 0.8;
function drawn(values) {
  const known = values.map((_, i) => i).filter((i) => values[i] != null);
  const all = values.map((_, i) => i).slice(known[0], known.at(-1) + 1); // before it began and after it ended there is no hole
  return known.length > MOSTLY * all.length ? all : known;
}

function line(run, name, { label = name, dash, line: style, ...rest } = {}) {
  const values = run.metrics[name];
  if (!values || values.every((value) => value == null)) return null;
  const logged = drawn(values);
  return {
    type: "scatter", mode: logged.length === 1 ? "markers" : "lines",
    x: logged.map((i) => run.metrics.step[i]), y: logged.map((i) => values[i]),
    name: plain(many() ? `${run.label} · ${label}` : label), line: { ...style, ...ofRun(run, dash) }, ...rest,
  };
}

const ofRun = (run, dash) => ({ ...(dash ? { dash } : {}), ...(many() ? { color: palette()[RUNS.indexOf(run)] } : {}) });

// The same metrics of every run that is shown: table rows are [metric, label, options].
const lines = (rows) => runsShown().flatMap((run) =>
  rows.map(([name, label, options], i) => line(run, name, { label, dash: many() ? DASHES[i % DASHES.length] : undefined, ...options }))).filter(Boolean);

const LOG_AXIS = { type: "log" };
// Few labels: plotly by itself names every digit of a short range, one over the other.
function logTicks(data) {
  const values = data.filter(({ yaxis }) => !yaxis).flatMap(({ y }) => y).filter((value) => value > 0).map(Math.log10);
  const decades = values.length ? Math.max(...values) - Math.min(...values) : 0;
  return decades < 0.5 ? { nticks: 5 } : { dtick: decades < 2 ? "D2" : Math.ceil(decades / 5) };
}
const SECOND_AXIS = { overlaying: "y", side: "right", tickformat: ".2~%", tickmode: "auto", nticks: 6, rangemode: "tozero", showgrid: false };
const onSecondAxis = { yaxis: "y2", dash: "dot" };
const accuracyDash = (measure) => (measure.startsWith("mean") ? "solid" : measure.startsWith("pass") ? "dot" : "dash");

function accuracyLines() {
  return runsShown().flatMap((run) => {
    const curves = Object.entries(run.accuracy).map(([name, curve]) => {
      const cut = name.lastIndexOf("/");
      return { set: name.slice(0, cut), measure: name.slice(cut + 1), ...curve };
    });
    const sets = distinct(curves.map(({ set }) => set)).sort(allFirst);
    const colours = palette();
    return curves.filter(({ set }) => !many() || set === sets[0]).sort((a, b) => sets.indexOf(a.set) - sets.indexOf(b.set)).map(({ set, measure, steps, values }) => ({
      type: "scatter", mode: "lines+markers", x: steps, y: values, name: plain(`${many() ? `${run.label} · ` : ""}${set} ${measure}`),
      line: { color: colours[sets.indexOf(set) % colours.length], dash: accuracyDash(measure), width: set === sets[0] ? 3 : 2, ...ofRun(run) },
      visible: measure.startsWith("pass") ? "legendonly" : true,
    }));
  });
}

function rewardLines() {
  return runsShown().flatMap((run) => names(run, many() ? /^reward\/mean$/ : /^reward\/.*mean$/).map((name) => {
    const label = name.replace(/^reward\//, "").replace(/\/mean$/, "");
    const isWhole = label === "mean";
    return line(run, name, { label: isWhole ? "reward" : label, line: { width: isWhole ? 3 : 1.5 } });
  })).filter(Boolean);
}

function verdictAreas(run) {
  return names(run, /^verdict\/.*_fraction$/)
    .map((name) => ({ name, label: words(name.replace(/^verdict\/(.*)_fraction$/, "$1")) }))
    .filter(({ name }) => run.metrics[name].some((value) => value > 0))
    .sort((a, b) => (b.label === "correct") - (a.label === "correct"))
    .map(({ name, label }) => ({ ...line(run, name), name: plain(label), stackgroup: "verdicts", line: { width: 0.5 } }));
}

// The cold start's seconds stand at step 0 and would dwarf every step, so they are left out.
function timingBars(run) {
  const steps = run.metrics.step;
  return names(run, /^timing_s\//)
    .filter((name) => run.metrics[name].some((value, i) => value != null && steps[i] > 0))
    .map((name) => ({ type: "bar", x: steps.filter((step) => step > 0), y: run.metrics[name].filter((_, i) => steps[i] > 0),
      name: plain(words(name.replace("timing_s/", ""))) }));
}

function lengthHistograms() {
  return runsShown().flatMap((run) => (many() ? run.lengths.slice(-1) : run.lengths).map(({ step, num_tokens }) => ({
    type: "histogram", x: num_tokens, name: plain(many() ? `${run.label} · step ${step}` : `step ${step}`), opacity: 0.65,
    histnorm: "probability", bingroup: "lengths", nbinsx: 40, ...(many() ? { marker: { color: palette()[RUNS.indexOf(run)] } } : {}),
  })));
}

// `build` draws all runs into one chart, `buildRun` makes a chart of each.
const CHARTS = [
  { title: "Held-out accuracy", note: "Fraction solved; pass@k can be switched on in the legend.", build: accuracyLines,
    layout: { yaxis: { tickformat: ".0%", range: [-0.02, 1.02] } } },
  { title: "Reward in training", note: "Mean over every finished group of the step; parts before weighting.", build: rewardLines },
  { title: "Response length", note: "Tokens; the dotted line is the truncated fraction (right axis).",
    build: () => lines([
      ["response_length/p50", "p50"], ["response_length/p90", "p90"], ["response_length/p99", "p99"],
      ["response_length/truncated_fraction", "truncated", onSecondAxis],
    ]), layout: { yaxis: { rangemode: "tozero" }, yaxis2: SECOND_AXIS } },
  { title: "Lengths, first and last step", note: "Share of trajectories by number of tokens.", build: lengthHistograms,
    layout: { barmode: "overlay", xaxis: { title: { text: "tokens" } }, yaxis: { tickformat: ".0%" } } },
  { title: "Importance ratio", note: "Current over behaviour probability; the dotted line is the fraction at the cap (right axis).",
    build: () => lines([["ratio/max", "max"], ["ratio/mean", "mean"], ["ratio/capped_fraction", "capped", onSecondAxis]]),
    layout: { yaxis: { ...LOG_AXIS, tickformat: "~g" }, yaxis2: SECOND_AXIS } },
  { title: "Drift from the behaviour policy", note: "KL estimate over a step's updates. Runs with a p95 above 0.1 tend to end badly.",
    build: () => lines([["drift/kl_p95", "KL p95"], ["drift/kl_mean", "KL mean"]]), layout: { yaxis: { ...LOG_AXIS, tickformat: ".0e" } } },
  { title: "Mismatch of sampler and learner", note: "Their disagreement about the same tokens and weights; rounding only, so very small and flat.",
    build: () => lines([["mismatch/kl", "KL"], ["mismatch/logp_abs_diff_mean", "|logp difference|"]]),
    layout: { yaxis: { ...LOG_AXIS, tickformat: ".0e" } } },
  { title: "Staleness", note: "Versions between the policy that sampled a token and the one that learns.",
    build: () => (RUNS.some(({ metrics }) => metrics["staleness/max"]?.some((value) => value > 0)) ? lines([["staleness/mean", "mean"], ["staleness/max", "max"]]) : []),
    layout: { yaxis: { rangemode: "tozero" } } },
  { title: "Verdicts", note: "What the verifiers found, as fractions of all trajectories.", buildRun: verdictAreas,
    layout: { yaxis: { tickformat: ".0%", range: [0, 1] } } },
  { title: "Updates", note: "Gradient norm before clipping; the dotted line is the entropy of the policy in nats (right axis).",
    build: () => lines([["actor/grad_norm", "gradient norm"], ["actor/entropy", "entropy", onSecondAxis]]),
    layout: { yaxis: { rangemode: "tozero" }, yaxis2: { ...SECOND_AXIS, tickformat: "" } } },
  { title: "Groups without signal", note: "Drawn groups that were not trained on.",
    build: () => lines([["groups/flat_fraction", "flat"], ["groups/stale_fraction", "stale"], ["groups/failed_fraction", "failed"]]),
    layout: { yaxis: { tickformat: ".0%", rangemode: "tozero" } } },
  { title: "Where the time goes", note: "Seconds of each step, by phase.", buildRun: timingBars, layout: { barmode: "stack", bargap: 0.1 } },
];

function layoutWith(own, data = []) {
  const axis = { gridcolor: styleOf("--grid"), linecolor: styleOf("--line"), zeroline: false, automargin: true };
  const { xaxis = {}, yaxis = {}, yaxis2, ...rest } = own ?? {};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: palette(), hovermode: "x unified",
    font: { family: "system-ui, sans-serif", size: 12, color: styleOf("--soft") },
    hoverlabel: { bgcolor: styleOf("--card"), bordercolor: styleOf("--line"), font: { color: styleOf("--ink") } },
    margin: { l: 48, r: 12, t: 8, b: 36 }, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, title: { text: "step", standoff: 4 }, ...xaxis }, yaxis: { ...axis, ...yaxis, ...(yaxis.type === "log" ? logTicks(data) : {}) },
    ...(yaxis2 ? { yaxis2: { ...axis, ...yaxis2 } } : {}), ...rest,
  };
}

function chartCard(title, note, ...more) {
  const plot = element("div", { class: "plot", role: "img", "aria-label": `${title}. ${note}` });
  at("charts").append(element("div", { class: "chart" }, element("h3", {}, title, ...more), element("p", { class: "note" }, note), plot));
  return plot;
}

const PLOT_OPTIONS = { displayModeBar: false, displaylogo: false, responsive: true };

// Whatever is logged can be looked at, also a user's own metric that no chart above knows. Returns what draws it.
function addAnyMetric() {
  const all = distinct(RUNS.flatMap((run) => Object.keys(run.metrics))).filter((name) => name !== "step").sort();
  if (!all.length) return () => {};
  const choice = element("select", { id: "any-metric", "aria-label": "Metric" }, ...all.map((name) => element("option", { value: name }, visible(name))));
  const plot = chartCard("Any metric", "Every number of metrics.jsonl.", choice);
  const draw = () => Plotly.react(plot, lines([[choice.value, choice.value]]), layoutWith({ showlegend: many() }), PLOT_OPTIONS);
  choice.value = all.includes("actor/entropy") ? "actor/entropy" : all[0];
  choice.addEventListener("change", draw);
  return draw;
}

const chartsToDraw = () => CHARTS.flatMap(({ buildRun, build, ...chart }) => (build ? [{ ...chart, data: build() }]
  : runsShown().map((run) => ({ ...chart, title: many() ? `${chart.title} · ${run.label}` : chart.title, data: buildRun(run) }))))
  .filter(({ data }) => data.length);

async function drawCharts() {
  at("charts").replaceChildren();
  const shown = chartsToDraw();
  const plots = shown.map(({ title, note }) => chartCard(title, note)); // all of them first: a plot takes its card's width
  const drawAnyMetric = addAnyMetric();
  for (const [i, { data, layout }] of shown.entries()) {
    if (!plots[i].isConnected) return; // drawn anew meanwhile
    await Plotly.newPlot(plots[i], data, layoutWith(layout, data), PLOT_OPTIONS);
    await breathe();
  }
  await drawAnyMetric();
}

async function startCharts() {
  if (many()) {
    at("runs").hidden = false;
    at("runs").append(...RUNS.map((run) => {
      const chip = button("", () => {
        if (!hidden.delete(run)) hidden.add(run);
        chip.setAttribute("aria-pressed", String(!hidden.has(run)));
        drawCharts();
      }, { "aria-pressed": "true" });
      chip.append(runDot(run), run.label);
      return chip;
    }));
  }
  whenDarknessChanges(drawCharts);
  await drawCharts();
}
