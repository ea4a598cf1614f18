/* What the parts of the review page share: its server, messages, and what colours mean. */
"use strict";

export const $ = id => document.getElementById(id);
let away = false;

class Refused extends Error { constructor(status, body) { super(body.error ?? `The server answered ${status}.`); Object.assign(this, { status, body }); } }

const AWAY = "The server does not answer. Is `masksmith review` still running? What you drew is kept in this window; save it again when the server is back.";

export async function ask(path, params = {}, options = {}) {
  let answer;
  try { answer = await fetch(`/api/${path}?${new URLSearchParams(params)}`, options); }
  catch { away = true; throw new Error(AWAY); }
  if (away) { away = false; alarm(""); }
  if (!answer.ok) throw new Refused(answer.status, await answer.json().catch(() => ({})));
  return answer;
}

export const told = async (...args) => (await ask(...args)).json();
export const bytes = async (...args) => (await ask(...args)).arrayBuffer();
export const where = one => ({ split: one.split, id: one.id });

export function alarm(text) { $("alert").textContent = text; $("alert").hidden = !text; }

export function toast(text, act, back) {
  clearTimeout(toast.timer);
  const line = element("p", "", text);
  if (act) line.append(Object.assign(element("button", "", act), { onclick: () => { $("toast").replaceChildren(); back(); } }));
  $("toast").replaceChildren(line);
  toast.timer = setTimeout(() => $("toast").replaceChildren(), 8000);
}

export function element(tag, className, text) { return Object.assign(document.createElement(tag), { className, textContent: text ?? "" }); }

export const number = (value, digits = 3) => value === null || value === undefined ? "–" : value.toFixed(digits);
/* Of many images one costs little: two digits that count, not 0.0000. */
export const costOf = value => value === null || value === 0 || Math.abs(value) >= 0.001 ? number(value, 4) : value.toFixed(1 - Math.floor(Math.log10(Math.abs(value))));
export const grouped = value => value.toLocaleString("en");

/* [colour, name] of what a view shows. */
export function legendOf(state, view, truth, exact) {
  const binary = state.task === "binary", classMap = state.task === "multiclass";
  const named = state.classes.map((name, at) => [`rgb(${state.colours[at]})`, name]).slice(state.background && classMap ? 1 : 0);
  const classes = named.length > 8 ? [...named.slice(0, 8), ["", `and ${named.length - 8} more`]] : named;
  const keys = {
    image: [],
    truth: binary ? [["rgb(255,190,30)", truth ? "truth" : "mask"]] : state.task === "instances" ? [] : classes,
    prediction: binary ? [["rgb(60,140,255)", "prediction"]] : state.task === "instances" ? [] : classes,
    difference: classMap ? [["rgb(214,39,40)", "another class"]] : [["rgb(31,160,70)", "too much"], ["rgb(214,39,40)", "missed"]],
    probabilities: [["rgb(13,8,65)", "0"], ["rgb(240,120,38)", "0.7"], ["rgb(252,250,160)", "1"], ["#fff", "outline: at the threshold"]],
  }[view];
  return exact && ["truth", "difference"].includes(view) ? [...keys, ["rgb(128,128,128)", "not judged"]] : keys;
}
