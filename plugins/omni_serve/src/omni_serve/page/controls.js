// The form's controls: each shows one field, reads it, sets it, and says what is wrong with it.

import { el, iconButton, icon } from "./dom.js";
import { valueOf } from "./fields.js";
import { plain } from "./words.js";

/** What all controls share: a label, the input, a hint, and the place for a problem. */
export class Control {
  constructor(field, input, { beside = [], removable = null } = {}) {
    this.field = field;
    this.input = input;
    const id = `f-${field.name}`;
    input.id = id;
    this._problem = el("p", { class: "problem", id: `${id}-problem`, hidden: true });
    const says = field.says ? el("span", { class: "hint", id: `${id}-says`, text: field.says }) : null;
    if (says) input.setAttribute("aria-describedby", says.id);
    this._says = says?.id ?? "";
    const label = el("label", { for: id, text: field.label });
    this.element = el("div", { class: `field field-${field.type}`, "data-field": field.name },
      el("div", { class: "field-head" }, label, says, removable), el("div", { class: "field-body" }, input, ...beside), this._problem);
    input.addEventListener("input", () => this.complain(null));
  }

  get isEmpty() {
    return this.input.value.trim() === "";
  }

  read() {
    return this.input.value;
  }

  write(value) {
    this.input.value = value ?? "";
    this.input.dispatchEvent(new Event("input", { bubbles: true }));
  }

  /** Show what is wrong; null takes it away. */
  complain(message) {
    this._problem.hidden = message === null;
    this._problem.textContent = message ?? "";
    this.input.toggleAttribute("aria-invalid", message !== null);
    if (message !== null) this.input.setAttribute("aria-invalid", "true");
    const described = [this._says, message === null ? "" : this._problem.id].join(" ").trim();
    if (described) this.input.setAttribute("aria-describedby", described);
    else this.input.removeAttribute("aria-describedby");
  }
}

class LongText extends Control {
  constructor(field) {
    super(field, el("textarea", { rows: field.name === "prompt" ? 3 : 2, placeholder: field.hint ?? "", maxlength: field.max ?? null,
      enterkeyhint: "enter", spellcheck: "true" }));
  }
}

class Value extends Control {
  constructor(field, options) {
    super(field, el("input", { type: "text", spellcheck: "false", placeholder: field.hint ?? "text, number or JSON" }), options);
  }

  read() {
    return valueOf(this.field.name, this.input.value);
  }

  write(value) {
    super.write(typeof value === "string" || value == null ? value : JSON.stringify(value));
  }
}

class Text extends Control {
  constructor(field) {
    super(field, el("input", { type: "text", placeholder: field.hint ?? "" }));
  }
}

/** A number, with a slider where its usual range is known. */
class Numeric extends Control {
  constructor(field) {
    const input = el("input", { type: "number", inputmode: field.step === 1 ? "numeric" : "decimal", min: field.min, max: field.max,
      step: field.step ?? "any", placeholder: field.default === null ? plain(field.own ?? "model's own") : null });
    let slider = null;
    if (field.slider && field.default !== null) {
      slider = el("input", { type: "range", min: field.min, max: field.sliderMax ?? field.max, step: field.step, "aria-label": `${field.label}, slider` });
      slider.addEventListener("input", () => { input.value = slider.value; input.dispatchEvent(new Event("input", { bubbles: true })); });
    }
    super(field, input, { beside: [slider] });
    this._slider = slider;
    input.addEventListener("input", () => this._follow());
    this.write(field.default);
  }

  get isEmpty() {
    return super.isEmpty && !this.input.validity.badInput;
  }

  read() {
    if (this.input.validity.badInput || !Number.isFinite(Number(this.input.value))) throw new Error("This must be a number.");
    return Number(this.input.value);
  }

  write(value) {
    super.write(value === null || value === undefined ? "" : plain(value));
  }

  _follow() {
    if (!this._slider || this.isEmpty) return;
    this._slider.value = this.input.value;
    const { min, max, value } = this._slider;
    this._slider.style.setProperty("--filled", `${(100 * (value - min)) / (max - min)}%`);
  }
}

/** Empty is any seed. */
class Seed extends Numeric {
  constructor(field) {
    super(field);
    this.input.placeholder = "random";
    const clear = iconButton("dice", "Random seed", () => this.write(null), { words: true, className: "quiet" });
    clear.firstElementChild.nextElementSibling.textContent = "Random";
    this.input.after(clear);
  }
}

class Count extends Numeric {
  constructor(field) {
    super(field);
    const change = (by) => this.write(Math.min(field.max, Math.max(field.min, (Number(this.input.value) || 1) + by)));
    this.input.before(el("button", { type: "button", class: "quiet stepper", "aria-label": "Fewer", on: { click: () => change(-1) }, text: "−" }));
    this.input.after(el("button", { type: "button", class: "quiet stepper", "aria-label": "More", on: { click: () => change(1) } }, icon("plus")));
  }
}

const KINDS = { long: LongText, text: Text, number: Numeric, seed: Seed, count: Count, value: Value };

export function controlFor(field) {
  return new KINDS[field.type](field);
}

/** A keyword that the person has added, which can be taken away again. */
export function addedControl(name, label, onRemove) {
  return new Value({ name, label, type: "value", section: "more" },
    { removable: iconButton("close", `Remove ${label}`, onRemove) });
}
