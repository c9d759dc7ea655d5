// The page: form, easel, queue, gallery and viewer, and what goes between them.

import * as api from "./api.js";
import { $, say, tell } from "./dom.js";
import { makeDrop } from "./drop.js";
import { chosen, showEasel } from "./easel.js";
import { follow } from "./events.js";
import { makeForm } from "./form.js";
import { loadGallery, makeGallery, pictures } from "./gallery.js";
import { showQueue } from "./queue.js";
import { makeTheme } from "./theme.js";
import { makeViewer, openViewer } from "./viewer.js";

makeTheme();

async function start() {
  const model = await api.model();
  const mesh = Object.entries(model.mesh).map(([axis, count]) => `${axis} ${count}`).join(" · ");
  say($("model"), [model.name, model.dtype, mesh].filter(Boolean).join(" · "));
  if (model.name === "the demo") $("prompt").placeholder = "a red circle above a striped blue square";
  const form = makeForm(model);

  function fill(asked) {
    form.fill(asked);
    form.fault("");
    $("prompt").focus();
    scrollTo({ top: 0 });
  }
  async function again(name) {
    try {
      const { asked, missing } = await api.settings(name);
      fill(asked);
      tell(missing.length ? `The settings of ${name}, without ${missing.join(" and ")}: not here.` : `The settings of ${name}.`);
    } catch (error) {
      tell(error.message);
    }
  }
  const actions = { open: openViewer, again, fill, guides: form.guides };
  makeGallery(actions);
  makeViewer(actions);
  makeDrop(model.limits.upload, fill);
  await loadGallery(actions);

  let sought = "";
  let current;
  const show = () => showEasel(current, pictures, openViewer);
  follow(async ({ jobs }) => {
    current = chosen(jobs);
    showQueue(jobs, current?.id);
    show();
    const mine = jobs.filter((job) => job.mine && job.state !== "waiting");
    const last = mine.reduce((a, b) => (a && a.asked_at > b.asked_at ? a : b), null);
    if (last) form.drawn(last.seed);
    const busy = jobs.find((job) => job.mine && job.state === "drawing");
    document.title = busy?.seconds ? `${Math.round(busy.seconds)} s · UltraPixel` : busy ? "Drawing · UltraPixel" : "UltraPixel";
    const missing = jobs.flatMap((job) => job.pictures).filter((name) => !pictures.has(name)).join("\n");
    if (missing && missing !== sought) {
      sought = missing;
      await loadGallery(actions);
      show();
    }
  });
}

start().catch((error) => tell(error.message));
