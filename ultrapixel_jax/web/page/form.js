// What to draw: the fields, remembered by the browser, filled from pictures, and checked by the server.

import * as api from "./api.js";
import { $, h, kept, say, tell } from "./dom.js";
import { makeGuides } from "./guides.js";
import { showPlan } from "./plan.js";

const LABELS = {
  steps: ["Steps", "denoising steps of stage C, in each of its passes"],
  cfg: ["Guidance", "classifier-free guidance weight: how strictly the prompt is followed"],
  sampler: ["Sampler", "how a step is taken; those of dpmpp need fewer"],
  cfg_hr: ["Guidance, large pass", "lower keeps very large pictures closer to the plan"],
  shift: ["Shift", "shift of the noise schedule"],
  eta: ["Eta", "noise that steps add, 0 to 1"],
  schedule: ["Schedule", "of the noise"],
  cfg_rescale: ["Rescale", "share of the guided noise that is rescaled"],
  steps_hr: ["Steps, large pass", "denoising steps of the large pass"],
  sampler_hr: ["Sampler, large pass", "how a step of the large pass is taken"],
  cfg_from: ["Guidance from", "where it begins: 0 is noise, 1 the picture"],
  cfg_until: ["Guidance until", "where it ends: steps without it take half the time"],
  cfg_from_hr: ["Guidance from, large pass", "where it begins: 0 is noise, 1 the picture"],
  cfg_until_hr: ["Guidance until, large pass", "where it ends: steps without it take half the time"],
  reuse: ["Reuse", "the network's inner levels are computed in every so many steps"],
  reuse_hr: ["Reuse, large pass", "the network's inner levels are computed in every so many steps"],
};
const MAIN = ["steps", "cfg", "sampler"];
const NUMBERS = ["width", "height", "num_images", "batch_size"];
const RATIOS = [[1, 1], [4, 3], [3, 2], [16, 9], [2, 1], [3, 4], [2, 3], [9, 16], [1, 2]];
const SIDES = [384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144];
const STEP = 32;

export function makeForm(model) {
  const form = $("form");
  const settings = Object.keys(model.defaults);
  let lastSeed = null;

  // ── Fields ──
  function field(name) {
    const [label, help] = LABELS[name.replace(/_b$/, "")];
    const own = model.defaults[name];
    const choices = model.choices[name.replace(/_(b|hr)$/, "")];
    const input = choices
      ? h("select", {}, h("option", { value: "" }, own ?? "auto"), ...choices.filter((c) => c !== own).map((c) => h("option", { value: c }, c)))
      : h("input", { type: "number", step: "any", inputmode: "decimal", placeholder: own ?? "auto" });
    input.id = input.name = name;
    input.title = help;
    return h("div", { className: "field" }, h("label", { for: name, title: help }, label), input);
  }
  for (const name of settings) {
    const room = name.endsWith("_b") ? "b-settings" : MAIN.includes(name) ? "main-settings" : "more-settings";
    $(room).append(field(name));
  }
  $("detail").hidden = model.preview;
  $("ratio").append(...RATIOS.map(([w, v]) => h("option", { value: `${w}:${v}` }, `${w} : ${v}`)), h("option", { value: "" }, "other"));
  $("area").append(...SIDES.map((side) => h("option", { value: side }, `${side} × ${side}`)), h("option", { value: "" }, "other"));
  $("num_images").max = model.limits.images;
  $("batch_size").max = model.limits.batch;
  for (const name of ["width", "height"]) Object.assign($(name), { min: model.limits.min_side, max: model.limits.max_side });

  // ── Size ──
  const size = () => ({ width: $("width").valueAsNumber, height: $("height").valueAsNumber });
  function byPreset() {
    if (!$("ratio").value || !$("area").value) return;
    const [w, v] = $("ratio").value.split(":").map(Number);
    const side = Number($("area").value);
    const near = (length) => Math.round(length / STEP) * STEP;
    $("width").value = near(side * Math.sqrt(w / v));
    $("height").value = near(side * Math.sqrt(v / w));
    sized();
  }
  function sized() {
    const { width, height } = size();
    const close = (a, b) => Math.abs(a / b - 1) < 0.05;
    const ratio = RATIOS.find(([w, v]) => close((width * v) / (height * w), 1));
    const side = SIDES.find((one) => close(Math.sqrt(width * height), one));
    $("ratio").value = ratio ? ratio.join(":") : "";
    $("area").value = side || "";
    showPlan(height, width);
    remember();
  }
  $("ratio").addEventListener("change", () => {
    if (!$("area").value) $("area").value = model.side;
    byPreset();
  });
  $("area").addEventListener("change", () => {
    if (!$("ratio").value) $("ratio").value = "1:1";
    byPreset();
  });
  for (const name of ["width", "height"]) $(name).addEventListener("input", sized);
  $("turn").addEventListener("click", () => {
    const { width, height } = size();
    $("width").value = height;
    $("height").value = width;
    sized();
  });

  // ── Seed ──
  const random = () => {
    $("seed").disabled = $("random").checked;
    $("seed").placeholder = $("random").checked ? "new" : "0";
  };
  $("random").addEventListener("change", random);
  $("same-seed").addEventListener("click", () => {
    $("random").checked = false;
    $("seed").value = lastSeed;
    random();
    remember();
  });

  const guides = makeGuides(model, (width, height) => {
    $("width").value = width;
    $("height").value = height;
    sized();
  }, () => remember());

  // ── Reading and filling ──
  function read() {
    const asked = { prompt: $("prompt").value, negative_prompt: $("negative_prompt").value };
    const number = (name) => {
      const input = $(name);
      if (input.validity.badInput) throw new Error(`${input.labels[0].textContent.trim()} is not a number`);
      return input.value === "" ? null : Number(input.value);
    };
    for (const name of NUMBERS) asked[name] = number(name);
    asked.batch_size ??= 1;
    asked.seed = $("random").checked ? null : number("seed") ?? 0;
    for (const name of settings) {
      const value = $(name).tagName === "SELECT" ? $(name).value || null : number(name);
      if (value !== null) asked[name] = value;
    }
    return { ...asked, ...guides.read() };
  }
  function fill(asked) {
    for (const name of ["prompt", "negative_prompt", ...NUMBERS]) if (name in asked) $(name).value = asked[name] ?? "";
    for (const name of settings) {
      const value = asked[name];
      $(name).value = value === null || value === undefined || value === model.defaults[name] ? "" : value;
    }
    if ("seed" in asked) {
      $("random").checked = asked.seed === null;
      $("seed").value = asked.seed ?? "";
    }
    random();
    guides.fill(asked);
    sized();
    grow();
  }
  const remember = () => {
    try {
      kept.set("form", read());
    } catch { /* half a number */ }
  };
  form.addEventListener("change", remember);
  $("defaults").addEventListener("click", () => {
    for (const name of settings) $(name).value = "";
    remember();
  });

  // ── Asking ──
  const fault = (text) => say($("fault"), text);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    fault("");
    $("draw").disabled = true;
    try {
      const asked = read();
      remember();
      await api.draw(asked);
      tell("In the queue.");
      if (innerWidth <= 900) $("easel").scrollIntoView({ behavior: "smooth" });
    } catch (error) {
      fault(error.message);
    } finally {
      $("draw").disabled = false;
    }
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  const grow = () => {
    for (const area of form.querySelectorAll("textarea")) {
      area.style.height = "auto";
      area.style.height = `${Math.min(area.scrollHeight + 2, 240)}px`;
    }
  };
  form.addEventListener("input", grow);

  fill({ num_images: 1, batch_size: 1, seed: null, width: model.side, height: model.side, ...kept.get("form") });
  return {
    fill,
    fault,
    guides,
    /** The seed that "use the last" means. */
    drawn(seed) {
      lastSeed = seed;
      $("same-seed").disabled = false;
      $("same-seed").title = `seed ${seed}`;
    },
  };
}
