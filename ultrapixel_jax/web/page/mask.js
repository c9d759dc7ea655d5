// A mask that is painted over a picture: what is covered is drawn anew.
//
// Strokes are kept, not pixels: a mask can be undone and taken up again, and is as fine as the picture at last.

import { $, h, say } from "./dom.js";

const STEP = 0.02;
const SHADES = { white: "#ffffff", black: "#000000" };

const dialog = $("masking");
const image = dialog.querySelector("img");
const canvas = dialog.querySelector("canvas");
const width = dialog.querySelector("input[type=range]");
const told = dialog.querySelector("[role=status]");
const button = (name) => dialog.querySelector(`[data-do=${name}]`);

let strokes = [];
let stroke = null;
let erasing = false;
let brush = { x: 0.5, y: 0.5, shown: false };
let finish = null;

/** Strokes on `context`, whose picture is `across` × `down` pixels: places are parts of its width. */
function draw(context, across, down, paint, clear) {
  for (const { points, radius, erase, all } of strokes) {
    const use = erase ? clear : paint;
    context.globalCompositeOperation = use.operation;
    context.strokeStyle = context.fillStyle = use.colour;
    if (all) {
      context.fillRect(0, 0, across, down);
      continue;
    }
    context.lineWidth = 2 * radius * across;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    for (const [x, y] of points) context.lineTo(x * across, y * across);
    if (points.length === 1) context.lineTo(points[0][0] * across + 0.01, points[0][1] * across);
    context.stroke();
  }
  context.globalCompositeOperation = "source-over";
}

function show() {
  const box = canvas.getBoundingClientRect();
  const fine = window.devicePixelRatio || 1;
  canvas.width = Math.max(1, Math.round(box.width * fine));
  canvas.height = Math.max(1, Math.round(box.height * fine));
  const context = canvas.getContext("2d");
  draw(context, canvas.width, canvas.height,
    { operation: "source-over", colour: "#ff2d7e" }, { operation: "destination-out", colour: "#000" });
  // Seen through, wherever strokes cross.
  context.globalCompositeOperation = "destination-in";
  context.fillStyle = "rgb(0 0 0 / 60%)";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalCompositeOperation = "source-over";
  if (brush.shown) {
    for (const [colour, line] of [["#fff", 3], ["#000", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = line * fine;
      context.beginPath();
      context.arc(brush.x * canvas.width, brush.y * canvas.width, Math.max(1, radius() * canvas.width), 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

/** The sheet as large as it fits, in the picture's own shape. */
function fit() {
  if (!dialog.open || !image.naturalWidth) return;
  const { clientWidth, clientHeight } = dialog.querySelector(".masked");
  const most = Math.min(clientWidth / image.naturalWidth, clientHeight / image.naturalHeight);
  const sheet = dialog.querySelector(".sheet");
  sheet.style.width = `${image.naturalWidth * most}px`;
  sheet.style.height = `${image.naturalHeight * most}px`;
  show();
}

const radius = () => Number(width.value) / 200;

function begin(x, y) {
  stroke = { points: [[x, y]], radius: radius(), erase: erasing };
  strokes.push(stroke);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  brush = { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.width, shown: true };
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  place(event);
  begin(brush.x, brush.y);
  show();
});
canvas.addEventListener("pointermove", (event) => {
  place(event);
  if (stroke) stroke.points.push([brush.x, brush.y]);
  show();
});
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { stroke = null; });
canvas.addEventListener("pointerleave", () => {
  brush.shown = document.activeElement === canvas && canvas.matches(":focus-visible");
  show();
});
canvas.addEventListener("focus", () => {
  brush.shown = true;
  show();
});

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
canvas.addEventListener("keydown", (event) => {
  if (event.key in MOVES) {
    const [right, down] = MOVES[event.key];
    const most = image.naturalHeight / image.naturalWidth;
    brush = {
      x: Math.min(1, Math.max(0, brush.x + right * STEP)), y: Math.min(most, Math.max(0, brush.y + down * STEP)), shown: true,
    };
    if (stroke) stroke.points.push([brush.x, brush.y]);
    say(told, `${Math.round(brush.x * 100)} % from the left, ${Math.round((brush.y / most) * 100)} % from the top`);
  } else if (event.key === " ") {
    if (!stroke) begin(brush.x, brush.y);
  } else return;
  event.preventDefault();
  show();
});
canvas.addEventListener("keyup", (event) => {
  if (event.key === " ") stroke = null;
});

const acts = {
  erase() {
    erasing = !erasing;
    button("erase").setAttribute("aria-pressed", erasing);
  },
  undo() {
    strokes.pop();
  },
  turn() {
    strokes = [{ all: true, erase: false }, ...strokes.map((one) => ({ ...one, erase: !one.erase }))];
    if (strokes.length > 1 && strokes[1].all && strokes[1].erase) strokes.splice(0, 2); // twice is not at all
  },
  clear() {
    strokes = [];
  },
  close() {
    dialog.close();
  },
  async done() {
    const paint = document.createElement("canvas");
    paint.width = image.naturalWidth;
    paint.height = image.naturalHeight;
    const context = paint.getContext("2d");
    context.fillStyle = SHADES.black;
    context.fillRect(0, 0, paint.width, paint.height);
    draw(context, paint.width, paint.height,
      { operation: "source-over", colour: SHADES.white }, { operation: "source-over", colour: SHADES.black });
    if (!strokes.some((one) => !one.erase)) return say(told, "Nothing is painted yet.");
    const data = await new Promise((resolve) => paint.toBlob(resolve, "image/png"));
    if (!data) return say(told, "This browser cannot make so large a mask; give one from a file.");
    end({ file: new File([data], "mask.png", { type: "image/png" }), strokes });
  },
};

function end(found) {
  const use = finish;
  finish = null;
  if (dialog.open) dialog.close();
  if (use) use(found);
}

for (const name of Object.keys(acts)) {
  button(name).addEventListener("click", async () => {
    await acts[name]();
    if (dialog.open) show();
  });
}
dialog.addEventListener("keydown", async (event) => {
  const act = { e: "erase", z: "undo", i: "turn" }[event.key];
  if (!act || event.altKey || event.target === width) return;
  event.preventDefault();
  acts[act]();
  show();
});
dialog.addEventListener("close", () => end(null));
width.addEventListener("input", show);
addEventListener("resize", fit);
image.addEventListener("load", fit);
const file = h("input", { type: "file", accept: "image/png,image/jpeg,image/webp", className: "hidden", "aria-label": "Mask from a file: white is drawn anew" });
file.addEventListener("change", () => {
  const [chosen] = file.files;
  file.value = "";
  if (chosen) end({ file: chosen, strokes: [] });
});
dialog.querySelector("label.file").append(file);

/** The mask of the picture at `source` as a file, with the strokes that it was painted by (again from `before`); null if it is left as it was. */
export function askForMask(source, before) {
  strokes = [...before];
  stroke = null;
  erasing = false;
  button("erase").setAttribute("aria-pressed", "false");
  brush = { x: 0.5, y: 0.25, shown: false };
  say(told, "");
  dialog.showModal();
  if (image.getAttribute("src") === source) fit();
  else image.src = source;
  canvas.focus({ preventScroll: true });
  return new Promise((resolve) => { finish = resolve; });
}
