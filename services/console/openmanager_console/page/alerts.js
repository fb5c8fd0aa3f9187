import { badge, byId, count, h, lasting, setText, when } from "./text.js";

const SHOWN = 12;
const SEVERITIES = ["CRITICAL", "WARNING", "INFO"];

// The alerts that fire, the gravest first; how many is said at the top of every page.
export class Alerts {
  constructor(live) {
    this.live = live;
    this.all = false;
    // Of no list: it stays the same element, so that whoever is on it stays there.
    this.more = h("button", { type: "button", class: "quiet", onclick: () => { this.all = !this.all; this.render(); } });
    this.link = h("a", { class: "pill", href: "#/", onclick: (event) => { event.preventDefault(); this.show(); } });
  }

  render() {
    const trouble = this.live.trouble.alerts;
    setText(byId("alerts-problem"), trouble && !this.live.trouble.status ? `${trouble.message}.` : "");
    const counts = SEVERITIES.filter((each) => this.live.alertCounts[each]).map((each) => [each, this.live.alertCounts[each]]);
    const total = counts.reduce((sum, [, number]) => sum + number, 0);
    this.#renderTop(total, counts);
    setText(byId("alerts-counts"), counts.map(([each, number]) => `${number} ${each.toLowerCase()}`).join(", "));
    const shown = this.live.alerts.slice(0, this.all ? undefined : SHOWN);
    const left = total - this.live.alerts.length;
    byId("alerts").replaceChildren(
      ...(shown.length ? shown.map(entry) : [h("li", { class: "muted" }, trouble === null ? "None fires." : "")]),
      ...(this.all && left > 0 ? [h("li", { class: "muted" }, `and ${left} more: openmanager alerts`)] : []));
    setText(this.more, this.all ? "Show fewer" : `Show ${count(this.live.alerts.length, "alert")}`);
    if (this.live.alerts.length <= SHOWN) this.more.remove();
    else if (!this.more.isConnected) byId("alerts").after(this.more);
  }

  #renderTop(total, counts) {
    if (total) {
      this.link.dataset.state = counts[0][0];
      setText(this.link, count(total, "alert"));
      if (!this.link.isConnected) byId("alert-count").append(this.link);
    } else {
      this.link.remove();
    }
  }

  // Leads to the list, from wherever we are.
  show() {
    const focus = () => { byId("alerts-title").scrollIntoView({ block: "center" }); byId("alerts-title").focus(); };
    if (!byId("overview").hidden) return focus();
    addEventListener("hashchange", focus, { once: true });
    location.hash = "#/";
  }
}

function entry(alert) {
  const since = new Date(alert.since);
  const path = [alert.server, alert.metric].filter(Boolean).map(encodeURIComponent).join("/");
  const said = [`for ${lasting(Date.now() - since)}`, alert.stale && "nothing has come of late", alert.suppressed].filter(Boolean);
  return h(
    "li",
    { class: alert.suppressed ? "past" : "active" },
    badge(alert.severity),
    h("strong", {}, alert.rule),
    alert.server && h("a", { href: `#/server/${path}` }, alert.server),
    h("span", { class: "muted" }, when(since), ` ${said.join(", ")}`),
    h("span", { class: "explanation" }, alert.summary),
  );
}
