// The form as a whole: its controls in their places, what they say together, and errors beside what they are about.

import { addedControl, controlFor } from "./controls.js";
import { byId, el, isStill, setText } from "./dom.js";
import { fieldsOf, shapes } from "./fields.js";
import { PictureControl } from "./picture_control.js";
import { count, ofKeyword, ofSettings, size } from "./words.js";

// Fields of the body that are no keywords of the pipeline, and which control shows an error about them.
const SHOWN_BY = { size: "width", mask: "image", mask_image: "image", input: "prompt", seconds: "num_frames", extra_params: null };

export class Form {
  /** @param about What the server says of the pipeline. */
  constructor(about) {
    this.about = about;
    const { fields, addable, mask, acceptsAny } = fieldsOf(about);
    this._addable = addable;
    this._acceptsAny = acceptsAny;
    this._maskName = mask;
    this._controls = new Map();
    this._added = new Set();
    this._build(fields);
    byId("form").addEventListener("input", () => this._say());
    this._say();
  }

  get takesPictures() {
    return this._controls.has("image");
  }

  control(name) {
    return this._controls.get(name) ?? null;
  }

  /** Return what is asked for, or null after having shown what is wrong. */
  read() {
    this.clearProblems();
    const asked = { settings: {}, inputs: {}, n: 1 };
    for (const [name, control] of this._controls) {
      if (control.isEmpty) continue;
      if (control instanceof PictureControl) {
        Object.assign(asked.inputs, control.inputs);
        continue;
      }
      try {
        const value = control.read();
        if (name === "n") asked.n = value;
        else asked.settings[name] = value;
      } catch (error) {
        this.complain(error.message, name);
        return null;
      }
    }
    return asked;
  }

  /** Fill in settings, and the pictures that were sent with them; what they do not say becomes the default. */
  async write(settings, inputs = {}) {
    this.clearProblems();
    for (const name of [...this._added]) this._remove(name);
    for (const [name, control] of this._controls) {
      if (control instanceof PictureControl) await control.write(inputs[name] ?? null, name === "image" ? inputs.mask ?? null : null);
      else control.write(settings[name] ?? (name in settings ? null : control.field.default));
    }
    for (const name of Object.keys(settings)) {
      if (!this._controls.has(name) && (this._addable.includes(name) || this._acceptsAny)) this._add(name).write(settings[name]);
    }
    this._say();
  }

  clearProblems() {
    byId("form-problem").hidden = true;
    for (const control of this._controls.values()) control.complain(null);
  }

  /** Show an error beside the field that it is about, and go there; else under the button. */
  complain(message, param = null) {
    const name = param?.split(".")[0];
    const control = this._controls.get(name) ?? this._controls.get(SHOWN_BY[name]) ?? (name === "class_labels" ? this._controls.get("prompt") : null);
    if (!control) {
      byId("form-problem").textContent = message;
      byId("form-problem").hidden = false;
      return;
    }
    for (let fold = control.element.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
    control.complain(message);
    control.input.focus({ preventScroll: true });
    control.element.scrollIntoView({ block: "nearest", behavior: isStill() ? "auto" : "smooth" });
  }

  focus() {
    const first = this._controls.get("prompt") ?? this._controls.values().next().value;
    first?.input.focus();
  }

  _build(fields) {
    const places = { prompt: byId("prompt-area"), settings: byId("settings-fields"), more: byId("more-fields") };
    const sides = [];
    for (const field of fields) {
      const control = field.type === "picture"
        ? new PictureControl(field, { mask: field.name === "image" ? this._maskName : null, onChange: () => this._pictureChanged() })
        : controlFor(field);
      this._controls.set(field.name, control);
      if (field.section === "size") sides.push(control);
      else places[field.section].append(control.element);
      if (sides.length === 2 && field.section === "size") places.settings.append(this._sizeGroup(sides));
    }
    if (this._addable.length || this._acceptsAny) places.more.append(this._adder());
    byId("more").hidden = !places.more.hasChildNodes();
  }

  _sizeGroup(sides) {
    const [width, height] = sides;
    const group = el("fieldset", { class: "size" }, el("legend", { text: "Size" }));
    if (width.field.default && height.field.default) {
      const chips = shapes(width.field.default, height.field.default, this.about.size_multiple || 1).map((shape) => {
        const chip = el("button", { type: "button", class: "chip", "aria-pressed": "false", text: shape.label, title: `${size(shape)} pixels` });
        chip.addEventListener("click", () => { width.write(shape.width); height.write(shape.height); });
        const mark = () => chip.setAttribute("aria-pressed", String(Number(width.input.value) === shape.width && Number(height.input.value) === shape.height));
        byId("form").addEventListener("input", mark);
        queueMicrotask(mark);
        return chip;
      });
      group.append(el("div", { class: "chips" }, ...chips));
    }
    group.append(el("div", { class: "sides" }, width.element, el("span", { class: "times", "aria-hidden": "true", text: "×" }), height.element));
    return group;
  }

  _adder() {
    const input = el("input", { type: "text", id: "add-keyword", list: "keywords", spellcheck: "false", placeholder: "name of a keyword" });
    const names = el("datalist", { id: "keywords" }, ...this._addable.map((name) => el("option", { value: name })));
    const add = () => {
      const name = input.value.trim();
      if (!name) return;
      input.value = "";
      this._add(name).input.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      add();
    });
    return el("div", { class: "field adder" }, el("div", { class: "field-head" }, el("label", { for: "add-keyword", text: "Add a keyword of the pipeline" })),
      el("div", { class: "field-body" }, input, names, el("button", { type: "button", class: "quiet", text: "Add", on: { click: add } })));
  }

  _add(name) {
    const there = this._controls.get(name);
    if (there) return there;
    const control = addedControl(name, ofKeyword(name), () => {
      this._remove(name);
      byId("add-keyword").focus();
    });
    this._controls.set(name, control);
    this._added.add(name);
    byId("more-fields").append(control.element);
    byId("more").open = true;
    return control;
  }

  _remove(name) {
    this._controls.get(name).element.remove();
    this._controls.delete(name);
    this._added.delete(name);
    this._say();
  }

  _pictureChanged() {
    const dimensions = this._controls.get("image")?.dimensions;
    for (const side of ["width", "height"]) {
      const input = this._controls.get(side)?.input;
      if (input && this._controls.get(side).field.default === null) input.placeholder = dimensions ? String(dimensions[side]) : "as the picture";
    }
    this._say();
  }

  /** Say in one line what is folded away. */
  _say() {
    const value = (name) => this._controls.get(name)?.input.value || undefined;
    const number = (name) => (value(name) === undefined ? undefined : Number(value(name)));
    const said = [];
    if (value("width") && value("height")) said.push(`${value("width")} × ${value("height")}`);
    const settings = ofSettings(Object.fromEntries(["num_inference_steps", "guidance_scale", "num_frames"].map((name) => [name, number(name)])));
    if (settings) said.push(settings);
    if (value("seed")) said.push(`seed ${value("seed")}`);
    if (number("n") > 1) said.push(count(number("n"), "picture"));
    setText(byId("settings-say"), said.join(" · "));
    setText(byId("more-say"), this._added.size ? `${this._added.size} set` : "");
  }
}
