"use strict";
// Elements, numbers and text as the rest of the page writes them. Text of a run is hostile: element() appends strings as
// text nodes, and nothing in this page ever reads a string as markup.

const at = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) if (value != null) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

function button(text, onClick, attributes = {}) {
  const node = element("button", { type: "button", ...attributes }, text);
  node.addEventListener("click", onClick);
  return node;
}

// Characters that cannot be seen, or that change how others are seen, by their names: controls, marks of direction,
// zero widths, halves of a pair. The joiners of Indic scripts and emoji stay.
const UNSEEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const visible = (text) =>
  text.replace(UNSEEN, (c) => (c < " " ? String.fromCharCode(0x2400 + c.charCodeAt(0)) : `⟨U+${c.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`));

const words = (name) => name.replace(/_/g, " ");
const number = (value, digits = 3) => (value == null ? "–" : Number(value).toFixed(digits).replace(/^-/, "−"));
const whole = (value) => Number(value).toLocaleString("en-US");
const percent = (value) => `${(100 * value).toFixed(value > 0 && value < 0.1 ? 1 : 0)} %`;
const clamp = (value, low = -1, high = 1) => Math.max(low, Math.min(high, value));
const distinct = (values) => [...new Set(values)];

function duration(seconds) {
  if (seconds < 120) return `${seconds.toFixed(0)} s`;
  return seconds < 7200 ? `${(seconds / 60).toFixed(1)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function count(value) {
  for (const [size, unit] of [[1e9, "G"], [1e6, "M"]]) if (value >= size) return `${(value / size).toFixed(2)} ${unit}`;
  return value >= 1e4 ? `${(value / 1e3).toFixed(0)} k` : String(value);
}

const styleOf = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const palette = () => styleOf("--series").split(/\s+/);
const whenDarknessChanges = (redraw) => matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

// Lets the browser paint and react between two pieces of long work.
const breathe = () => new Promise((resolve) => setTimeout(resolve, 0));

function table(head, rows, attributes = {}) {
  const cells = (row, first) => row.map((cell, i) => (i || !first ? element("td", {}, visible(cell)) : element("th", { scope: "row" }, visible(cell))));
  return element("div", { class: "wide-table" }, element("table", attributes,
    element("thead", {}, element("tr", {}, ...head.map((cell) => element("th", { scope: "col" }, visible(cell))))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...cells(row, true))))));
}
