// A picture that is sent along: chosen, dropped or pasted; with a mask that can be painted on it.

import { announce, el, icon, iconButton } from "./dom.js";
import { isWhole, paintMask, wholeMask } from "./mask.js";
import { size } from "./words.js";

const TYPES = "image/png,image/jpeg,image/webp";

export class PictureControl {
  constructor(field, { mask = null, onChange = () => {} } = {}) {
    this.field = field;
    this.blob = null;
    this.mask = null;
    this.dimensions = null;
    this._takesMask = mask !== null;
    this._onChange = onChange;
    const id = `f-${field.name}`;
    this.input = el("input", { type: "file", id, accept: TYPES, class: "unseen", "aria-describedby": `${id}-problem`,
      on: { change: () => this._choose(this.input.files[0]) } });
    this._problem = el("p", { class: "problem", id: `${id}-problem`, hidden: true });
    this._drop = el("label", { for: id, class: "drop" }, icon("picture"),
      el("span", {}, el("span", { class: "drop-name", text: field.label }), el("span", { class: "hint", text: "Choose, drop or paste one" })));
    this._shown = el("div", { class: "chosen", hidden: true });
    this.element = el("div", { class: "field field-picture", "data-field": field.name }, this.input, this._drop, this._shown, this._problem);
    this._acceptDrops();
  }

  get isEmpty() {
    return this.blob === null;
  }

  get inputs() {
    const mask = this.mask ?? this._whole;
    return { [this.field.name]: this.blob, ...(mask ? { mask } : {}) };
  }

  /** Take a picture, or none; returns once it is shown. */
  async write(blob, mask = null) {
    this.complain(null);
    this.input.value = "";
    this.mask = isWhole(mask) ? null : mask;
    this.blob = blob;
    this.dimensions = null;
    this._whole = null;
    if (blob) {
      try {
        const bitmap = await createImageBitmap(blob);
        this.dimensions = { width: bitmap.width, height: bitmap.height };
        bitmap.close();
        if (this._takesMask) this._whole = await wholeMask(this.dimensions);
      } catch {
        this.blob = null;
        this.complain("This is not a picture that the browser can read. PNG, JPEG and WebP work.");
      }
    }
    this._draw();
    this._onChange();
  }

  complain(message) {
    this._problem.hidden = message === null;
    this._problem.textContent = message ?? "";
    if (message === null) this.input.removeAttribute("aria-invalid");
    else this.input.setAttribute("aria-invalid", "true");
  }

  async _choose(file) {
    if (!file) return;
    await this.write(file);
    if (this.blob) announce(`${this.field.label}: chosen, ${size(this.dimensions)} pixels.`);
  }

  _draw() {
    for (const old of this._shown.querySelectorAll("img")) URL.revokeObjectURL(old.src);
    this._drop.hidden = this.blob !== null;
    this._shown.hidden = this.blob === null;
    if (!this.blob) {
      this._shown.replaceChildren();
      return;
    }
    const url = URL.createObjectURL(this.blob);
    const tiny = this.dimensions.width < 128 ? "tiny" : "";
    const pictures = el("div", { class: "chosen-picture" }, el("img", { class: tiny, src: url, alt: "The picture that will be sent" }));
    if (this.mask) pictures.append(el("img", { class: `mask-shown ${tiny}`, src: URL.createObjectURL(this.mask), alt: "", "aria-hidden": "true" }));
    const tools = el("div", { class: "chosen-tools" },
      el("p", { class: "chosen-says", text: `${this.field.label}: ${size(this.dimensions)}${this.mask ? ", with a mask" : this._takesMask ? ", all of which may change" : ""}` }));
    if (this._takesMask) {
      tools.append(iconButton("brush", this.mask ? "Change the mask" : "Paint a mask", () => this._paint(), { words: true, className: "quiet" }));
    }
    tools.append(iconButton("close", "Take the picture away", () => this._takeAway(), { className: "tool" }));
    this._shown.replaceChildren(pictures, tools);
  }

  async _takeAway() {
    await this.write(null);
    this.input.focus();
  }

  async _paint() {
    const mask = await paintMask(this.blob, this.mask);
    if (mask !== undefined) await this.write(this.blob, mask);
  }

  _acceptDrops() {
    const over = (isOver) => this.element.classList.toggle("is-over", isOver);
    this.element.addEventListener("dragover", (event) => { event.preventDefault(); over(true); });
    this.element.addEventListener("dragleave", () => over(false));
    this.element.addEventListener("drop", (event) => {
      event.preventDefault();
      over(false);
      const file = pictureIn(event.dataTransfer);
      if (file) this._choose(file);
      else this.complain("Only pictures can be dropped here: PNG, JPEG or WebP.");
    });
  }
}

/** Return the first picture of what was dropped or pasted, if there is one. */
export function pictureIn(transfer) {
  return [...(transfer?.files ?? [])].find((file) => file.type.startsWith("image/")) ?? null;
}
