// Pictures to draw from, and LoRAs: what steers a picture beside its words.

import * as api from "./api.js";
import { $, h, tell } from "./dom.js";

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
      ? h("label", { className: "button plain file" }, guide.mask ? "mask ✓" : "mask…", fileInput("Mask: white is painted anew", async (file) => {
        guide.mask = (await api.send(file, model.limits.upload)).source;
        show();
      }))
      : null;
    return h("li", {},
      h("img", { src: guide.source.startsWith("pictures/") ? address(guide.source) : guide.source, alt: "" }),
      role, amount, mask, remove("the picture", () => { guides = guides.filter((one) => one !== guide); }));
  }

  function loraRow(lora) {
    const scale = h("input", { type: "number", step: "0.05", "aria-label": `Scale of ${lora.name}`, title: "scale" });
    scale.value = lora.scale;
    scale.addEventListener("change", () => {
      lora.scale = scale.valueAsNumber;
      changed();
    });
    return h("li", {}, h("span", { className: "prompt" }, lora.name), scale, remove(lora.name, () => { loras = loras.filter((one) => one !== lora); }));
  }

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
    if ($("lora-add").value) loras.push({ name: $("lora-add").value, scale: 1 });
    $("lora-add").value = "";
    show();
  });

  return {
    add,
    send: roles.length ? send : null,
    can: (role) => roles.includes(role),
    /** What is sent with the form. */
    read() {
      for (const guide of guides) {
        if (MASKED.includes(guide.role) && !guide.mask) throw new Error("the picture to paint into needs a mask: white is painted anew");
      }
      const sent = guides.map(({ role, source, mask, amount }) => ({ role, source, amount, ...(MASKED.includes(role) ? { mask } : {}) }));
      return { ...(sent.length ? { guides: sent } : {}), ...(loras.length ? { loras } : {}) };
    },
    fill(asked) {
      guides = (asked.guides || []).filter((guide) => roles.includes(guide.role)).map((guide) => ({ ...guide }));
      loras = (asked.loras || []).filter((lora) => model.loras.includes(lora.name)).map((lora) => ({ ...lora }));
      show();
    },
  };
}

const address = (source) => `pictures/${encodeURIComponent(source.slice("pictures/".length))}`;

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
