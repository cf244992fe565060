// The chosen trace: verdict, numbers, every part of its reward, prompt, and tokens to point at.

const reading = { trace: null, colouring: "logp", tab: "trace", token: null };

function choose(trace, { remember = true } = {}) {
  reading.trace = trace;
  reading.token = null;
  scrollToChoice();
  drawRows();
  showTrace();
  if (remember && trace) rememberPlace();
}

function showTrace() {
  const { trace } = reading;
  if (!trace) return at("trace").replaceChildren(element("p", { class: "note" }, "No trace is chosen."));
  at("trace").replaceChildren(verdictLine(trace), tabs(trace), ...{ trace: traceTab, group: groupTab, elsewhere: elsewhereTab }[reading.tab](trace));
}

function verdictLine(trace) {
  return element("header", { class: "verdict-line" },
    element("b", { class: `badge ${trace.correct ? "good" : "bad"}` }, words(visible(trace.verdict))),
    element("span", {}, ...(RUNS.length > 1 ? [runDot(trace.run), `${trace.run.label} · `] : []),
      `step ${trace.step} · ${visible(trace.task)} · `, button(visible(trace.promptId), () => showOnly(`${PROMPT}${trace.promptId}`), { class: "link", title: "All traces of this prompt" })),
    ...(trace.note ? [element("span", { class: "note" }, visible(trace.note))] : []));
}

function tabs(trace) {
  const group = siblingsOf(trace).length;
  const elsewhere = elsewhereOf(trace).length;
  const named = [["trace", "Trace"], ["group", `Group of ${group}`], ["elsewhere", `${RUNS.length > 1 ? "Other runs" : "Other steps"}: ${elsewhere}`]];
  const shown = named.filter(([name]) => name !== "elsewhere" || elsewhere || reading.tab === "elsewhere");
  return element("div", { class: "switch", role: "group", "aria-label": "What is shown" }, ...shown.map(([name, label]) =>
    button(label, () => { reading.tab = name; showTrace(); }, { "aria-pressed": String(reading.tab === name), "data-tab": name })));
}

function traceTab(trace) {
  const tokens = tokensElement(trace, { attributes: { id: "tokens", tabindex: "0", role: "textbox", "aria-readonly": "true", "aria-multiline": "true",
    "aria-label": "Response; left and right arrows go from token to token" } });
  const facts = element("dl", { id: "token-facts", "aria-live": "polite" }, element("dd", {}, "Point at a token, or tap it, for its numbers."));
  return [factsElement(trace), partsElement(trace), element("h3", {}, "Prompt"),
    element("pre", { dir: "ltr", class: "prompt" }, visible(trace.promptText)), toolbar(trace), tokens, facts,
    ...(trace.given == null ? [] : [element("h3", {}, "Text, decoded as a whole"), element("pre", { dir: "ltr" }, visible(trace.given))])];
}

function factsElement(trace) {
  const rows = [
    ["reward", number(trace.reward)], ["advantage", number(trace.advantage)], ["tokens", whole(trace.num_tokens)],
    ["ended by", words(visible(trace.stop_reason)) + (trace.isCut ? ", cut off" : "")], ["turns", trace.turns],
    ["mean ratio", number(trace.mean_ratio)], ["highest ratio", number(trace.highest_ratio)],
    ["least likely", trace.lowest_logp == null ? "–" : percent(Math.exp(trace.lowest_logp))],
    ["policy version", `${trace.version}, ${trace.age} old`], ["group, member", `${trace.group}, ${trace.member}`],
  ];
  return element("dl", { class: "facts" }, ...rows.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

function partsElement(trace) {
  const parts = Object.entries(trace.parts);
  return element("ul", { class: "parts", "aria-label": "Parts of the reward, before weighting" },
    ...(parts.length ? parts : [["no parts", null]]).map(([name, value]) =>
      element("li", {}, visible(name), element("b", { class: value > 0 ? "good" : value < 0 ? "bad" : "" }, number(value, 2)))));
}

function toolbar(trace) {
  const known = knownColourings(trace);
  if (!known.includes(reading.colouring)) reading.colouring = known[0];
  const buttons = known.map((name) => button(COLOURINGS[name].label, () => setColouring(name),
    { "aria-pressed": String(name === reading.colouring), "data-colouring": name }));
  return element("div", { class: "toolbar" }, element("h3", { id: "coloured-by" }, "Response, coloured by"),
    element("span", { class: "switch", role: "group", "aria-labelledby": "coloured-by" }, ...buttons), legend(trace));
}

function setColouring(name) {
  reading.colouring = name;
  showTrace();
  at("trace").querySelector(`[data-colouring="${name}"]`)?.focus();
  rememberPlace();
}

function nextColouring() {
  if (!reading.trace) return;
  const known = knownColourings(reading.trace);
  setColouring(known[(known.indexOf(reading.colouring) + 1) % known.length]);
}

function showToken(i) {
  const { trace } = reading;
  if (!at("token-facts") || i < 0 || i >= trace.length) return;
  const span = (place) => at("tokens").querySelector(`[data-token="${place}"]`);
  if (!span(i)) return;
  span(reading.token)?.classList.remove("current");
  reading.token = i;
  span(i).classList.add("current");
  at("token-facts").replaceChildren(...tokenFacts(trace, i).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, String(value)))));
}

function listenToReader() {
  for (const gesture of ["mouseover", "click"]) at("trace").addEventListener(gesture, ({ target }) => {
    const i = target.dataset?.token;
    if (i !== undefined && target.closest("#tokens")) showToken(Number(i));
  });
  at("trace").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by || event.target.id !== "tokens") return;
    event.preventDefault();
    showToken(reading.token == null ? 0 : reading.token + by);
  });
}
