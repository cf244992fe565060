// Which traces are listed, in which order. Work over all of them is done in short pieces: the page never stops to react.

const SLICE_MS = 12;

const ORDERS = {
  "as written": null,
  "highest reward": (trace) => -(trace.reward ?? -Infinity),
  "lowest reward": (trace) => trace.reward ?? Infinity,
  "longest": (trace) => -trace.num_tokens,
  "shortest": (trace) => trace.num_tokens,
  "highest ratio of a token": (trace) => -(trace.highest_ratio ?? -Infinity),
  "mean ratio farthest from 1": (trace) => -Math.abs(Math.log(trace.mean_ratio || 1)),
  "least likely token": (trace) => trace.lowest_logp ?? Infinity,
  "oldest policy": (trace) => -trace.age,
};
const PROMPT = "prompt:"; // what a search begins with that is for one prompt, by its whole id
const ENDINGS = { "by itself": (trace) => !trace.isCut && trace.stop_reason !== "repetition", "cut off": (trace) => trace.isCut };

const filtering = { matches: [], runningFor: 0 };

function fillFilters(traces) {
  const options = (id, values, all) => at(id).replaceChildren(
    ...(all ? [element("option", { value: "" }, all)] : []),
    ...values.map((value) => element("option", { value }, visible(words(value)))));
  const seen = (key) => distinct(traces.map((trace) => trace[key])).sort();
  at("filter-run").replaceChildren(element("option", { value: "" }, "all"),
    ...RUNS.map(({ label }, i) => element("option", { value: String(i) }, label)));
  at("label-run").hidden = RUNS.length === 1;
  options("filter-task", seen("task"), "all");
  options("filter-verdict", seen("verdict"), "all");
  options("filter-correct", ["yes", "no"], "all");
  options("filter-stop", [...Object.keys(ENDINGS), ...seen("stop_reason")], "any");
  options("sort", Object.keys(ORDERS));
}

function range(name, of) {
  const [from, to] = ["from", "to"].map((end) => at(`${name}-${end}`).value);
  if (from === "" && to === "") return null;
  const [low, high] = [from === "" ? -Infinity : Number(from), to === "" ? Infinity : Number(to)];
  return (trace) => of(trace) != null && of(trace) >= low && of(trace) <= high;
}

// The conditions that are set, cheap ones first.
function conditions() {
  const value = (name) => at(`filter-${name}`).value;
  const wanted = value("text").toLowerCase();
  const prompt = wanted.startsWith(PROMPT) ? wanted.slice(PROMPT.length).trim() : null;
  const equal = (chosen, of) => (chosen ? (trace) => of(trace) === chosen : null);
  return [
    value("run") && ((trace) => trace.run === RUNS[Number(value("run"))]),
    equal(value("task"), (trace) => trace.task),
    equal(value("verdict"), (trace) => trace.verdict),
    equal(value("correct"), (trace) => (trace.correct ? "yes" : "no")),
    ENDINGS[value("stop")] ?? equal(value("stop"), (trace) => trace.stop_reason),
    range("step", (trace) => trace.step),
    range("reward", (trace) => trace.reward),
    prompt && ((trace) => trace.promptId.toLowerCase() === prompt),
    wanted && prompt === null && ((trace) => trace.haystack.includes(wanted)),
  ].filter(Boolean);
}

// Returns false if another call began meanwhile, whose result counts instead.
async function applyFilters() {
  const mine = ++filtering.runningFor;
  document.body.dataset.filtering = "yes";
  const all = RUNS.flatMap((run) => run.read);
  const asked = conditions();
  const matches = [];
  let pause = performance.now() + SLICE_MS;
  for (const trace of all) {
    if (asked.every((holds) => holds(trace))) matches.push(trace);
    if (performance.now() < pause) continue;
    await breathe();
    if (mine !== filtering.runningFor) return false;
    pause = performance.now() + SLICE_MS;
  }
  const rank = ORDERS[at("sort").value];
  filtering.matches = rank ? matches.sort((a, b) => rank(a) - rank(b) || a.place - b.place) : matches;
  at("count").textContent = matches.length === all.length ? `${whole(all.length)} traces`
    : matches.length ? `${whole(matches.length)} of ${whole(all.length)} traces` : "No trace fits these filters.";
  document.body.dataset.filtering = "no";
  showList();
  return true;
}

function listenToFilters() {
  let waiting;
  const soon = (ms) => { clearTimeout(waiting); document.body.dataset.filtering = "yes"; waiting = setTimeout(filterAndChoose, ms); };
  at("filters").addEventListener("input", (event) => soon(event.target.type === "search" ? 150 : 0));
  at("filters").addEventListener("reset", () => soon(0)); // the fields are empty only after this event
  at("filters").addEventListener("submit", (event) => event.preventDefault());
}

async function filterAndChoose() {
  if ((await applyFilters()) && !filtering.matches.includes(reading.trace)) choose(filtering.matches[0] ?? null);
}

function showOnly(text) {
  at("filters").reset();
  at("filter-text").value = text;
  filterAndChoose();
}
