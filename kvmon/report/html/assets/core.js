"use strict";
/* The data of the report, how numbers are said, and the range of time that everything shows. */
const report = JSON.parse(document.getElementById("data").textContent);

const STATES = ["free", "active", "reserved", "cached", "pinned", "deferred"];
const UNKNOWN = 255;

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

function bytesOf(text) {
  const raw = atob(text);
  const out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}

const say = {
  count: (v) => (Math.abs(v) < 10 && v % 1 ? v.toFixed(1) : Math.round(v).toLocaleString("en-US")),
  bytes(v) {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    let shown = v;
    while (Math.abs(shown) >= 1024 && i < units.length - 1) { shown /= 1024; i++; }
    return (i && Math.abs(shown) < 100 ? shown.toFixed(1) : Math.round(shown).toLocaleString("en-US")) + " " + units[i];
  },
  ratio: (v) => (v * 100).toFixed(1) + " %",
  seconds(v) {
    if (v >= 1 || v === 0) return (v < 100 ? v.toFixed(v < 10 ? 2 : 1) : Math.round(v).toLocaleString("en-US")) + " s";
    return v >= 1e-3 ? (v * 1e3).toFixed(1) + " ms" : (v * 1e6).toFixed(0) + " µs";
  },
  clock(v) {
    const sign = v < 0 ? "-" : "";
    const tenths = Math.round(Math.abs(v) * 10);
    const h = Math.floor(tenths / 36000), m = Math.floor(tenths / 600) % 60, s = (tenths % 600) / 10;
    const head = h ? h + ":" + String(m).padStart(2, "0") : String(m);
    return sign + head + ":" + (s < 10 ? "0" : "") + s.toFixed(1);
  },
};
const spoken = (unit, v) => (v === null || v === undefined ? "not known" : say[unit](v));

/* One range of time for each stream: charts, map and lists follow it, whoever sets it. */
class Zoom {
  constructor(start, end) {
    this.whole = [start, end];
    this.range = [start, end];
    this.followers = [];
    this.narrowest = Math.max((end - start) / 1e5, 1e-6);
  }
  follow(told) { this.followers.push(told); }
  set(from, to) {
    const [start, end] = this.whole;
    let width = Math.min(Math.max(to - from, this.narrowest), end - start);
    let begin = Math.min(Math.max(from, start), end - width);
    this.range = [begin, begin + width];
    for (const told of this.followers) told(this.range);
  }
  reset() { this.set(...this.whole); }
  get zoomed() { return this.range[1] - this.range[0] < (this.whole[1] - this.whole[0]) * 0.999999; }
  scale(factor, about) {
    const [from, to] = this.range;
    const at = about === undefined ? (from + to) / 2 : about;
    this.set(at - (at - from) * factor, at + (to - at) * factor);
  }
  pan(share) {
    const [from, to] = this.range;
    this.set(from + (to - from) * share, to + (to - from) * share);
  }
  key(event) {
    const acts = {
      "+": () => this.scale(0.5), "=": () => this.scale(0.5), "-": () => this.scale(2),
      ArrowLeft: () => this.pan(-0.25), ArrowRight: () => this.pan(0.25), 0: () => this.reset(), Home: () => this.reset(),
    };
    if (event.ctrlKey || event.metaKey || event.altKey || !acts[event.key]) return;
    acts[event.key]();
    event.preventDefault();
  }
}

function tag(name, attributes, ...inside) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (key === "class") made.className = value;
    else made.setAttribute(key, value);
  }
  made.append(...inside);
  return made;
}
