import { byId, count, figure, h, setText, stateName } from "./text.js";

const LEVELS = [
  [0, "below 40 %"],
  [40, "40–60 %"],
  [60, "60–75 %"],
  [75, "75–90 %"],
  [90, "90 % and more"],
];
const STATES = ["HEALTHY", "WARNING", "CRITICAL", "OFFLINE"];
const MARKS = { HEALTHY: "", WARNING: "!", CRITICAL: "‼", OFFLINE: "–" };
// With more servers than this their cells are small and hold no text.
const LARGE = 400;
const FIGURES = { cpu: "CPU", memory: "memory", disk: "disk" };

// The heat map: a link for every server, moved between by the arrow keys.
export class Fleet {
  #cells = new Map();
  #shape = "";

  constructor(live) {
    this.live = live;
    this.root = byId("fleet");
    for (const control of [byId("colour"), byId("group")]) control.addEventListener("change", () => this.render());
    byId("find").addEventListener("input", () => this.render());
    this.root.addEventListener("keydown", (event) => this.#move(event));
    for (const kind of ["focusin", "pointerover"]) this.root.addEventListener(kind, (event) => this.#read(event));
    this.#scale();
  }

  get colour() {
    return document.querySelector("input[name=colour]:checked").value;
  }

  render() {
    const { live } = this;
    const trouble = live.trouble.fleet;
    setText(byId("fleet-problem"), trouble && !live.trouble.status ? `${trouble.message}.` : "");
    const chosen = this.#chosen();
    setText(byId("fleet-counts"), this.#counts(chosen));
    const groups = group(chosen, byId("group").value);
    const names = [...groups.keys()].sort();
    const shape = names.map((name) => `${name}:${groups.get(name).map((each) => each.id).join(",")}`).join(";");
    // Elements stay while the fleet is the same: the focus does, and nothing is read aloud again.
    if (shape !== this.#shape) this.#build(names, groups, shape);
    for (const server of chosen) this.#paint(this.#cells.get(server.id), server);
    this.#scale();
  }

  #chosen() {
    const words = byId("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const all = [...this.live.servers.values()].sort((a, b) => (a.id < b.id ? -1 : 1));
    if (!words.length) return all;
    return all.filter((each) => {
      const text = `${each.id} ${each.role} ${each.environment} ${each.location} ${each.state}`.toLowerCase();
      return words.every((word) => text.includes(word));
    });
  }

  #counts(chosen) {
    if (this.live.trouble.fleet === undefined) return "";
    const of = (state) => chosen.filter((each) => each.state === state).length;
    const parts = STATES.filter((state) => of(state)).map((state) => `${of(state)} ${stateName(state).toLowerCase()}`);
    const beyond = this.live.leftOut ? `, and ${this.live.leftOut.toLocaleString("en")} more that are not shown` : "";
    return `${count(chosen.length, "server")}${beyond}${parts.length ? `: ${parts.join(", ")}` : ""}`;
  }

  #build(names, groups, shape) {
    const focused = document.activeElement?.dataset?.server;
    this.#shape = shape;
    this.#cells = new Map();
    this.root.classList.toggle("large", this.live.servers.size > LARGE);
    const sections = names.map((name) => {
      const cells = groups.get(name).map((server) => {
        const cell = h("a", { class: "cell", href: `#/server/${encodeURIComponent(server.id)}`, "data-server": server.id, tabindex: "-1" });
        this.#cells.set(server.id, cell);
        return h("li", {}, cell);
      });
      return h("div", { class: "group" }, h("h3", {}, name || "without one", " ", h("span", { class: "muted" }, String(cells.length))), h("ul", { class: "cells" }, cells));
    });
    if (!sections.length) {
      const nobody = this.live.servers.size ? "No server is like that." : "No server has sent anything yet.";
      sections.push(h("p", { class: "muted" }, this.live.trouble.fleet === undefined ? "" : nobody));
    }
    this.root.replaceChildren(...sections);
    this.#stop(this.#cells.get(focused) ?? this.#cells.values().next().value);
    if (focused) this.#cells.get(focused)?.focus({ preventScroll: true });
  }

  #paint(cell, server) {
    const { colour } = this;
    const value = server[colour];
    const level = colour === "state" ? server.state : value === null ? "none" : String(LEVELS.findLastIndex(([least]) => value >= least));
    if (cell.dataset.level !== level) cell.dataset.level = level;
    setText(cell, colour === "state" ? (MARKS[server.state] ?? "") : value === null ? "–" : String(Math.round(value)));
    const label = describe(server);
    if (cell.getAttribute("aria-label") !== label) cell.setAttribute("aria-label", label);
  }

  // One cell is reached by Tab, the others from there.
  #stop(cell) {
    for (const each of this.root.querySelectorAll("[tabindex='0']")) each.tabIndex = -1;
    if (cell) cell.tabIndex = 0;
  }

  #move(event) {
    const cells = [...this.#cells.values()];
    const at = cells.indexOf(event.target);
    const target = at < 0 ? null : {
      ArrowRight: cells[at + 1], ArrowLeft: cells[at - 1], Home: cells[0], End: cells.at(-1),
      ArrowDown: beside(cells, at, 1), ArrowUp: beside(cells, at, -1),
    }[event.key];
    if (!target) return;
    event.preventDefault();
    this.#stop(target);
    target.focus();
  }

  #read(event) {
    const server = this.live.servers.get(event.target.dataset?.server);
    if (server) setText(byId("fleet-readout"), describe(server));
  }

  #scale() {
    const { colour } = this;
    const scale = byId("scale");
    if (scale.dataset.colour === colour) return;
    scale.dataset.colour = colour;
    const entries = colour === "state"
      ? STATES.map((state) => [state, stateName(state), MARKS[state]])
      : LEVELS.map(([, text], at) => [String(at), text, ""]);
    scale.replaceChildren(...entries.map(([level, text, mark]) => h("li", {}, h("span", { class: "cell", "data-level": level, "aria-hidden": "true" }, mark), text)));
  }
}

function describe(server) {
  const usage = Object.entries(FIGURES).filter(([key]) => server[key] !== null).map(([key, name]) => `${name} ${figure(server[key])} %`);
  const where = [server.role, server.environment, server.location].filter(Boolean).join(", ");
  const reason = server.reason ? ` (${server.reason})` : "";
  return [`${server.id}: ${stateName(server.state).toLowerCase()}${reason}`, ...usage, where].filter(Boolean).join(" · ");
}

// The cell that is nearest in the next or previous line of cells.
function beside(cells, at, way) {
  const from = cells[at].getBoundingClientRect();
  let best = null;
  for (let next = at + way; next >= 0 && next < cells.length; next += way) {
    const box = cells[next].getBoundingClientRect();
    if (Math.abs(box.top - from.top) < 2) continue;
    if (best && Math.abs(box.top - best.top) > 2) break;
    const distance = Math.abs(box.left - from.left);
    if (!best || distance < best.distance) best = { cell: cells[next], distance, top: box.top };
  }
  return best?.cell;
}

function group(servers, key) {
  const groups = new Map();
  for (const each of servers) {
    if (!groups.has(each[key])) groups.set(each[key], []);
    groups.get(each[key]).push(each);
  }
  return groups;
}
