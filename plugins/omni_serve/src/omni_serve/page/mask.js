// Painting a mask: what is painted is made anew, the rest is kept.

import { el, iconButton } from "./dom.js";

const LEAST_SHOWN = 320;
const WHOLE = "whole.png";
const COLOUR = "rgb(255 110 64)";

/**
 * Let the person paint on a picture.
 *
 * @returns A promise of a PNG that is transparent where the picture is to change, as OpenAI's API has it; null for no
 *   mask, undefined if nothing was changed.
 */
export async function paintMask(picture, before) {
  const bitmap = await createImageBitmap(picture);
  const { width, height } = bitmap;
  const canvas = el("canvas", { class: "mask-canvas", width, height, tabindex: "0", role: "img",
    "aria-label": "The mask. Arrow keys move the brush, Space paints, Backspace clears.", "aria-describedby": "mask-says" });
  const back = el("canvas", { class: "mask-back", width, height, "aria-hidden": "true" });
  back.getContext("2d").drawImage(bitmap, 0, 0);
  const cursor = el("span", { class: "mask-cursor", "aria-hidden": "true" });
  const brush = new Brush(canvas, cursor);
  if (before) await brush.load(before);

  const sizeInput = el("input", { type: "range", id: "brush-size", min: 1, max: Math.max(8, Math.round(width / 3)), value: brush.size });
  const setSize = () => {
    brush.size = Number(sizeInput.value);
    sizeInput.style.setProperty("--filled", `${(100 * (sizeInput.value - 1)) / (sizeInput.max - 1)}%`);
  };
  sizeInput.addEventListener("input", setSize);
  setSize();
  const eraser = el("button", { type: "button", class: "quiet", "aria-pressed": "false", text: "Erase" });
  eraser.addEventListener("click", () => {
    brush.erases = !brush.erases;
    eraser.setAttribute("aria-pressed", String(brush.erases));
  });
  const button = (text, run) => el("button", { type: "button", class: "quiet", text, on: { click: run } });
  const dialog = el("dialog", { class: "painter", "aria-labelledby": "mask-title" },
    el("div", { class: "dialog-head" }, el("h2", { id: "mask-title", text: "Paint what should change" }),
      iconButton("close", "Close without changes", () => dialog.close())),
    el("p", { class: "hint", id: "mask-says", text: "What you paint is made anew; the rest is kept. With the keyboard: arrows move, Space paints." }),
    el("div", { class: width < 128 ? "mask-stage tiny" : "mask-stage" }, back, canvas, cursor),
    el("div", { class: "row" }, el("label", { for: "brush-size", text: "Brush" }), sizeInput, eraser,
      button("Everything", () => brush.fill()), button("Invert", () => brush.invert()), button("Clear", () => brush.clear())),
    el("div", { class: "row end" },
      button("No mask", () => dialog.close("none")),
      el("button", { type: "button", class: "primary", text: "Use this mask", on: { click: () => dialog.close("use") } })));
  const shown = Math.max(LEAST_SHOWN, width);
  dialog.style.setProperty("--mask-width", `${shown}px`);
  dialog.style.setProperty("--mask-ratio", `${width / height}`);
  document.body.append(dialog);
  dialog.showModal();
  canvas.focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", async () => {
      const choice = dialog.returnValue;
      const mask = choice === "use" && !brush.isEmpty ? await brush.toMask() : null;
      dialog.remove();
      bitmap.close();
      resolve(choice === "" ? undefined : mask);
    }, { once: true });
  });
}

/** Return a mask of all of a picture, for pipelines that want one; `isWhole` tells it from those that were painted. */
export async function wholeMask({ width, height }) {
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d");  // nothing can be made of a canvas that has none
  return new File([await canvas.convertToBlob({ type: "image/png" })], WHOLE, { type: "image/png" });
}

export const isWhole = (mask) => mask?.name === WHOLE;

/** Paints on a canvas with the pointer or the keys. */
class Brush {
  /** @param cursor Shows where the keys have moved the brush. */
  constructor(canvas, cursor) {
    this._cursor = cursor;
    this.size = Math.max(3, Math.round(canvas.width / 8));
    this.erases = false;
    this._canvas = canvas;
    this._context = canvas.getContext("2d", { willReadFrequently: true });
    this._at = { x: canvas.width / 2, y: canvas.height / 2 };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this._at = this._place(event);
      this._stroke(this._at);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!canvas.hasPointerCapture(event.pointerId)) return;
      for (const point of event.getCoalescedEvents?.() ?? [event]) this._stroke(this._place(point));
    });
    canvas.addEventListener("keydown", (event) => this._key(event));
  }

  get isEmpty() {
    return !this._pixels().data.some((value, index) => index % 4 === 3 && value > 0);
  }

  fill() {
    this._context.globalCompositeOperation = "source-over";
    this._context.fillStyle = COLOUR;
    this._context.fillRect(0, 0, this._canvas.width, this._canvas.height);
  }

  clear() {
    this._context.clearRect(0, 0, this._canvas.width, this._canvas.height);
  }

  /** Swap what is painted and what is not. */
  invert() {
    this._context.globalCompositeOperation = "xor";
    this._context.fillStyle = COLOUR;
    this._context.fillRect(0, 0, this._canvas.width, this._canvas.height);
  }

  /** Show a mask that was made before. */
  async load(mask) {
    const bitmap = await createImageBitmap(mask);
    this._context.drawImage(bitmap, 0, 0, this._canvas.width, this._canvas.height);
    bitmap.close();
    this.invert();
    this._tint();
  }

  toMask() {
    const pixels = this._pixels();
    // Half painted is painted: masks have no shades.
    for (let at = 3; at < pixels.data.length; at += 4) {
      const isPainted = pixels.data[at] > 127;
      pixels.data.set([0, 0, 0, isPainted ? 0 : 255], at - 3);
    }
    const canvas = new OffscreenCanvas(pixels.width, pixels.height);
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  _tint() {
    this._context.globalCompositeOperation = "source-in";
    this._context.fillStyle = COLOUR;
    this._context.fillRect(0, 0, this._canvas.width, this._canvas.height);
  }

  _pixels() {
    return this._context.getImageData(0, 0, this._canvas.width, this._canvas.height);
  }

  _place(event) {
    const box = this._canvas.getBoundingClientRect();
    return { x: ((event.clientX - box.left) * this._canvas.width) / box.width, y: ((event.clientY - box.top) * this._canvas.height) / box.height };
  }

  _stroke(to) {
    const context = this._context;
    context.globalCompositeOperation = this.erases ? "destination-out" : "source-over";
    context.strokeStyle = COLOUR;
    context.lineWidth = this.size;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(this._at.x, this._at.y);
    context.lineTo(to.x, to.y + 0.01);  // a line of no length paints nothing
    context.stroke();
    this._at = to;
  }

  _key(event) {
    const step = Math.max(1, this.size / 2);
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    if (event.key in moves) {
      const [x, y] = moves[event.key];
      this._at = { x: clamp(this._at.x + x, this._canvas.width), y: clamp(this._at.y + y, this._canvas.height) };
      this._cursor.style.left = `${(100 * this._at.x) / this._canvas.width}%`;
      this._cursor.style.top = `${(100 * this._at.y) / this._canvas.height}%`;
    } else if (event.key === " ") {
      this._stroke(this._at);
    } else if (event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
  }
}

const clamp = (value, most) => Math.min(most, Math.max(0, value));
