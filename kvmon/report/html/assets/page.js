"use strict";
/* Brings the page to life: for each stream its range of time, charts, maps and lists; and the theme. */

const drawn = [];

function bringZoom(section, zoom) {
  const bar = section.querySelector(".zoom");
  const output = bar.querySelector("output");
  const told = () => {
    const [from, to] = zoom.range;
    output.textContent = say.clock(from) + " to " + say.clock(to) + (zoom.zoomed ? "" : ", all of it");
    bar.querySelector("[data-act=reset]").disabled = !zoom.zoomed;
  };
  const acts = { in: () => zoom.scale(0.5), out: () => zoom.scale(2), left: () => zoom.pan(-0.25), right: () => zoom.pan(0.25), reset: () => zoom.reset() };
  for (const button of bar.querySelectorAll("button")) button.addEventListener("click", acts[button.dataset.act]);
  zoom.follow(told);
  told();
}

function bring(stream) {
  const section = document.getElementById("stream-" + stream.number);
  const zoom = new Zoom(stream.start, stream.end);
  if (section.querySelector(".zoom")) bringZoom(section, zoom);
  for (const pool of stream.pools) {
    const own = document.getElementById("pool-" + stream.number + "-" + pool.number);
    const marks = pool.marks;
    pool.charts.forEach((chart, i) => drawn.push(new Chart(own.querySelector('[data-chart="' + i + '"]'), chart, stream, stream.times, marks, zoom)));
    if (pool.map) drawn.push(new MemoryMap(own.querySelector(".map"), pool.map, zoom));
    if (pool.failures.length) drawn.push(new Failures(own.querySelector(".failures"), pool, zoom));
  }
  stream.charts.forEach((chart, i) => drawn.push(new Chart(section.querySelector('[data-stream-chart="' + i + '"]'), chart, stream, stream.times, [], zoom)));
  for (const link of section.querySelectorAll("button[data-from]")) {
    link.addEventListener("click", () => {
      zoom.set(Number(link.dataset.from), Number(link.dataset.to));
      section.querySelector(".zoom").scrollIntoView({ block: "start" });
    });
  }
}

function bringTheme() {
  const button = document.getElementById("theme");
  const dark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const told = () => {
    button.textContent = dark() ? "Light" : "Dark";
    for (const one of drawn) one.recolour();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    told();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", told);
  told();
}

for (const stream of report.streams) bring(stream);
bringTheme();
document.documentElement.dataset.ready = "";
