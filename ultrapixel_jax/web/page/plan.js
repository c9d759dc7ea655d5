// The shapes of the picture that is about to be asked for: its plan, and itself.

import * as api from "./api.js";
import { $, say } from "./dom.js";

let timer;
let asking = new AbortController();

export function showPlan(height, width) {
  clearTimeout(timer);
  timer = setTimeout(async () => {
    asking.abort();
    asking = new AbortController();
    const { signal } = asking;
    if (!Number.isInteger(height) || !Number.isInteger(width)) {
      return say($("plan"), "width and height are whole numbers");
    }
    try {
      const found = await api.plan(height, width, signal);
      $("plan").classList.remove("fault");
      say($("plan"), words(found, height, width));
      shape(found, height, width);
    } catch (error) {
      if (signal.aborted) return;
      $("plan").classList.add("fault");
      say($("plan"), error.message);
      $("shape").replaceChildren();
    }
  }, 150);
}

function words({ lr, hr, guided, doubt }, height, width) {
  const millions = ((height * width) / 1e6).toFixed(1);
  const large = `${millions} million pixels, latent ${hr[1]}×${hr[0]}`;
  const planned = `Planned as latent ${lr[1]}×${lr[0]}, drawn as ${hr[1]}×${hr[0]}: ${millions} million pixels`;
  const said = guided ? planned : large;
  return doubt ? `${said}. ${doubt[0].toUpperCase()}${doubt.slice(1)}.` : said;
}

/** Both latents to one scale, the plan inside the picture. */
function shape({ lr, hr, guided }, height, width) {
  const most = Math.max(...hr, ...lr);
  const rectangle = ([rows, columns], name) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    const [w, v] = [(96 * columns) / most, (96 * rows) / most];
    for (const [key, value] of Object.entries({ x: 2, y: 98 - v, width: w, height: v, class: name })) {
      element.setAttribute(key, value);
    }
    return element;
  };
  $("shape").replaceChildren(rectangle(hr, "large"), ...(guided ? [rectangle(lr, "low")] : []));
}
