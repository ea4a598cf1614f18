/* The review page: the list, one image, what is said of it, and keys. Texts of the project reach the page as text only. */
import { $, alarm, ask, bytes, costOf, element, grouped, legendOf, number, told, toast, where } from "/files/review_page.js";
import { listenToKeys } from "/files/review_keys.js";
import { Stage, FULL, IGNORE, toRuns, fromRuns } from "/files/review_canvas.js";

const PAGE = 60;
const SAID = { keep: "kept", drop: "dropped", wrong: "marked as wrong", mend: "mended", "": "not judged" };
const query = { split: "train", order: "cost", state: "all", cause: "", find: "" };
const minis = Object.fromEntries([...document.querySelectorAll(".view")].map(label => [label.querySelector("input").value, label.querySelector("canvas")]));
const stage = new Stage($("canvas"), minis, () => { dirty = true; keepDraft(); showButtons(); });
let state = null, items = [], total = 0, edition = 0, listTurn = 0, anew = false, current = null, dirty = false, turn = 0, saving = null;

/* --- the state of the project: how far the ranking is, and what it has to say --- */
async function lookAgain() {
  try {
    const before = state;
    state = await told("state");
    if (!before) begin();
    const now = state.splits[query.split], busy = now.done < now.todo;
    known = `${state.number} ${busy}`;
    $("progress").textContent = busy ? `ranked ${grouped(now.done)} of ${grouped(now.todo)}` : state.said;
    if (before && now.edition !== edition) {
      if (current || $("items").scrollTop > 40) $("fresh").hidden = busy || known === shownKnown;
      else await loadList();
    }
    if (known !== seenKnown && current && !dirty && !stage.stroke) await show(current.split, current.id);
    seenKnown = known;
    setTimeout(lookAgain, busy || !state.number ? 1000 : 5000);
  } catch (error) { alarm(error.message); setTimeout(lookAgain, 3000); }
}
let known = "", shownKnown = "", seenKnown = "";  // which predictions, and whether all of them are ranked

function begin() {
  const classes = state.task === "binary" ? [["1", "foreground"], ["0", "background"]] : state.classes.map((name, at) => [String(at), name]);
  $("value").replaceChildren(...[...classes, [String(IGNORE), "not judged"]].map(([value, name]) => new Option(name, value)));
  if (state.task === "multiclass") $("value").value = "1";  // the first one is mostly background
  $("layer").replaceChildren(...state.classes.map((name, at) => new Option(name, at)));
  $("layer_field").hidden = state.classes.length < 2 || state.task === "instances";
  if (state.task === "multiclass") $("layer").value = "1";
  setValue();
  fromAddress();
}

/* --- the list --- */
async function loadList(more = false) {
  if (more && anew) return;
  anew = !more;
  const mine = ++listTurn, { split, ...rest } = query;
  let found;
  try { found = await told("list", { split, ...rest, offset: more ? items.length : 0, limit: PAGE }); }
  catch (error) { if (mine === listTurn) anew = false; return alarm(error.message); }
  if (mine !== listTurn) return;
  anew = false;
  items = more ? [...items, ...found.items] : found.items;
  total = found.total;
  if (!more || found.edition === edition) {  // rows of an older order are still shown
    edition = found.edition;
    shownKnown = known;
    $("fresh").hidden = true;
  }
  $("count").textContent = total ? `${grouped(total)} image${total === 1 ? "" : "s"}` : "no image is like that";
  const cause = $("query").elements.cause, chosen = cause.value;
  cause.replaceChildren(new Option("Every cause", ""), ...Object.entries(found.causes).map(([name, count]) => new Option(`${name} (${grouped(count)})`, name)));
  if (chosen && ![...cause.options].some(one => one.value === chosen)) cause.append(new Option(`${chosen} (0)`, chosen));
  cause.value = chosen;
  cause.disabled = cause.options.length < 2;
  const rows = found.items.map(row);
  if (more) $("items").append(...rows); else { $("items").replaceChildren(...rows); $("items").scrollTop = 0; }
  $("more").hidden = items.length >= total;
  mark();
}

function row(item) {
  const line = document.createElement("li"), button = element("button", "item");
  button.type = "button";
  button.append(Object.assign(document.createElement("img"), { loading: "lazy", alt: "", width: 60, height: 60 }), document.createElement("div"));
  button.addEventListener("click", () => open(items.findIndex(one => one.id === item.id), true));
  line.append(button);
  fill(button, item);
  return line;
}

function fill(button, item) {
  const rest = query.order === "doubt" || query.split === "test" ? `doubt ${number(item.doubt)}` : `costs ${costOf(item.cost)}`;
  const now = state?.splits[query.split], unknown = now && state.number && now.done >= now.todo ? "not predicted" : "not ranked yet";
  const lines = [Object.assign(element("b", "", item.id), { title: item.id }), element("span", "", item.cost === null && item.doubt === null ? unknown : rest)];
  if (item.action) lines.push(element("span", `said ${item.action}`, SAID[item.action]));
  else if (item.cause) lines.push(element("span", "", item.cause));
  button.lastChild.replaceChildren(...lines);
  const source = `/api/thumb?${new URLSearchParams({ split: query.split, id: item.id, v: `${state?.server}.${state?.number}.${item.version}` })}`;
  if (button.firstChild.getAttribute("src") !== source) button.firstChild.src = source;
}

const place = () => current ? items.findIndex(one => one.id === current.id) : -1;

function mark() {
  const at = place();
  [...$("items").children].forEach((line, index) => {
    const button = line.firstChild;
    if (index === at) { button.setAttribute("aria-current", "true"); button.scrollIntoView({ block: "nearest" }); }
    else button.removeAttribute("aria-current");
  });
  $("previous").disabled = at < 1;
  $("next").disabled = at < 0 || at + 1 >= total;
}

new IntersectionObserver(seen => { if (seen.some(one => one.isIntersecting) && !$("more").hidden) loadList(true); }).observe($("more"));

/* --- one image --- */
const draftKey = one => `masksmith ${state.project} ${state.content} ${one.split} ${one.id}`;

function keepDraft() {
  try { localStorage.setItem(draftKey(current), JSON.stringify({ version: current.version, runs: toRuns(stage.work) })); }
  catch { alarm("This browser has no room to keep strokes that are not saved: save soon."); }
}

function dropDraft(one) { localStorage.removeItem(draftKey(one)); }

async function open(at, focus = false) {
  if (at >= items.length && items.length < total) await loadList(true);
  const item = items[at];
  if (item) await show(query.split, item.id, focus);
}

async function picture(params) { return createImageBitmap(await (await ask("picture", params)).blob()); }

async function show(split, id, focus = false) {
  if (!await saveFirst()) return;
  const mine = ++turn;
  try {
    const facts = await told("image", { split, id });
    const at = { split, id }, [h, w] = facts.shown, layers = await loadLayers(facts, at);
    if (mine !== turn) return;
    current = facts;
    dirty = false;
    stage.show(state, { w, h, ...layers });
    stage.fixed = Boolean(facts.why);
    if (stage.work) restoreDraft();
    alarm("");
    present();
    if (focus) $("canvas").focus({ preventScroll: true });
    const now = `#${split}/${encodeURIComponent(id)}`;
    if (location.hash !== now) history[location.hash.includes("/") ? "replaceState" : "pushState"](null, "", now);  // back: the list
  } catch (error) { if (mine === turn) alarm(error.message); }
}

async function loadLayers(facts, at) {
  const size = facts.shown[0] * facts.shown[1], exact = document.body.dataset.mendable === "yes";
  const mask = async kind => new Uint8Array(await bytes("mask", { ...at, kind }));
  const codes = async () => facts.predicted ? new Uint16Array(await bytes("probabilities", { ...at, layer: layer() })) : null;
  const first = { image: picture({ ...at, kind: "image" }), codes: codes(), ruleCode: Math.trunc(facts.threshold * FULL) };
  if (exact) {
    const mended = facts.mended && facts.action === "mend";
    first.prediction = facts.predicted ? mask("prediction") : null;
    first.work = mended ? mask("mended") : facts.truth ? mask("truth") : facts.predicted ? first.prediction.then(found => found.slice()) : new Uint8Array(size);
  } else {
    const kinds = [...facts.truth ? ["truth"] : [], ...facts.predicted ? ["prediction"] : [], ...facts.truth && facts.predicted ? ["difference"] : []];
    first.pictures = Promise.all(kinds.map(async kind => [kind, await picture({ ...at, kind })])).then(Object.fromEntries);
  }
  const names = Object.keys(first), values = await Promise.all(Object.values(first));
  return Object.fromEntries(names.map((name, index) => [name, values[index]]));
}

const layer = () => Number($("layer").value) || 0;

/* Strokes that were not saved when the window went away. */
function restoreDraft() {
  const kept = localStorage.getItem(draftKey(current));
  if (!kept) return;
  let draft = null, mask = null;
  try { draft = JSON.parse(kept); mask = fromRuns(draft.runs, stage.work.length); } catch { /* not ours */ }
  if (!mask) return dropDraft(current);
  const theirs = current.version;
  stage.replace(mask);
  if (!stage.done.length) return dropDraft(current);
  current.version = draft.version;
  current.seen = theirs;
  keepDraft();
  toast("Strokes that were not saved are back.", "Discard them", () => { dropDraft(current); dirty = false; current.version = theirs; show(current.split, current.id); });
}

function present() {
  if (document.body.dataset.screen === "list") document.querySelector("main").scrollTop = 0;  // of a narrow screen
  document.body.dataset.screen = "image";
  $("work").hidden = $("side").hidden = false;
  $("empty").hidden = true;
  const { hw, why, truth, predicted, note } = current;
  $("name").textContent = $("name").title = current.id;
  document.title = `${current.id} · masksmith review`;
  $("note").value = note;
  $("fixed").textContent = why;
  $("fixed").hidden = !why;
  $("tools").hidden = Boolean(why);
  $("question").textContent = truth ? "What of this mask?" : "What of this image?";
  text("keep", truth ? "Keep" : "Accept");
  text("drop", truth ? "Drop" : "Skip");
  text("save", truth ? "Save mended mask" : "Save mask");
  $("keep").disabled = !truth && (!predicted || Boolean(why));
  $("probable").hidden = !predicted;
  $("canvas").setAttribute("aria-label", `${current.id}: the image with its mask`);
  document.querySelector(".view:nth-of-type(2) b").textContent = truth ? "Truth" : "Mask";
  const facts = [["Size", `${hw[1]} × ${hw[0]}`]];
  if (current.score !== null) facts.push([state.metric, number(current.score)]);
  if (current.cost !== null) facts.push(["Costs the score", costOf(current.cost)]);
  if (current.cause) facts.push(["Cause", current.cause]);
  if (current.doubt !== null) facts.push(["Doubt", number(current.doubt)]);
  $("facts").replaceChildren(...facts.flatMap(([key, value]) => [element("dt", "", key), element("dd", "", value)]));
  for (const radio of document.querySelectorAll("[name=view]")) radio.disabled = !stage.has(radio.value);
  const wanted = stage.has(stage.view) ? stage.view : ["difference", "truth", "prediction", "image"].find(view => stage.has(view));
  setThreshold(null);
  setView(wanted);
  showButtons();
  mark();
}

function text(id, words) { $(id).firstChild.textContent = `${words} `; }

function showButtons() {
  if (!current) return;
  for (const action of ["keep", "drop", "wrong"]) $(action).setAttribute("aria-pressed", String(current.action === action));
  $("save").disabled = Boolean(current.why) || !stage.work || !(dirty || (!current.truth && current.action !== "mend"));
  $("save").classList.toggle("main", dirty);
  $("judged").textContent = dirty ? "strokes that are not saved" : current.action ? `${SAID[current.action]}${current.version ? `, version ${current.version}` : ""}` : "";
  $("undo").disabled = !stage.done.length;
  $("redo").disabled = !stage.undone.length;
  $("take").disabled = Boolean(current.why) || !stage.prediction;
}

/* --- what is said --- */
async function write(asked) {
  const { one, path, params, options } = asked;
  try {
    const now = await (await ask(path, { ...where(one), ...params, version: one.version }, { method: "PUT", ...options })).json();
    alarm("");
    return now;
  } catch (error) {
    if (error.status === 409) { settle(asked, error.body.now); return null; }
    alarm(error.message);
    return null;
  }
}

/* Take over what the server has now. */
function take(one, now) {
  Object.assign(one, { action: now.action, note: now.note, version: now.version });
  const at = items.findIndex(item => item.id === one.id);
  if (one.split === query.split && at >= 0) {
    Object.assign(items[at], { action: now.action, note: now.note, version: now.version });
    fill($("items").children[at].firstChild, items[at]);
  }
  if (current === one) showButtons();
}

function save() {
  saving ??= saveNow().finally(() => { saving = null; });
  return saving;
}

async function saveNow() {
  const one = current, drawn = stage.work.slice();
  const now = await write({ one, path: "mask", params: { note: $("note").value }, options: { body: drawn }, mask: drawn, action: "mend" });
  if (!now) return false;
  if (current === one) {
    dirty = stage.work.some((value, at) => value !== drawn[at]);
    one.mended = true;
  }
  if (dirty && current === one) keepDraft(); else dropDraft(one);
  take(one, now);
  return true;
}

const saveFirst = async () => !dirty || save();

async function sayOf(one, action, note) { return write({ one, path: "judgement", params: {}, options: { body: JSON.stringify({ action, note }) }, action, note }); }

async function judge(action) {
  if (!current || $(action).disabled) return;
  if (!current.truth && action === "keep") return accept();
  if (!await saveFirst()) return;
  const one = current, before = { action: one.action, note: one.note }, wanted = one.action === action ? "" : action;
  const now = await sayOf(one, wanted, $("note").value);
  if (!now) return;
  take(one, now);
  toast(`${one.id}: ${SAID[wanted]}.`, "Undo", async () => {
    const back = await sayOf(one, before.action, before.note);
    if (back) { take(one, back); toast(`${one.id}: ${SAID[before.action]} again.`); }
  });
  if (wanted && $("go_on").checked) await step(1);
}

async function accept() {
  stage.replace(stage.predictionNow());
  if (await save()) {
    toast(`${current.id}: the prediction is its mask now.`);
    if ($("go_on").checked) await step(1);
  }
}

async function saved() {
  if (!current || $("save").disabled || !await save()) return;
  toast(`${current.id}: its mask is saved beside the data.`);
}

$("note").addEventListener("change", async () => {
  if (!current || $("note").value === current.note || dirty || !current.action) return;
  const one = current, now = await sayOf(one, one.action, $("note").value);
  if (now) { take(one, now); toast("The note is saved."); }
});

/* Somebody else was faster: both are shown, and one is chosen. */
async function settle(asked, theirs) {
  const { one } = asked;
  $("conflict_name").textContent = one.id;
  $("mine").textContent = SAID[asked.action] + (asked.note ? `: ${asked.note}` : "");
  $("theirs").textContent = SAID[theirs.action] + (theirs.note ? `: ${theirs.note}` : "");
  const exact = current === one && stage.work;
  for (const id of ["mine_mask", "theirs_mask"]) $(id).hidden = !exact;
  if (exact) {
    stage.paintMini("truth", $("mine_mask"));
    let mask = null;
    try { mask = new Uint8Array(await bytes("mask", { ...where(one), kind: theirs.action === "mend" ? "mended" : "truth" })); } catch { /* a test image without a mask */ }
    if (mask) stage.paintMini("truth", $("theirs_mask"), mask); else $("theirs_mask").hidden = true;
  }
  $("keep_mine").onclick = async () => {
    $("conflict").close();
    one.version = theirs.version;
    const now = await write(asked);
    if (!now) return;
    if (asked.mask && current === one) { dirty = false; dropDraft(one); }
    take(one, now);
    toast("Yours counts now.");
  };
  $("take_theirs").onclick = () => {
    $("conflict").close();
    dirty = false;
    dropDraft(one);
    take(one, theirs);
    show(one.split, one.id);
  };
  $("later").onclick = () => $("conflict").close();
  if (!$("conflict").open) $("conflict").showModal();
}

async function step(by) {
  const at = place() + by;
  if (at >= 0 && at < total) await open(at);
}

/* --- what is shown, and what draws --- */
function setView(view) {
  if (!stage.has(view)) return;
  stage.view = view;
  document.querySelector(`[name=view][value=${view}]`).checked = true;
  stage.repaint();
  legend();
}

function legend() {
  $("legend").replaceChildren(...legendOf(state, stage.view, current.truth, Boolean(stage.work)).map(([colour, name]) => {
    const line = document.createElement("span"), swatch = element("i", "swatch");
    swatch.style.background = colour;
    line.append(...colour ? [swatch] : [], name);
    return line;
  }));
}

function setThreshold(value) {
  const own = stage.ruleCode / FULL;
  stage.threshold = value === null ? null : Math.trunc(value * FULL);
  $("threshold").value = value ?? own;
  $("threshold_shown").textContent = value === null ? (state.task === "multiclass" ? "most probable class" : `${own.toFixed(3)} (rule)`) : value.toFixed(3);
  stage.repaint();
}

function turnThreshold(by) {
  if ($("probable").hidden) return;
  setThreshold(Math.min(1, Math.max(0, Number($("threshold").value) + by)));
}

async function setLayer() {
  try { stage.codes = new Uint16Array(await bytes("probabilities", { ...where(current), layer: layer() })); } catch (error) { return alarm(error.message); }
  setView("probabilities");
  stage.repaint();
}

function setTool(tool) {
  stage.tool = tool;
  for (const name of ["brush", "eraser", "fill", "hand"]) $(name).setAttribute("aria-pressed", String(name === tool));
  $("canvas").classList.toggle("hand", tool === "hand");
  stage.draw();
}

function setSize(value) {
  stage.size = Math.min(100, Math.max(1, Math.round(value)));
  $("size").value = stage.size;
  $("size_shown").textContent = `${stage.size} px`;
  stage.draw();
}

function setValue() {
  const value = Number($("value").value);
  stage.value = value;
  $("swatch").style.background = value === IGNORE ? "rgb(128,128,128)" : state.task === "binary" ? (value ? "rgb(255,190,30)" : "transparent") : `rgb(${state.colours[value]})`;
}

function draws(tool) {
  if (tool !== "hand" && !["truth", "difference"].includes(stage.view)) setView("truth");
  setTool(tool);
}

function nextValue() { $("value").selectedIndex = ($("value").selectedIndex + 1) % $("value").length; setValue(); }

function takePrediction() { if (!$("take").disabled) { stage.replace(stage.predictionNow()); setView("truth"); } }

const ACTS = {
  keep: () => judge("keep"), drop: () => judge("drop"), wrong: () => judge("wrong"), save: saved,
  previous: () => step(-1), next: () => step(1),
  brush: () => draws("brush"), eraser: () => draws("eraser"), fill: () => draws("fill"), hand: () => draws("hand"),
  undo: () => stage.undo(), redo: () => stage.redo(),
  closer: () => stage.zoom(1.5), farther: () => stage.zoom(1 / 1.5), fit: () => stage.fit(),
  rule: () => setThreshold(null), take: takePrediction, help: () => $("keys").showModal(),
};
const MORE = { "[": () => setSize(stage.size - Math.max(1, Math.round(stage.size / 8))), "]": () => setSize(stage.size + Math.max(1, Math.round(stage.size / 8))), ",": () => turnThreshold(-0.02), ".": () => turnThreshold(0.02), c: nextValue };

for (const [id, act] of Object.entries(ACTS)) $(id).addEventListener("click", act);

listenToKeys(stage, ACTS, MORE, setView, () => current);

for (const radio of document.querySelectorAll("[name=view]")) radio.addEventListener("change", () => setView(radio.value));
$("size").addEventListener("input", event => setSize(Number(event.target.value)));
$("value").addEventListener("change", setValue);
$("threshold").addEventListener("input", event => setThreshold(Number(event.target.value)));
$("layer").addEventListener("change", setLayer);
$("more").addEventListener("click", () => loadList(true));
$("fresh").addEventListener("click", () => loadList());
$("back").addEventListener("click", async () => {
  if (!await saveFirst()) return;
  history.replaceState(null, "", `#${query.split}`);
  toList();
});
$("query").addEventListener("submit", event => event.preventDefault());
$("query").addEventListener("input", event => {
  query[event.target.name] = event.target.value;
  clearTimeout(loadList.timer);
  loadList.timer = setTimeout(loadList, event.target.name === "find" ? 250 : 0);
});
addEventListener("beforeunload", event => { if (dirty) event.preventDefault(); });

for (const tab of document.querySelectorAll(".tab")) tab.addEventListener("click", async () => {
  if (!await saveFirst()) return;
  history.replaceState(null, "", `#${tab.dataset.split}`);
  choose(tab.dataset.split);
});

async function choose(split) {
  query.split = split;
  query.order = split === "test" ? "doubt" : "cost";
  query.cause = "";
  const { order, cause } = $("query").elements;
  order.value = query.order;
  order.options[0].disabled = split === "test";
  cause.value = "";
  cause.closest("label").hidden = split === "test";
  for (const tab of document.querySelectorAll(".tab")) tab.setAttribute("aria-pressed", String(tab.dataset.split === split));
  current = null;
  stage.clear();
  $("work").hidden = $("side").hidden = true;
  $("empty").hidden = false;
  $("empty").textContent = split === "test" ? "Choose an image from the list. The most doubtful ones come first: a mask drawn there teaches the most." : "Choose an image from the list. The costliest ones come first: those that would lift the score most if they were right.";
  document.body.dataset.screen = "list";
  if (!location.hash.startsWith(`#${split}`)) history.replaceState(null, "", `#${split}`);
  await loadList();
}

function toList() { turn++; document.body.dataset.screen = "list"; mark(); }

/* #train/ID or #test/ID opens that image, #train or #test the list. */
async function fromAddress() {
  if (!await saveFirst()) return;
  const [asked, id] = location.hash.slice(1).split(/\/(.*)/s);
  const split = asked === "test" && !document.querySelector("[data-split=test]").disabled ? "test" : "train";
  if (split !== query.split || !$("items").children.length) await choose(split);
  if (id) await show(split, decodeURIComponent(id)); else toList();
}

addEventListener("hashchange", fromAddress);
setTool("brush");
setSize(8);
lookAgain();
