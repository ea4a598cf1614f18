/* The picture of the review page: image, masks and probabilities on a canvas, and what mends a mask. */
"use strict";

export const FULL = 65535, IGNORE = 255;
const TRUTH = [255, 190, 30], PREDICTION = [60, 140, 255], TOO_MUCH = [31, 160, 70], MISSED = [214, 39, 40], GREY = [128, 128, 128];
const MOST_UNDO_BYTES = 256 * 2 ** 20;
const packed = ([red, green, blue], alpha) => (alpha << 24 | blue << 16 | green << 8 | red) >>> 0;
/* dark violet to yellow, even in lightness */
const RAMP = [[13, 8, 65], [84, 15, 109], [148, 38, 103], [205, 66, 71], [240, 120, 38], [251, 185, 46], [252, 250, 160]];

function rampTable() {
  return Uint32Array.from({ length: 256 }, (_, at) => {
    const place = at / 255 * (RAMP.length - 1), first = Math.min(Math.floor(place), RAMP.length - 2), share = place - first;
    return packed(RAMP[first].map((part, band) => Math.round(part + share * (RAMP[first + 1][band] - part))), 235);
  });
}

export class Stage {
  /* canvas: where it is drawn; minis: view -> small canvas; changed: called after each stroke, undo and redo. */
  constructor(canvas, minis, changed) {
    Object.assign(this, { canvas, minis, changed, view: "difference", tool: "brush", size: 8, value: 1, cross: null, pointers: new Map() });
    this.context = canvas.getContext("2d");
    this.overlay = document.createElement("canvas");
    this.ramp = rampTable();
    this.clear();
    for (const [kind, act] of Object.entries({ pointerdown: "down", pointermove: "move", pointerup: "up", pointercancel: "up", pointerleave: "leave" })) canvas.addEventListener(kind, event => this[act](event));
    canvas.addEventListener("wheel", event => { event.preventDefault(); this.zoom(Math.exp(-event.deltaY * (event.ctrlKey ? 0.01 : 0.002)), this.local(event)); }, { passive: false });
    canvas.addEventListener("contextmenu", event => event.preventDefault());
    canvas.addEventListener("blur", () => { this.cross = null; this.penDown = false; this.draw(); });
    new ResizeObserver(() => this.resize()).observe(canvas);
  }

  clear() { Object.assign(this, { image: null, pictures: {}, work: null, prediction: null, codes: null, threshold: null, undone: [], done: [], stroke: null, hover: null, penDown: false }); }

  /* task: {task, colours, background}; w, h; image; work, prediction: Uint8Array or null; codes: Uint16Array or null. */
  show(task, layers) {
    this.clear();
    Object.assign(this, { task }, layers);
    this.binary = task.task === "binary";
    this.tables = { truth: this.table(TRUTH), prediction: this.table(PREDICTION) };
    this.overlay.width = this.w; this.overlay.height = this.h;
    this.pixels = new ImageData(this.w, this.h);
    this.words = new Uint32Array(this.pixels.data.buffer);
    this.cross = null;
    this.fitted = true;
    this.resize();
    this.repaint();
  }

  table(colour) {
    const table = new Uint32Array(256);
    if (this.binary) table[1] = packed(colour, 140);
    else this.task.colours.forEach((one, at) => { if (at || !this.task.background) table[at] = packed(one, 150); });
    table[IGNORE] = packed(GREY, 170);
    return table;
  }

  has(view) {
    const there = { image: this.image, truth: this.work, prediction: this.prediction, difference: this.work && this.prediction, probabilities: this.codes };
    return Boolean(there[view] || this.pictures[view]);
  }

  /* Class of the prediction at a pixel: as the rule says, or above the slider's threshold. */
  predicted(at) { return this.binary && this.threshold !== null && this.codes ? +(this.codes[at] > this.threshold) : this.prediction[at]; }

  predictionNow() { return Uint8Array.from({ length: this.w * this.h }, (_, at) => this.predicted(at)); }

  colour(view, at, x) {
    if (view === "truth") return this.tables.truth[this.work[at]];
    if (view === "prediction") return this.tables.prediction[this.predicted(at)];
    if (view === "difference") {
      const truth = this.work[at], found = this.predicted(at);
      if (truth === IGNORE) return this.tables.truth[IGNORE];
      if (truth === found) return 0;
      return packed(this.binary && found ? TOO_MUCH : MISSED, 215);
    }
    if (view !== "probabilities") return 0;
    const code = this.codes[at], least = this.threshold ?? this.ruleCode, inside = code > least;
    const edge = inside && ((x > 0 && this.codes[at - 1] <= least) || (x < this.w - 1 && this.codes[at + 1] <= least) || (at >= this.w && this.codes[at - this.w] <= least) || (at + this.w < this.codes.length && this.codes[at + this.w] <= least));
    return edge ? 0xffffffff : this.ramp[code >> 8];
  }

  /* Paint the overlay again: all of it, or a box [left, top, right, bottom). */
  repaint(box) {
    if (!this.image) return;
    const [left, top, right, bottom] = box ?? [0, 0, this.w, this.h];
    if (this.pictures[this.view] || !this.has(this.view)) this.words.fill(0);
    else for (let y = top; y < bottom; y++) for (let x = left, at = y * this.w + left; x < right; x++, at++) this.words[at] = this.colour(this.view, at, x);
    this.overlay.getContext("2d").putImageData(this.pixels, 0, 0, left, top, right - left, bottom - top);
    this.draw();
    if (!box) this.paintMinis();
  }

  paintMinis() { clearTimeout(this.soon); this.soon = setTimeout(() => { for (const [view, canvas] of Object.entries(this.minis)) if (this.image) this.paintMini(view, canvas); }, 30); }

  paintMini(view, canvas, work = this.work) {
    const scale = Math.min(1, 240 / Math.max(this.w, this.h)), w = Math.max(1, Math.round(this.w * scale)), h = Math.max(1, Math.round(this.h * scale));
    canvas.width = w; canvas.height = h;
    const context = canvas.getContext("2d");
    context.drawImage(this.base(view), 0, 0, w, h);
    this.fade(context, view, w, h);
    if (this.pictures[view] || !this.has(view)) return;
    const frame = new ImageData(w, h), words = new Uint32Array(frame.data.buffer), layer = document.createElement("canvas"), kept = this.work;
    this.work = work;
    for (let y = 0; y < h; y++) for (let x = 0; x < w; x++) {
      const column = Math.min(this.w - 1, Math.floor((x + 0.5) / scale)), row = Math.min(this.h - 1, Math.floor((y + 0.5) / scale));
      words[y * w + x] = this.colour(view, row * this.w + column, column);
    }
    this.work = kept;
    layer.width = w; layer.height = h;
    layer.getContext("2d").putImageData(frame, 0, 0);
    context.drawImage(layer, 0, 0);
  }

  base(view) { return this.pictures[view] ?? this.image; }

  fade(context, view, w, h) {
    if (view !== "difference" || this.pictures[view]) return;
    context.fillStyle = "rgba(190, 190, 190, 0.5)";
    context.fillRect(0, 0, w, h);
  }

  resize() {
    const box = this.canvas.getBoundingClientRect(), ratio = devicePixelRatio || 1;
    if (!box.width) return;
    const fitted = this.fitted;
    this.canvas.width = Math.round(box.width * ratio); this.canvas.height = Math.round(box.height * ratio);
    this.ratio = ratio; this.box = box;
    if (fitted) this.fit(); else this.draw();
  }

  fit() {
    if (!this.image || !this.box) return;
    const scale = Math.min(this.box.width / this.w, this.box.height / this.h) * 0.98;
    Object.assign(this, { scale, tx: (this.box.width - scale * this.w) / 2, ty: (this.box.height - scale * this.h) / 2, least: Math.min(1, scale) / 2, fitted: true });
    this.draw();
  }

  zoom(factor, [x, y] = [this.box.width / 2, this.box.height / 2]) {
    if (!this.image) return;
    const scale = Math.min(64, Math.max(this.least, this.scale * factor)), share = scale / this.scale;
    Object.assign(this, { scale, tx: x - share * (x - this.tx), ty: y - share * (y - this.ty), fitted: false });
    this.draw();
  }

  draw() {
    if (this.pending || !this.box) return;
    this.pending = requestAnimationFrame(() => { this.pending = 0; this.drawNow(); });
  }

  drawNow() {
    const { context, canvas, ratio } = this;
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    if (!this.image) return;
    context.setTransform(this.scale * ratio, 0, 0, this.scale * ratio, this.tx * ratio, this.ty * ratio);
    context.imageSmoothingEnabled = this.scale < 2;
    context.drawImage(this.base(this.view), 0, 0, this.w, this.h);
    this.fade(context, this.view, this.w, this.h);
    context.imageSmoothingEnabled = this.scale < 1;
    context.drawImage(this.overlay, 0, 0);
    const point = this.cross ?? this.hover;
    if (point && this.canMend && this.tool !== "hand") this.drawPen(point);
  }

  drawPen([x, y]) {
    const { context } = this, radius = this.tool === "fill" ? 0.5 : this.size / 2, line = 1 / this.scale;
    for (const [colour, width] of [["#000", 3], ["#fff", 1.2]]) {
      context.strokeStyle = colour; context.lineWidth = width * line;
      context.beginPath();
      context.arc(x, y, radius, 0, 7);
      if (this.cross) for (const [dx, dy] of [[1, 0], [-1, 0], [0, 1], [0, -1]]) { context.moveTo(x + dx * radius, y + dy * radius); context.lineTo(x + dx * (radius + 9 * line), y + dy * (radius + 9 * line)); }
      context.stroke();
    }
  }

  /* --- mouse, pen and fingers --- */
  get canMend() { return Boolean(this.work) && !this.fixed; }

  local(event) { const box = this.canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; }

  toImage([x, y]) { return [(x - this.tx) / this.scale, (y - this.ty) / this.scale]; }

  down(event) {
    if (!this.image) return;
    this.canvas.focus({ preventScroll: true });
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, this.local(event));
    this.cross = null;
    if (this.pointers.size > 1) { this.cancel(); return; }
    const drag = this.tool === "hand" || event.button === 1 || !this.canMend;
    this.dragging = drag;
    if (drag) return;
    if (event.button !== 0 && event.button !== 2) return;
    this.press(this.toImage(this.local(event)), event.button === 2);
  }

  move(event) {
    const now = this.local(event), before = this.pointers.get(event.pointerId);
    this.hover = this.toImage(now);
    if (before) {
      if (this.pointers.size > 1) this.pinch(event.pointerId, now);
      else if (this.dragging) { this.tx += now[0] - before[0]; this.ty += now[1] - before[1]; this.fitted = false; }
      else if (this.stroke) for (const one of event.getCoalescedEvents?.().length ? event.getCoalescedEvents() : [event]) this.drawTo(this.toImage(this.local(one)));
      this.pointers.set(event.pointerId, now);
    }
    this.draw();
  }

  up(event) {
    this.pointers.delete(event.pointerId);
    if (event.pointerType === "touch") this.hover = null;
    if (event.type === "pointercancel") this.cancel(); else this.release();
  }

  leave() { this.hover = null; this.draw(); }

  pinch(id, now) {
    const other = [...this.pointers].find(([key]) => key !== id)[1], before = this.pointers.get(id);
    const span = ([x, y]) => Math.hypot(x - other[0], y - other[1]), middle = ([x, y]) => [(x + other[0]) / 2, (y + other[1]) / 2];
    const [from, to] = [middle(before), middle(now)];
    this.tx += to[0] - from[0]; this.ty += to[1] - from[1];
    this.zoom(span(now) / Math.max(1, span(before)), to);
  }

  /* --- strokes --- */
  press(point, erase = false) {
    if (!this.canMend) return;
    const value = erase || this.tool === "eraser" ? 0 : this.value;
    this.stroke = { before: this.work.slice(), value, last: point, box: [this.w, this.h, 0, 0] };
    if (this.tool === "fill") { this.flood(Math.floor(point[0]), Math.floor(point[1])); this.release(); } else this.drawTo(point);
  }

  drawTo([x, y]) {
    const { last } = this.stroke, distance = Math.hypot(x - last[0], y - last[1]), steps = Math.max(1, Math.ceil(distance / Math.max(0.5, this.size / 5)));
    const box = [this.w, this.h, 0, 0];
    for (let at = 1; at <= steps; at++) this.stamp(last[0] + (x - last[0]) * at / steps, last[1] + (y - last[1]) * at / steps, box);
    this.stroke.last = [x, y];
    this.grow(box);
    if (box[0] < box[2]) this.repaint(box);
  }

  /* Every pixel whose middle lies in the disc; of a brush of one pixel the pixel below it. */
  stamp(x, y, box) {
    const radius = this.size / 2, { value } = this.stroke;
    if (this.size <= 1) { x = Math.floor(x) + 0.5; y = Math.floor(y) + 0.5; }
    const top = Math.max(0, Math.ceil(y - radius - 0.5)), bottom = Math.min(this.h - 1, Math.floor(y + radius - 0.5));
    for (let row = top; row <= bottom; row++) {
      const half = Math.sqrt(Math.max(0, radius ** 2 - (row + 0.5 - y) ** 2));
      const left = Math.max(0, Math.ceil(x - half - 0.5)), right = Math.min(this.w - 1, Math.floor(x + half - 0.5));
      if (left > right) continue;
      this.work.fill(value, row * this.w + left, row * this.w + right + 1);
      box[0] = Math.min(box[0], left); box[1] = Math.min(box[1], row); box[2] = Math.max(box[2], right + 1); box[3] = Math.max(box[3], row + 1);
    }
  }

  /* Give the connected region of one class below a pixel (4 neighbours) another class. */
  flood(x, y) {
    const { w, h, work } = this, { value } = this.stroke;
    if (x < 0 || y < 0 || x >= w || y >= h) return;
    const from = work[y * w + x], box = [x, y, x + 1, y + 1], waiting = [[x, y]];
    if (from === value) return;
    while (waiting.length) {
      const [column, row] = waiting.pop();
      if (work[row * w + column] !== from) continue;
      let left = column, right = column;
      while (left > 0 && work[row * w + left - 1] === from) left--;
      while (right < w - 1 && work[row * w + right + 1] === from) right++;
      work.fill(value, row * w + left, row * w + right + 1);
      box[0] = Math.min(box[0], left); box[1] = Math.min(box[1], row); box[2] = Math.max(box[2], right + 1); box[3] = Math.max(box[3], row + 1);
      for (const next of [row - 1, row + 1]) if (next >= 0 && next < h) for (let at = left; at <= right; at++) {
        if (work[next * w + at] === from && (at === left || work[next * w + at - 1] !== from)) waiting.push([at, next]);
      }
    }
    this.grow(box);
  }

  grow(box) { const own = this.stroke.box; this.stroke.box = [Math.min(own[0], box[0]), Math.min(own[1], box[1]), Math.max(own[2], box[2]), Math.max(own[3], box[3])]; }

  cancel() {
    if (!this.stroke) return;
    this.work.set(this.stroke.before);
    this.stroke = null;
    this.repaint();
  }

  release() {
    const { stroke } = this;
    this.stroke = null; this.dragging = false;
    if (stroke && stroke.box[0] < stroke.box[2]) this.keep(stroke.before, stroke.box);
  }

  part(from, [left, top, right, bottom]) {
    const part = new Uint8Array((right - left) * (bottom - top));
    for (let y = top; y < bottom; y++) part.set(from.subarray(y * this.w + left, y * this.w + right), (y - top) * (right - left));
    return part;
  }

  keep(before, box) {
    const step = { box, before: this.part(before, box), after: this.part(this.work, box) };
    if (step.before.every((value, at) => value === step.after[at])) return;
    this.done.push(step);
    this.undone = [];
    let bytes = this.done.reduce((sum, one) => sum + 2 * one.before.length, 0);
    while (bytes > MOST_UNDO_BYTES && this.done.length > 1) bytes -= 2 * this.done.shift().before.length;
    this.repaint();
    this.changed();
  }

  /* Replace the whole mask, as one step that can be undone. */
  replace(mask) {
    const before = this.work.slice();
    this.work.set(mask);
    this.keep(before, [0, 0, this.w, this.h]);
  }

  undo() { this.turn(this.done, this.undone, "before"); }
  redo() { this.turn(this.undone, this.done, "after"); }

  turn(from, to, which) {
    const step = from.pop();
    if (!step) return;
    const [left, top, right, bottom] = step.box;
    for (let y = top; y < bottom; y++) this.work.set(step[which].subarray((y - top) * (right - left), (y - top + 1) * (right - left)), y * this.w + left);
    to.push(step);
    this.repaint();
    this.changed();
  }

  /* --- the keyboard: a cross that moves, draws and fills --- */
  key(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }, step = moves[event.key];
    if (!this.image || (!step && event.key !== " ")) return false;
    this.cross ??= [Math.floor(this.w / 2) + 0.5, Math.floor(this.h / 2) + 0.5];
    if (step) {
      const far = event.shiftKey ? 10 : 1, inside = (value, most) => Math.min(most - 0.5, Math.max(0.5, value));
      this.cross = [inside(this.cross[0] + step[0] * far, this.w), inside(this.cross[1] + step[1] * far, this.h)];
      if (this.stroke && this.penDown) this.drawTo(this.cross);
    } else if (!this.penDown && this.canMend && this.tool !== "hand") { this.penDown = true; this.press(this.cross); }
    this.follow();
    this.draw();
    return true;
  }

  keyUp(event) { if (event.key === " " && this.penDown) { this.penDown = false; this.release(); } }

  follow() {
    const x = this.cross[0] * this.scale + this.tx, y = this.cross[1] * this.scale + this.ty, edge = 24;
    this.tx += Math.max(0, edge - x) - Math.max(0, x - this.box.width + edge);
    this.ty += Math.max(0, edge - y) - Math.max(0, y - this.box.height + edge);
  }
}

/* A mask as text: runs of "value length" in base 36, short where there are few regions. */
export function toRuns(mask) {
  const parts = [];
  for (let at = 0; at < mask.length;) {
    let end = at + 1;
    while (end < mask.length && mask[end] === mask[at]) end++;
    parts.push(mask[at].toString(36) + " " + (end - at).toString(36));
    at = end;
  }
  return parts.join(",");
}

export function fromRuns(text, size) {
  const mask = new Uint8Array(size);
  let at = 0;
  for (const part of text.split(",")) {
    const [value, length] = part.split(" ").map(one => parseInt(one, 36));
    if (!(value >= 0 && value <= IGNORE && length > 0) || at + length > size) return null;
    mask.fill(value, at, at += length);
  }
  return at === size ? mask : null;
}
