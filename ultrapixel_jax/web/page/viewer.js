// A picture down to its pixels, by OpenSeadragon, and a second one at the same place.

import * as api from "./api.js";
import { describe } from "./details.js";
import { $, h, place, say, tell } from "./dom.js";
import { pictures } from "./gallery.js";

const dialog = $("viewer");
const panes = { a: null, b: null };
let leader = "a";
let name = null;
let actions;

export function makeViewer(given) {
  // OpenSeadragon adds a style of its own, which the rules for content forbid, unless it finds one: this is of
  // no namespace, and so none for the browser. viewer.css says the same.
  const done = document.createElementNS("", "style");
  done.setAttribute("data-openseadragon-mobile-css", "");
  document.head.append(done);
  actions = given;
  dialog.querySelector(".tools").addEventListener("click", (event) => act(event.target.dataset.do));
  dialog.addEventListener("close", () => {
    for (const side of ["a", "b"]) shut(side);
    document.body.classList.remove("viewing");
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const what = { 0: "fit", 1: "one", "+": "in", "=": "in", "-": "out", PageDown: "older", PageUp: "newer", c: "compare", s: "settings" }[event.key];
    if (what) {
      event.preventDefault();
      event.stopPropagation();
      act(what);
    }
  }, true);
}

export function openViewer(which) {
  name = which;
  if (!dialog.open) dialog.showModal();
  document.body.classList.add("viewing");
  show("a", which);
  if (panes.b) show("b", panes.b.name);
  $("pane-a").querySelector(".openseadragon-canvas")?.focus();
}

/** OpenSeadragon's viewer of a pane. */
export const viewerOf = (side) => panes[side]?.viewer;

const pane = (side) => $(`pane-${side}`).parentElement;

function show(side, which) {
  const picture = pictures.get(which);
  if (!picture) return tell(`${which} is not in the list any more`);
  shut(side);
  pane(side).hidden = false;
  const viewer = OpenSeadragon({
    element: $(`pane-${side}`),
    tileSources: place.tiles(picture),
    drawer: "canvas",
    showNavigationControl: false,
    maxZoomPixelRatio: 64,
    minZoomImageRatio: 0.7,
    visibilityRatio: 0.3,
    zoomPerClick: 1,
    zoomPerScroll: 1.3,
    gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
    animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
    tabIndex: 0,
    placeholderFillStyle: null,
  });
  panes[side] = { viewer, name: which, picture, pointer: null };
  viewer.addHandler("open", () => {
    if (side === "b") follow("b", panes.a?.viewer);
    viewer.canvas.setAttribute("aria-label", `${picture.prompt || which}. Arrow keys move, plus and minus zoom, 0 fits, 1 shows single pixels`);
    viewer.canvas.setAttribute("role", "application");
    if (side === "a") viewer.canvas.focus();
  });
  viewer.addHandler("open-failed", () => tell(`${which} cannot be shown`));
  viewer.addHandler("viewport-change", () => moved(side));
  viewer.addHandler("update-viewport", () => read(side));
  for (const event of ["canvas-press", "canvas-scroll", "canvas-key", "canvas-double-click", "canvas-pinch"]) {
    viewer.addHandler(event, () => { leader = side; });
  }
  const element = $(`pane-${side}`);
  element.onpointermove = (event) => {
    const box = element.getBoundingClientRect();
    if (panes[side]) panes[side].pointer = new OpenSeadragon.Point(event.clientX - box.left, event.clientY - box.top);
    read(side);
  };
  element.onpointerleave = () => {
    if (panes[side]) panes[side].pointer = null;
    read(side);
  };
  title();
  if (side === "a") details();
}

function shut(side) {
  panes[side]?.viewer.destroy();
  panes[side] = null;
  pane(side).hidden = side === "b";
}

function title() {
  say($("viewer-title"), [panes.a, panes.b].filter(Boolean).map((one) => one.picture.prompt || one.name).join(" | "));
}

// ── Moving ──

let following = false;

/** Smooth below 1:1, square pixels above; the other pane goes to the same place. */
function moved(side) {
  const { viewer } = panes[side] || {};
  if (!viewer?.world.getItemCount()) return;
  const ratio = viewer.world.getItemAt(0).viewportToImageZoom(viewer.viewport.getZoom(true));
  viewer.drawer.setImageSmoothingEnabled(ratio < 1);
  if (following || side !== leader) return;
  const other = side === "a" ? "b" : "a";
  if (panes[other]) follow(other, viewer);
}

function follow(side, to) {
  const { viewer } = panes[side] || {};
  if (!to || !viewer?.world.getItemCount() || !to.world.getItemCount()) return;
  following = true;
  viewer.viewport.zoomTo(to.viewport.getZoom(true), null, true);
  viewer.viewport.panTo(to.viewport.getCenter(true), true);
  following = false;
  moved(side);
}

/** Which pixel is under the pointer, or in the middle, and its colour as it is on the screen. */
function read(side) {
  const { viewer, picture, pointer } = panes[side] || {};
  if (!viewer?.world.getItemCount()) return;
  const at = pointer || viewer.viewport.pixelFromPoint(viewer.viewport.getCenter(true), true);
  const item = viewer.world.getItemAt(0);
  const pixel = item.viewportToImageCoordinates(viewer.viewport.pointFromPixel(at, true));
  const [x, y] = [Math.floor(pixel.x), Math.floor(pixel.y)];
  const ratio = item.viewportToImageZoom(viewer.viewport.getZoom(true));
  const zoom = ratio < 1 ? `1:${(1 / ratio).toFixed(1)}` : `${ratio.toFixed(ratio < 10 ? 1 : 0)}:1`;
  let colour = "";
  if (x >= 0 && y >= 0 && x < picture.width && y < picture.height) {
    if (ratio >= 1) colour = ` · ${hex(viewer.drawer.canvas, at)}`;
    say($(`readout-${side}`), `${x}, ${y}${colour} · ${zoom}`);
  } else say($(`readout-${side}`), zoom);
}

function hex(canvas, at) {
  const density = canvas.width / canvas.clientWidth;
  const [red, green, blue] = canvas.getContext("2d").getImageData(Math.floor(at.x * density), Math.floor(at.y * density), 1, 1).data;
  return `#${[red, green, blue].map((value) => value.toString(16).padStart(2, "0")).join("")}`;
}

// ── Buttons ──

function act(what) {
  const { viewer } = panes[leader] || panes.a || {};
  if (!what || !viewer) return;
  const { viewport, world } = viewer;
  const move = {
    in: () => viewport.zoomBy(1.5),
    out: () => viewport.zoomBy(1 / 1.5),
    fit: () => viewport.goHome(),
    one: () => viewport.zoomTo(world.getItemAt(0).imageToViewportZoom(1)),
  }[what];
  if (move) {
    if (!world.getItemCount()) return;
    move();
    viewport.applyConstraints();
  }
  if (what === "close") dialog.close();
  if (what === "older" || what === "newer") step(what === "older" ? 1 : -1);
  if (what === "compare") compare(!panes.b && $("strip").hidden);
  if (what === "settings") {
    $("details").hidden = !$("details").hidden;
    pressed("settings", !$("details").hidden);
    details();
  }
}

function pressed(what, value) {
  dialog.querySelector(`[data-do=${what}]`).setAttribute("aria-pressed", value);
}

function step(by) {
  const names = [...pictures.values()].filter((picture) => !picture.fault).map((picture) => picture.name);
  const next = names[names.indexOf(name) + by];
  if (next) openViewer(next);
  else tell(by > 0 ? "That is the oldest in the list." : "That is the newest.");
}

function compare(on) {
  pressed("compare", on);
  $("strip").hidden = !on;
  if (!on) {
    shut("b");
    leader = "a";
    return title();
  }
  const list = $("strip").firstElementChild;
  list.replaceChildren(...[...pictures.values()].filter((picture) => !picture.fault).map((picture) => h(
    "li", {},
    h("button", { type: "button", "aria-label": `Compare with ${picture.prompt || picture.name}`, onclick: () => show("b", picture.name) },
      h("img", { src: place.small(picture, 320), alt: "", loading: "lazy" })),
  )));
}

function fill(asked) {
  dialog.close();
  actions.fill(asked);
}

/** Buttons that draw from the picture `which`; `asked` are its settings, if it has some. */
function fromIt(which, asked) {
  const { width, height } = pictures.get(which);
  return [["image", "Start from it"], ["upscale", "Draw it larger"]].filter(([role]) => actions.guides.can(role)).map(([role, label]) => h(
    "button", { type: "button", className: "plain", onclick: () => {
      if (asked) fill(asked);
      else dialog.close();
      actions.guides.add({ role, source: `pictures/${which}`, width, height });
    } }, label,
  ));
}

async function details() {
  if ($("details").hidden) return;
  const which = name;
  try {
    const found = await api.settings(which);
    if (which === name) $("details").replaceChildren(...describe(pictures.get(which), found, { fill, from: (asked) => fromIt(which, asked) }));
  } catch (error) {
    if (which === name) $("details").replaceChildren(h("p", { className: "fault" }, error.message), h("div", { className: "actions" }, ...fromIt(which, null)));
  }
}
