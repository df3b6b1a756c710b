"use strict";
// The map: this peer in the middle, the others as far away as their round trip is long, regions side by side.

const PeerMap = (() => {
  const SVG = "http://www.w3.org/2000/svg";
  const WIDTH = 640, HEIGHT = 430, CX = WIDTH / 2, CY = HEIGHT / 2, OUTER = 190, WIDER = 1.45; // a page is wider than high
  const RINGS_MS = [1, 10, 100, 1000];
  const SHAPES = ["circle", "square", "diamond", "triangle"];

  function make(name, attributes, text) {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  // 0.3 ms to 2 s, in logarithmic steps
  function radius(rttS) {
    if (rttS === null) return OUTER;
    const share = (Math.log10(Math.max(0.3, rttS * 1000)) - Math.log10(0.3)) / (Math.log10(2000) - Math.log10(0.3));
    return 34 + Math.min(1, share) * (OUTER - 44);
  }

  function shape(kind, x, y, size, colour) {
    const style = { class: `c${colour}`, fill: "var(--c)", stroke: "var(--card)", "stroke-width": 1.5 };
    if (kind === "circle") return make("circle", { cx: x, cy: y, r: size, ...style });
    const points = {
      square: [[-1, -1], [1, -1], [1, 1], [-1, 1]], diamond: [[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], triangle: [[0, -1.3], [1.2, 0.9], [-1.2, 0.9]],
    }[kind].map(([dx, dy]) => `${x + dx * size},${y + dy * size}`).join(" ");
    return make("polygon", { points, ...style });
  }

  function draw(block, box, text) {
    const regions = [...new Set(block.nodes.map((node) => node.region))].sort();
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, class: "map", role: "img" });
    const others = block.nodes.filter((node) => !node.me).sort((a, b) => (a.region + a.id < b.region + b.id ? -1 : 1));
    svg.setAttribute("aria-label", `${others.length} other peers in ${regions.length} regions; the table of members has the same.`);
    for (const ms of RINGS_MS) {
      const r = radius(ms / 1000);
      svg.append(make("ellipse", { cx: CX, cy: CY, rx: WIDER * r, ry: r, class: "ring" }));
      svg.append(make("text", { x: CX + 3, y: CY - r - 2, class: "ring-text" }, ms < 1000 ? `${ms} ms` : "1 s"));
    }
    const places = new Map();
    for (const node of block.nodes) if (node.me) places.set(node.id, [CX, CY]);
    others.forEach((node, i) => {
      const angle = (2 * Math.PI * (i + 0.5)) / Math.max(1, others.length) - Math.PI / 2;
      const r = radius(node.rtt_s);
      places.set(node.id, [CX + WIDER * r * Math.cos(angle), CY + r * Math.sin(angle)]);
    });
    for (const node of others) {
      if (!node.kind) continue;
      const [x, y] = places.get(node.id);
      const via = places.get(node.relay);
      const d = via ? `M${CX},${CY} L${via[0]},${via[1]} L${x},${y}` : `M${CX},${CY} L${x},${y}`;
      svg.append(make("path", { d, class: `edge ${["punched", "relayed"].includes(node.kind) ? node.kind : ""}` }));
    }
    for (const node of block.nodes) {
      const [x, y] = places.get(node.id);
      const index = regions.indexOf(node.region);
      const group = make("g", ["dead", "suspect"].includes(node.state) ? { class: "gone" } : {});
      group.append(make("title", {}, `${node.label}${node.me ? " (me)" : ""}, region ${node.region || "none"}, ${node.state}, ${node.n_shards} shards, `
        + `${node.kind || "no connection"}${node.me || node.rtt_s === null ? "" : `, ${(1000 * node.rtt_s).toFixed(1)} ms`}`));
      group.append(shape(SHAPES[index % 4], x, y, 6 + Math.min(10, 2 * Math.sqrt(node.n_shards)), index % 6));
      group.append(make("text", { x, y: y + 28, "text-anchor": "middle" }, node.me ? "this peer" : node.label));
      svg.append(group);
    }
    const legend = text("ul", "", "legend");
    regions.forEach((region, i) => {
      const item = text("li", "");
      const sample = make("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
      sample.append(shape(SHAPES[i % 4], 13, 5, 4, i % 6));
      item.append(sample, text("span", region || "no region"));
      legend.append(item);
    });
    for (const kind of ["direct", "punched", "relayed"]) {
      const item = text("li", "");
      const sample = make("svg", { viewBox: "0 0 26 10", "aria-hidden": "true" });
      sample.append(make("path", { d: "M1,5 L25,5", class: `edge ${kind}` }));
      item.append(sample, text("span", kind));
      legend.append(item);
    }
    box.replaceChildren(legend, svg);
  }
  return { draw };
})();
