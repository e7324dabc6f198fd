"use strict";
/* The memory over time: one column a moment, one row a stretch of addresses, so that islands and holes are seen. */

function rgb(text) {
  const value = parseInt(text.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/* Colours of every state at every fill, as [state][0..15]: what is half filled is half as strong. */
function palette() {
  const back = rgb(colour("free"));
  return STATES.map((state, number) => {
    const own = rgb(colour(state));
    return Array.from({ length: 16 }, (_, fill) => {
      const share = number ? 0.25 + (0.75 * fill) / 15 : 0;
      return own.map((part, i) => Math.round(back[i] + (part - back[i]) * share));
    });
  });
}

/* Cells hold the state in the high half of a byte and the fill in the low one; UNKNOWN is neither. */
function ink(cell, colours, unknown) {
  return cell === UNKNOWN ? unknown : colours[cell >> 4][cell & 15];
}

/* The index of the column that holds a time. */
function columnAt(edges, seconds) {
  let [low, high] = [0, edges.length - 2];
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (edges[middle] <= seconds) low = middle;
    else high = middle - 1;
  }
  return low;
}

class MemoryMap {
  constructor(place, map, zoom) {
    Object.assign(this, { place, map, zoom });
    this.cells = bytesOf(map.cells);
    this.canvas = tag("canvas", { tabindex: "0", role: "img", "aria-label": map.description });
    this.tip = tag("div", { class: "tip", hidden: "" });
    place.append(this.canvas, this.tip);
    new ResizeObserver(() => this.draw()).observe(this.canvas);
    zoom.follow(() => this.draw());
    this.canvas.addEventListener("keydown", (event) => zoom.key(event));
    this.canvas.addEventListener("dblclick", () => zoom.reset());
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
    this.canvas.addEventListener("pointerdown", (event) => { this.from = event.offsetX; });
    this.canvas.addEventListener("pointerup", (event) => this.select(event));
  }

  draw() {
    const { canvas, cells, map } = this;
    const [from, to] = this.zoom.range;
    canvas.width = Math.max(Math.round(canvas.clientWidth * devicePixelRatio), 1);
    canvas.height = map.rows;
    const context = canvas.getContext("2d");
    const image = context.createImageData(canvas.width, map.rows);
    const colours = palette();
    const unknown = rgb(colour("unknown"));
    for (let x = 0; x < canvas.width; x++) {
      const column = columnAt(map.edges, from + ((x + 0.5) / canvas.width) * (to - from));
      for (let y = 0; y < map.rows; y++) {
        const [r, g, b] = ink(cells[column * map.rows + y], colours, unknown);
        image.data.set([r, g, b, 255], 4 * (y * canvas.width + x));
      }
    }
    context.putImageData(image, 0, 0);
  }

  seconds(offset) {
    const [from, to] = this.zoom.range;
    return from + (offset / this.canvas.clientWidth) * (to - from);
  }

  select(event) {
    const from = this.from;
    this.from = undefined;
    if (from === undefined || Math.abs(event.offsetX - from) < 4) return;
    this.zoom.set(this.seconds(Math.min(from, event.offsetX)), this.seconds(Math.max(from, event.offsetX)));
  }

  hover(event) {
    const { map } = this;
    const x = columnAt(map.edges, this.seconds(event.offsetX));
    const y = Math.floor((event.offsetY / this.canvas.clientHeight) * map.rows);
    if (y < 0 || y >= map.rows) return;
    const cell = this.cells[x * map.rows + y];
    const first = Math.floor((y * map.capacity) / map.rows);
    const last = Math.max(Math.floor(((y + 1) * map.capacity) / map.rows) - 1, first);
    const used = cell >> 4 ? ", " + Math.round(((cell & 15) / 15) * 100) + " % in use" : "";
    const what = cell === UNKNOWN ? "not known" : STATES[cell >> 4] + used;
    this.tip.textContent = say.clock(map.edges[x]) + "\nunits " + say.count(first) + " to " + say.count(last) + "\n" + what;
    this.tip.hidden = false;
    this.tip.style.left = Math.min(event.offsetX + 14, this.canvas.clientWidth - this.tip.offsetWidth) + "px";
    this.tip.style.top = Math.min(event.offsetY + 14, this.canvas.clientHeight - this.tip.offsetHeight) + "px";
  }

  recolour() { this.draw(); }
}
