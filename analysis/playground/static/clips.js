// The cards of the clips: pictures, player, measured values, verdict, and how to make a clip again.
import { spectrogram, waveform } from "./draw.js";
import { $, make, number, reached, say, signed } from "./text.js";

export const TITLES = { unsteered: "Not steered", steered: "Steered", asked: "Asked in words" };
const MEASURES = {
  tempo_ioi: ["Tempo", "BPM"], brightness: ["Brightness", "Hz"], onset_rate: ["Onsets", "per s"],
  pitch: ["Pitch", "Hz"], loudness: ["Loudness", "dBFS"],
};

const cards = new Map(); // clip -> {card, part, audio, values, waveform, shown}

export function addCards() {
  for (const name of ["unsteered", "steered", "asked"]) addCard(name);
}

function addCard(name) {
  const card = $("clip").content.firstElementChild.cloneNode(true);
  const part = (selector) => card.querySelector(selector);
  part("h2 span").textContent = TITLES[name];
  card.id = `clip-${name}`;
  card.classList.toggle("first", name === "steered");
  const audio = part("audio");
  audio.setAttribute("aria-label", TITLES[name]);
  for (const kind of [".wav", ".zip"]) part(kind).setAttribute("aria-label", `${part(kind).textContent}: ${TITLES[name]}`);
  const head = part(".head");
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
  part(".picture").addEventListener("click", (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    audio.currentTime = ((event.clientX - box.left) / box.width) * (audio.duration || 0);
    audio.play().catch(() => {});
  });
  for (const button of card.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const text = button.parentElement.nextElementSibling;
      try {
        await navigator.clipboard.writeText(text.textContent);
        say("Copied.");
      } catch {
        // Browsers give the clipboard only to pages of this machine, or with a certificate.
        getSelection().selectAllChildren(text);
        say("Selected: copy it with the keyboard.");
      }
    });
  }
  $("clips").append(card);
  cards.set(name, { card, part, audio, values: null, waveform: null, shown: null });
}

function setOld(one, old) {
  one.card.classList.toggle("old", old);
  one.part(".stale").hidden = !old;
}

// The clips on the page are from before, until new ones come. Their values are no longer compared with anything.
export function makeOld() {
  for (const one of cards.values()) {
    setOld(one, true);
    one.values = null;
  }
}

export function hide(...names) {
  for (const name of names) cards.get(name).card.hidden = true;
}

// When all is done, a clip from before was not asked for.
export function hideOld() {
  for (const { card } of cards.values()) if (card.classList.contains("old")) card.hidden = true;
}

export async function showClip(event, token, { sounds, signal }) {
  const one = cards.get(event.clip);
  const { card, part, audio } = one;
  const first = event.clip === "steered" || (event.clip === "unsteered" && cards.get("steered").card.hidden);
  one.shown = event;
  one.values = null;
  one.waveform = event.waveform;
  card.hidden = false;
  setOld(one, false);
  part(".asked").textContent = event.prompt;
  spectrogram(part(".spectrogram"), event.spectrogram);
  waveform(part(".waveform"), event.waveform);
  part("dl").replaceChildren();
  part(".verdict").textContent = "";
  part(".command").textContent = event.again.command;
  part(".python").textContent = event.again.python;
  part(".wav").href = `/clips/${token}/${event.clip}.wav`;
  part(".zip").href = `/clips/${token}/${event.clip}.zip`;
  // The old sound must not be played under the new picture.
  if (audio.src) URL.revokeObjectURL(audio.src);
  audio.removeAttribute("src");
  audio.load();
  const answer = await reached(fetch(part(".wav").href, { signal }));
  const sound = answer.ok ? await reached(answer.blob()) : null;
  // Meanwhile the card may show another clip.
  if (one.shown !== event || sound === null) return;
  audio.src = URL.createObjectURL(sound);
  // A browser may forbid sound before the first click; the player is there then.
  if (first && sounds) audio.play().catch(() => {});
}

export function showValues(name, found) {
  cards.get(name).values = found;
  const base = cards.get("unsteered").values;
  for (const [clip, { part, values }] of cards) {
    if (!values) continue;
    const rows = Object.entries(MEASURES).flatMap(([measure, [label, unit]]) => {
      const value = values[measure];
      const before = (clip === "unsteered" ? null : base?.[measure]) ?? null;
      let change = "";
      if (value !== null && before !== null) {
        if (unit === "dBFS") change = `${signed(value - before, 1)} dB`;
        else if (before > 0) change = `${signed(100 * (value / before - 1), 0)} %`;
      }
      return [["dt", label], ["dd", value === null ? "not measurable" : `${number(value)} ${unit}`], ["dd", change]];
    });
    part("dl").replaceChildren(...rows.map(([tag, text]) => make(tag, text)));
  }
}

export function showVerdict({ failed, why, difference }) {
  const verdict = cards.get("steered").part(".verdict");
  verdict.classList.toggle("bad", failed);
  const said = failed ? `This clip failed: ${why.join(", ")}.` : "This clip did not fail.";
  let drift = "Its drift cannot be computed.";
  if (difference !== null) {
    const side = difference < 0 ? "more likely" : "less likely";
    const beside = difference === 0 ? "as likely to the model without steering as its own clip" : `${side} to the model without steering than its own clip`;
    drift = `Drift: ${difference === 0 ? 0 : Math.abs(difference).toPrecision(2)} nats per code (${beside}).`;
  }
  verdict.textContent = `${said} ${drift}`;
}

export function redraw() {
  for (const one of cards.values()) if (one.waveform) waveform(one.part(".waveform"), one.waveform);
}
