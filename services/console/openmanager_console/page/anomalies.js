import { badge, byId, h, lasting, setText, when } from "./text.js";

const SHOWN = 12;

export class Anomalies {
  constructor(live) {
    this.live = live;
  }

  render() {
    const trouble = this.live.trouble.anomalies;
    setText(byId("anomalies-problem"), trouble && !this.live.trouble.status ? `${trouble.message}.` : "");
    const found = [...this.live.anomalies].sort((a, b) => (a.start_time < b.start_time ? 1 : -1));
    const active = found.filter((each) => !each.end_time);
    const shown = [...active, ...found.filter((each) => each.end_time)].slice(0, SHOWN);
    setText(byId("anomalies-counts"), found.length ? `${active.length} going on, ${found.length} of late` : "");
    byId("anomalies").replaceChildren(...(shown.length ? shown.map((each) => entry(each, true)) : [h("li", { class: "muted" }, trouble === null ? "None has been found." : "")]));
  }
}

// One anomaly as an entry of a list, with its server where that is not plain.
export function entry(anomaly, withServer) {
  const start = new Date(anomaly.start_time);
  const end = anomaly.end_time ? new Date(anomaly.end_time) : null;
  const length = end ? `for ${lasting(end - start)}` : `for ${lasting(Date.now() - start)}, going on`;
  return h(
    "li",
    { class: end ? "past" : "active" },
    badge(anomaly.severity),
    withServer && h("a", { href: `#/server/${encodeURIComponent(anomaly.server)}` }, anomaly.server),
    h("span", { class: "muted" }, when(start), ` ${length}`),
    h("span", { class: "explanation" }, anomaly.explanation),
  );
}
