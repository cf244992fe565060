// Tokens with a colour each. A colouring gives a token a strength from -1 to 1 and says what its ends mean.
// Blue and orange, and one hue from pale to strong: pairs that colour-blind readers can tell apart.

const TOKENS_AT_ONCE = 4000;

const COLOURINGS = {
  ratio: {
    label: "ratio", ends: ["½ or less", "1", "2 or more"], hues: ["--cool", "--warm"],
    about: "current over behaviour probability, before the update; underlined at the cap",
    of: ({ ratio }) => (ratio == null ? null : clamp(Math.log2(ratio))),
  },
  advantage: {
    label: "advantage", ends: ["−2, less of this", "0", "+2, more of this"], hues: ["--warm", "--cool"],
    about: "what each token was credited with",
    of: ({ advantage }) => (advantage == null ? null : clamp(advantage / 2)),
  },
  logp: {
    label: "log-probability", ends: ["0, certain", "−2", "−4, surprising"], hues: [null, "--doubt"],
    about: "of the policy that sampled it",
    of: ({ logp }) => (logp == null ? null : Math.min(1, -logp / 4)),
  },
  version: {
    label: "staleness", ends: ["newest policy", "", "oldest"], hues: [null, "--age"],
    about: "versions between the policy that sampled a token and the one that learnt from it",
    of: ({ version }, trace) => (version == null ? null : (trace.step - 1 - version) / Math.max(1, trace.run.oldestAge)),
  },
  none: { label: "none", ends: null, of: () => null },
};

const tint = (hue, strength) => (hue ? `rgba(${styleOf(hue)}, ${(0.62 * strength).toFixed(3)})` : "transparent");

function legend(trace) {
  const { ends, hues, about } = COLOURINGS[reading.colouring];
  if (!ends) return element("p", { class: "scale", id: "legend" });
  const [low, middle, high] = reading.colouring !== "version" ? ends
    : [`0 versions old`, "", `${Math.max(1, trace.run.oldestAge)}`];
  const bar = element("i", { "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg, ${tint(hues[0], 1)}, transparent ${hues[0] ? 50 : 0}%, ${tint(hues[1], 1)})`;
  return element("p", { class: "scale", id: "legend" }, low, bar, middle ? `${high} (middle ${middle})` : high, element("span", { class: "about" }, about));
}

// Which colourings say something about a trace.
function knownColourings(trace) {
  const probe = Array.from({ length: Math.min(trace.length, 200) }, (_, i) => trace.token(i));
  return Object.keys(COLOURINGS).filter((name) => name === "none" || probe.some((token) => COLOURINGS[name].of(token, trace) != null));
}

// A trace's tokens as one element. Long ones are drawn piece by piece: 40,000 spans at once would freeze the page.
function tokensElement(trace, { limit = TOKENS_AT_ONCE, attributes = {} } = {}) {
  const holder = element("div", { class: "tokens mono", dir: "ltr", ...attributes });
  appendTokens(holder, trace, 0, limit);
  return holder;
}

function appendTokens(holder, trace, from, limit) {
  const upto = Math.min(trace.length, from + limit);
  const { of, hues } = COLOURINGS[reading.colouring];
  const colours = hues?.map((hue) => hue && styleOf(hue));
  const spans = document.createDocumentFragment();
  for (let i = from; i < upto; i++) {
    spans.append(...observationLabels(trace, i), tokenSpan(trace, i, of, colours));
  }
  if (upto === trace.length) spans.append(...observationLabels(trace, upto));
  else {
    const more = button(`Show more: ${whole(trace.length - upto)} tokens are left`, () => {
      more.remove();
      appendTokens(holder, trace, upto, TOKENS_AT_ONCE);
    });
    spans.append(more);
  }
  holder.append(spans);
}

// What an environment made of the turn before: stands before the tokens that it showed, which may be none.
function observationLabels(trace, i) {
  return trace.observations.filter(({ start }) => start === i).map(({ tool, verdict, note, is_error }) =>
    element("span", { class: `verdict ${is_error ? "bad" : "good"}`, title: note ? visible(note) : null },
      visible([tool, verdict, note].filter(Boolean).join(" · "))));
}

function tokenSpan(trace, i, of, colours) {
  const token = trace.token(i);
  const strength = of(token, trace);
  const span = element("span", { "data-token": i }, visible(token.text).replace(/\n/g, "↵\n"));
  if (token.logp == null) span.className = "observation";
  if (strength) {
    const colour = colours[strength > 0 ? 1 : 0];
    if (colour) span.style.backgroundColor = `rgba(${colour}, ${(0.62 * Math.abs(strength)).toFixed(3)})`;
  }
  if (reading.colouring === "ratio" && trace.run.ratio_cap && token.ratio >= trace.run.ratio_cap) span.classList.add("capped");
  return span;
}

function tokenFacts(trace, i) {
  const { id, text, logp, learnt, ratio, advantage, version } = trace.token(i);
  const shown = visible(text.length > 60 ? `${text.slice(0, 60)}…` : text).replace(/\n/g, "↵");
  const facts = [["token", `${i + 1} of ${trace.length}`], ["text", `“${shown}”`], ["id", id ?? "–"]];
  if (logp == null) return [...facts, ["", "not chosen by the policy, and never learnt from"]];
  return [...facts, ["log p, sampling", `${number(logp)} (${percent(Math.exp(logp))})`],
    ["log p, learning", learnt == null ? "not learnt from" : `${number(learnt)} (${percent(Math.exp(learnt))})`],
    ["ratio", number(ratio)], ["advantage", number(advantage)], ["sampled by version", `${version}, ${trace.step - 1 - version} old`]];
}
