// The trace reader: a filtered list, one page of it in the document at a time, and one trace with coloured tokens.
// Model text is hostile: it is only ever set as textContent (element() appends strings as text nodes).
"use strict";

const PAGE_SIZE = 50;
const TOKENS_AT_ONCE = 4000;
const RATIO_CAP = Number(/^ratio_cap:\s*([\d.]+)\s*$/m.exec(RUN.config)?.[1] ?? Infinity);
const at = (id) => document.getElementById(id);
const view = { matches: [], page: 0, chosen: null, colouring: "logp" };

const textOf = (trace) => trace.text ?? trace.tokens.join("");
const haystack = (trace) => (trace.haystack ??= [trace.prompt_id, trace.prompt, textOf(trace), trace.note].join("\n").toLowerCase());
const number = (value, digits = 3) => (value == null ? "–" : Number(value).toFixed(digits));

// --- filters --------------------------------------------------------------------------------------------------------

const ORDERS = {
  "as written": () => 0,
  "longest first": (a, b) => b.num_tokens - a.num_tokens,
  "highest reward": (a, b) => (b.reward ?? -Infinity) - (a.reward ?? -Infinity),
  "lowest reward": (a, b) => (a.reward ?? Infinity) - (b.reward ?? Infinity),
  "least likely token": (a, b) => lowestLogp(a) - lowestLogp(b),
};

function lowestLogp(trace) {
  return (trace.lowest ??= trace.logp.reduce((low, value) => (value != null && value < low ? value : low), 0));
}

function fillFilters() {
  const options = (select, values, all) =>
    select.replaceChildren(
      ...(all ? [element("option", { value: "" }, all)] : []),
      ...values.map((value) => element("option", { value: String(value) }, String(value))),
    );
  const seen = (key) => [...new Set(RUN.traces.map((trace) => trace[key]))];
  options(at("filter-step"), seen("step").sort((a, b) => a - b), "all");
  options(at("filter-task"), seen("task").sort(), "all");
  options(at("filter-verdict"), seen("verdict").sort(), "all");
  options(at("filter-correct"), ["yes", "no"], "all");
  options(at("sort"), Object.keys(ORDERS));
}

function applyFilters() {
  const [step, task, verdict, correct] = ["step", "task", "verdict", "correct"].map((name) => at(`filter-${name}`).value);
  const words = at("filter-text").value.toLowerCase();
  const kept = RUN.traces.filter(
    (trace) =>
      (!step || String(trace.step) === step) && (!task || trace.task === task) && (!verdict || trace.verdict === verdict) &&
      (!correct || trace.correct === (correct === "yes")) && (!words || haystack(trace).includes(words)),
  );
  view.matches = kept.sort(ORDERS[at("sort").value]);
  view.page = 0;
  showPage();
  choose(view.matches[0] ?? null);
}

// --- list -----------------------------------------------------------------------------------------------------------

function showPage() {
  const first = view.page * PAGE_SIZE;
  const shown = view.matches.slice(first, first + PAGE_SIZE);
  at("trace-list").replaceChildren(...shown.map(listItem));
  at("trace-list").scrollTop = 0;
  at("page-status").textContent = shown.length
    ? `${first + 1}–${first + shown.length} of ${view.matches.length}`
    : "No trace fits these filters.";
  at("page-back").disabled = view.page === 0;
  at("page-next").disabled = first + PAGE_SIZE >= view.matches.length;
}

function listItem(trace) {
  const item = element(
    "li", {},
    element("div", { class: "row" },
      element("span", {}, `step ${trace.step} · ${trace.task}`),
      element("span", { class: trace.correct ? "good" : "bad" }, `${trace.verdict.replace(/_/g, " ")} ${number(trace.reward, 2)}`)),
    element("div", { class: "snippet mono" }, `${trace.prompt} ${textOf(trace).slice(0, 200)}`),
  );
  if (trace === view.chosen) item.setAttribute("aria-current", "true");
  item.addEventListener("click", () => choose(trace));
  return item;
}

function choose(trace) {
  view.chosen = trace;
  const first = view.page * PAGE_SIZE;
  [...at("trace-list").children].forEach((item, i) => {
    item.toggleAttribute("aria-current", view.matches[first + i] === trace);
  });
  showTrace(trace);
}

function moveChoice(by) {
  const next = view.matches.indexOf(view.chosen) + by;
  if (next < 0 || next >= view.matches.length) return;
  if (Math.floor(next / PAGE_SIZE) !== view.page) {
    view.page = Math.floor(next / PAGE_SIZE);
    showPage();
  }
  choose(view.matches[next]);
  at("trace-list").children[next % PAGE_SIZE].scrollIntoView({ block: "nearest" });
}

// --- one trace ------------------------------------------------------------------------------------------------------

// A colouring gives a token a strength from 0 to 1 and a hue; its scale says what the two ends mean.
const COLOURINGS = {
  logp: {
    label: "log-probability", low: "certain", high: "surprising", hues: ["--doubt", "--doubt"],
    of: (trace, i) => (trace.logp[i] == null ? null : Math.min(1, -trace.logp[i] / 4)),
  },
  ratio: {
    label: "ratio", low: "÷ 3", high: "× 3", hues: ["--cool", "--warm"],
    of: (trace, i) => (trace.ratio?.[i] == null ? null : clamp(Math.log(Math.max(trace.ratio[i], 1e-6)) / Math.log(3))),
  },
  advantage: {
    label: "advantage", low: "−2, less of this", high: "+2, more of this", hues: ["--warm", "--cool"],
    of: (trace, i) => (trace.logp[i] == null || trace.advantage == null ? null : clamp(trace.advantage / 2)),
  },
};

const clamp = (value) => Math.max(-1, Math.min(1, value));
const tint = (hue, strength) => `rgba(${colour(hue)}, ${(0.6 * strength).toFixed(3)})`;

function showTrace(trace) {
  if (!trace) return at("trace").replaceChildren(element("p", { class: "note" }, "No trace is chosen."));
  const siblings = element("button", { type: "button", class: "link" }, trace.prompt_id);
  siblings.addEventListener("click", () => showOnly(trace.prompt_id));
  const verdict = element("b", { class: trace.correct ? "good" : "bad" }, trace.verdict.replace(/_/g, " "));
  at("trace").replaceChildren(
    element("div", {}, verdict, trace.note ? ` · ${trace.note}` : ""),
    facts(trace, siblings),
    element("h3", {}, "Prompt"), element("pre", {}, trace.prompt),
    toolbar(trace), element("div", { class: "tokens mono", id: "tokens" }),
    element("div", { id: "token-facts" }, "Point at a token, or tap it, for its numbers."),
  );
  drawTokens(trace);
}

function showOnly(promptId) {
  for (const name of ["step", "task", "verdict", "correct"]) at(`filter-${name}`).value = "";
  at("filter-text").value = promptId;
  applyFilters();
}

function facts(trace, siblings) {
  const parts = Object.entries(trace.parts).map(([name, value]) => `${name} ${number(value, 2)}`).join(", ");
  const rows = [
    ["step", trace.step], ["task", trace.task], ["all answers to", siblings], ["reward", number(trace.reward)],
    ["parts", parts || "–"], ["advantage", number(trace.advantage)], ["tokens", trace.num_tokens], ["turns", turnsOf(trace)],
    ["ended by", trace.stop_reason], ["policy version", trace.version], ["mean ratio", number(trace.mean_ratio)],
  ];
  return element("dl", { class: "facts" }, ...rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value instanceof Node ? value : String(value)))));
}

const turnsOf = (trace) => 1 + (trace.observations ?? []).filter((seen) => seen.stop > seen.start).length;

function toolbar(trace) {
  const known = Object.keys(COLOURINGS).filter((name) => trace.tokens.some((_, i) => COLOURINGS[name].of(trace, i) != null));
  if (known.length && !known.includes(view.colouring)) view.colouring = known[0];
  const buttons = known.map((name) => {
    const button = element("button", { type: "button", "aria-pressed": String(name === view.colouring) }, COLOURINGS[name].label);
    button.addEventListener("click", () => { view.colouring = name; showTrace(trace); });
    return button;
  });
  const { low, high, hues } = COLOURINGS[view.colouring];
  const bar = element("i");
  const start = hues[0] === hues[1] ? "transparent" : tint(hues[0], 1);
  bar.style.background = `linear-gradient(90deg, ${start}, transparent ${hues[0] === hues[1] ? 0 : 50}%, ${tint(hues[1], 1)})`;
  return element("div", { class: "toolbar" }, "Response, coloured by",
    element("span", { class: "switch", role: "group" }, ...buttons), element("span", { class: "scale" }, low, bar, high));
}

// Long traces are drawn piece by piece, or 40,000 spans would freeze the page.
function drawTokens(trace, from = 0) {
  const holder = at("tokens");
  const upto = Math.min(trace.tokens.length, from + TOKENS_AT_ONCE);
  for (let i = from; i < upto; i++) holder.append(...observationLabels(trace, i), tokenSpan(trace, i));
  if (upto === trace.tokens.length) return holder.append(...observationLabels(trace, upto));
  const more = element("button", { type: "button" }, `Show more (${trace.tokens.length - upto} tokens left)`);
  more.addEventListener("click", () => { more.remove(); drawTokens(trace, upto); });
  holder.append(more);
}

// What an environment made of the turn before: stands before the tokens that it showed, which may be none.
function observationLabels(trace, i) {
  return (trace.observations ?? []).filter((seen) => seen.start === i).map((seen) =>
    element("span", { class: `verdict ${seen.is_error ? "bad" : "good"}`, title: seen.note },
      [seen.tool, seen.verdict, seen.note].filter(Boolean).join(" · ")));
}

function tokenSpan(trace, i) {
  const { of, hues } = COLOURINGS[view.colouring];
  const strength = of(trace, i);
  const span = element("span", { "data-token": i }, trace.tokens[i].replace(/\n/g, "↵\n"));
  if (trace.logp[i] == null) span.className = "observation";
  if (strength) span.style.backgroundColor = tint(hues[strength > 0 ? 1 : 0], Math.abs(strength));
  if (view.colouring === "ratio" && trace.ratio?.[i] >= RATIO_CAP) span.classList.add("capped");
  return span;
}

function showTokenFacts(event) {
  const i = event.target.dataset?.token;
  if (i === undefined || !view.chosen) return;
  const { tokens, logp, ratio, advantage } = view.chosen;
  const said = logp[i] == null ? "not chosen by the policy" :
    `log-probability ${number(logp[i])} (${percent(Math.exp(logp[i]))}) · ratio ${number(ratio?.[i])} · advantage ${number(advantage)}`;
  at("token-facts").textContent = `token ${Number(i) + 1} of ${tokens.length}, ${JSON.stringify(tokens[i])} · ${said}`;
}

// --- start ----------------------------------------------------------------------------------------------------------

function startReader() {
  const embedded = RUN.traces.length;
  at("traces-note").textContent = !embedded
    ? "This run has written no rollouts yet."
    : embedded < RUN.num_traces
      ? `${embedded} of the ${RUN.num_traces} traces in rollouts/, the same share of each step.`
      : `${embedded} traces.`;
  at("filters").hidden = at("reader").hidden = !embedded;
  fillFilters();
  let waiting;
  at("filters").addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(applyFilters, 120); });
  at("filters").addEventListener("submit", (event) => event.preventDefault());
  at("page-back").addEventListener("click", () => { view.page -= 1; showPage(); });
  at("page-next").addEventListener("click", () => { view.page += 1; showPage(); });
  at("trace-list").addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (by) { event.preventDefault(); moveChoice(by); }
  });
  for (const gesture of ["mouseover", "click"]) at("trace").addEventListener(gesture, showTokenFacts);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => showTrace(view.chosen));
  applyFilters();
}

startReader();
