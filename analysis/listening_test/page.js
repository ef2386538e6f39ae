"use strict";
const test = JSON.parse(document.getElementById("test").textContent);
const part = (id) => document.getElementById(id);
const letters = "ABCDEFGH";
// A clip counts as heard once half of it has been played.
const heardShare = 0.5;
const answers = [];
let started = null, listener = null, trials = [], current = null;

function below(n) {
  const limit = Math.floor(2 ** 32 / n) * n, drawn = new Uint32Array(1);
  do { crypto.getRandomValues(drawn); } while (drawn[0] >= limit);
  return drawn[0] % n;
}

function shuffled(list) {
  const order = [...list];
  for (let i = order.length - 1; i > 0; i--) {
    const j = below(i + 1);
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}

function made(tag, attributes = {}, ...inside) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...inside);
  return element;
}

function show(id) {
  for (const section of document.querySelectorAll("section")) section.hidden = section.id !== id;
  part(id).querySelector("h1").focus();
  window.scrollTo(0, 0);
}

function stopOthers(sound) {
  for (const other of document.querySelectorAll("audio")) if (other !== sound) other.pause();
}

function toggle(sound) {
  if (!sound.paused) return sound.pause();
  stopOthers(sound);
  sound.play().catch(() => { part("missing").textContent = "This clip could not be played."; });
}

function labelled(button, sound, name) {
  const say = () => { button.textContent = sound.paused ? "▶ " + name : "❚❚ " + name; };
  for (const event of ["play", "pause", "ended"]) sound.addEventListener(event, say);
  button.addEventListener("click", () => toggle(sound));
  say();
}

function heard(sound) {
  let seconds = 0;
  for (let i = 0; i < sound.played.length; i++) seconds += sound.played.end(i) - sound.played.start(i);
  return sound.duration > 0 && seconds >= heardShare * sound.duration;
}

function player(name, file) {
  const sound = made("audio", {src: "sounds/" + file + ".wav", preload: "auto"});
  const button = made("button", {type: "button"});
  const place = made("input", {type: "range", min: 0, max: 1000, value: 0, "aria-label": "position in " + name});
  const one = {file, name, sound, plays: 0, heard: false, rated: null, box: made("div", {class: "player"}, button, place, sound)};
  labelled(button, sound, name);
  sound.addEventListener("play", () => { one.plays += 1; });
  for (const event of ["timeupdate", "pause", "ended"]) sound.addEventListener(event, () => {
    if (sound.duration > 0) place.value = 1000 * sound.currentTime / sound.duration;
    one.heard = one.heard || heard(sound);
    check();
  });
  place.addEventListener("input", () => { if (sound.duration > 0) sound.currentTime = place.value / 1000 * sound.duration; });
  return one;
}

function rating(one) {
  const slider = made("input", {type: "range", min: 0, max: 100, value: 50, "aria-label": "rating of " + one.name});
  const shown = made("output", {}, "–");
  const rate = () => { one.rated = Number(slider.value); shown.textContent = slider.value; check(); };
  for (const event of ["input", "change", "keyup"]) slider.addEventListener(event, (happened) => {
    // A key that only moves the focus here is no rating.
    if (event !== "keyup" || ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"].includes(happened.key)) rate();
  });
  const words = made("div", {class: "words", "aria-hidden": "true"});
  for (const word of ["bad", "poor", "fair", "good", "excellent"]) words.append(made("span", {}, word));
  one.box.append(made("div", {class: "rating"}, made("span", {}, "Rating of " + one.name), slider, shown, words));
}

function question(name, text, players) {
  const box = made("fieldset", {}, made("legend", {}, text));
  for (const one of players) {
    const choice = made("input", {type: "radio", name, value: one.file});
    choice.addEventListener("change", check);
    box.append(made("label", {}, choice, one.name));
  }
  return box;
}

function present() {
  const trial = trials[answers.length], rates = test.mode === "mushra";
  const players = shuffled(trial.clips).map((file, i) => player((rates ? "clip " : "Clip ") + letters[i], file));
  const open = trial.open ? player("reference", trial.open) : null;
  current = {trial, players, open, since: Date.now()};
  part("heading").textContent = rates ? test.questions.quality : "Listen to both clips";
  part("count").textContent = (answers.length + 1) + " of " + trials.length;
  part("done").value = answers.length;
  if (rates) players.forEach(rating);
  part("players").replaceChildren(...(open ? [open.box] : []), ...players.map((one) => one.box));
  const asked = rates ? [] : Object.entries(test.questions);
  part("questions").replaceChildren(...asked.map(([name, text]) => question(name, text, players)));
  part("next").textContent = answers.length + 1 < trials.length ? "Next" : "Finish";
  check();
  show("trial");
}

function chosen() {
  const found = {};
  for (const name of Object.keys(test.questions)) {
    const choice = document.querySelector('input[name="' + name + '"]:checked');
    if (choice) found[name] = choice.value;
  }
  return found;
}

function check() {
  if (!current) return;
  const all = current.open ? [current.open, ...current.players] : current.players;
  const unheard = all.filter((one) => !one.heard).map((one) => one.name.replace("Clip", "clip"));
  const complete = test.mode === "mushra"
    ? current.players.every((one) => one.rated !== null)
    : Object.keys(chosen()).length === Object.keys(test.questions).length;
  part("next").disabled = unheard.length > 0 || !complete;
  part("missing").textContent = unheard.length ? "Not heard yet: " + unheard.join(", ") + "."
    : complete ? "" : test.mode === "mushra" ? "Rate every clip." : "Answer every question.";
}

function keep() {
  const {trial, players, since} = current;
  stopOthers(null);
  answers.push({
    trial: trial.trial,
    order: players.map((one) => one.file),
    plays: players.map((one) => one.plays),
    seconds: (Date.now() - since) / 1000,
    ...(test.mode === "mushra"
      ? {ratings: Object.fromEntries(players.map((one) => [one.file, one.rated]))}
      : {answers: chosen()}),
  });
  current = null;
  if (answers.length < trials.length) present(); else finish();
}

function finish() {
  const response = {
    format: test.format, test: test.test, listener, consent: true, started, finished: new Date().toISOString(), answers,
  };
  const link = part("download"), name = listener.replace(/[^A-Za-z0-9]+/g, "-").slice(0, 24);
  link.href = URL.createObjectURL(new Blob([JSON.stringify(response, null, 1)], {type: "application/json"}));
  link.download = "response-" + name + ".json";
  link.addEventListener("click", () => { window.removeEventListener("beforeunload", warn); });
  show("thanks");
}

function warn(event) { event.preventDefault(); }

part("consent").addEventListener("submit", (event) => {
  event.preventDefault();
  const drawn = [...crypto.getRandomValues(new Uint8Array(8))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  listener = part("code") ? part("code").value.trim() : drawn;
  if (!listener) return;
  started = new Date().toISOString();
  trials = shuffled(test.trials);
  window.addEventListener("beforeunload", warn);
  show("volume");
});
labelled(part("noise"), part("noise-sound"), "Play the noise");
part("begin").addEventListener("click", () => { stopOthers(null); present(); });
part("answers").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!part("next").disabled) keep();
});
document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  if (event.key === "Enter" && event.target.tagName !== "BUTTON") {
    event.preventDefault();
    if (!part("next").disabled) keep();
    return;
  }
  const key = event.key.toUpperCase();
  const one = key === "R" ? current.open : key.length === 1 ? current.players[letters.indexOf(key)] : null;
  if (one) { event.preventDefault(); toggle(one.sound); }
});
