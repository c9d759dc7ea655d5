// What is in the output directory, the newest first.

import * as api from "./api.js";
import { $, h, place, say, tell } from "./dom.js";

/** Pictures that are listed, by name, in order. */
export const pictures = new Map();
let total = 0;

export async function loadGallery(actions) {
  try {
    const found = await api.pictures(0);
    const known = [...pictures.values()];
    pictures.clear();
    for (const picture of [...found.pictures, ...known]) {
      if (!pictures.has(picture.name)) pictures.set(picture.name, picture);
    }
    total = found.total;
    if (pictures.size > total) {  // something was removed
      pictures.clear();
      for (const picture of found.pictures) pictures.set(picture.name, picture);
    }
    show(actions);
  } catch (error) {
    tell(error.message);
  }
}

export function makeGallery(actions) {
  $("more").addEventListener("click", async () => {
    try {
      const found = await api.pictures(pictures.size);
      total = found.total;
      for (const picture of found.pictures) pictures.set(picture.name, picture);
      show(actions);
    } catch (error) {
      tell(error.message);
    }
  });
}

const cards = new Map();

function show(actions) {
  say($("count"), total ? `${total} in the output directory` : "None yet.");
  $("more").hidden = pictures.size >= total;
  for (const [key, card] of cards) {
    const [name, version] = JSON.parse(key);
    if (pictures.get(name)?.version !== version) {
      card.remove();
      cards.delete(key);
    }
  }
  let before = null;
  for (const picture of pictures.values()) {
    const key = JSON.stringify([picture.name, picture.version]);
    if (!cards.has(key)) cards.set(key, makeCard(picture, actions));
    const card = cards.get(key);
    const next = before ? before.nextSibling : $("pictures").firstChild;
    if (next !== card) $("pictures").insertBefore(card, next);
    before = card;
  }
}

function makeCard(picture, { open, again }) {
  if (picture.fault) {
    return h("li", { className: "broken" }, h("p", { className: "fault" }, picture.fault));
  }
  const name = picture.prompt || picture.name;
  const image = h("img", {
    src: place.small(picture, 320), alt: "", loading: "lazy", decoding: "async", width: picture.width, height: picture.height,
  });
  image.addEventListener("error", () => image.replaceWith(h("span", { className: "fault" }, "cannot be shown")));
  return h(
    "li", {},
    h("button", { type: "button", className: "look", "aria-label": `Look at: ${name}`, onclick: () => open(picture.name) }, image),
    h("p", { className: "prompt", title: name }, name),
    h("div", { className: "below" },
      h("span", { className: "quiet" }, `${picture.width}×${picture.height}`),
      picture.prompt
        ? h("button", { type: "button", className: "link", "aria-label": `Use these settings again: ${name}`, onclick: () => again(picture.name) }, "use again")
        : null),
  );
}
