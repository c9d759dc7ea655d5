// Who waits, and where: one line for each request that is not finished, or failed.

import * as api from "./api.js";
import { $, duration, h, ordinal, say, tell } from "./dom.js";

const lines = new Map();

export function showQueue(jobs, onEasel) {
  const shown = jobs.filter((job) => job.state === "waiting" || job.state === "drawing");
  $("queue").hidden = shown.length === 0 || (shown.length === 1 && shown[0].id === onEasel);
  for (const [id, line] of lines) {
    if (!shown.some((job) => job.id === id)) {
      line.element.remove();
      lines.delete(id);
    }
  }
  for (const job of shown) {
    if (!lines.has(job.id)) {
      lines.set(job.id, makeLine(job));
      $("jobs").append(lines.get(job.id).element);
    }
    lines.get(job.id).update(job);
  }
}

function makeLine(job) {
  const state = h("p", { className: "quiet" });
  const button = cancelButton(job);
  const element = h(
    "li", { "data-job": job.id },
    h("div", {}, h("p", { className: "prompt" }, job.prompt), state),
    h("span", { className: "quiet size" }, `${job.width}×${job.height}${job.count > 1 ? ` · ${job.count} pictures` : ""}`),
    button,
  );
  return {
    element,
    update(now) {
      element.classList.toggle("mine", now.mine);
      say(state, `${now.mine ? "Yours" : "Somebody else's"}: ${whereIs(now)}`);
    },
  };
}

/** In words: at work, or which place it has. */
export function whereIs(job) {
  if (job.state === "drawing") return job.seconds === null ? "being drawn" : `being drawn, about ${duration(job.seconds)} left`;
  const wait = job.wait === null || job.wait === 0 ? "" : `, in about ${duration(job.wait)}`;
  return `${ordinal(job.place + 1)} in the queue${wait}`;
}

export function cancelButton(job) {
  const name = `Cancel: ${job.prompt.slice(0, 60)}`;
  return h("button", { type: "button", className: "plain cancel", "aria-label": name, onclick: () => cancel(job) }, "Cancel");
}

async function cancel(job) {
  if (!job.mine && !confirm("Somebody else asked for this picture. Cancel it all the same?")) return;
  try {
    await api.cancel(job.id);
    tell("Cancelled. The step at work is finished first.");
  } catch (error) {
    tell(error.message);
  }
}
