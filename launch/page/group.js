// Trajectories beside one another: those of one prompt in one step, or of the same prompt in other runs or steps.

const TOKENS_OF_A_CARD = 400;
const MAX_CARDS = 24;

// In other runs if there are any, or at other steps of this one; the group of the step itself is not among them.
const elsewhereOf = (trace) => samePrompt(trace, (other) =>
  RUNS.length > 1 ? other.run !== trace.run : other.step !== trace.step || other.group !== trace.group);

function groupTab(trace) {
  return [prompt(trace), toolbar(trace), cards(siblingsOf(trace), trace)];
}

function elsewhereTab(trace) {
  const columns = RUNS.length > 1 ? RUNS.map((run) => [run, run === trace.run ? siblingsOf(trace) : samePrompt(trace, (other) => other.run === run)])
    : [[trace.run, [...siblingsOf(trace), ...elsewhereOf(trace)]]];
  return [prompt(trace), toolbar(trace), element("div", { class: "columns" }, ...columns.map(([run, traces]) =>
    element("section", { "aria-label": run.label }, element("h3", {}, runDot(run), run.label), traces.length ? cards(traces, trace)
      : element("p", { class: "note" }, "This run has no trace of this prompt."))))];
}

const prompt = (trace) => element("pre", { dir: "ltr", class: "prompt" }, visible(trace.promptText));

function cards(traces, chosen) {
  const shown = traces.slice(0, MAX_CARDS).map((trace) => {
    const open = button(`step ${trace.step} · ${trace.member + 1}`, () => { reading.tab = "trace"; choose(trace); }, { class: "link" });
    const parts = Object.entries(trace.parts).map(([name, value]) => `${visible(name)} ${number(value, 2)}`).join(" · ");
    return element("div", { class: "card", "aria-current": trace === chosen ? "true" : null },
      element("div", { class: "facts-line" }, open, element("span", { class: trace.correct ? "good" : "bad" }, `${words(visible(trace.verdict))} ${number(trace.reward, 2)}`)),
      element("p", { class: "note" }, `advantage ${number(trace.advantage, 2)} · ${whole(trace.num_tokens)} tokens · ${words(visible(trace.stop_reason))}`),
      element("p", { class: "note" }, parts), tokensElement(trace, { limit: TOKENS_OF_A_CARD }));
  });
  const left = traces.length - shown.length;
  return element("div", { class: "cards" }, ...shown, ...(left > 0 ? [element("p", { class: "note" }, `and ${left} more`)] : []));
}
