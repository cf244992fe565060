// The head of the page: what is missing, headline figures, accuracies before and after, settings that differ.

const allFirst = (a, b) => (b === "all") - (a === "all");

// The accuracies before and after RL as {measure: {set: [first, last]}}: from summary.json, or from what is logged so far.
function firstAndLast(run) {
  const measures = {};
  const note = (measure, set, ...values) => ((measures[measure] ??= {})[set] = values);
  const { first, last } = run.summary?.eval ?? {};
  if (first && last) {
    for (const [measure, sets] of Object.entries(first))
      for (const [set, value] of Object.entries(sets ?? {})) note(measure, set, value, last[measure]?.[set]);
    return measures;
  }
  for (const [name, { values }] of Object.entries(run.accuracy)) {
    const cut = name.lastIndexOf("/");
    note(name.slice(cut + 1), name.slice(0, cut), ...(values.length > 1 ? [values[0], values.at(-1)] : values));
  }
  return measures;
}

const change = (pair) => (pair?.length && pair.every((value) => typeof value === "number") ? pair.map(percent).join(" → ") : "–");

function headlines(run) {
  const figures = [];
  for (const [measure, sets] of Object.entries(firstAndLast(run))) {
    const set = "all" in sets ? "all" : Object.keys(sets)[0];
    if (figures.length < 2) figures.push([change(sets[set]), `${measure} accuracy, first → last`]);
  }
  const { seconds, tokens } = run.summary ?? {};
  const measured = (run.metrics["perf/step_seconds"] ?? []).reduce((sum, value) => sum + (value ?? 0), 0);
  if (seconds?.total != null) figures.push([duration(seconds.total), "wall time"]);
  else if (measured) figures.push([duration(measured), "in steps so far"]);
  figures.push([String(run.metrics.step?.at(-1) ?? 0), "steps"]);
  if (tokens?.generated != null) figures.push([count(tokens.generated), "tokens sampled"]);
  if (tokens?.trained != null) figures.push([count(tokens.trained), "tokens trained on"]);
  return figures;
}

function accuracyTable(run) {
  const measures = firstAndLast(run);
  const sets = distinct(Object.values(measures).flatMap(Object.keys)).sort(allFirst);
  if (!sets.length) return [];
  const rows = sets.map((set) => [set, ...Object.values(measures).map((bySet) => change(bySet[set]))]);
  return [table(["Held-out set", ...Object.keys(measures)], rows)];
}

function drawOverview() {
  const missing = RUNS.flatMap((run) => run.missing.map((said) => (RUNS.length > 1 ? `${run.label}: ${said}` : said)));
  at("missing").replaceChildren(...missing.map((said) => element("li", {}, visible(said))));
  at("missing").hidden = !missing.length;
  const [run] = RUNS;
  if (RUNS.length === 1) {
    if (run.summary?.seed != null) at("eyebrow").textContent = `cispo run · seed ${run.summary.seed}`;
    at("headlines").replaceChildren(...headlines(run).map(([value, label]) =>
      element("div", { class: "figure" }, element("b", {}, value), element("span", {}, label))));
    at("accuracy-table").replaceChildren(...accuracyTable(run));
  } else drawComparison();
  at("configuration").append(...RUNS.map(({ label, config }) => element("details", {},
    element("summary", {}, RUNS.length > 1 ? `${label}: config.yaml` : "config.yaml"),
    element("pre", { dir: "ltr" }, config ? visible(config) : "This run's folder has no config.yaml."))));
}

function drawComparison() {
  at("eyebrow").textContent = `cispo · ${RUNS.length} runs side by side`;
  const { settings, results } = PAGE.comparison;
  const names = RUNS.map(({ label }) => label);
  at("comparison").hidden = false;
  at("comparison").append(
    table(["Result", ...names], results, { id: "results" }),
    settings.length ? table(["Setting that differs", ...names], settings, { id: "settings" })
      : element("p", { class: "note" }, "No setting differs."));
}
