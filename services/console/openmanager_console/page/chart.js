import uPlot from "./vendor/uplot/uPlot.esm.js";
import { ask } from "./live.js";
import { figure, h, moment, setText, tickText, withUnit } from "./text.js";

const HEIGHT = 190;
const BUCKETS = 240;
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200, 86_400].map((each) => each * 1000);
const WEEK = 7 * 24;

let number = 0;

// One metric of a server: its mean, the band from its least to its greatest, what was found and done in that time, and, when
// asked for, the fan of its forecast.
export class Chart {
  #plot = null;
  #data = null;
  #fan = null;
  #marks = { anomalies: [], faults: [] };
  #wanted = false;
  #load = null;

  constructor(server, metric, close) {
    this.server = server;
    this.metric = metric;
    number += 1;
    const title = `chart-${number}`;
    this.isCounter = metric.kind === "COUNTER";
    this.unit = this.isCounter ? `${metric.unit === "1" ? "" : metric.unit}/s` : metric.unit;
    this.value = h("span", { class: "value" });
    this.box = h("div", { class: "plot", tabindex: "0", role: "group", "aria-roledescription": "chart", "aria-labelledby": title, "aria-describedby": `${title}-how`, onkeydown: (event) => this.#key(event) });
    this.readout = h("p", { class: "readout", "aria-live": "polite" });
    this.said = h("p", { class: "muted said" });
    this.button = this.isCounter ? null : h("button", { type: "button", class: "quiet", "aria-pressed": "false", onclick: () => this.#toggle() }, "Forecast");
    this.root = h("section", { class: "card chart", "aria-labelledby": title },
      h("div", { class: "head" },
        h("h2", { id: title }, metric.key), this.value,
        h("span", { class: "actions" }, this.button, close && h("button", { type: "button", class: "quiet", "aria-label": `Close ${metric.key}`, onclick: close }, "Close"))),
      this.box, h("p", { class: "unseen", id: `${title}-how` }, "The left and right arrow keys read the values."),
      this.readout, this.said);
    this.observer = new ResizeObserver(() => this.#resize());
    this.observer.observe(this.box);
    this.scheme = matchMedia("(prefers-color-scheme: dark)");
    this.onScheme = () => this.#draw();
    this.scheme.addEventListener("change", this.onScheme);
  }

  close() {
    this.#load?.abort();
    this.observer.disconnect();
    this.scheme.removeEventListener("change", this.onScheme);
    this.#plot?.destroy();
    this.#plot = null;
  }

  async load(start, end, interval, marks) {
    this.#load?.abort();
    const load = (this.#load = new AbortController());
    const least = Math.max(interval || 1000, (end - start) / BUCKETS);
    const step = STEPS.find((each) => each >= least) ?? STEPS.at(-1);
    const query = new URLSearchParams({ server: this.server, metric: this.metric.key, start, end, step, kind: this.metric.kind });
    try {
      const found = await ask(`/api/chart?${query}`, { signal: load.signal });
      this.#marks = marks;
      this.step = step / 1000;
      this.#data = found;
      setText(this.said, found.provenance.degraded ? `From ${found.provenance.source}: ${found.provenance.reason}.` : this.#fan?.text ?? "");
      if (this.#wanted && !this.#fan) await this.#loadFan();
      this.#draw();
    } catch (err) {
      if (err.name !== "AbortError") setText(this.said, err.message);
    }
  }

  async #toggle() {
    this.#wanted = !this.#wanted;
    this.button.setAttribute("aria-pressed", String(this.#wanted));
    if (!this.#wanted) {
      this.#fan = null;
      setText(this.said, "");
    } else if (!this.#fan) {
      setText(this.said, "Computing …");
      await this.#loadFan();
    }
    this.#draw();
  }

  async #loadFan() {
    const limit = this.unit === "%" ? 90 : 1e308;
    const query = new URLSearchParams({ server: this.server, metric: this.metric.key, limit, hours: WEEK });
    try {
      const found = await ask(`/api/forecast?${query}`);
      if (!this.#wanted) return;
      const text = this.unit === "%" ? found.forecast.explanation : "Median, 80 % and 95 % intervals of the next 7 days.";
      this.#fan = { ...found, text, limit: this.unit === "%" ? limit : null };
      setText(this.said, text);
    } catch (err) {
      this.#wanted = false;
      this.button.setAttribute("aria-pressed", "false");
      setText(this.said, `There is no forecast: ${err.message}`);
    }
  }

  #columns() {
    const data = this.#data;
    const fan = this.#fan;
    const empty = () => new Array(data.times.length).fill(null);
    if (!fan) return [data.times, data.high ?? empty(), data.low ?? empty(), data.mean];
    const after = fan.times.findIndex((time) => time > (data.times.at(-1) ?? 0));
    const rest = after < 0 ? [] : fan.times.slice(after);
    const nothing = new Array(rest.length).fill(null);
    const past = (column) => [...(column ?? empty()), ...nothing];
    const future = (name) => [...empty(), ...(after < 0 ? [] : fan[name].slice(after))];
    return [[...data.times, ...rest], past(data.high), past(data.low), past(data.mean),
      future("high_95"), future("high_80"), future("low_80"), future("low_95"), future("median")];
  }

  #draw() {
    if (!this.#data || !this.box.clientWidth) return;
    const focused = document.activeElement === this.box;
    const at = this.#plot?.cursor.idx;
    this.#plot?.destroy();
    const columns = this.#columns();
    this.#plot = new uPlot(this.#options(columns.length > 4), columns, this.box);
    const newest = this.#data.mean.findLast((each) => each !== null);
    setText(this.value, newest === undefined ? "no samples in this time" : withUnit(newest, this.unit));
    if (focused && at !== null && at !== undefined) this.#point(at);
  }

  #options(withFan) {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    // A bucket that stays empty because samples come a little late is no gap.
    const gaps = (plot, series, from, to, found) => found.filter(([left, right]) => ((right - left) / plot.bbox.width) * (plot.scales.x.max - plot.scales.x.min) > 2.5 * this.step);
    const line = (name, extra = {}) => ({ stroke: colour(name), width: 1.6, points: { size: 4, fill: colour(name) }, gaps, ...extra });
    const edge = { stroke: "transparent", width: 0, points: { show: false }, gaps };
    const axis = { stroke: colour("muted"), font: "12px system-ui, sans-serif", grid: { stroke: colour("line"), width: 1 }, ticks: { stroke: colour("line"), width: 1, size: 4 } };
    const series = [{}, edge, edge, line("accent")];
    const bands = [{ series: [1, 2], fill: colour("band") }];
    if (withFan) {
      series.push(edge, edge, edge, edge, line("fan", { dash: [5, 4] }));
      bands.push({ series: [4, 7], fill: colour("fan-95") }, { series: [5, 6], fill: colour("fan-80") });
    }
    return {
      width: this.box.clientWidth, height: HEIGHT, legend: { show: false }, padding: [10, 10, 0, 0],
      cursor: { y: false, points: { size: 7, fill: colour("accent"), show: (plot, index) => (index === 3 || index === 8 ? undefined : false) }, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (plot, low, high) => this.#range(low, high) } },
      axes: [{ ...axis, space: 70, values: (plot, ticks, index, space, every) => ticks.map((tick) => tickText(tick, every)) }, { ...axis, size: 56, values: (plot, ticks) => ticks.map((tick) => figure(tick)) }],
      series, bands,
      hooks: { drawClear: [(plot) => this.#drawMarks(plot, colour)], draw: [(plot) => this.#drawLimit(plot, colour)], setCursor: [(plot) => this.#read(plot.cursor.idx)] },
    };
  }

  #range(low, high) {
    if (low === null) return [0, 1];
    if (this.unit === "%" && low >= 0 && high <= 100) {
      const room = Math.max(2, (high - low) * 0.15);
      return [Math.max(0, low - room), Math.min(100, Math.max(high + room, this.#fan?.limit ?? 0))];
    }
    const room = high - low || Math.abs(high) || 1;
    return [low >= 0 ? Math.max(0, low - room * 0.15) : low - room * 0.15, high + room * 0.15];
  }

  // Faults are a strip at the bottom, anomalies shade their time; where this metric is to blame, a frame says what was expected.
  #drawMarks(plot, colour) {
    const { ctx } = plot;
    const { left, top, width, height } = plot.bbox;
    const x = (time) => Math.min(left + width, Math.max(left, plot.valToPos(time, "x", true)));
    const until = (each) => (each.end_time ? new Date(each.end_time) : new Date()) / 1000;
    ctx.save();
    for (const each of this.#marks.anomalies) {
      const [from, to] = [x(new Date(each.start_time) / 1000), x(until(each))];
      const wide = Math.max(2 * devicePixelRatio, to - from);
      ctx.fillStyle = colour("anomaly");
      ctx.fillRect(from, top, wide, height);
      const blame = each.blames.find((found) => found.metric === this.metric.key);
      if (!blame) continue;
      const [high, low] = [blame.expected_high, blame.expected_low].map((value) => plot.valToPos(value, "y", true));
      ctx.strokeStyle = colour("expected");
      ctx.lineWidth = devicePixelRatio;
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      ctx.strokeRect(from, Math.max(top, high), wide, Math.min(top + height, low) - Math.max(top, high));
      ctx.setLineDash([]);
    }
    ctx.fillStyle = colour("fault");
    for (const each of this.#marks.faults) {
      const [from, to] = [x(new Date(each.start_time) / 1000), x(Math.min(until(each), Date.now() / 1000))];
      ctx.fillRect(from, top + height - 5 * devicePixelRatio, Math.max(2 * devicePixelRatio, to - from), 5 * devicePixelRatio);
    }
    ctx.restore();
  }

  #drawLimit(plot, colour) {
    const limit = this.#fan?.limit;
    if (limit === null || limit === undefined) return;
    const y = plot.valToPos(limit, "y", true);
    const { ctx } = plot;
    ctx.save();
    ctx.strokeStyle = colour("bad");
    ctx.lineWidth = devicePixelRatio;
    ctx.setLineDash([2 * devicePixelRatio, 4 * devicePixelRatio]);
    ctx.beginPath();
    ctx.moveTo(plot.bbox.left, y);
    ctx.lineTo(plot.bbox.left + plot.bbox.width, y);
    ctx.stroke();
    ctx.restore();
  }

  #read(index) {
    if (index === null || index === undefined || !this.#plot) {
      setText(this.readout, "");
      return;
    }
    const [time, high, low, mean, ...fan] = this.#plot.data.map((column) => column[index]);
    const parts = [moment(time * 1000)];
    if (mean !== null && mean !== undefined) parts.push(withUnit(mean, this.unit));
    else if (fan.length && fan[4] !== null) parts.push(`expected ${withUnit(fan[4], this.unit)}, 80 %: ${withUnit(fan[2], this.unit)} to ${withUnit(fan[1], this.unit)}`);
    else parts.push("no sample");
    if (mean !== null && low !== null && low !== undefined && low !== high) parts.push(`from ${withUnit(low, this.unit)} to ${withUnit(high, this.unit)}`);
    const during = (each) => new Date(each.start_time) / 1000 <= time + this.step && (!each.end_time || new Date(each.end_time) / 1000 >= time);
    if (this.#marks.anomalies.some(during)) parts.push("anomaly");
    if (this.#marks.faults.some(during)) parts.push("fault");
    setText(this.readout, parts.join(" · "));
  }

  #point(index) {
    const plot = this.#plot;
    const found = Math.max(0, Math.min(plot.data[0].length - 1, index));
    plot.setCursor({ left: plot.valToPos(plot.data[0][found], "x"), top: 10 });
    this.#read(found);
  }

  #key(event) {
    if (!this.#plot) return;
    const last = this.#plot.data[0].length - 1;
    const at = this.#plot.cursor.idx ?? last + 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#point(to);
  }

  #resize() {
    const width = this.box.clientWidth;
    if (!this.#plot) this.#draw();
    else if (width && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }
}
