// The page of `audiolens play`. Everything that comes from the server or a file is set as text, never as markup.
import { TITLES, addCards, hide, hideOld, makeOld, redraw, showClip, showValues, showVerdict } from "./clips.js";
import { CURVES, Strip, evenly } from "./draw.js";
import { acts, addConcept, concepts, keptRows, pushes, restoreRows, turnOff, update } from "./sliders.js";
import { $, GONE, fail, make, number, reached, say } from "./text.js";

const MOST_FILE = 16 * 2 ** 20;
const MOST_SUMMARY = 2 ** 20;
const STORED = "audiolens play";
const FIELDS = ["prompt", "seed", "seconds", "guidance"];
const LAST = ["done", "cancelled", "replaced", "error"];
// One per opened page: a request replaces the one before it of the same page.
const VISITOR = [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16)).join("");

let limits = null;
let request = null;
let sent = "";
let token = null;
let added = [];
let strip = null;

// ---- controls

function wish() {
  const seconds = Number($("seconds").value);
  return {
    // A line break is no part of a prompt.
    prompt: $("prompt").value.replace(/\s+/g, " "), seed: Math.round(Number($("seed").value)), seconds,
    guidance: Number($("guidance").value), pushes: pushes(seconds),
  };
}

function moved() {
  save();
  // A field that lost the focus may have been played already.
  if ($("live").checked && JSON.stringify(wish()) !== sent) play();
}

function addSlider(facts) {
  addConcept(facts, limits.n_layers, { moved, save });
}

function allOff() {
  for (const one of concepts.values()) turnOff(one);
  moved();
}

// ---- what a reload keeps, for this tab alone

function save() {
  const fields = Object.fromEntries(FIELDS.map((name) => [name, $(name).value]));
  const kept = { model: limits.model, rows: keptRows(), fields, live: $("live").checked, drawn: $("drawn").value, token, added };
  try {
    sessionStorage.setItem(STORED, JSON.stringify(kept));
  } catch {
    // Without storage a reload starts afresh.
  }
}

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

function restore({ rows = {}, fields = {}, live = true, drawn }) {
  for (const name of FIELDS) if (name in fields) $(name).value = fields[name];
  $("live").checked = live;
  restoreRows(rows);
  if (concepts.has(drawn)) $("drawn").value = drawn;
}

// ---- requests

async function handle(event, mine, signal) {
  if (event.event === "waiting") say(event.ahead ? `${event.ahead} before you …` : "Your turn …");
  else if (event.event === "reading") say(`Reading the directions of ${event.concept}, once for this model …`);
  else if (event.event === "concept") concepts.has(event.concept.key) && update(concepts.get(event.concept.key), event.concept, limits.n_layers);
  else if (event.event === "step") progress(event.clip, event.share);
  else if (event.event === "clip") await showClip(event, mine, { sounds: Boolean(signal), signal });
  else if (event.event === "measured") showValues(event.clip, event.values);
  else if (event.event === "compared") showVerdict(event);
  else if (event.event === "no words") hide("asked");
  else if (event.event === "note") $("notes").append(make("li", event.text));
  else if (event.event === "error") fail(event.text);
}

async function play() {
  request?.abort();
  const mine = (request = new AbortController());
  fail("");
  $("notes").replaceChildren();
  makeOld();
  $("stop").disabled = false;
  say("Sending …");
  const asked = wish();
  sent = JSON.stringify(asked);
  if (!asked.pushes.length) hide("steered", "asked");
  try {
    const answer = await send("/clips", { visitor: VISITOR, wish: asked }, mine.signal);
    let told = null;
    let last = null;
    for await (const event of events(answer)) {
      if (request !== mine) return;
      last = event.event;
      if (last === "begun") told = event.token;
      else await handle(event, told, mine.signal);
      if (request !== mine) return;
      if (last === "clip") {
        token = told;
        save();
      } else if (last === "done") hideOld();
    }
    if (!LAST.includes(last)) throw new Error(GONE);
  } catch (error) {
    if (request === mine) sent = "";
    if (request === mine && error.name !== "AbortError") fail(error.message);
  } finally {
    if (request === mine) {
      request = null;
      $("stop").disabled = true;
      progress(null);
      say($("error").hidden ? "Ready." : "");
    }
  }
}

async function send(path, content, signal) {
  const answer = await reached(fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal,
  }));
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `The playground answered ${answer.status}.`);
  return answer;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reached(reader.read());
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

// ---- further directions

async function load(file, summary, name) {
  if (!file) return;
  fail("");
  try {
    for (const [one, most] of [[file, MOST_FILE], [summary, MOST_SUMMARY]]) {
      if (one && one.size > most) throw new Error(`${one.name} is larger than ${most / 2 ** 20} MB: expected directions, or the folder of a study.`);
    }
    say(`Loading ${name} …`);
    const directions = await new Promise((made, failed) => {
      const reader = new FileReader();
      reader.onload = () => made(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => failed(new Error(`${name} cannot be read.`));
      reader.readAsDataURL(file);
    });
    const answer = await send("/directions", { name, directions, summary: summary && (await summary.text()) });
    const facts = await answer.json();
    addSlider(facts);
    added.push(facts.key);
    save();
    say(`${facts.name} is the last slider.`);
  } catch (error) {
    say("");
    fail(error.message);
  }
}

function loadFolder(files) {
  if (!files.length) return;
  // Only files directly in the chosen folder count: "study/directions.safetensors".
  const at = (name) => files.find((file) => file.webkitRelativePath.split("/").slice(1).join("/") === name);
  const [directions, summary] = [at("directions.safetensors"), at("summary.json")];
  const name = files[0].webkitRelativePath.split("/")[0];
  if (!directions || !summary) {
    fail(`${name} has no ${directions ? "summary.json" : "directions.safetensors"}: expected the folder of a finished study.`);
    return;
  }
  load(directions, summary, name);
}

// ---- small things

function progress(clip, share = 0) {
  $("progress").hidden = clip === null;
  $("progress").value = share;
  if (clip !== null) say(`Generating: ${TITLES[clip].toLowerCase()} …`);
}

function showCurve() {
  const one = concepts.get($("drawn").value);
  const factors = one?.curve ?? evenly(CURVES.constant);
  strip.show(factors);
  const [first, middle, last] = [0, (factors.length - 1) / 2, factors.length - 1].map((index) => number(factors[index]));
  $("strip").setAttribute("aria-label", `Strength of ${one?.facts.name ?? "nothing"} over time: ${first} of it at first, ${middle} in the middle, ${last} at the end.`);
}

function setCurve(factors) {
  const one = concepts.get($("drawn").value);
  if (!one) return;
  one.curve = factors.every((factor) => factor === 1) ? null : factors;
  showCurve();
  if (acts(one)) moved();
  else {
    save();
    say(`Move the slider of ${one.facts.name} to hear its curve.`);
  }
}

async function start() {
  let kept = stored();
  try {
    const answer = await fetch(`/state?${new URLSearchParams((kept.added ?? []).map((key) => ["added", key]))}`);
    limits = await answer.json();
  } catch {
    fail(GONE);
    return;
  }
  // At the same address there may be another model now.
  if (kept.model !== limits.model) kept = {};
  added = kept.added ?? [];
  $("model").textContent = limits.model;
  $("seconds").max = limits.longest;
  $("seconds").value = limits.usual;
  for (const facts of limits.concepts) addSlider(facts);
  addCards();
  strip = new Strip($("strip"), setCurve);
  restore(kept);
  showCurve();
  $("drawn").addEventListener("change", () => (showCurve(), save()));
  for (const button of document.querySelectorAll("[data-curve]")) {
    button.addEventListener("click", () => setCurve(evenly(CURVES[button.dataset.curve])));
  }
  $("controls").addEventListener("submit", (event) => (event.preventDefault(), play()));
  $("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.isComposing) (event.preventDefault(), save(), play());
  });
  for (const name of FIELDS) $(name).addEventListener("change", moved);
  $("stop").addEventListener("click", () => request?.abort());
  $("off").addEventListener("click", allOff);
  $("live").addEventListener("change", save);
  const picked = (event) => {
    const files = [...event.target.files];
    // Emptied, so that the same file can be chosen again once it was mended.
    event.target.value = "";
    return files;
  };
  $("file").addEventListener("change", (event) => picked(event).slice(0, 1).forEach((file) => load(file, null, file.name)));
  $("folder").addEventListener("change", (event) => loadFolder(picked(event)));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => (strip.draw(), redraw()));
  $("play").disabled = false;
  say("Ready. Move a slider, or press Play.");
  if (kept.token) await again(kept.token);
}

// After a reload, show the clips that were there.
async function again(mine) {
  try {
    const answer = await reached(fetch(`/clips/${mine}`));
    if (!answer.ok) return;
    token = mine;
    for (const event of (await answer.json()).events) {
      if (request) return;
      await handle(event, mine);
    }
    say("Ready.");
  } catch (error) {
    fail(error.message);
  }
}

start();
