// What happens, as the console tells it: one stream of events for the page, taken up again by itself.

const SILENCE = 12_000; // the console says something every 5 s
const HIDDEN = 30_000; // a page that nobody looks at gives its place to others
const WAITS = [500, 1000, 2000, 5000];

export class Live extends EventTarget {
  board = null;
  servers = new Map();
  leftOut = 0;
  anomalies = [];
  alerts = [];
  alertCounts = {};
  // Of each topic: undefined while nothing is known, null when it is well, otherwise what is wrong.
  trouble = {};
  // "" while the console is heard; otherwise what is wrong.
  contact = "connecting";
  heard = null;
  #source = null;
  #attempt = 0;
  #timer = 0;
  #hidden = 0;

  constructor() {
    super();
    document.addEventListener("visibilitychange", () => this.#look());
  }

  start() {
    this.stop();
    const source = new EventSource("/api/events");
    this.#source = source;
    for (const topic of ["status", "fleet", "anomalies", "alerts", "beat"]) {
      source.addEventListener(topic, (event) => this.#take(topic, JSON.parse(event.data)));
    }
    source.addEventListener("end", (event) => this.#refused(JSON.parse(event.data)));
    source.addEventListener("error", () => this.#broken());
    this.#expect();
  }

  stop() {
    this.#source?.close();
    this.#source = null;
    clearTimeout(this.#timer);
  }

  #expect() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#broken(), SILENCE);
  }

  #take(topic, content) {
    this.#attempt = 0;
    this.heard = Date.now();
    const again = this.contact !== "";
    this.contact = "";
    this.#expect();
    if (again) this.#tell("contact");
    if (topic === "beat") return;
    this.trouble[topic] = content.trouble;
    if (topic === "status" && content.board) this.board = content.board;
    if (topic === "anomalies" && content.anomalies) this.anomalies = content.anomalies;
    if (topic === "alerts" && content.alerts) [this.alerts, this.alertCounts] = [content.alerts, content.counts];
    if (topic === "fleet" && content.servers) this.#takeServers(content);
    this.#tell(topic);
  }

  #takeServers(content) {
    if (content.reset) this.servers.clear();
    for (const [id, state, cpu, memory, disk, environment, role, location, reason, time] of content.servers) {
      this.servers.set(id, { id, state, cpu, memory, disk, environment, role, location, reason, time });
    }
    for (const id of content.gone) this.servers.delete(id);
    this.leftOut = content.left_out;
  }

  async #broken() {
    this.stop();
    const wait = WAITS[Math.min(this.#attempt, WAITS.length - 1)];
    this.#attempt += 1;
    // What was a refusal cannot be seen from a stream that did not begin.
    const [status, error] = await ask("/api/session").then(() => [200, null], (err) => [err.status, err]);
    if (this.#source) return;
    if (status === 401) return this.#refused(error);
    this.contact = status === 429 || error?.status ? error.message : "The console does not answer.";
    if (status === 200) this.contact = "The connection broke.";
    this.#tell("contact");
    this.#timer = setTimeout(() => this.start(), wait);
  }

  #refused(error) {
    this.stop();
    this.dispatchEvent(new CustomEvent("refused", { detail: error }));
  }

  #look() {
    clearTimeout(this.#hidden);
    if (document.hidden) this.#hidden = setTimeout(() => this.stop(), HIDDEN);
    else if (!this.#source) this.start();
  }

  #tell(topic) {
    this.dispatchEvent(new Event(topic));
  }
}

// Asks the console; what it refuses is an error with its message, its reason and the status.
export async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, redirect: "error" });
  } catch (err) {
    if (err.name === "AbortError") throw err;
    throw Object.assign(new Error("The console does not answer."), { status: 0, reason: "" });
  }
  const content = await response.json().catch(() => ({}));
  if (response.ok) return content;
  const about = content.error ?? { message: `The console answered with ${response.status}.`, reason: "" };
  throw Object.assign(new Error(sentence(about.message)), { status: response.status, reason: about.reason });
}

export function sentence(text) {
  const found = text ? text[0].toUpperCase() + text.slice(1) : "";
  return /[.!?…]$/.test(found) ? found : `${found}.`;
}
