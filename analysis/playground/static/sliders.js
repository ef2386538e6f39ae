// The sliders, one row for each concept: its value, its place, its unit, and the curve of its strength over time.
import { $, number, signed } from "./text.js";

export const concepts = new Map(); // key -> {facts, row, slider, part, curve, middle}

// `moved` is called when a slider that acts has changed, and `save` when only the look of a control has.
export function addConcept(facts, blocks, { moved, save }) {
  const row = $("concept").content.firstElementChild.cloneNode(true);
  const part = (selector) => row.querySelector(selector);
  const slider = part("input");
  slider.id = `slider-${concepts.size}`;
  part(".name").htmlFor = slider.id;
  part(".name").textContent = facts.name;
  [part(".high").textContent, part(".low").textContent] = facts.poles;
  slider.setAttribute("aria-label", `${facts.name}: from ${facts.poles[1]} to ${facts.poles[0]}`);
  // The controls of all rows have the same words.
  for (const [selector, word] of [["summary", "where"], [".strategy", "Place"], [".layer", "Block"], [".unit", "In"]]) {
    part(selector).setAttribute("aria-label", `${word}: ${facts.name}`);
  }
  const one = { facts, row, slider, part, curve: null, middle: "0" };
  concepts.set(facts.key, one);
  const changed = () => (acts(one) ? moved() : save());
  slider.addEventListener("input", () => tellValue(one));
  slider.addEventListener("change", moved);
  slider.addEventListener("dblclick", () => (turnOff(one), moved()));
  part(".strategy").addEventListener("change", () => (fitPlace(one), changed()));
  part(".layer").addEventListener("change", changed);
  part(".unit").addEventListener("change", () => (fitScale(one), save()));
  $("drawn").append(new Option(facts.name, facts.key));
  $("concepts").append(row);
  update(one, facts, blocks);
}

export function update(one, facts, blocks) {
  one.facts = facts;
  const layers = facts.layers ?? Array.from({ length: blocks }, (_, index) => index);
  const layer = one.part(".layer");
  const before = layer.value || facts.place?.layer;
  layer.replaceChildren(...layers.map((index) => new Option(index, index)));
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

// Whether a slider is away from the value at which it does nothing.
export const acts = (one) => one.slider.value !== still(one);

export function turnOff(one) {
  one.slider.value = still(one);
  tellValue(one);
}

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
  if (acts(one)) {
    if (inUnit(one)) text = `${number(value)} ${one.facts.unit.unit}`;
    else if (one.facts.reach && own) text = signed(value * one.facts.reach);
    else text = `${signed(100 * value, 0)} %`;
  }
  one.row.querySelector("output").textContent = text;
  one.slider.setAttribute("aria-valuetext", text);
}

// What the sliders ask for, as the server reads it.
export function pushes(seconds) {
  const found = [];
  for (const [key, one] of concepts) {
    if (!acts(one)) continue;
    const strategy = one.part(".strategy").value || null;
    const share = inUnit(one) ? { value: Number(one.slider.value) } : { share: Number(one.slider.value) };
    const layer = strategy && strategy !== "all-to-all" ? Number(one.part(".layer").value) : null;
    const curve = one.curve && one.curve.map((factor, index) => [
      Math.round((1e4 * seconds * index) / (one.curve.length - 1)) / 1e4, factor,
    ]);
    found.push({ concept: key, ...share, strategy, layer, curve });
  }
  return found;
}

export function keptRows() {
  return Object.fromEntries([...concepts].map(([key, one]) => [key, {
    value: one.slider.value, strategy: one.part(".strategy").value, layer: one.part(".layer").value,
    unit: one.part(".unit").value, curve: one.curve,
  }]));
}

export function restoreRows(rows) {
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
}
