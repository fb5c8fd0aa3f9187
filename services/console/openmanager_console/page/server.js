import { entry } from "./anomalies.js";
import { Chart } from "./chart.js";
import { ask } from "./live.js";
import { badge, count, figure, h, lasting, moment, setText, stateName, when } from "./text.js";

const RANGES = [[15, "15 min"], [60, "1 h"], [360, "6 h"], [1440, "24 h"], [10_080, "7 days"]];
const HEADLINES = ["cpu_usage", "memory_usage", "disk_usage"];
const REFRESH = 10_000;
const MAX_CHARTS = 12;
const PATTERN = /^FAULT_PATTERN_/;

// A server: what it is, charts of its metrics, what was unlike it, and what was done to it.
export class ServerView {
  #charts = new Map();
  #timer = 0;
  #closed = false;
  #minutes = 60;
  #metrics = new Map();

  // `metric`: the one whose chart is wanted, whatever else is shown.
  constructor(id, live, root, metric) {
    this.id = id;
    this.metric = metric;
    this.live = live;
    this.root = root;
    this.state = h("span", {});
    this.about = h("p", { class: "muted" });
    this.problem = h("p", { class: "problem", role: "alert" });
    this.charts = h("div", { class: "charts" });
    this.anomalies = h("ul", { class: "list" });
    this.faults = h("ul", { class: "list" });
    this.options = h("datalist", { id: "metric-names" });
    this.#build();
    this.onFleet = () => this.#renderState();
    live.addEventListener("fleet", this.onFleet);
    this.#renderState();
    this.load(true);
  }

  close() {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.live.removeEventListener("fleet", this.onFleet);
    for (const chart of this.#charts.values()) chart.close();
  }

  #build() {
    const ranges = RANGES.map(([minutes, text]) => h("label", {},
      h("input", { type: "radio", name: "range", value: String(minutes), checked: minutes === this.#minutes, onchange: () => { this.#minutes = minutes; this.load(false); } }),
      h("span", {}, text)));
    const input = h("input", { type: "search", list: "metric-names", placeholder: "metric …", autocomplete: "off", spellcheck: "false", id: "metric" });
    const add = (event) => { event.preventDefault(); if (this.#add(input.value.trim())) input.value = ""; };
    this.root.replaceChildren(
      h("p", {}, h("a", { href: "#/" }, "← All servers")),
      h("section", { class: "card", "aria-labelledby": "server-title" },
        h("div", { class: "head" }, h("h1", { id: "server-title", tabindex: "-1" }, this.id), this.state),
        this.about, this.problem,
        h("div", { class: "controls" },
          h("fieldset", { class: "choice" }, h("legend", {}, "Time"), ranges),
          h("form", { class: "field", onsubmit: add }, h("label", { for: "metric" }, "Add a metric"), h("span", { class: "joined" }, input, h("button", { type: "submit", class: "quiet" }, "Add")), this.options))),
      this.charts,
      h("div", { class: "pair" },
        h("section", { class: "card", "aria-labelledby": "own-anomalies" }, h("h2", { id: "own-anomalies" }, "Anomalies"), this.anomalies),
        h("section", { class: "card", "aria-labelledby": "own-faults" }, h("h2", { id: "own-faults" }, "Simulated faults"), this.faults)),
    );
  }

  #renderState() {
    const server = this.live.servers.get(this.id);
    if (!server) return;
    if (this.state.dataset.state !== server.state) {
      this.state.dataset.state = server.state;
      this.state.replaceChildren(badge(server.state, server.reason ? `${stateName(server.state)}: ${server.reason}` : undefined));
    }
  }

  // What is asked for again and again; the metrics' names only once.
  async load(first) {
    clearTimeout(this.#timer);
    const end = Date.now();
    const start = end - this.#minutes * 60_000;
    const path = `/api/servers/${encodeURIComponent(this.id)}`;
    try {
      const [about, anomalies, faults] = await Promise.all([
        first || !this.#metrics.size ? ask(path) : null,
        ask(`${path}/anomalies?start=${start}`).catch((err) => err),
        ask(`${path}/faults?start=${start}`).catch((err) => err),
      ]);
      if (this.#closed) return;
      setText(this.problem, "");
      if (about) this.#know(about);
      this.#list(this.anomalies, anomalies, "anomalies", (each) => entry(each, false), "None in this time.");
      this.#list(this.faults, faults, "faults", faultEntry, "None in this time.");
      const marks = { anomalies: anomalies.anomalies ?? [], faults: faults.faults ?? [] };
      await Promise.all([...this.#charts.values()].map((chart) => chart.load(start, end, this.interval, marks)));
    } catch (err) {
      if (this.#closed) return;
      setText(this.problem, err.message);
    }
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#again(), REFRESH);
  }

  #again() {
    if (document.hidden) this.#timer = setTimeout(() => this.#again(), 1000);
    else this.load(false);
  }

  #know(about) {
    const { server, metrics } = about;
    this.interval = Number.parseFloat(server.interval ?? "10") * 1000;
    this.#metrics = new Map(metrics.map(([key, value, unit, kind]) => [key, { key, value, unit, kind }]));
    this.options.replaceChildren(...metrics.map(([key]) => h("option", { value: key })));
    const known = [server.role, server.environment, server.location, server.hostname === this.id ? "" : server.hostname].filter(Boolean);
    const parts = [...known, count(metrics.length, "metric"), `every ${lasting(this.interval)}`, server.sample_time ? `newest sample ${moment(server.sample_time)}` : ""];
    setText(this.about, parts.filter(Boolean).join(" · "));
    if (!this.#charts.size) {
      const named = HEADLINES.filter((key) => this.#metrics.has(key));
      for (const key of named.length ? named : [...this.#metrics.keys()].slice(0, 3)) this.#show(key);
      if (this.#metrics.has(this.metric)) this.#show(this.metric);
    }
  }

  #add(key) {
    if (!this.#metrics.has(key)) {
      setText(this.problem, key ? `This server has no metric ${key}.` : "");
      return false;
    }
    if (this.#charts.size >= MAX_CHARTS) {
      setText(this.problem, `${MAX_CHARTS} charts are as many as fit: close one first.`);
      return false;
    }
    this.#show(key);
    this.load(false);
    return true;
  }

  #show(key) {
    if (this.#charts.has(key)) return;
    const close = HEADLINES.includes(key) ? null : () => { this.#charts.delete(key); chart.close(); chart.root.remove(); };
    const chart = new Chart(this.id, this.#metrics.get(key), close);
    this.#charts.set(key, chart);
    this.charts.append(chart.root);
  }

  #list(list, found, key, make, none) {
    if (found instanceof Error) {
      list.replaceChildren(h("li", { class: "muted" }, found.message));
      return;
    }
    const entries = found[key].map(make);
    list.replaceChildren(...(entries.length ? entries : [h("li", { class: "muted" }, none)]));
  }
}

function faultEntry(fault) {
  const pattern = fault.pattern.replace(PATTERN, "").toLowerCase().replaceAll("_", " ");
  const [start, end] = [new Date(fault.start_time), new Date(fault.end_time)];
  const length = end > Date.now() ? "going on" : `for ${lasting(end - start)}`;
  return h("li", { class: end > Date.now() ? "active" : "past" },
    h("strong", {}, pattern),
    h("span", { class: "muted" }, when(start), ` ${length} · ${fault.origin} · severity ${figure(fault.severity)}`));
}
