"use strict";

// One page, no build step: asks the API of the server that it came from.

const byId = (id) => document.getElementById(id);
const TYPING_PAUSE = 250; // milliseconds without a key before the server is asked
const HISTORY = 120; // seconds that the live view looks back

let info = null;
let key = "";
let asked = 0; // the last question's number: answers to earlier ones are dropped
let pause = null;
const history = [];

async function call(path, body) {
  const headers = { "content-type": "application/json" };
  if (key) headers.authorization = `Bearer ${key}`;
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer.");
  }
  if (answer.status === 401) byId("unlock").hidden = false;
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

function tell(problem) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem || "";
}

function lines(id) {
  return byId(id).value.split("\n").map((line) => line.trim()).filter(Boolean);
}

function question() {
  const texts = lines("text");
  if (!byId("paired").checked) return texts.map((text) => [text]);
  const others = lines("pair");
  if (others.length !== texts.length) {
    throw new Error(`There are ${texts.length} first and ${others.length} second texts.`);
  }
  return texts.map((text, i) => [text, others[i]]);
}

function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function bars(labels) {
  const list = element("div", "labels");
  const isShare = info.problem_type !== "regression";
  for (const { label, score } of labels) {
    const bar = element("div", "bar");
    const meter = element("i");
    const filled = element("b");
    filled.style.width = isShare ? `${100 * score}%` : "0";
    meter.append(filled);
    const value = isShare ? `${(100 * score).toFixed(1)} %` : score.toFixed(3);
    bar.append(element("span", "", label), meter, element("span", "", value));
    list.append(bar);
  }
  return list;
}

function stack(layers) {
  const side = element("div");
  const list = element("ul", "stack");
  list.setAttribute("role", "img");
  const numbers = layers.map((layer) => layer + 1).join(", ");
  list.setAttribute("aria-label", `Layers ${numbers} of ${info.num_layers} ran.`);
  for (let layer = 0; layer < info.num_layers; layer++) {
    const cell = element("li", layers.includes(layer) ? "ran" : "");
    cell.title = `layer ${layer + 1} ${layers.includes(layer) ? "ran" : "was skipped"}`;
    list.append(cell);
  }
  side.append(list);
  return side;
}

function show(rows, answers) {
  const list = byId("answers");
  list.replaceChildren();
  answers.forEach((answer, i) => {
    const item = element("li");
    item.dataset.layers = answer.layers.join(",");
    item.append(element("div", "said", rows[i].join(" | ")), bars(answer.labels));
    const side = stack(answer.layers);
    side.append(element("div", "cost", `cost ${answer.cost.toFixed(2)}`));
    item.append(side);
    list.append(item);
  });
}

async function ask() {
  const number = ++asked;
  try {
    const rows = question();
    if (!rows.length) {
      byId("answers").replaceChildren();
      byId("time").textContent = "";
      return tell("");
    }
    const body = { inputs: rows, details: true, truncate: true };
    const wanted = Number(byId("budget").value);
    const budget = info.budget_range && wanted <= info.budget_range[1] ? wanted : 1;
    const answers = await call("predict", { ...body, budget });
    if (number !== asked) return;
    show(rows, answers);
    tell("");
    const dense = await call("predict", { ...body, budget: 1 });
    if (number !== asked) return;
    const [spent, all] = [answers[0].inference_ms, dense[0].inference_ms];
    byId("time").textContent =
      `${spent.toFixed(1)} ms in the model, ${all.toFixed(1)} ms with all layers` +
      (answers.length > 1 ? ` (all ${answers.length} texts).` : ".");
  } catch (error) {
    if (number === asked) tell(error.message);
  }
}

function later() {
  clearTimeout(pause);
  pause = setTimeout(ask, TYPING_PAUSE);
}

function turned() {
  byId("share").textContent = `${Math.round(100 * byId("budget").value)} %`;
  later();
}

function line(name, values, top) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "polyline");
  const points = values.map((value, i) => {
    const x = 600 - (600 * (values.length - 1 - i)) / (HISTORY - 1);
    return `${x.toFixed(1)},${(155 - (150 * Math.min(value, top)) / top).toFixed(1)}`;
  });
  drawn.setAttribute("points", points.join(" "));
  drawn.setAttribute("class", name);
  return drawn;
}

async function live() {
  try {
    const now = await call("status");
    if (!byId("live").hidden) tell("");
    const ms = (value) => (value === null ? "-" : `${value.toFixed(1)} ms`);
    byId("live-budget").textContent = `${Math.round(100 * now.budget)} %`;
    byId("live-queue").textContent = now.queue;
    byId("live-rate").textContent = now.requests_per_second.toFixed(1);
    byId("live-p50").textContent = ms(now.p50_ms);
    byId("live-p95").textContent = ms(now.p95_ms);
    byId("live-target").textContent = ms(now.target_p95_ms);
    history.push(now);
    if (history.length > HISTORY) history.shift();
    const top = 1.5 * now.target_p95_ms;
    byId("chart").replaceChildren(
      line("target", Array(HISTORY).fill(now.target_p95_ms), top),
      line("budget", history.map((each) => each.budget), 1),
      line("p95", history.map((each) => each.p95_ms || 0), top),
    );
  } catch (error) {
    tell(error.message);
  }
}

function select(name) {
  for (const each of ["try", "live"]) {
    const chosen = each === name;
    byId(each).hidden = !chosen;
    byId(`tab-${each}`).setAttribute("aria-selected", String(chosen));
    byId(`tab-${each}`).tabIndex = chosen ? 0 : -1;
  }
}

async function start() {
  try {
    info = await call("info");
  } catch (error) {
    return tell(error.message);
  }
  byId("unlock").hidden = true;
  tell("");
  byId("model").textContent = info.model_id;
  const dial = byId("budget");
  if (info.budget_range) {
    const high = info.budget_range[1];
    const low = Math.ceil(100 * info.budget_range[0]) / 100;  // may be any number: rounded inwards
    Object.assign(dial, { min: low, max: Math.max(high, 1), step: 0.01 });
    dial.value = info.budgets[0];
    byId("range").textContent = `from ${low} to ${high}; all layers at 1`;
  } else {
    byId("dial").hidden = true;
  }
  turned();
}

for (const id of ["text", "pair"]) byId(id).addEventListener("input", later);
byId("budget").addEventListener("input", turned);
byId("ask").addEventListener("submit", (event) => event.preventDefault());
byId("paired").addEventListener("change", () => {
  byId("second").hidden = !byId("paired").checked;
  later();
});
byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  key = byId("key").value;
  start();
});
for (const name of ["try", "live"]) {
  byId(`tab-${name}`).addEventListener("click", () => select(name));
  byId(`tab-${name}`).addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = name === "try" ? "live" : "try";
    select(other);
    byId(`tab-${other}`).focus();
  });
}
setInterval(() => { if (!byId("live").hidden && info) live(); }, 1000);
start();
