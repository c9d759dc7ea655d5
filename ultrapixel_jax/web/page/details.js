// How a picture was made, in a table.

import { h, place } from "./dom.js";

const SHOWN = [
  ["Prompt", (a) => a.prompt],
  ["Negative prompt", (a) => a.negative_prompt],
  ["Size", (a) => `${a.width}×${a.height}`],
  ["Seed", (a) => a.seed],
  ["Steps", (a) => a.steps],
  ["Guidance", (a) => (a.cfg_hr === null ? a.cfg : `${a.cfg}, large pass ${a.cfg_hr}`)],
  ["Sampler", (a) => a.sampler],
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
