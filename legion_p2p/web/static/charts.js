"use strict";
// Curves: drawn by uPlot, and the same numbers as a table and as a CSV file.

const Charts = (() => {
  const DASHES = [[], [8, 4], [2, 3], [10, 3, 2, 3], [5, 5], [1, 4]];
  const MAX_POINTS = 4000; // of a line here; every second one goes when there are more
  const MAX_TABLE_ROWS = 60;
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  class Curves {
    // One chart: `block` says how it looks, `lines` have its points.
    constructor(block, body, format, text) {
      this.format = format;
      this.over = block.over;
      this.labels = "";
      this.plotted = null;
      this.box = body.appendChild(text("div", "", "plot"));
      this.box.setAttribute("role", "img");
      this.legend = body.insertBefore(text("ul", "", "legend"), this.box);
      this.describe(block, text);
      new ResizeObserver(() => this.resize()).observe(this.box);
      matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild()); // a canvas has colours of its own
    }

    describe(block, text) {
      this.block = block;
      const labels = JSON.stringify(block.lines.map((line) => line.label));
      if (labels !== this.labels) { // other lines: all their points come again
        this.labels = labels;
        this.lines = block.lines.map(() => ({ x: [], y: [], step: [] }));
        if (this.plotted) this.plotted.destroy();
        this.plotted = null;
      }
      this.legend.replaceChildren(...block.lines.map((line, i) => {
        const item = text("li", "");
        const sample = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        sample.setAttribute("viewBox", "0 0 26 10");
        sample.setAttribute("aria-hidden", "true");
        const stroke = document.createElementNS(sample.namespaceURI, "line");
        for (const [name, value] of [["x1", 1], ["x2", 25], ["y1", 5], ["y2", 5], ["stroke-width", 2.5]]) stroke.setAttribute(name, value);
        stroke.setAttribute("stroke-dasharray", DASHES[i % DASHES.length].join(" "));
        stroke.style.stroke = `var(--c${i % 6})`;
        sample.append(stroke);
        item.append(sample, text("span", line.label));
        return item;
      }));
    }

    add(further) {
      further.forEach((line, i) => {
        const mine = this.lines[i];
        if (!mine) return;
        for (const key of ["x", "y", "step"]) mine[key].push(...line[key]);
        while (mine.x.length > MAX_POINTS) for (const key of ["x", "y", "step"]) mine[key] = mine[key].filter((_, k) => k % 2 === 0);
      });
    }

    get hasSteps() {
      return this.lines.some((line) => line.x.length) && this.lines.every((line) => line.step.length === line.x.length);
    }

    xs(line) { return this.over === "step" && this.hasSteps ? line.step : line.x; }

    data() {
      const shown = this.lines.map((line) => {
        const xs = [], ys = [];
        this.xs(line).forEach((x, k) => {
          if (xs.length && x <= xs[xs.length - 1]) return; // a run that went on from a checkpoint steps back
          xs.push(x); ys.push(line.y[k]);
        });
        return [xs, ys];
      });
      return shown.length ? uPlot.join(shown) : [[]]; // a chart may have no line yet
    }

    xText(x) {
      if (this.over === "step" && this.hasSteps) return this.format.int(x);
      return this.format.clock(x);
    }

    draw() {
      const data = this.data();
      const empty = !data[0] || data[0].length < 2;
      this.box.classList.toggle("is-empty", empty);
      if (empty) {
        if (!this.plotted && !this.box.querySelector(".empty")) {
          const wait = document.createElement("div");
          wait.className = "empty";
          wait.textContent = "nothing yet";
          this.box.replaceChildren(wait);
        }
        return;
      }
      this.box.setAttribute("aria-label", this.summary());
      if (this.plotted && this.drawnOver === this.over) { this.plotted.setData(data); return; }
      this.rebuild(data);
    }

    rebuild(data = this.data()) {
      if (!data[0] || data[0].length < 2) return;
      if (this.plotted) this.plotted.destroy();
      this.box.replaceChildren();
      this.drawnOver = this.over;
      const write = this.format[this.block.unit];
      const axis = { stroke: css("--dim"), grid: { stroke: css("--grid"), width: 1 }, ticks: { stroke: css("--grid") }, font: "11px system-ui, sans-serif" };
      this.plotted = new uPlot({
        width: Math.max(200, this.box.clientWidth), height: this.box.clientHeight,
        scales: { x: { time: false } },
        cursor: { points: { size: 6 }, y: false, drag: { x: true, y: false } },
        legend: { show: false },
        axes: [
          { ...axis, values: (_, xs) => xs.map((x) => this.xText(x)), space: 70, size: 32 },
          { ...axis, values: (_, ys) => ys.map((y) => write(y)), size: 66 },
        ],
        series: [{}, ...this.block.lines.map((line, i) => ({
          label: line.label, stroke: css(`--c${i % 6}`), width: 2, dash: DASHES[i % DASHES.length], spanGaps: true,
          points: { show: this.lines[i].x.length < 30, size: 5 },
        }))],
        hooks: { draw: [(plot) => this.drawMarks(plot)], setCursor: [(plot) => this.tell(plot)] },
      }, data, this.box);
      this.tip = document.createElement("div");
      this.tip.className = "note";
      this.tip.hidden = true;
      Object.assign(this.tip.style, { position: "absolute", pointerEvents: "none", background: css("--card"), border: `1px solid ${css("--line")}`, borderRadius: "4px", padding: "2px 6px", zIndex: 3, whiteSpace: "pre", top: "4px" });
      this.plotted.over.append(this.tip);
    }

    drawMarks(plot) {
      const ctx = plot.ctx;
      ctx.save();
      ctx.strokeStyle = css("--dim");
      ctx.fillStyle = css("--text");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
      ctx.font = `${11 * devicePixelRatio}px system-ui, sans-serif`;
      let level = 0;
      for (const mark of this.block.marks) {
        const at = this.over === "step" && this.hasSteps ? mark.step : mark.x;
        if (at === null || at === undefined || at < plot.scales.x.min || at > plot.scales.x.max) continue;
        const x = Math.round(plot.valToPos(at, "x", true));
        ctx.beginPath();
        ctx.moveTo(x, plot.bbox.top);
        ctx.lineTo(x, plot.bbox.top + plot.bbox.height);
        ctx.stroke();
        const right = x > plot.bbox.left + plot.bbox.width * 0.75;
        ctx.textAlign = right ? "right" : "left";
        ctx.fillText(mark.text, x + (right ? -4 : 4) * devicePixelRatio, plot.bbox.top + (12 + 13 * (level++ % 4)) * devicePixelRatio);
      }
      ctx.restore();
    }

    tell(plot) {
      const { idx, left } = plot.cursor;
      if (idx === null || idx === undefined || left < 0) { this.tip.hidden = true; return; }
      const write = this.format[this.block.unit];
      const rows = this.block.lines.map((line, i) => {
        let k = idx; // the newest point at or before the cursor: lines have points at moments of their own
        while (k >= 0 && (plot.data[i + 1][k] === null || plot.data[i + 1][k] === undefined)) k--;
        return k < 0 ? "" : `${line.label}: ${write(plot.data[i + 1][k])}`;
      });
      this.tip.textContent = [this.xText(plot.data[0][idx]), ...rows.filter(Boolean)].join("\n");
      this.tip.hidden = false;
      const right = left > plot.over.clientWidth / 2;
      this.tip.style.left = right ? "" : `${left + 10}px`;
      this.tip.style.right = right ? `${plot.over.clientWidth - left + 10}px` : "";
    }

    resize() {
      if (this.plotted && this.box.clientWidth) this.plotted.setSize({ width: this.box.clientWidth, height: this.box.clientHeight });
    }

    summary() {
      const write = this.format[this.block.unit];
      const ends = this.block.lines.map((line, i) => {
        const ys = this.lines[i].y;
        return ys.length ? `${line.label} from ${write(ys[0])} to ${write(ys[ys.length - 1])}` : "";
      });
      return `${this.block.title}: ${ends.filter(Boolean).join("; ")}. The numbers are in the table below.`;
    }

    rows() {
      const found = [];
      this.block.lines.forEach((line, i) => this.lines[i].x.forEach((x, k) => {
        found.push([line.label, x, this.lines[i].step[k] ?? null, this.lines[i].y[k]]);
      }));
      return found;
    }

    // evenly spaced rows, the last one included
    tableRows() {
      const all = this.rows();
      const every = Math.ceil(all.length / MAX_TABLE_ROWS);
      return all.filter((_, k) => k % every === 0 || k === all.length - 1);
    }
  }
  return { Curves };
})();
