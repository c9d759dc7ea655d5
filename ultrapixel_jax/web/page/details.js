// How a picture was made, in a table.

import { h, place } from "./dom.js";

const both = (plan, large) => (large === null ? plan : `${plan}, large pass ${large}`);
const SHOWN = [
  ["Prompt", (a) => a.prompt],
  ["Negative prompt", (a) => a.negative_prompt],
  ["Size", (a) => `${a.width}×${a.height}`],
  ["Seed", (a) => a.seed],
  ["Steps", (a) => both(a.steps, a.steps_hr)],
  ["Guidance", (a) => both(a.cfg, a.cfg_hr)],
  ["Sampler", (a) => both(a.sampler, a.sampler_hr)],
  ["Schedule", (a) => `${a.schedule}, shift ${a.shift}`],
  ["Stage B", (a, m) => (m.preview ? "none: the previewer drew" : `${a.steps_b} steps, guidance ${a.cfg_b}, ${a.sampler_b}`)],
  ["Checkpoint", (a, m) => m.checkpoint],
  ["Computed in", (a, m) => m.dtype],
  ["Version", (a, m) => m.versions?.ultrapixel_jax],
];

/** Elements that describe `picture`; `use` is called with what to fill the form with, and with a picture and
 * its role to draw from it. */
export function describe(picture, { asked, made }, { fill, from }) {
  const rows = SHOWN.map(([label, value]) => [label, value(asked, made)]).filter(([, value]) => value !== "" && value !== undefined && value !== null);
  return [
    h("dl", {}, ...rows.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, String(value))))),
    h("div", { className: "actions" },
      h("button", { type: "button", className: "main", onclick: () => fill(asked) }, "Use these again"),
      h("button", { type: "button", className: "plain", onclick: () => fill({ ...asked, seed: null }) }, "With another seed"),
      ...from(asked),
      picture ? h("a", { className: "button plain", href: place.file(picture.name), download: picture.name }, "Save the file") : null),
  ];
}
