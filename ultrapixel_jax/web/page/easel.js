// The picture at work: its plan, then its large preview, then itself; how far each stage is, and how long still.

import { $, duration, h, place, say } from "./dom.js";
import { cancelButton, whereIs } from "./queue.js";

const STAGES = { "C low": "Plan", "C high": "Large", B: "Detail", A: "Pixels" };
const WORDS = {
  "C low": "Planning at low resolution",
  "C high": "Drawing at full resolution",
  B: "Adding detail",
  A: "Decoding to pixels",
};

let shown = null;

/** The request that this browser wants to see: its own at work, waiting, or finished; else somebody's. */
export function chosen(jobs) {
  const of = (mine, ...states) => jobs.find((job) => job.mine === mine && states.includes(job.state));
  return of(true, "drawing") || of(true, "waiting") || of(true, "done", "failed", "cancelled") || of(false, "drawing");
}

export function showEasel(job, gallery, open) {
  if (!job) {
    $("easel-body").replaceChildren(h("p", { className: "empty" }, "Nothing is drawn yet. Say what to draw, and press Draw."));
    shown = null;
    return;
  }
  if (shown?.id !== job.id) {
    shown = makeEasel(job, open);
    $("easel-body").replaceChildren(shown.element);
  }
  shown.update(job, gallery);
}

function makeEasel(first, open) {
  const bars = Object.entries(first.stages).map(([name, steps]) => {
    const bar = h("progress", { max: steps, "aria-label": WORDS[name] });
    const left = h("span", { className: "quiet" });
    return { name, bar, left, element: h("li", {}, h("span", {}, STAGES[name]), bar, left) };
  });
  const status = h("p", { className: "status", role: "status" });
  const time = h("p", { className: "time" });
  const easel = h("div", { className: "frame" });
  const fault = h("p", { className: "fault" });
  const notes = h("ul", { className: "notes" });
  const cancel = cancelButton(first);
  const stages = h("ol", { className: "stages" }, ...bars.map((bar) => bar.element));
  const seed = first.count > 1 ? `seeds ${first.seed} to ${first.seed + first.count - 1}` : `seed ${first.seed}`;
  const words = h("p", { className: "caption" }, h("span", { className: "prompt" }, first.prompt), " ", h("span", { className: "quiet" }, `${first.width}×${first.height}, ${seed}`));
  const images = new Map();
  let look = "";
  let last;

  /** Of each preview there is one image: it shows the one before until the new one has come. */
  function preview(job, kind, n) {
    const key = `${kind} ${n}`;
    if (!images.has(key)) {
      const words = kind === "plan" ? "The plan so far" : "The picture so far";
      images.set(key, h("img", { alt: words, className: kind, width: job.width, height: job.height }));
    }
    const source = `api/jobs/${job.id}/${kind}/${n}?v=${job.previewed}`;
    if (images.get(key).getAttribute("src") !== source) images.get(key).src = source;
    return images.get(key);
  }

  function frame(job, gallery) {
    const now = job.pictures.length && !["drawing", "waiting"].includes(job.state)
      ? job.pictures.join() + job.pictures.every((name) => gallery.has(name))
      : `${job.previewed}:${job.pictures.length}`;
    if (now === look) return;
    look = now;
    const large = job.previews.large ? "large" : job.previews.plan ? "plan" : null;
    const finished = job.pictures.filter((name) => gallery.has(name)).map((name) => finishedPicture(gallery.get(name), job, open));
    const over = !["drawing", "waiting"].includes(job.state);
    let previews = over || !large ? [] : [...Array(job.previews[large]).keys()].map((n) => preview(job, large, n));
    if (previews.some((image) => !image.naturalWidth)) {  // the first of its kind: what is there stays meanwhile
      look = "";
      Promise.all(previews.map((image) => image.decode())).then(() => frame(...last), () => {});
      if (easel.childElementCount) return;
      previews = [];
    }
    const plans = large === "large" && job.previews.plan && !over
      ? h("div", { className: "inset", title: "The plan" }, ...[...Array(job.previews.plan).keys()].map((n) => preview(job, "plan", n)))
      : null;
    const main = [...previews, ...finished];
    easel.classList.toggle("several", main.length > 1);
    easel.replaceChildren(...main, ...(plans ? [plans] : []));
  }

  return {
    id: first.id,
    element: h("div", { className: "at-work" }, easel, h("div", { className: "beside" }, words, status, time, stages, fault, notes, cancel)),
    update(job, gallery) {
      const over = !["drawing", "waiting"].includes(job.state);
      last = [job, gallery];
      frame(job, gallery);
      say(status, statusOf(job));
      say(time, job.state === "drawing" && job.seconds !== null ? `About ${duration(job.seconds)} left` : "");
      let reached = job.state === "done";
      stages.hidden = job.state === "failed" || job.state === "cancelled";
      for (const { name, bar, left } of [...bars].reverse()) {
        const at = name === job.stage;
        const waiting = at && job.step === 0 && job.state === "drawing";
        if (waiting) bar.removeAttribute("value");
        else bar.value = at ? job.step : reached ? bar.max : 0;
        say(left, at && !over ? `${job.step} of ${bar.max}${job.stage_seconds ? `, ${duration(job.stage_seconds)}` : ""}` : "");
        reached ||= at;
      }
      say(fault, job.error);
      if (notes.childElementCount !== job.notes.length) notes.replaceChildren(...job.notes.map((note) => h("li", {}, note)));
      cancel.hidden = over;
    },
  };
}

function statusOf(job) {
  const of = job.batches > 1 ? ` (batch ${Math.min(job.batch, job.batches)} of ${job.batches})` : "";
  switch (job.state) {
    case "waiting": return `Waiting: ${whereIs(job)}`;
    case "done": return `Finished in ${duration(job.took)}`;
    case "cancelled": return "Cancelled";
    case "failed": return "Failed";
    default:
      if (!job.stage) return `Reading the prompt${of}`;
      return job.step === 0 && job.stage !== "A"
        ? `${WORDS[job.stage]}${of}. A size that is new is compiled first`
        : `${WORDS[job.stage]}${of}`;
  }
}

function finishedPicture(picture, job, open) {
  const image = h("img", { src: place.small(picture, 1280), alt: job.prompt, width: picture.width, height: picture.height });
  return h("button", { type: "button", className: "finished", title: "Look at its pixels", "aria-label": `Look at ${picture.name}`, onclick: () => open(picture.name) }, image);
}
