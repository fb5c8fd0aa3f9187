import { Alerts } from "./alerts.js";
import { Anomalies } from "./anomalies.js";
import { Board } from "./board.js";
import { Fleet } from "./fleet.js";
import { Live, ask, sentence } from "./live.js";
import { ServerView } from "./server.js";
import { byId, setText, timeOfDay } from "./text.js";

const live = new Live();
const fleet = new Fleet(live);
const board = new Board(live);
const anomalies = new Anomalies(live);
const alerts = new Alerts(live);
let view = null;

live.addEventListener("fleet", () => fleet.render());
live.addEventListener("status", () => { board.render(); contact(); });
live.addEventListener("anomalies", () => anomalies.render());
live.addEventListener("alerts", () => alerts.render());
live.addEventListener("contact", contact);
live.addEventListener("refused", (event) => signIn(event.detail));

// The banner says in words what is not as it should be; what is on the page stays, with its time.
function contact() {
  const gateway = live.trouble.status;
  const wrong = live.contact && live.contact !== "connecting" ? live.contact : gateway ? sentence(gateway.message) : "";
  const since = live.board ? ` What is shown is from ${timeOfDay(new Date(live.board.observe_time))}.` : "";
  const banner = byId("banner");
  banner.hidden = !wrong;
  setText(banner, wrong ? `${wrong}${since} Trying again by itself.` : "");
  document.body.classList.toggle("stale", Boolean(wrong));
  board.renderOverall(Boolean(wrong));
}

setInterval(() => setText(byId("moment"), live.heard ? timeOfDay(new Date(live.heard)) : ""), 1000);

// ── where we are ────────────────────────────────────────────────────────────────────────────────────────────────────

function route() {
  const found = /^#\/server\/([^/]+)(?:\/(.+))?$/.exec(location.hash);
  let [id, metric] = ["", ""];
  try { [id, metric] = found ? [found[1], found[2] ?? ""].map(decodeURIComponent) : ["", ""]; } catch { /* no name */ }
  if (view && view.id === id && view.metric === metric) return;
  view?.close();
  view = null;
  byId("overview").hidden = Boolean(id) || !byId("sign-in").hidden;
  byId("server").hidden = !id || !byId("sign-in").hidden;
  byId("server").replaceChildren();
  document.title = id ? `${id} · OpenManager` : "OpenManager";
  if (id && byId("sign-in").hidden) view = new ServerView(id, live, byId("server"), metric);
}

let moved = false;
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#/") && location.hash) return; // a link inside the page
  const before = view?.id;
  route();
  if (view?.id === before) return;
  scrollTo(0, 0);
  moved = true;
  (view ? byId("server-title") : document.querySelector(before ? `[data-server="${CSS.escape(before)}"]` : "#main"))?.focus({ preventScroll: !view });
});

// ── who we are ──────────────────────────────────────────────────────────────────────────────────────────────────────

function signIn(error) {
  const form = byId("sign-in");
  const known = !form.hidden;
  form.hidden = false;
  byId("overview").hidden = byId("server").hidden = true;
  byId("person").hidden = true;
  setText(byId("overall"), "Signed out");
  byId("alert-count").replaceChildren();
  byId("overall").dataset.state = "UNKNOWN";
  byId("banner").hidden = true;
  if (error && error.reason !== "CREDENTIALS_REQUIRED") setText(byId("sign-in-problem"), sentence(error.message));
  if (!known) byId("sign-in-name").focus();
}

byId("sign-in").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [name, password, button] = [byId("sign-in-name"), byId("sign-in-password"), event.submitter];
  setText(byId("sign-in-problem"), "");
  if (button) button.disabled = true;
  try {
    await ask("/api/session", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ name: name.value, password: password.value }),
    });
    password.value = "";
    byId("sign-in").hidden = true;
    begin();
    byId("main").focus();
  } catch (err) {
    setText(byId("sign-in-problem"), err.message);
    password.select();
    password.focus();
  } finally {
    if (button) button.disabled = false;
  }
});

byId("sign-out").addEventListener("click", async () => {
  live.stop();
  await ask("/api/session", { method: "DELETE" }).catch(() => {});
  location.reload();
});

async function showPerson() {
  const about = await ask("/api/session").catch(() => null);
  if (!about?.signed_in) return;
  setText(byId("person-name"), about.identity.subject.replace(/^users?\//, ""));
  byId("person").hidden = false;
}

function begin() {
  view?.close();
  view = null;
  route();
  live.start();
  showPerson();
}

begin();
