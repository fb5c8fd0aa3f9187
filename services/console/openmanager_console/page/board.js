import { badge, byId, count, h, integer, moment, seconds, setText, shortState, stateName, when } from "./text.js";

// A reader that stores what it has learnt once a minute is not behind because of that.
const BEHIND_SECONDS = 120;

// The services and their stores, the worst said at the top of every page.
export class Board {
  constructor(live) {
    this.live = live;
  }

  render() {
    const board = this.live.board;
    if (!board) return;
    const rows = board.services.flatMap((service) => [
      this.#row(service.service, service, true),
      ...service.storages.map((store) => this.#row(store.name, store, false)),
    ]);
    byId("status").tBodies[0].replaceChildren(...rows);
    setText(byId("ledger"), ledgerText(board.ledger));
    this.renderOverall(false);
  }

  renderOverall(stale) {
    const pill = byId("overall");
    const board = this.live.board;
    if (stale) {
      pill.dataset.state = "DOWN";
      setText(pill, "No contact");
      return;
    }
    if (!board) return;
    const state = shortState(board.overall_state);
    pill.dataset.state = state;
    setText(pill, state === "OK" ? "All well" : `${stateName(state)}: ${unwell(board)}`);
  }

  #row(name, about, isService) {
    const said = [about.reason, ...(about.warnings ?? [])].filter(Boolean).join("; ");
    const since = about.since_time ?? about.start_time;
    return h(
      "tr",
      { class: isService ? "service" : "store", "data-name": name, "data-state": shortState(about.state) },
      h("th", { scope: "row" }, name),
      h("td", {}, badge(about.state)),
      h("td", { class: "muted" }, isService ? "service" : [about.role, about.engine].filter(Boolean).join(", ")),
      h("td", { class: "number" }, isService ? "" : seconds(about.latency)),
      h("td", {}, since ? when(since, moment(since)) : ""),
      h("td", { class: "said" }, said),
    );
  }
}

function unwell(board) {
  const worst = shortState(board.overall_state);
  const names = board.services.flatMap((service) => {
    const stores = service.storages.filter((store) => shortState(store.state) === worst).map((store) => store.name);
    if (stores.length) return stores;
    return shortState(service.state) === worst ? [service.service] : [];
  });
  const found = [...new Set(names)];
  return found.length > 3 ? `${found.slice(0, 3).join(", ")} and ${found.length - 3} more` : found.join(", ");
}

function ledgerText(ledger) {
  if (!ledger) return "The log cannot be seen.";
  const behind = ledger.consumers.filter((each) => Number(each.waiting_sample_count) > 0 && Number.parseFloat(each.lag ?? "0") > BEHIND_SECONDS);
  const dead = ledger.consumers.reduce((sum, each) => sum + Number(each.dead_lettered_sample_count), 0);
  const parts = [`${integer(ledger.accepted_sample_count)} samples kept`];
  if (behind.length) parts.push(`behind: ${behind.map((each) => each.name).join(", ")}`);
  if (dead) parts.push(count(dead, "dead letter"));
  return parts.join(" · ");
}

