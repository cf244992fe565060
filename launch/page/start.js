// Unpacks and draws, the traces first; keys; and the place in the address: #run=..&step=..&trace=group.member&colour=..

let PAGE, RUNS;

async function start() {
  PAGE = await unpacked("page").json();
  RUNS = await Promise.all(PAGE.runs.map((_, i) => unpacked(`run-${i}`).json()));
  drawOverview();
  await Promise.all(RUNS.map(async (run, i) => { run.streams = new Streams(await unpacked(`streams-${i}`).arrayBuffer()); }));
  await startReader();
  document.body.dataset.reader = "ready";
  const program = await unpacked("plotly").text();
  await breathe();
  document.head.append(element("script", {}, program));
  await startCharts();
  document.body.dataset.charts = "ready";
}

async function startReader() {
  for (const run of RUNS) {
    run.read = tracesOf(run);
    run.oldestAge = run.read.reduce((oldest, { age }) => Math.max(oldest, age), 0);
  }
  const embedded = RUNS.reduce((sum, run) => sum + run.read.length, 0);
  const written = RUNS.reduce((sum, run) => sum + run.num_traces, 0);
  at("traces-note").textContent = !embedded ? "There is no trace to read."
    : embedded < written ? `${whole(embedded)} of the ${whole(written)} traces in rollouts/, the same share of each step.`
      : `All ${whole(embedded)} traces in rollouts/.`;
  at("filters").hidden = at("reader").hidden = !embedded;
  if (!embedded) return;
  fillFilters(RUNS.flatMap((run) => run.read));
  listenToFilters();
  listenToList();
  listenToReader();
  document.addEventListener("keydown", shortcut);
  window.addEventListener("hashchange", () => goToPlace());
  whenDarknessChanges(() => { drawRows(); showTrace(); });
  await applyFilters();
  if (!goToPlace()) choose(filtering.matches[0], { remember: false });
}

function shortcut(event) {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape" && typing) return event.target.blur();
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const act = {
    j: () => moveChoice(1), k: () => moveChoice(-1), c: nextColouring,
    g: () => { reading.tab = reading.tab === "group" ? "trace" : "group"; showTrace(); },
    "/": () => { at("filter-text").focus(); at("filter-text").select(); },
  }[event.key];
  if (!act) return undefined;
  event.preventDefault();
  return act();
}

function rememberPlace() {
  const { trace, colouring } = reading;
  const place = new URLSearchParams({ ...(RUNS.length > 1 ? { run: trace.run.label } : {}), step: trace.step, trace: `${trace.group}.${trace.member}`, colour: colouring });
  history.replaceState(null, "", `#${place}`);
}

// Returns whether the address names a trace that is there.
function goToPlace() {
  const place = new URLSearchParams(location.hash.slice(1));
  if (!place.has("trace")) return false;
  const run = RUNS.find(({ label }) => label === place.get("run")) ?? RUNS[0];
  const trace = run.read.find(({ step, group, member }) => String(step) === place.get("step") && `${group}.${member}` === place.get("trace"));
  if (!trace) return false;
  if (place.get("colour") in COLOURINGS) reading.colouring = place.get("colour");
  choose(trace, { remember: false });
  at("traces").scrollIntoView();
  return true;
}

start().catch((error) => {
  at("fault").textContent = typeof DecompressionStream === "undefined"
    ? "This browser is too old for this page: it needs DecompressionStream (Chrome 80, Firefox 113, Safari 16.4 or newer)."
    : `This page could not be drawn (${error}). Make it anew with cispo report; if that does not help, please report it.`;
  at("fault").hidden = false;
  console.error(error);
});
