// Small things that several parts of the page use: elements, numbers as text, and requests that fail.

export const GONE = "The playground does not answer: is it still running?";

export const $ = (id) => document.getElementById(id);

export function make(tag, text) {
  const element = document.createElement(tag);
  element.textContent = text;
  return element;
}

export function number(value) {
  const size = Math.abs(value);
  // A small strength must not be rounded to 0.
  const digits = size < 1 ? { maximumSignificantDigits: 2 } : { maximumFractionDigits: size >= 100 ? 0 : size >= 10 ? 1 : 2 };
  return value.toLocaleString("en", digits).replace("-", "−");
}

export function signed(value, digits) {
  const text = digits === undefined ? number(Math.abs(value)) : Math.abs(value).toFixed(digits);
  return (/[1-9]/.test(text) ? (value > 0 ? "+" : "−") : "") + text;
}

// What the server answers. Browsers have their own words, or none, for a server that is gone.
export async function reached(answer) {
  try {
    return await answer;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error(GONE);
  }
}

export function say(text) {
  // A text that is set again would be read out again.
  if ($("status").textContent !== text) $("status").textContent = text;
}

export function fail(text) {
  $("error").textContent = text;
  $("error").hidden = !text;
}
