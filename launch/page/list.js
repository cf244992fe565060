// The list of matches. However many there are, only the rows in view are in the document.

const ROW_HEIGHT = 62; // as in report.css
const ROWS_BEYOND = 6;

function showList() {
  at("rows").style.height = `${filtering.matches.length * ROW_HEIGHT}px`;
  at("trace-list").scrollTop = 0;
  drawRows();
}

function drawRows() {
  const list = at("trace-list");
  const first = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - ROWS_BEYOND);
  const last = Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + ROWS_BEYOND;
  at("rows").replaceChildren(...filtering.matches.slice(first, last).map((trace, i) => row(trace, first + i)));
  const chosen = filtering.matches.indexOf(reading.trace);
  if (chosen >= first && chosen < last) list.setAttribute("aria-activedescendant", `row-${chosen}`);
  else list.removeAttribute("aria-activedescendant");
}

function row(trace, i) {
  const where = `step ${trace.step} · ${visible(trace.task)} · ${whole(trace.num_tokens)} tokens`;
  const node = element("div", {
    role: "option", id: `row-${i}`, class: "row", "aria-selected": String(trace === reading.trace),
    "aria-posinset": i + 1, "aria-setsize": filtering.matches.length,
  }, element("div", { class: "facts-line" },
    element("span", {}, ...(RUNS.length > 1 ? [runDot(trace.run)] : []), where),
    element("span", { class: trace.correct ? "good" : "bad" }, `${words(visible(trace.verdict))} ${number(trace.reward, 2)}`)),
  element("div", { class: "snippet mono" }, element("b", {}, visible(trace.promptText.slice(0, 80))), " ",
    visible((trace.given ?? trace.tokens(0, Math.min(trace.length, 40)).join("")).slice(0, 160))));
  node.style.top = `${i * ROW_HEIGHT}px`;
  node.addEventListener("click", () => choose(trace));
  return node;
}

function runDot(run) {
  const dot = element("i", { class: "dot", title: run.label });
  dot.style.background = palette()[RUNS.indexOf(run)];
  return dot;
}

function moveChoice(by) {
  const { matches } = filtering;
  if (!matches.length) return;
  const next = clamp(matches.indexOf(reading.trace) + by, 0, matches.length - 1);
  choose(matches[next]);
}

function scrollToChoice() {
  const list = at("trace-list");
  const top = filtering.matches.indexOf(reading.trace) * ROW_HEIGHT;
  if (top < 0) return;
  if (top < list.scrollTop) list.scrollTop = top;
  else if (top + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW_HEIGHT - list.clientHeight;
}

function listenToList() {
  const list = at("trace-list");
  const step = () => Math.max(1, Math.floor(list.clientHeight / ROW_HEIGHT) - 1);
  list.addEventListener("scroll", drawRows, { passive: true });
  list.addEventListener("keydown", (event) => {
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: step(), PageUp: -step(), Home: -Infinity, End: Infinity }[event.key];
    if (by) { event.preventDefault(); moveChoice(by); }
  });
  new ResizeObserver(drawRows).observe(list);
}
