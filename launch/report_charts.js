// Headline figures and curves. Reads the JSON of #run-data (made by report_data in report.py) and draws with Plotly.
// Text of the run is only ever set as textContent; Plotly reads "<" in a label as markup, so plain() takes it away.
"use strict";

const RUN = JSON.parse(document.getElementById("run-data").textContent);
const STEPS = RUN.metrics.step ?? [];

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const colours = () => getComputedStyle(document.documentElement).getPropertyValue("--series").trim().split(/\s+/);
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
const allFirst = (a, b) => (b === "all") - (a === "all");
const names = (pattern) => Object.keys(RUN.metrics).filter((name) => pattern.test(name));

function duration(seconds) {
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  if (seconds < 7200) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

function count(number) {
  if (number >= 1e9) return `${(number / 1e9).toFixed(2)} G`;
  if (number >= 1e6) return `${(number / 1e6).toFixed(2)} M`;
  return number >= 1e4 ? `${(number / 1e3).toFixed(0)} k` : String(number);
}

// --- headlines ------------------------------------------------------------------------------------------------------

// The accuracies before and after RL as {measure: {set: [first, last]}}: from summary.json, or from what is logged so far.
function firstAndLast() {
  const measures = {};
  const note = (measure, set, ...values) => ((measures[measure] ??= {})[set] = values);
  if (RUN.summary?.eval?.first && RUN.summary.eval.last) {
    for (const [measure, sets] of Object.entries(RUN.summary.eval.first))
      for (const [set, value] of Object.entries(sets)) note(measure, set, value, RUN.summary.eval.last[measure]?.[set]);
    return measures;
  }
  for (const [name, curve] of Object.entries(RUN.accuracy)) {
    const cut = name.lastIndexOf("/");
    note(name.slice(cut + 1), name.slice(0, cut), ...(curve.values.length > 1 ? [curve.values[0], curve.values.at(-1)] : curve.values));
  }
  return measures;
}

const change = (pair) => (pair?.every((value) => typeof value === "number") ? pair.map(percent).join(" → ") : "–");

function drawHeadlines() {
  const figures = [];
  for (const [measure, sets] of Object.entries(firstAndLast())) {
    const set = "all" in sets ? "all" : Object.keys(sets)[0];
    if (figures.length < 2) figures.push([change(sets[set]), `${measure} accuracy, first → last`]);
  }
  const { seconds, tokens, seed } = RUN.summary ?? {};
  if (seed != null) document.getElementById("eyebrow").textContent += ` · seed ${seed}`;
  const measured = (RUN.metrics["perf/step_seconds"] ?? []).reduce((sum, value) => sum + (value ?? 0), 0);
  if (seconds?.total != null) figures.push([duration(seconds.total), "wall time"]);
  else if (measured) figures.push([duration(measured), "in steps so far"]);
  figures.push([String(STEPS.at(-1) ?? 0), "steps"]);
  if (tokens?.generated != null) figures.push([count(tokens.generated), "tokens generated"]);
  if (tokens?.trained != null) figures.push([count(tokens.trained), "tokens trained on"]);
  document.getElementById("headlines").replaceChildren(
    ...figures.map(([value, label]) => element("div", { class: "figure" }, element("b", {}, value), element("span", {}, label))),
  );
}

function drawAccuracyTable() {
  const measures = firstAndLast();
  const sets = [...new Set(Object.values(measures).flatMap(Object.keys))].sort(allFirst);
  if (!sets.length) return;
  const head = element("tr", {}, element("th", { scope: "col" }, "Held-out set"));
  for (const measure of Object.keys(measures)) head.append(element("th", { scope: "col" }, measure));
  const rows = sets.map((set) => {
    const row = element("tr", {}, element("th", { scope: "row" }, set));
    for (const bySet of Object.values(measures)) row.append(element("td", {}, change(bySet[set])));
    return row;
  });
  document.getElementById("accuracy-table").replaceChildren(
    element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

// --- curves ---------------------------------------------------------------------------------------------------------

function line(name, options = {}) {
  const { label, ...rest } = options;
  const values = RUN.metrics[name];
  if (!values || values.every((value) => value == null)) return null;
  const logged = STEPS.map((_, i) => i).filter((i) => values[i] != null);
  const points = { x: logged.map((i) => STEPS[i]), y: logged.map((i) => values[i]) };
  return { type: "scatter", mode: logged.length === 1 ? "markers" : "lines", ...points, name: plain(label ?? name), ...rest };
}

const lines = (table) => table.map(([name, label, options]) => line(name, { label, ...options })).filter(Boolean);
// Few labels: plotly names every half decade otherwise, one over the other.
const LOG_AXIS = { type: "log", tickmode: "auto", nticks: 5 };
const SECOND_AXIS = { overlaying: "y", side: "right", tickformat: ".2~%", tickmode: "auto", nticks: 6, rangemode: "tozero", showgrid: false };
const onSecondAxis = { yaxis: "y2", line: { dash: "dot" } };

const accuracyDash = (measure) => (measure.startsWith("mean") ? "solid" : measure.startsWith("pass") ? "dot" : "dash");

function accuracyLines() {
  const curves = Object.entries(RUN.accuracy).map(([name, curve]) => {
    const cut = name.lastIndexOf("/");
    return { set: name.slice(0, cut), measure: name.slice(cut + 1), ...curve };
  });
  const sets = [...new Set(curves.map(({ set }) => set))].sort(allFirst);
  const palette = colours();
  return curves.sort((a, b) => sets.indexOf(a.set) - sets.indexOf(b.set)).map(({ set, measure, steps, values }) => ({
    type: "scatter", mode: "lines+markers", x: steps, y: values, name: plain(`${set} ${measure}`),
    line: { color: palette[sets.indexOf(set) % palette.length], dash: accuracyDash(measure), width: set === "all" ? 3 : 2 },
    visible: measure.startsWith("pass") ? "legendonly" : true,
  }));
}

function rewardLines() {
  const all = names(/^reward\/.*mean$/);
  return all.map((name) => {
    const label = name.replace(/^reward\//, "").replace(/\/mean$/, "");
    return line(name, { label: label === "mean" ? "reward" : label, line: { width: label === "mean" ? 3 : 1.5 } });
  }).filter(Boolean);
}

function verdictAreas() {
  return names(/^verdict\/.*_fraction$/)
    .map((name) => ({ name, label: name.replace(/^verdict\/(.*)_fraction$/, "$1").replace(/_/g, " ") }))
    .filter(({ name }) => RUN.metrics[name].some((value) => value > 0))
    .sort((a, b) => (b.label === "correct") - (a.label === "correct"))
    .map(({ name, label }) => line(name, { label, stackgroup: "verdicts", line: { width: 0.5 } }));
}

// The cold start's seconds stand at step 0 and would dwarf every step, so they are left out.
function timingBars() {
  return names(/^timing_s\//)
    .filter((name) => RUN.metrics[name].some((value, i) => value != null && STEPS[i] > 0))
    .map((name) => ({ type: "bar", x: STEPS, y: RUN.metrics[name], name: plain(name.replace("timing_s/", "").replace(/_/g, " ")) }));
}

function lengthHistograms() {
  return RUN.lengths.map(({ step, num_tokens }) => ({
    type: "histogram", x: num_tokens, name: `step ${step}`, opacity: 0.65, histnorm: "probability", bingroup: "lengths", nbinsx: 40,
  }));
}

const CHARTS = [
  { title: "Held-out accuracy", note: "Fraction solved; pass@k can be switched on in the legend.", build: accuracyLines,
    layout: { yaxis: { tickformat: ".0%", range: [-0.02, 1.02] } } },
  { title: "Reward in training", note: "Mean over every finished group of the step; parts before weighting.", build: rewardLines },
  { title: "Response length", note: "Tokens; the dotted line is the truncated fraction (right axis).",
    build: () => lines([
      ["response_length/p50", "median"], ["response_length/p90", "p90"], ["response_length/p99", "p99"],
      ["response_length/truncated_fraction", "truncated", onSecondAxis],
    ]), layout: { yaxis: { rangemode: "tozero" }, yaxis2: SECOND_AXIS } },
  { title: "Lengths, first and last step", note: "Share of trajectories by number of tokens.", build: lengthHistograms,
    layout: { barmode: "overlay", xaxis: { title: { text: "tokens" } }, yaxis: { tickformat: ".0%" } } },
  { title: "Importance ratio", note: "Current over behaviour probability; the dotted line is the fraction at the cap (right axis).",
    build: () => lines([["ratio/max", "max"], ["ratio/mean", "mean"], ["ratio/capped_fraction", "capped", onSecondAxis]]),
    layout: { yaxis: { ...LOG_AXIS, tickformat: "~g" }, yaxis2: SECOND_AXIS } },
  { title: "Drift from the behaviour policy", note: "KL estimate over a step's updates. Runs with a p95 above 0.1 tend to end badly.",
    build: () => lines([["drift/kl_p95", "KL p95"], ["drift/kl_mean", "KL mean"]]), layout: { yaxis: { ...LOG_AXIS, tickformat: ".0e" } } },
  { title: "Sampler against learner", note: "Disagreement of the two about the same tokens and weights; rounding only, so very small and flat.",
    build: () => lines([["mismatch/kl", "KL"], ["mismatch/logp_abs_diff_mean", "|logp difference|"]]),
    layout: { yaxis: { ...LOG_AXIS, tickformat: ".0e" } } },
  { title: "Verdicts", note: "What the verifiers found, as fractions of all trajectories.", build: verdictAreas,
    layout: { yaxis: { tickformat: ".0%", range: [0, 1] } } },
  { title: "Updates", note: "Gradient norm before clipping; the dotted line is the entropy of the policy in nats (right axis).",
    build: () => lines([["actor/grad_norm", "gradient norm"], ["actor/entropy", "entropy", onSecondAxis]]),
    layout: { yaxis: { rangemode: "tozero" }, yaxis2: { ...SECOND_AXIS, tickformat: "" } } },
  { title: "Groups without signal", note: "Drawn groups that were not trained on.",
    build: () => lines([["groups/flat_fraction", "flat"], ["groups/stale_fraction", "stale"], ["groups/failed_fraction", "failed"]]),
    layout: { yaxis: { tickformat: ".0%", rangemode: "tozero" } } },
  { title: "Where the time goes", note: "Seconds of each step, by phase.", build: timingBars, layout: { barmode: "stack", bargap: 0.1 } },
];

function layoutWith(own) {
  const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true };
  const { xaxis = {}, yaxis = {}, yaxis2, ...rest } = own ?? {};
  return {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", colorway: colours(), hovermode: "x unified",
    font: { family: "system-ui, sans-serif", size: 12, color: colour("--soft") },
    hoverlabel: { bgcolor: colour("--card"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    margin: { l: 48, r: 12, t: 8, b: 36 }, showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
    xaxis: { ...axis, title: { text: "step", standoff: 4 }, ...xaxis }, yaxis: { ...axis, ...yaxis },
    ...(yaxis2 ? { yaxis2: { ...axis, ...yaxis2 } } : {}), ...rest,
  };
}

function chartCard(title, note, ...more) {
  const plot = element("div", { class: "plot" });
  const card = element("div", { class: "chart" }, element("h3", {}, title, ...more), element("p", { class: "note" }, note), plot);
  document.getElementById("charts").append(card);
  return plot;
}

// Whatever is logged can be looked at, also a user's own metric that no chart above knows. Returns what draws it.
function addAnyMetric() {
  const all = Object.keys(RUN.metrics).filter((name) => name !== "step");
  if (!all.length) return () => {};
  const choice = element("select", { "aria-label": "Metric" }, ...all.map((name) => element("option", { value: name }, name)));
  const plot = chartCard("Any metric", "Every number of metrics.jsonl.", choice);
  const draw = () => Plotly.react(plot, [line(choice.value)].filter(Boolean), layoutWith({ showlegend: false }), PLOT_OPTIONS);
  choice.value = all.includes("actor/entropy") ? "actor/entropy" : all[0];
  choice.addEventListener("change", draw);
  return draw;
}

const PLOT_OPTIONS = { displayModeBar: false, displaylogo: false, responsive: true };

function drawCharts() {
  document.getElementById("charts").replaceChildren();
  const shown = CHARTS.map((chart) => ({ ...chart, data: chart.build() })).filter(({ data }) => data.length);
  const plots = shown.map(({ title, note }) => chartCard(title, note)); // all of them first: a plot takes its card's width
  const drawAnyMetric = addAnyMetric();
  shown.forEach(({ data, layout }, i) => Plotly.newPlot(plots[i], data, layoutWith(layout), PLOT_OPTIONS));
  drawAnyMetric();
}

drawHeadlines();
drawAccuracyTable();
drawCharts();
document.getElementById("config").textContent = RUN.config || "This run's folder has no config.yaml.";
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
