// Requests to the server; what it refuses is an Error in its words.

import { kept } from "./dom.js";

/** The word by which this browser knows its own requests. */
export const browser = kept.get("browser") || crypto.getRandomValues(new Uint32Array(4)).join("-");
kept.set("browser", browser);

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer; is it still running?");
  }
  const value = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(value.error || `the server refused (${answer.status})`);
  return value;
}

const json = { "Content-Type": "application/json" };

export const model = () => ask("api/model");
export const plan = (height, width, signal) => ask(`api/plan?height=${height}&width=${width}`, { signal });
export const draw = (asked) =>
  ask(`api/jobs?browser=${browser}`, { method: "POST", headers: json, body: JSON.stringify(asked) });
export const cancel = (id) => ask(`api/jobs/${id}`, { method: "DELETE" });
export const words = (lora) => ask(`api/loras/${encodeURIComponent(lora)}`);
export const pictures = (start) => ask(`api/pictures?start=${start}`);
export const settings = (name) => ask(`api/pictures/${encodeURIComponent(name)}`);

/** A picture to draw from. */
export function send(file, most) {
  if (!["image/png", "image/jpeg", "image/webp"].includes(file.type)) {
    throw new Error(`${file.name} is no PNG, JPEG or WebP picture`);
  }
  check(file, most);
  return ask("api/sent", { method: "POST", headers: { "Content-Type": file.type }, body: file });
}

function check(file, most) {
  if (file.size > most) {
    throw new Error(`${file.name} has ${Math.round(file.size / 1e6)} MB; at most ${Math.round(most / 1e6)} MB are taken`);
  }
}

/** Settings of a file from elsewhere. */
export function settingsOf(file, most) {
  if (file.type !== "image/png") throw new Error(`${file.name} is no PNG; pictures of this program are`);
  check(file, most);
  const path = `api/settings?name=${encodeURIComponent(file.name)}`;
  return ask(path, { method: "POST", headers: { "Content-Type": "image/png" }, body: file });
}
