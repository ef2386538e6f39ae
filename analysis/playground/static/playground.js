// The page of `audiolens play`. Everything that comes from the server or a file is set as text, never as markup.
import { CURVES, Strip, evenly, spectrogram, waveform } from "./draw.js";

const $ = (id) => document.getElementById(id);
const MEASURES = {
  tempo_ioi: ["Tempo", "BPM"], brightness: ["Brightness", "Hz"], onset_rate: ["Onsets", "per s"],
  pitch: ["Pitch", "Hz"], loudness: ["Loudness", "dBFS"],
};
const TITLES = { unsteered: "Not steered", steered: "Steered", asked: "Asked in words" };
const MOST_FILE = 16 * 2 ** 20;
const STORED = "audiolens play";
// One per opened page: a request replaces the one before it of the same page.
const VISITOR = [...crypto.getRandomValues(new Uint8Array(12))].map((one) => one.toString(16)).join("");

const concepts = new Map(); // key -> {facts, row, curve}
const cards = new Map(); // clip -> {card, audio, values}
let limits = null;
let request = null;
let token = null;
let added = [];
let strip = null;

// ---- controls

function addConcept(facts) {
  const row = $("concept").content.firstElementChild.cloneNode(true);
  const part = (selector) => row.querySelector(selector);
  const slider = part("input");
  slider.id = `slider-${concepts.size}`;
  part(".name").htmlFor = slider.id;
  part(".name").textContent = facts.name;
  [part(".high").textContent, part(".low").textContent] = facts.poles;
  slider.setAttribute("aria-label", `${facts.name}: from ${facts.poles[1]} to ${facts.poles[0]}`);
  const one = { facts, row, slider, part, curve: null };
  concepts.set(facts.key, one);
  slider.addEventListener("input", () => tellValue(one));
  slider.addEventListener("change", moved);
  slider.addEventListener("dblclick", () => ((slider.value = still(one)), tellValue(one), moved()));
  part(".strategy").addEventListener("change", () => (fitPlace(one), slider.value !== still(one) && moved()));
  part(".layer").addEventListener("change", () => slider.value !== still(one) && moved());
  part(".unit").addEventListener("change", () => (fitScale(one), slider.dispatchEvent(new Event("input")), save()));
  const option = new Option(facts.name, facts.key);
  $("drawn").append(option);
  $("concepts").append(row);
  update(one, facts);
}

function update(one, facts) {
  one.facts = facts;
  const layers = facts.layers ?? Array.from({ length: limits.n_layers }, (_, index) => index);
  const layer = one.part(".layer");
  const before = layer.value || facts.place?.layer;
  layer.replaceChildren(...layers.map((number) => new Option(number, number)));
  layer.value = before ?? layers[Math.floor(layers.length / 2)];
  one.part(".note").textContent = facts.note || placeText(facts);
  const unit = one.part(".unit");
  if (facts.unit && unit.options.length === 1) {
    unit.append(new Option(facts.unit.unit || facts.unit.measure, "unit"));
    unit.value = "unit";
    fitScale(one);
  }
  one.part(".scale").hidden = !facts.unit;
  fitPlace(one);
  tellValue(one);
}

function placeText({ place, ready }) {
  if (!ready) return "Read from the model when it is first used, and then kept.";
  if (place.layer === undefined) return "Placed: every block’s own direction.";
  return `Placed: block ${place.layer}, ${place.strategy}.`;
}

function fitPlace(one) {
  const strategy = one.part(".strategy").value;
  one.part(".layer").disabled = strategy === "" || strategy === "all-to-all";
  if (strategy && inUnit(one)) {
    one.part(".unit").value = "";
    fitScale(one);
  }
  one.part(".unit").disabled = strategy !== "";
  tellValue(one);
}

const inUnit = (one) => one.part(".unit").value === "unit";
const still = (one) => String(inUnit(one) ? one.middle : 0);

function fitScale(one) {
  const { slider } = one;
  const unit = inUnit(one) ? one.facts.unit : null;
  const span = unit ? unit.high - unit.low : 2;
  const step = unit ? 10 ** Math.floor(Math.log10(span / 100)) : 0.01;
  slider.min = unit ? Math.ceil(unit.low / step) * step : -1;
  slider.max = unit ? Math.floor(unit.high / step) * step : 1;
  slider.step = step;
  slider.classList.toggle("scaled", Boolean(unit));
  slider.value = unit ? unit.now : 0;
  // The slider rounds to its step: this is its value for "not moved".
  one.middle = slider.value;
  tellValue(one);
}

function tellValue(one) {
  const value = Number(one.slider.value);
  const own = one.part(".strategy").value === "";
  let text = "off";
  if (one.slider.value !== still(one)) {
    if (inUnit(one)) text = `${number(value)} ${one.facts.unit.unit}`;
    else if (one.facts.reach && own) text = signed(value * one.facts.reach);
    else text = `${signed(100 * value)} %`;
  }
  one.row.querySelector("output").textContent = text;
  one.slider.setAttribute("aria-valuetext", text);
}

function wish() {
  const seconds = Number($("seconds").value);
  const pushes = [];
  for (const [key, one] of concepts) {
    if (one.slider.value === still(one)) continue;
    const strategy = one.part(".strategy").value || null;
    const share = inUnit(one) ? { value: Number(one.slider.value) } : { share: Number(one.slider.value) };
    const layer = strategy && strategy !== "all-to-all" ? Number(one.part(".layer").value) : null;
    const curve = one.curve && one.curve.map((factor, index) => [
      Math.round((1e4 * seconds * index) / (one.curve.length - 1)) / 1e4, factor,
    ]);
    pushes.push({ concept: key, ...share, strategy, layer, curve });
  }
  return {
    prompt: $("prompt").value, seed: Math.round(Number($("seed").value)), seconds,
    guidance: Number($("guidance").value), pushes,
  };
}

function moved() {
  save();
  if ($("live").checked) play();
}

// ---- what a reload keeps, for this tab alone

function save() {
  const rows = {};
  for (const [key, one] of concepts) {
    rows[key] = {
      value: one.slider.value, strategy: one.part(".strategy").value, layer: one.part(".layer").value,
      unit: one.part(".unit").value, curve: one.curve,
    };
  }
  const fields = Object.fromEntries(["prompt", "seed", "seconds", "guidance"].map((name) => [name, $(name).value]));
  const kept = { rows, fields, live: $("live").checked, drawn: $("drawn").value, token, added };
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
  for (const [name, value] of Object.entries(fields)) $(name).value = value;
  $("live").checked = live;
  for (const [key, kept] of Object.entries(rows)) {
    const one = concepts.get(key);
    if (!one) continue;
    one.part(".strategy").value = kept.strategy;
    one.part(".layer").value = kept.layer;
    if (one.part(".unit").value !== kept.unit) {
      one.part(".unit").value = kept.unit;
      fitScale(one);
    }
    one.curve = kept.curve;
    fitPlace(one);
    one.slider.value = kept.value;
    tellValue(one);
  }
  if (concepts.has(drawn)) $("drawn").value = drawn;
  showCurve();
}

// ---- clips

function addCard(name) {
  const card = $("clip").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = TITLES[name];
  card.id = `clip-${name}`;
  card.classList.toggle("first", name === "steered");
  const audio = card.querySelector("audio");
  audio.setAttribute("aria-label", TITLES[name]);
  const head = card.querySelector(".head");
  const follow = () => {
    head.style.left = `${(100 * audio.currentTime) / (audio.duration || 1)}%`;
    if (!audio.paused) requestAnimationFrame(follow);
  };
  audio.addEventListener("play", () => {
    for (const other of cards.values()) if (other.audio !== audio) other.audio.pause();
    head.style.visibility = "visible";
    follow();
  });
  audio.addEventListener("seeked", follow);
  card.querySelector(".picture").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    audio.currentTime = ((event.clientX - box.left) / box.width) * (audio.duration || 0);
    audio.play();
  });
  for (const button of card.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.nextElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        getSelection().selectAllChildren(text);
      }
    });
  }
  $("clips").append(card);
  cards.set(name, { card, audio, values: null });
}

async function showClip(event, sound) {
  const one = cards.get(event.clip);
  const { card, audio } = one;
  card.hidden = false;
  card.classList.remove("old");
  card.querySelector(".asked").textContent = event.prompt;
  spectrogram(card.querySelector(".spectrogram"), event.spectrogram);
  one.waveform = event.waveform;
  waveform(card.querySelector(".waveform"), event.waveform);
  card.querySelector("dl").replaceChildren();
  card.querySelector(".verdict").textContent = "";
  card.querySelector(".take").hidden = card.querySelector(".again").hidden = true;
  one.values = null;
  const first = event.clip === "steered" || (event.clip === "unsteered" && cards.get("steered").card.hidden);
  const answer = await fetch(sound);
  if (!answer.ok) return;
  if (audio.src) URL.revokeObjectURL(audio.src);
  audio.src = URL.createObjectURL(await answer.blob());
  // A browser may forbid sound before the first click; the player is there then.
  if (first && request) audio.play().catch(() => {});
}

function showValues() {
  const base = cards.get("unsteered").values;
  for (const [name, { card, values }] of cards) {
    if (!values) continue;
    const rows = Object.entries(MEASURES).flatMap(([measure, [label, unit]]) => {
      const value = values[measure];
      const before = name === "unsteered" ? null : base?.[measure];
      let change = "";
      if (value !== null && before) {
        change = unit === "dBFS" ? `${signed(value - before, 1)} dB` : `${signed(100 * (value / before - 1), 0)} %`;
      }
      return [["dt", label], ["dd", value === null ? "not measurable" : `${number(value)} ${unit}`], ["dd", change]];
    });
    card.querySelector("dl").replaceChildren(...rows.map(([tag, text]) => make(tag, text)));
  }
}

function showVerdict({ failed, why, drift, likelier }) {
  const verdict = cards.get("steered").card.querySelector(".verdict");
  verdict.classList.toggle("bad", failed);
  const side = likelier ? "more" : "less";
  const said = failed ? `This clip failed: ${why.join(", ")}.` : "This clip did not fail.";
  verdict.textContent =
    `${said} Drift: ${drift.toPrecision(2)} nats per code (${side} likely to the model without steering than its own clip).`;
}

function showRecipes(recipes, mine) {
  for (const [name, { command, python }] of Object.entries(recipes)) {
    const { card } = cards.get(name);
    card.querySelector(".command").textContent = command;
    card.querySelector(".python").textContent = python;
    card.querySelector(".wav").href = `/clips/${mine}/${name}.wav`;
    card.querySelector(".zip").href = `/clips/${mine}/${name}.zip`;
    card.querySelector(".take").hidden = card.querySelector(".again").hidden = false;
  }
}

async function handle(event, mine) {
  if (event.event === "waiting") say(event.ahead ? `${event.ahead} before you …` : "Your turn …");
  else if (event.event === "reading") say(`Reading the directions of ${event.concept}, once for this model …`);
  else if (event.event === "concept") concepts.has(event.concept.key) && update(concepts.get(event.concept.key), event.concept);
  else if (event.event === "step") progress(event.clip, event.share);
  else if (event.event === "clip") await showClip(event, `/clips/${mine}/${event.clip}.wav`);
  else if (event.event === "measured") ((cards.get(event.clip).values = event.values), showValues());
  else if (event.event === "compared") showVerdict(event);
  else if (event.event === "no words") cards.get("asked").card.hidden = true;
  else if (event.event === "note") $("notes").append(make("li", event.text));
  else if (event.event === "recipes") showRecipes(event.recipes, mine);
  else if (event.event === "error") fail(event.text);
}

// ---- requests

async function play() {
  request?.abort();
  const mine = (request = new AbortController());
  fail("");
  $("notes").replaceChildren();
  for (const { card } of cards.values()) card.classList.add("old");
  $("stop").disabled = false;
  say("Sending …");
  const asked = wish();
  if (!asked.pushes.length) cards.get("steered").card.hidden = cards.get("asked").card.hidden = true;
  try {
    const answer = await send("/clips", { visitor: VISITOR, wish: asked }, mine.signal);
    let told = null;
    for await (const event of events(answer)) {
      if (request !== mine) return;
      if (event.event === "begun") told = event.token;
      else await handle(event, told);
      if (event.event === "done") {
        token = told;
        save();
      }
    }
  } catch (error) {
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
  let answer;
  try {
    answer = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content), signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The playground does not answer: is it still running?");
  }
  if (!answer.ok) throw new Error((await answer.json().catch(() => ({}))).error ?? `The playground answered ${answer.status}.`);
  return answer;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line);
  }
}

async function load(file, summary, name) {
  if (!file) return;
  fail("");
  try {
    if (file.size > MOST_FILE) throw new Error(`${name} is larger than ${MOST_FILE / 2 ** 20} MB: expected a file of directions.`);
    const directions = await new Promise((made, failed) => {
      const reader = new FileReader();
      reader.onload = () => made(reader.result.slice(reader.result.indexOf(",") + 1));
      reader.onerror = () => failed(new Error(`${name} cannot be read.`));
      reader.readAsDataURL(file);
    });
    const answer = await send("/directions", { name, directions, summary: summary && (await summary.text()) });
    const facts = await answer.json();
    addConcept(facts);
    added.push(facts.key);
    save();
    say(`${facts.name} is the last slider.`);
  } catch (error) {
    fail(error.message);
  }
}

function loadFolder(files) {
  // Only files directly in the chosen folder count: "study/directions.safetensors".
  const at = (name) => files.find((file) => file.webkitRelativePath.split("/").slice(1).join("/") === name);
  const [directions, summary] = [at("directions.safetensors"), at("summary.json")];
  const name = files[0]?.webkitRelativePath.split("/")[0] ?? "The folder";
  if (!directions || !summary) {
    fail(`${name} has no ${directions ? "summary.json" : "directions.safetensors"}: expected the folder of a finished study.`);
    return;
  }
  load(directions, summary, name);
}

// ---- small things

function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

function number(value) {
  const size = Math.abs(value);
  return value.toLocaleString("en", { maximumFractionDigits: size >= 100 ? 0 : size >= 10 ? 1 : 2 }).replace("-", "−");
}

const signed = (value, digits) =>
  (value > 0 ? "+" : value < 0 ? "−" : "") + (digits === undefined ? number(Math.abs(value)) : Math.abs(value).toFixed(digits));

function say(text) {
  $("status").textContent = text;
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}

function progress(clip, share = 0) {
  $("progress").hidden = clip === null;
  $("progress").value = share;
  if (clip !== null) say(`Generating: ${TITLES[clip].toLowerCase()} …`);
}

function showCurve() {
  strip.show(concepts.get($("drawn").value)?.curve ?? evenly(CURVES.constant));
}

function setCurve(factors) {
  const one = concepts.get($("drawn").value);
  if (!one) return;
  one.curve = factors.every((factor) => factor === 1) ? null : factors;
  showCurve();
  save();
  if (one.slider.value !== still(one)) moved();
  else say(`Move the slider of ${one.facts.name} to hear its curve.`);
}

async function start() {
  const kept = stored();
  added = kept.added ?? [];
  try {
    const answer = await fetch(`/state?${new URLSearchParams(added.map((key) => ["added", key]))}`);
    limits = await answer.json();
  } catch {
    fail("The playground does not answer: is it still running?");
    return;
  }
  $("model").textContent = limits.model;
  $("seconds").max = limits.longest;
  $("seconds").value = limits.usual;
  for (const facts of limits.concepts) addConcept(facts);
  for (const name of ["unsteered", "steered", "asked"]) addCard(name);
  strip = new Strip($("strip"), setCurve);
  restore(kept);
  $("drawn").addEventListener("change", () => (showCurve(), save()));
  for (const button of document.querySelectorAll("[data-curve]")) {
    button.addEventListener("click", () => setCurve(evenly(CURVES[button.dataset.curve])));
  }
  $("controls").addEventListener("submit", (event) => (event.preventDefault(), play()));
  for (const name of ["prompt", "seed", "seconds", "guidance"]) $(name).addEventListener("change", moved);
  $("stop").addEventListener("click", () => request?.abort());
  $("live").addEventListener("change", save);
  $("file").addEventListener("change", (event) => load(event.target.files[0], null, event.target.files[0]?.name));
  $("folder").addEventListener("change", (event) => loadFolder([...event.target.files]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    strip.draw();
    for (const one of cards.values()) if (one.waveform) waveform(one.card.querySelector(".waveform"), one.waveform);
  });
  $("play").disabled = false;
  say("Ready. Move a slider, or press Play.");
  if (kept.token) await again(kept.token);
}

// After a reload, show the clips that were there.
async function again(mine) {
  const answer = await fetch(`/clips/${mine}`);
  if (!answer.ok) return;
  token = mine;
  for (const event of (await answer.json()).events) await handle(event, mine);
  say("Ready.");
}

start();
