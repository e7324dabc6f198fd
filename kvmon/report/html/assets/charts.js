"use strict";
/* Curves over time, drawn by uPlot: stacks, lines with their extremes, bars. Nothing here knows what a curve means. */

const AXIS = 84; // the map keeps the same distance, so that what is above one another happened at the same time

function shade(values, alpha) {
  return values + Math.round(alpha * 255).toString(16).padStart(2, "0");
}

/* Columns for uPlot. Each bucket is drawn at its middle; null is a gap. */
function columns(chart, times) {
  const xs = times.edges.slice(1).map((edge, i) => (edge + times.edges[i]) / 2);
  if (chart.kind === "bars") {
    const sum = new Array(xs.length).fill(0);
    return [xs, ...chart.lines.map((line) => line.last.map((value, i) => (sum[i] += value || 0) || null)).reverse()];
  }
  if (chart.kind === "lines") {
    const data = [xs];
    for (const line of chart.lines) {
      data.push(line.last || line.max);
      if (line.min) data.push(line.min, line.max);
    }
    return data;
  }
  const data = [xs];
  const sum = new Array(xs.length).fill(0);
  for (const line of chart.lines.filter((one) => !one.over)) {
    data.push(line.last.map((value, i) => (value === null ? null : (sum[i] += value))));
  }
  for (const line of chart.lines.filter((one) => one.over)) data.push(line.max);
  return data;
}

function series(chart) {
  const made = [{}];
  const bands = [];
  const plain = { spanGaps: false, points: { show: false } };
  if (chart.kind === "stack") {
    const below = chart.lines.filter((one) => !one.over);
    below.forEach((line, i) => {
      const paint = () => colour(line.colour);
      made.push({ ...plain, label: line.label, stroke: paint, fill: i ? undefined : paint, width: 0.5 });
      if (i) bands.push({ series: [i + 1, i], fill: paint });
    });
    for (const line of chart.lines.filter((one) => one.over)) {
      made.push({ ...plain, label: line.label, stroke: () => colour(line.colour), width: 1.5, dash: [5, 3] });
    }
    return { made, bands };
  }
  if (chart.kind === "bars") {
    for (const line of [...chart.lines].reverse()) {
      const paint = () => colour(line.colour);
      made.push({ ...plain, label: line.label, stroke: paint, fill: paint, paths: uPlot.paths.bars({ size: [0.9, 40, 2] }) });
    }
    return { made, bands };
  }
  for (const line of chart.lines) {
    const paint = () => colour(line.colour);
    made.push({ ...plain, label: line.label, stroke: paint, width: 1.5, dash: line.dashed ? [5, 3] : undefined });
    if (line.min) {
      const base = made.length - 1;
      made.push({ ...plain, label: line.label + ", lowest", stroke: "transparent" });
      made.push({ ...plain, label: line.label + ", highest", stroke: "transparent" });
      bands.push({ series: [base + 2, base + 1], fill: () => shade(colour(line.colour), 0.22) });
    }
  }
  return { made, bands };
}

/* Ranges of findings, unknown stretches and marks, drawn below and above the curves. */
function drawUnder(u, stream, times) {
  const { ctx } = u;
  const { left, top, width, height } = u.bbox;
  const x = (seconds) => Math.min(Math.max(u.valToPos(seconds, "x", true), left), left + width);
  ctx.save();
  ctx.fillStyle = shade(colour("bad"), 0.05);
  for (const finding of stream.findings) ctx.fillRect(x(finding.start), top, x(finding.end) - x(finding.start), height);
  ctx.fillStyle = shade(colour("unknown"), 0.35);
  (times.known || []).forEach((share, i) => {
    const [from, to] = [x(times.edges[i]), x(times.edges[i + 1])];
    if (share < 1) ctx.fillRect(from, top, Math.max(to - from, 1), height * (1 - share));
  });
  ctx.restore();
}

function drawMarks(u, marks) {
  const { ctx } = u;
  ctx.save();
  ctx.beginPath();
  ctx.rect(u.bbox.left, u.bbox.top, u.bbox.width, u.bbox.height);
  ctx.clip();
  ctx.fillStyle = colour("mark");
  const [from, to] = [u.scales.x.min, u.scales.x.max];
  for (const mark of marks) {
    if (mark < from || mark > to) continue;
    const x = u.valToPos(mark, "x", true);
    ctx.fillRect(x - 0.5, u.bbox.top, 1, 7 * devicePixelRatio);
  }
  ctx.restore();
}

function highest(u, chart, range) {
  if (chart.top !== undefined && chart.top !== null) return chart.top;
  let most = 0;
  const [from, to] = range;
  for (let s = 1; s < u.data.length; s++) {
    u.data[s].forEach((value, i) => {
      if (value !== null && u.data[0][i] >= from && u.data[0][i] <= to && value > most) most = value;
    });
  }
  return most > 0 ? most * 1.06 : 1;
}

class Chart {
  constructor(place, chart, stream, times, marks, zoom) {
    Object.assign(this, { place, chart, stream, times, marks, zoom });
    this.tip = tag("div", { class: "tip", hidden: "" });
    this.build();
    zoom.follow((range) => this.plot.setScale("x", { min: range[0], max: range[1] }));
    new ResizeObserver(() => this.fit()).observe(place);
    place.addEventListener("keydown", (event) => zoom.key(event));
    place.addEventListener("dblclick", () => zoom.reset());
  }

  build() {
    const { chart, times, zoom } = this;
    const { made, bands } = series(chart);
    const axis = { stroke: () => colour("soft"), grid: { stroke: () => colour("line"), width: 1 }, ticks: { stroke: () => colour("line") } };
    const options = {
      width: Math.max(this.place.clientWidth, 200),
      height: 176,
      padding: [8, 0, 0, 0],
      legend: { show: false },
      cursor: { sync: { key: "stream" + this.stream.number, setSeries: false }, drag: { x: true, y: false, setScale: false }, bind: { dblclick: () => null } },
      scales: { x: { time: false, min: zoom.range[0], max: zoom.range[1] }, y: { range: (u) => [chart.floor || 0, highest(u, chart, zoom.range)] } },
      axes: [
        { ...axis, values: (u, ticks) => ticks.map(say.clock), space: 70 },
        {
          ...axis,
          values: (u, ticks) => ticks.map((tick) => say[chart.unit](tick)),
          incrs: chart.unit === "bytes" ? Array.from({ length: 50 }, (_, power) => 2 ** power) : undefined,
          size: AXIS,
          space: 30,
        },
      ],
      series: made,
      bands,
      hooks: {
        drawClear: [(u) => drawUnder(u, this.stream, times)],
        draw: [(u) => drawMarks(u, this.marks)],
        setSelect: [(u) => this.select(u)],
        setCursor: [(u) => this.hover(u)],
      },
    };
    this.plot = new uPlot(options, columns(chart, times), this.place);
    this.plot.over.append(this.tip);
  }

  select(u) {
    if (u.select.width < 4) return;
    const from = u.posToVal(u.select.left, "x");
    const to = u.posToVal(u.select.left + u.select.width, "x");
    u.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoom.set(from, to);
  }

  hover(u) {
    const i = u.cursor.idx;
    const here = u.over.matches(":hover");
    this.tip.hidden = !here || i === null || i === undefined || u.cursor.left < 0;
    if (this.tip.hidden) return;
    const { chart, times } = this;
    const words = [say.clock(times.edges[i])];
    for (const line of chart.lines) {
      const value = line.over ? line.max[i] : (line.last || line.max)[i];
      let text = line.label + "  " + spoken(chart.unit, value);
      if (line.min && value !== null && line.min[i] !== line.max[i]) text += "  (" + say[chart.unit](line.min[i]) + " to " + say[chart.unit](line.max[i]) + ")";
      words.push(text);
    }
    this.tip.textContent = words.join("\n");
    const left = u.cursor.left + 14;
    this.tip.style.left = Math.min(left, u.over.clientWidth - this.tip.offsetWidth) + "px";
    this.tip.style.top = "4px";
  }

  fit() {
    const width = this.place.clientWidth;
    if (width > 0 && width !== this.plot.width) this.plot.setSize({ width, height: this.plot.height });
  }

  recolour() { this.plot.redraw(false, true); }
}
