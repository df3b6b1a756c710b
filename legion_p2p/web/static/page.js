"use strict";
// The page: blocks come as JSON, and are drawn. Text is always text: nothing that comes is ever taken for HTML.

const byId = (id) => document.getElementById(id);

function text(tag, content, className) {
  const node = document.createElement(tag);
  node.textContent = content;
  if (className) node.className = className;
  return node;
}

const whole = (n) => Math.round(n).toLocaleString("en");
const scaled = (n, units, gap, base = 1000) => {
  let i = 0;
  while (Math.abs(n) >= 999.5 && i < units.length - 1) { n /= base; i++; }
  return `${i === 0 ? +n.toPrecision(3) : n.toPrecision(3)}${gap}${units[i]}`.trim();
};
const span = (s) => {
  const t = Math.max(0, Math.round(s)), h = Math.floor(t / 3600), two = (n) => String(n).padStart(2, "0");
  return h ? `${h}:${two(Math.floor((t % 3600) / 60))}:${two(t % 60)}` : `${Math.floor(t / 60)}:${two(t % 60)}`;
};
const format = {
  text: String, id: String, int: whole, clock: span,
  count: (n) => scaled(n, ["", "k", "M", "G", "T"], ""),
  bytes: (n) => scaled(n, ["B", "kB", "MB", "GB", "TB"], " "),
  rate: (n) => scaled(n, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s"], " "),
  seconds: (n) => `${+n.toPrecision(3)} s`, ms: (n) => `${+n.toPrecision(3)} ms`,
  percent: (n) => `${n >= 1 || n <= 0 ? Math.round(100 * n) : Math.min(99.9, 100 * n).toFixed(1)} %`,
  loss: (n) => (Math.abs(n) < 10 ? n.toFixed(Math.abs(n) < 1 ? 3 : 2) : n.toPrecision(3)),
};
const precise = { ...format, loss: (n) => n.toFixed(4) };
const isNumber = (kind) => !["text", "id"].includes(kind);

function cell(value, kind) {
  const shown = value === null || value === undefined ? "-" : typeof value === "number" ? precise[kind](value) : String(value);
  const long = shown.split(" ").some((word) => word.length > 24) ? "long" : ""; // which may break anywhere, as times may not
  return text("td", shown, isNumber(kind) ? "num" : kind === "id" ? "id mono" : long);
}

// `buttons`: of the row with that number, where the page can change something
function fill(table, columns, rows, buttons) {
  const head = document.createElement("tr");
  for (const column of columns) {
    const th = text("th", column.name, isNumber(column.kind) ? "num" : "");
    th.scope = "col";
    head.append(th);
  }
  if (buttons) head.append(text("th", "do", "num"));
  const body = document.createElement("tbody");
  rows.forEach((row, k) => {
    const tr = document.createElement("tr");
    row.forEach((value, i) => tr.append(cell(value, columns[i].kind)));
    if (buttons) {
      const td = text("td", "", "do");
      td.append(...buttons(k));
      tr.append(td);
    }
    body.append(tr);
  });
  const thead = document.createElement("thead");
  thead.append(head);
  table.replaceChildren(thead, body);
}

function csv(columns, rows) {
  const quote = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    // a spreadsheet takes such a text for a formula, and names come from strangers
    const safe = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  return [columns.map((c) => quote(c.name)), ...rows.map((row) => row.map(quote))].map((row) => row.join(",")).join("\r\n") + "\r\n";
}

function download(name, columns, rows) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([csv(columns, rows)], { type: "text/csv" }));
  link.download = `${name}.csv`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function button(label, act, className) {
  const node = text("button", label, className);
  node.type = "button";
  node.addEventListener("click", act);
  return node;
}

const CURVE_COLUMNS = [{ name: "curve", kind: "text" }, { name: "time", kind: "clock" }, { name: "step", kind: "int" }, { name: "value", kind: "loss" }];

// A block on the page: a card that keeps its place, its focus and its scroll position while its content changes.
class Card {
  constructor(block) {
    this.node = text("article", "", "card");
    this.node.id = `card-${block.id}`;
    this.title = text("h3", block.title);
    this.bar = text("div", "", "bar");
    this.tools = text("div", "");
    this.bar.append(this.title, this.tools);
    this.body = text("div", "");
    this.note = text("p", "", "note");
    this.node.append(this.bar, this.body, this.note);
    if (block.type === "table") {
      this.scroll = text("div", "", "scroll");
      this.scroll.tabIndex = 0;
      this.scroll.setAttribute("role", "region");
      this.table = document.createElement("table");
      this.scroll.append(this.table);
      this.body.append(this.scroll);
      this.tools.append(button("CSV", () => download(block.id, this.block.columns, this.block.rows), "plain"));
    } else if (block.type === "chart") {
      this.curves = new Charts.Curves(block, this.body, format, text);
      this.over = button("", () => this.switchOver(), "plain");
      this.tools.append(this.over, button("CSV", () => download(block.id, CURVE_COLUMNS, this.curves.rows()), "plain"));
      this.details = document.createElement("details");
      this.details.append(text("summary", "Table"));
      this.scroll = text("div", "", "scroll");
      this.scroll.tabIndex = 0;
      this.table = document.createElement("table");
      this.scroll.append(this.table);
      this.details.append(this.scroll);
      this.details.addEventListener("toggle", () => this.fillCurves());
      this.node.append(this.details);
    } else if (block.type === "prose" && block.is_code) {
      this.tools.append(button("Copy", () => navigator.clipboard.writeText(this.block.text), "plain"));
    }
    this.update(block);
  }

  update(block) {
    this.block = block;
    this.title.textContent = block.title;
    const more = block.n_more ? `${whole(block.n_more)} more are not shown. ` : "";
    this.note.textContent = more + (block.note || "");
    this.note.hidden = !this.note.textContent;
    this.node.classList.toggle("wide", Boolean(block.is_wide));
    if (block.type === "table") {
      this.scroll.setAttribute("aria-label", block.title);
      this.fillTable(block);
    } else if (block.type === "facts") {
      const list = text("dl", "", "facts");
      for (const [name, value] of block.rows) list.append(text("dt", name), text("dd", value));
      this.body.replaceChildren(list);
    } else if (block.type === "prose") {
      this.body.replaceChildren(text(block.is_code ? "pre" : "p", block.text, block.is_code ? "" : "prose"));
    } else if (block.type === "map") {
      PeerMap.draw(block, this.body, text);
    } else if (block.type === "chart") {
      this.curves.describe(block, text);
      this.draw();
    }
  }

  // buttons keep their focus although the table is made again
  fillTable(block) {
    const focused = document.activeElement && this.table.contains(document.activeElement) ? document.activeElement.dataset.key : "";
    const can = (block.actions || []).length && Actions.control;
    fill(this.table, block.columns, block.rows, can ? (k) => (block.keys[k] ? block.actions.map((action) => {
      const node = button(action.label, () => Actions.send({ type: action.type, cid: block.keys[k] }), "small");
      node.dataset.key = `${action.type} ${block.keys[k]}`;
      node.setAttribute("aria-label", `${action.label} ${block.keys[k].slice(-8)}`);
      return node;
    }) : []) : null);
    if (focused) [...this.table.querySelectorAll("button")].find((node) => node.dataset.key === focused)?.focus();
  }

  add(lines) { this.curves.add(lines); this.draw(); this.fillCurves(); }

  draw() {
    this.curves.draw();
    this.over.hidden = !this.curves.hasSteps;
    this.over.textContent = this.curves.over === "step" ? "over time" : "over steps";
  }

  switchOver() { this.curves.over = this.curves.over === "step" ? "time" : "step"; this.draw(); }

  fillCurves() {
    if (!this.details.open) return;
    const columns = CURVE_COLUMNS.map((c) => (c.name === "value" ? { ...c, kind: this.block.unit } : c));
    fill(this.table, columns, this.curves.tableRows());
  }
}

class Page {
  constructor() { this.cards = new Map(); this.blocks = new Map(); }

  apply(update) {
    this.head(update.head);
    for (const block of update.blocks) {
      this.blocks.set(block.id, block);
      const card = this.cards.get(block.id);
      if (card && card.block.type === block.type) card.update(block);
      else { if (card) card.node.remove(); this.cards.set(block.id, new Card(block)); }
    }
    for (const id of [...this.cards.keys()]) if (!update.order.includes(id)) { this.cards.get(id).node.remove(); this.cards.delete(id); }
    this.place(update.order);
    for (const [id, lines] of Object.entries(update.points)) this.cards.get(id)?.add(lines);
  }

  place(order) {
    const wanted = new Map();
    for (const id of order) {
      const { section } = this.cards.get(id).block;
      if (!wanted.has(section)) wanted.set(section, []);
      wanted.get(section).push(id);
    }
    const key = JSON.stringify([...wanted].map(([name, ids]) => [name, ids.map((id) => [id, Boolean(this.cards.get(id).block.is_wide)])]));
    if (key === this.placed) return;
    this.placed = key;
    const links = [];
    [...wanted].forEach(([name, ids]) => {
      const id = `section-${name.toLowerCase().replaceAll(/[^a-z]+/g, "-")}`;
      let node = byId(id);
      if (!node) {
        node = text("section", "");
        node.id = id;
        const title = text("h2", name);
        title.id = `${id}-title`;
        node.setAttribute("aria-labelledby", title.id);
        node.append(title, text("div", "", "cards"));
      }
      node.lastElementChild.append(...ids.map((one) => this.cards.get(one).node));
      this.fillRows(ids.map((one) => this.cards.get(one)));
      byId("blocks").append(node);
      const link = text("a", name);
      link.href = `#${id}`;
      link.addEventListener("click", (event) => { event.preventDefault(); node.scrollIntoView(); node.querySelector("h2").tabIndex = -1; node.querySelector("h2").focus({ preventScroll: true }); });
      links.push(link);
    });
    for (const node of [...byId("blocks").children]) if (![...wanted.keys()].some((name) => node.querySelector("h2").textContent === name)) node.remove();
    byId("sections").replaceChildren(...links);
    for (const id of order) this.cards.get(id).curves?.resize();
  }

  // two cards stand in a row; one that has none beside it takes the row
  fillRows(cards) {
    let first = null;
    for (const card of cards) {
      card.node.classList.remove("alone");
      if (card.block.is_wide) { first?.node.classList.add("alone"); first = null; }
      else first = first ? null : card;
    }
    first?.node.classList.add("alone");
  }

  head(head) {
    document.title = `${head.title}: ${head.state}`;
    byId("title").textContent = head.title;
    byId("subtitle").textContent = head.subtitle;
    if (byId("state").textContent !== head.state) byId("state").textContent = head.state;
    byId("state").dataset.state = head.state;
    const key = JSON.stringify(head.notices);
    if (key !== this.noticed) {
      this.noticed = key;
      byId("notices").replaceChildren(...head.notices.map((notice) => {
        const node = text("p", "", `notice ${notice.level}`);
        if (notice.level !== "info") node.append(text("b", notice.level === "error" ? "Error:" : "Note:"));
        node.append(`${notice.text} `, text("em", notice.advice));
        return node;
      }));
    }
    const figures = byId("figures");
    if (figures.children.length !== head.figures.length) {
      figures.replaceChildren(...head.figures.map(() => { const pair = text("div", ""); pair.append(text("dt", ""), text("dd", "")); return pair; }));
    }
    head.figures.forEach((figure, i) => {
      figures.children[i].firstChild.textContent = figure.label;
      figures.children[i].lastChild.textContent = figure.value;
    });
    Actions.show(head.control);
  }
}

// What can be done to the peer, where the page may.
const Actions = {
  shown: "",
  show(control) {
    this.control = control;
    const key = control ? (control.paused ? "paused" : "runs") : "none";
    if (key === this.shown) return;
    this.shown = key;
    const had = document.activeElement && byId("actions").contains(document.activeElement);
    const buttons = { none: [], paused: [["Resume", () => this.send({ type: "resume" }), "strong"]], runs: [
      ["Pause 1 h", () => this.send({ type: "pause", for_s: 3600 })], ["Pause", () => this.send({ type: "pause" })] ] }[key];
    if (control) buttons.push(["Limits", () => this.limits()], ["Finish and leave", () => this.finish()]);
    byId("actions").replaceChildren(...buttons.map(([label, act, look]) => button(label, act, look)));
    if (had && buttons.length) byId("actions").firstChild.focus();
  },
  async send(command) {
    for (const node of byId("actions").children) node.disabled = true;
    try {
      const answer = await Link.ask("api/control", { method: "POST", body: JSON.stringify(command), headers: { "Content-Type": "application/json" } });
      byId("link").textContent = answer.ok ? "" : await answer.text();
      byId("link").classList.toggle("off", !answer.ok);
    } catch { Link.lost(); }
    for (const node of byId("actions").children) node.disabled = false;
  },
  dialog(title, told, fields, yes, act) {
    byId("confirm-title").textContent = title;
    byId("confirm-text").textContent = told;
    byId("confirm-yes").textContent = yes;
    byId("confirm-fields").replaceChildren(...fields.flatMap(([name, label, value]) => {
      const tag = text("label", label), input = document.createElement("input");
      tag.htmlFor = input.id = `field-${name}`;
      input.value = value; input.placeholder = "no limit"; input.maxLength = 32; input.name = name;
      return [tag, input];
    }));
    const box = byId("confirm");
    box.returnValue = "";
    box.onclose = () => { if (box.returnValue === "yes") act(Object.fromEntries([...box.querySelectorAll("input")].map((i) => [i.name, i.value.trim()]))); };
    box.showModal();
  },
  finish() {
    this.dialog("Finish and leave?", "The peer pushes what it has trained, hands over what it owns, and ends.", [], "Finish and leave", () => this.send({ type: "finish" }));
  },
  limits() {
    this.dialog("Limits of the connection", "Such as 5mbit or 800kbit; empty: no limit.",
      [["upload", "Upload", this.control.upload], ["download", "Download", this.control.download]], "Set", (values) => this.send({ type: "limits", upload: values.upload || "none", download: values.download || "none" }));
  },
};

// The connection to the peer. The token is kept for this window alone, and leaves the address bar at once.
const Link = {
  token: "",
  ask(path, options = {}) {
    return fetch(path, { ...options, cache: "no-store", headers: { ...options.headers, Authorization: `Bearer ${this.token}` } });
  },
  lost() {
    byId("link").textContent = "The peer does not answer: it has ended, or is very busy. Trying again.";
    byId("link").classList.add("off");
  },
  forget(why) {
    sessionStorage.removeItem("token");
    byId("refused").textContent = why;
    byId("ask").hidden = false;
    byId("token").focus();
  },
  async follow() {
    byId("ask").hidden = true;
    for (let wait = 500; ; wait = Math.min(5000, wait * 1.5)) {
      try {
        const answer = await this.ask("api/events");
        if (answer.status === 401) { this.forget("The token is wrong: each start of a peer has a new one."); return; }
        if (!answer.ok) throw new Error(await answer.text());
        byId("blocks").replaceChildren();
        const page = new Page(); // all of it comes again
        wait = 500;
        byId("link").textContent = "";
        byId("link").classList.remove("off");
        await this.read(answer.body.getReader(), (update) => {
          try { page.apply(update); } catch (broken) { console.error(broken); } // a fault of the page; the peer answers
        });
      } catch (failed) { if (failed instanceof TypeError === false && failed.message) console.warn(failed.message); }
      this.lost();
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  },
  async read(reader, heard) {
    const decoder = new TextDecoder();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const events = rest.split("\n\n");
      rest = events.pop();
      for (const event of events) if (event.startsWith("data: ")) heard(JSON.parse(event.slice(6)));
    }
  },
};

function tokenOf(given) { return given.slice(given.lastIndexOf("#") + 1).trim(); }

const saved = byId("report");
if (saved) {
  new Page().apply(JSON.parse(saved.textContent));
} else {
  // a link to a section is no token
  if (location.hash.length > 20 && !location.hash.startsWith("#section-")) {
    sessionStorage.setItem("token", tokenOf(location.hash));
    history.replaceState(null, "", location.pathname);
  }
  Link.token = sessionStorage.getItem("token") || "";
  byId("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    Link.token = tokenOf(byId("token").value);
    byId("token").value = "";
    sessionStorage.setItem("token", Link.token);
    Link.follow();
  });
  if (Link.token) Link.follow(); else { byId("ask").hidden = false; byId("token").focus(); }
}
