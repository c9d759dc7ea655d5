// Elements, and words for numbers.

export const $ = (id) => document.getElementById(id);

/** An element with attributes, properties and listeners (`onclick`), and children. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (typeof value === "boolean" || name in { value: 1, textContent: 1, className: 1 }) element[name] = value;
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Set a text only where it changes, so that screen readers are told once. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** A short message at the edge of the page. */
let quiet;
export function tell(text) {
  say($("said"), text);
  clearTimeout(quiet);
  quiet = setTimeout(() => say($("said"), ""), 8000);
}

/** Seconds, roughly, as a person says them. */
export function duration(seconds) {
  if (seconds < 1) return "a moment";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function ordinal(number) {
  const last = number % 100;
  const end = last > 10 && last < 14 ? "th" : { 1: "st", 2: "nd", 3: "rd" }[number % 10] || "th";
  return `${number}${end}`;
}

/** Where a picture of the gallery lies: `small` ones by side, and as tiles. */
export const place = {
  small: (picture, side) => `small/${side}/${picture.version}/${encodeURIComponent(picture.name)}`,
  file: (name) => `pictures/${encodeURIComponent(name)}`,
  tiles: (picture) => `tiles/${picture.version}/${encodeURIComponent(picture.name)}.dzi`,
};

/** What is kept in this browser; nothing where it keeps nothing. */
export const kept = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(key));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(key, JSON.stringify(value));
    } catch { /* private windows */ }
  },
};
