/* The keys of the review page. */
"use strict";

import { $ } from "/files/review_page.js";

const VIEWS = ["image", "truth", "prediction", "difference", "probabilities"];
const KEYS = {
  k: "keep", d: "drop", w: "wrong", s: "save", n: "next", p: "previous", b: "brush", e: "eraser", f: "fill", h: "hand", z: "undo", y: "redo", r: "rule", t: "take",
  "+": "closer", "=": "closer", "-": "farther", "0": "fit", "?": "help",
};

/* The letter that is meant: with Ctrl undo, redo and save; single letters alone, or with Alt where they are switched off. */
function keyOf(event) {
  if (event.ctrlKey || event.metaKey) return { z: event.shiftKey ? "y" : "z", y: "y", s: "s" }[event.key.toLowerCase()];
  if (!$("single").checked && !event.altKey) return event.key === "?" ? "?" : undefined;
  return event.altKey && $("single").checked ? undefined : event.key.length === 1 ? event.key.toLowerCase() : undefined;
}

/* acts: button -> what it does; more: key -> what it does; setView(view); current(): the image, null: none is open. */
export function listenToKeys(stage, acts, more, setView, current) {
  document.addEventListener("keydown", event => {
    if (document.querySelector("dialog[open]")) return;
    const on = event.target;
    if (on.matches("input[type=text], input[type=search], select")) return;
    if (on === $("canvas") && !event.ctrlKey && !event.altKey && stage.key(event)) return event.preventDefault();
    const key = keyOf(event);
    if (key === undefined) return;
    const id = KEYS[key], view = VIEWS[Number(key) - 1];
    if (id === "help" || (id && current() && !$(id).disabled)) acts[id]();
    else if (current() && more[key]) more[key]();
    else if (current() && view) setView(view);
    else return;
    event.preventDefault();
  });
  $("canvas").addEventListener("keyup", event => stage.keyUp(event));
  $("single").checked = localStorage.getItem("masksmith single keys") !== "no";
  $("single").addEventListener("change", () => localStorage.setItem("masksmith single keys", $("single").checked ? "yes" : "no"));
}
