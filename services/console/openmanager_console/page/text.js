// Elements and words. Everything that comes from the mesh becomes a text node: nothing is ever parsed as HTML.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((each) => each !== null && each !== undefined && each !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);

// Text is only set when it differs: what reads it aloud would read it again.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const STATES = {
  OK: "OK", SLOW: "Slow", DOWN: "Down", HUNG: "Hung", EMPTY: "Empty", READONLY: "Read-only", RECOVERING: "Recovering",
  HEALTHY: "Healthy", WARNING: "Warning", CRITICAL: "Critical", OFFLINE: "Offline", INFO: "Info", UNKNOWN: "Unknown",
};
export const shortState = (state) => (state || "UNKNOWN").replace(/^(STORAGE|SERVER)_STATE_|^(ANOMALY|ALERT)_SEVERITY_/, "");
export const stateName = (state) => STATES[shortState(state)] ?? shortState(state);
export const badge = (state, text) => h("span", { class: "badge", "data-state": shortState(state) }, text ?? stateName(state));

const whole = new Intl.NumberFormat("en");
export const count = (number, what) => `${whole.format(number)} ${what}${number === 1 ? "" : "s"}`;
export const integer = (number) => whole.format(Number(number));

export function figure(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (size >= 1e15 || (size > 0 && size < 1e-4)) return value.toExponential(2);
  if (size >= 1e4) return new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 2 }).format(value);
  return String(Number(value.toPrecision(4)));
}

export function withUnit(value, unit) {
  if (value === null || value === undefined) return "–";
  if (unit === "By" || unit === "By/s") return `${bytes(value)}${unit.slice(2)}`;
  return unit && unit !== "1" ? `${figure(value)} ${unit}` : figure(value);
}

function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (Math.abs(value) >= 1024 && at < units.length - 1) { value /= 1024; at += 1; }
  return `${figure(value)} ${units[at]}`;
}

export function seconds(text) {
  const value = Number.parseFloat(text ?? "");
  if (Number.isNaN(value)) return "";
  if (value < 0.001) return "< 1 ms";
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${figure(value)} s`;
}

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
export const timeOfDay = (date) => clock.format(date);
export function moment(value) {
  if (!value) return "";
  const date = new Date(value);
  return Date.now() - date.getTime() < 12 * 3600e3 && date <= Date.now() + 3600e3 ? clock.format(date) : day.format(date);
}
const minute = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const date = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
// On an axis: the time of day, and the date where a day begins. Both in seconds.
export function tickText(time, every) {
  const at = new Date(time * 1000);
  if (every >= 86_400 || (at.getHours() === 0 && at.getMinutes() === 0 && at.getSeconds() === 0)) return date.format(at);
  return every < 60 ? clock.format(at) : minute.format(at);
}

export const when = (value, text) => h("time", { datetime: new Date(value).toISOString(), title: new Date(value).toString() }, text ?? moment(value));

export function lasting(milliseconds) {
  const value = Math.max(0, Math.round(milliseconds / 1000));
  if (value < 60) return `${value} s`;
  if (value < 3600) return `${Math.round(value / 60)} min`;
  if (value < 2 * 86400) return `${Math.round(value / 3600)} h`;
  return `${Math.round(value / 86400)} days`;
}
