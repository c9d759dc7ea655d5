// Pictures to draw from, and LoRAs: what steers a picture beside its words.

import * as api from "./api.js";
import { $, h, tell } from "./dom.js";
import { askForMask } from "./mask.js";

const ROLES = {
  image: ["start from it", "how far from it, 0 to 1", 0.6],
  upscale: ["draw it larger", "how far from it, 0 to 1", 0.5],
  inpaint: ["paint into it", "how anew, 0 to 1", 1],
  image_prompt: ["as a prompt", "weight", 1],
  canny: ["follow its edges", "how strictly", 0.7],
  super_resolution: ["follow it, small", "how strictly", 0.7],
  inpainting: ["follow what surrounds", "how strictly", 0.7],
};
const MASKED = ["inpaint", "inpainting"];
const OF_SIZE = ["image", "upscale", "inpaint"];
const LARGER = 2;

/** What the form has of them; `sized(width, height)` is called with the size that a picture asks for. */
export function makeGuides(model, sized, changed) {
  const roles = model.roles.filter((role) => ROLES[role]);
  let guides = [];
  let loras = [];
  $("guides-field").hidden = roles.length === 0;
  $("loras-field").hidden = model.loras.length === 0;

  function guideRow(guide) {
    const role = h("select", { "aria-label": "What the picture is for" }, ...roles.map((one) => h("option", { value: one }, ROLES[one][0])));
    role.value = guide.role;
    const amount = h("input", { type: "number", step: "0.05", min: 0, max: 10 });
    const look = () => {
      amount.value = guide.amount ?? ROLES[guide.role][2];
      amount.title = ROLES[guide.role][1];
      amount.setAttribute("aria-label", ROLES[guide.role][1]);
    };
    look();
    role.addEventListener("change", () => {
      Object.assign(guide, { role: role.value, amount: ROLES[role.value][2] });
      size(guide);
      show();
    });
    amount.addEventListener("change", () => {
      guide.amount = amount.valueAsNumber;
      changed();
    });
    const mask = MASKED.includes(guide.role)
      ? h("button", { type: "button", className: "plain mask", "aria-label": "Paint what is to be drawn anew", onclick: () => masked(guide) }, guide.mask ? "mask ✓" : "mask…")
      : null;
    return h("li", {},
      h("img", { src: address(guide.source), alt: "" }),
      role, amount, mask, remove("the picture", () => { guides = guides.filter((one) => one !== guide); }));
  }

  async function masked(guide) {
    try {
      const found = await askForMask(address(guide.source), guide.strokes ?? []);
      if (found) {
        guide.mask = (await api.send(found.file, model.limits.upload)).source;
        guide.strokes = found.strokes;
      }
    } catch (error) {
      tell(error.message);
    }
    show();
    $("guides").querySelector(".mask")?.focus();
  }

  function loraRow(lora) {
    const scale = h("input", { type: "number", step: "0.05", "aria-label": `Scale of ${lora.name}`, title: "scale" });
    scale.value = lora.scale;
    scale.addEventListener("change", () => {
      lora.scale = scale.valueAsNumber;
      changed();
    });
    const words = (lora.words ?? []).filter(Boolean).map((word) => h(
      "button", { type: "button", className: "link", title: "Put it into the prompt", "aria-label": `Put ${word} into the prompt`, onclick: () => put(word) }, word,
    ));
    return h("li", {},
      h("span", { className: "prompt", title: lora.name }, lora.name), ...words, scale, remove(lora.name, () => { loras = loras.filter((one) => one !== lora); }));
  }

  /** Puts a word into the prompt, where the caret is. */
  function put(word) {
    const prompt = $("prompt");
    const [before, after] = [prompt.value.slice(0, prompt.selectionStart), prompt.value.slice(prompt.selectionEnd)];
    const space = (text, end) => (text && !end.test(text) ? " " : "");
    prompt.setRangeText(space(before, /\s$/) + word + space(after, /^\s/), prompt.selectionStart, prompt.selectionEnd, "end");
    prompt.focus();
    changed();
  }

  /** Asks which new words a LoRA brings; one that cannot be used goes away with the reason. */
  async function addLora(name) {
    const lora = { name, scale: 1 };
    loras.push(lora);
    show();
    await learn(lora);
  }

  async function learn(lora) {
    try {
      lora.words = (await api.words(lora.name)).words;
    } catch (error) {
      loras = loras.filter((one) => one !== lora);
      tell(error.message);
    }
    show();
  }

  const nameless = () => loras.some((lora) => lora.words?.includes(null));

  function remove(what, act) {
    return h("button", { type: "button", className: "link", "aria-label": `Without ${what}`, onclick: () => { act(); show(); } }, "✕");
  }

  function size(guide) {
    if (!OF_SIZE.includes(guide.role) || !guide.width) return;
    const times = guide.role === "upscale" ? LARGER : 1;
    const most = Math.min(times, model.limits.max_side / Math.max(guide.width, guide.height));
    sized(Math.round(guide.width * most), Math.round(guide.height * most));
  }

  function show() {
    $("guides").replaceChildren(...guides.map(guideRow));
    $("loras").replaceChildren(...loras.map(loraRow));
    $("token-field").hidden = !nameless() && !$("token").value;
    changed();
  }

  function add(guide) {
    const role = guide.role ?? roles.find((one) => !(OF_SIZE.includes(one) && guides.some((other) => OF_SIZE.includes(other.role))));
    const own = { amount: ROLES[role][2], ...guide, role };
    if (OF_SIZE.includes(role)) guides = guides.filter((one) => !OF_SIZE.includes(one.role));
    guides.push(own);
    size(own);
    show();
  }

  async function send(file) {
    add(await api.send(file, model.limits.upload));
  }

  $("guide-add").append(fileInput("Add a picture to draw from", send));
  $("lora-add").append(h("option", { value: "" }, "Add one…"), ...model.loras.map((name) => h("option", { value: name }, name)));
  $("lora-add").addEventListener("change", () => {
    const name = $("lora-add").value;
    $("lora-add").value = "";
    if (name) addLora(name);
  });

  return {
    add,
    send: roles.length ? send : null,
    can: (role) => roles.includes(role),
    /** What is sent with the form. */
    read() {
      for (const guide of guides) {
        if (MASKED.includes(guide.role) && !guide.mask) throw new Error("the picture to paint into needs a mask: paint what is to be drawn anew");
      }
      const sent = guides.map(({ role, source, mask, amount }) => ({ role, source, amount, ...(MASKED.includes(role) ? { mask } : {}) }));
      const token = loras.length ? $("token").value.split(/\s+/).filter(Boolean) : [];
      return {
        ...(sent.length ? { guides: sent } : {}),
        ...(loras.length ? { loras: loras.map(({ name, scale }) => ({ name, scale })) } : {}),
        ...(token.length ? { token } : {}),
      };
    },
    fill(asked) {
      guides = (asked.guides || []).filter((guide) => roles.includes(guide.role)).map((guide) => ({ ...guide }));
      loras = (asked.loras || []).filter((lora) => model.loras.includes(lora.name)).map((lora) => ({ ...lora }));
      $("token").value = (asked.token || []).join(" ");
      show();
      loras.forEach(learn);
    },
  };
}

const address = (source) => source.split("/").map(encodeURIComponent).join("/");

function fileInput(label, use) {
  const input = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", className: "hidden", "aria-label": label });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = "";
    try {
      if (file) await use(file);
    } catch (error) {
      tell(error.message);
    }
  });
  return input;
}
