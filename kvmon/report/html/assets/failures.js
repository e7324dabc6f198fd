"use strict";
/* Drill-down: one refused allocation with the memory as it was just before it. */

class Failures {
  constructor(section, pool, zoom) {
    Object.assign(this, { pool, zoom });
    this.rows = [...section.querySelectorAll("tbody tr")];
    this.detail = section.querySelector(".detail");
    this.rows.forEach((row, i) => {
      row.addEventListener("click", () => this.show(i));
      row.addEventListener("keydown", (event) => this.key(event, i));
    });
    this.shown = -1;
    if (this.rows.length) this.show(0, false);
  }

  key(event, i) {
    const to = { ArrowDown: i + 1, ArrowUp: i - 1, Enter: i, " ": i }[event.key];
    if (to === undefined || !this.rows[to]) return;
    this.show(to);
    this.rows[to].focus();
    event.preventDefault();
  }

  show(i, moved = true) {
    this.shown = i;
    this.rows.forEach((row, k) => {
      row.setAttribute("aria-selected", String(k === i));
      row.tabIndex = k === i ? 0 : -1;
    });
    const failure = this.pool.failures[i];
    const zoomHere = tag("button", { type: "button" }, "Zoom to it");
    zoomHere.addEventListener("click", () => this.zoom.set(failure.at - 2.5, failure.at + 2.5));
    const parts = [tag("p", {}, failure.sentence), this.bar(failure)];
    if (failure.map) {
      const strip = tag("canvas", { class: "strip", role: "img", "aria-label": failure.map_says });
      const cells = bytesOf(failure.map);
      paintStrip(strip, cells);
      parts.push(tag("p", { class: "soft" }, failure.map_says + ":"), strip);
      this.strip = [strip, cells];
    } else this.strip = null;
    this.detail.replaceChildren(...parts, tag("p", {}, zoomHere));
    if (moved) this.detail.scrollIntoView({ block: "nearest" });
  }

  bar(failure) {
    const bar = tag("div", { class: "bar", role: "img", "aria-label": failure.shares.map((part) => part[0] + " " + say.ratio(part[1])).join(", ") });
    for (const [state, share] of failure.shares) {
      const part = tag("span", { title: state + " " + say.ratio(share) });
      part.style.width = share * 100 + "%";
      part.style.background = "var(--" + state + ")";
      bar.append(part);
    }
    return bar;
  }

  recolour() { if (this.strip) paintStrip(...this.strip); }
}

/* The addresses of a pool from left to right in as many rows as fit, as in a book. */
function paintStrip(canvas, cells) {
  const rows = 4;
  const columns = Math.ceil(cells.length / rows);
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  const colours = palette();
  const unknown = rgb(colour("unknown"));
  cells.forEach((cell, i) => {
    const [r, g, b] = ink(cell, colours, unknown);
    image.data.set([r, g, b, 255], 4 * i);
  });
  context.putImageData(image, 0, 0);
}
