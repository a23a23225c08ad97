// One card of the gallery: draws an entry, whatever has become of it.

import { el, icon, iconButton, isStill, setText } from "./dom.js";
import { mediaOf, stillOf } from "./media.js";
import { ACTIVE, saysOf, shareOf } from "./progress.js";
import { count, ofKind, ofSettings, shortened, size, took } from "./words.js";

// Below this, pixels are shown as pixels.
const TINY = 128;

export class Card {
  /** @param actions What its buttons do: open, reuse, edit, download, remove, stop, again, tryNow. */
  constructor(entry, api, actions) {
    this.entry = entry;
    this._api = api;
    this._actions = actions;
    this._drawn = null;
    this.frame = el("div", { class: "frame" });
    this._prompt = el("p", { class: "card-prompt" });
    this._meta = el("p", { class: "card-meta" });
    this._says = el("p", { class: "card-says" });
    this._bar = el("progress", { class: "card-bar", max: 1, "aria-label": "Progress", hidden: true });
    this._tools = el("div", { class: "card-tools" });
    this.element = el("li", { class: "card", "data-id": entry.id }, this.frame, this._bar,
      el("div", { class: "caption" }, this._prompt, this._says, this._meta, this._tools));
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !ACTIVE.has(this.entry.status)) return;
      event.stopPropagation();
      actions.stop(this.entry);
    });
    this.draw();
  }

  get isActive() {
    return ACTIVE.has(this.entry.status);
  }

  draw() {
    const { entry } = this;
    const isNew = this._drawn !== entry.status;
    this._drawn = entry.status;
    this.element.dataset.status = entry.status;
    this._drawProgress();
    if (isNew) this._drawStatus();
    if (entry.preview && this._preview !== entry.preview) this._drawPreview();
  }

  /** Called again and again while it is active, as times pass. */
  _drawProgress() {
    setText(this._says, saysOf(this.entry));
    this._says.hidden = !this._says.textContent;
    const share = shareOf(this.entry);
    this._bar.hidden = !this.isActive;
    if (share === null) this._bar.removeAttribute("value");
    else this._bar.value = share;
  }

  _drawStatus() {
    const { entry, isActive } = this;
    const name = shortened(entry.settings.prompt || `A ${ofKind(entry.kind)}`, 200);
    setText(this._prompt, name);
    this._prompt.title = name;
    // While it is made it can be focused as a whole, for Escape; buttons are enough afterwards.
    this.element.tabIndex = isActive ? 0 : -1;
    this.element.setAttribute("aria-label", isActive ? `${name}: being made. Escape stops it.` : name);
    const hadFocus = this._tools.contains(document.activeElement);
    this._tools.replaceChildren(...this._buttons());
    if (hadFocus) this.element.focus({ preventScroll: true });
    this._drawMeta();
    if (entry.status === "done") this._drawDone();
    else if (!entry.preview) this.frame.replaceChildren(placeholder(entry));
  }

  _drawMeta() {
    const { entry } = this;
    const said = [];
    if (entry.status === "done" && entry.width) said.push(`${size(entry)} px`);
    if (entry.settings.seed !== undefined) said.push(`seed ${entry.settings.seed}`);
    if (entry.status === "done" && entry.tookS) said.push(took(entry.tookS));
    if (entry.status !== "done") said.unshift(ofSettings(entry.settings));
    setText(this._meta, said.filter(Boolean).join(" · "));
  }

  _buttons() {
    const { entry, _actions: actions } = this;
    const button = (name, label, action, options) => iconButton(name, label, () => action(entry), options);
    const wide = { words: true, className: "quiet" };
    if (this.isActive) {
      const stop = entry.of > 1 ? `Stop all ${entry.of}` : "Stop";
      const buttons = [button("stop", stop, actions.stop, wide)];
      if (entry.status === "busy") buttons.push(button("again", "Try now", actions.tryNow, wide));
      return buttons;
    }
    if (entry.status !== "done") {
      return [button("again", "Try again", actions.again, wide), button("reuse", "Reuse settings", actions.reuse), button("bin", "Remove", actions.remove)];
    }
    return [
      withWord(button("reuse", "Reuse settings and seed", actions.reuse), "Reuse"),
      actions.canEdit() && entry.kind === "image" ? button("edit", "Edit this picture", actions.edit) : null,
      button("download", "Download", actions.download),
      button("bin", "Remove", actions.remove),
    ].filter(Boolean);
  }

  _drawPreview() {
    const { entry } = this;
    this._preview = entry.preview;
    const image = el("img", { class: "shown is-preview", alt: `Preview after step ${entry.previewStep}`, src: entry.preview });
    image.decode().then(() => {
      if (this.entry.status === "done") return;
      fit(image);
      this.frame.replaceChildren(image);
    }).catch(() => {});
  }

  async _drawDone() {
    const { entry } = this;
    try {
      const shown = await this._mediaElement();
      const open = el("button", { type: "button", class: "open", "aria-label": `Open: ${this._prompt.textContent}`, on: { click: () => this._actions.open(entry) } }, shown);
      if (entry.kind === "audio") this.frame.replaceChildren(placeholder(entry), shown);
      else this.frame.replaceChildren(open);
    } catch (problem) {
      this.frame.replaceChildren(el("p", { class: "frame-says", text: `It cannot be shown: ${problem.message}` }));
    }
  }

  async _mediaElement() {
    const { entry } = this;
    const alt = entry.settings.prompt ?? ofKind(entry.kind);
    const { url, type } = await mediaOf(this._api, entry);
    if (type.startsWith("audio/")) return el("audio", { src: url, controls: true, preload: "metadata", "aria-label": alt });
    if (type.startsWith("video/")) {
      const video = el("video", { class: "shown", src: url, muted: true, loop: true, playsinline: true, preload: "metadata", "aria-label": alt, props: { muted: true } });
      if (!isStill()) playWhileSeen(video);
      return video;
    }
    // An animated picture cannot be told to hold still.
    const source = entry.kind === "video" && isStill() ? (await stillOf(this._api, entry)).url : url;
    const image = el("img", { class: "shown", src: source, alt, decoding: "async" });
    await image.decode();
    fit(image);
    if (!entry.width) Object.assign(entry, { width: image.naturalWidth, height: image.naturalHeight });
    this._drawMeta();
    return image;
  }
}

/** Show tiny pictures in whole multiples of their size, with their pixels as they are. */
export function fit(image) {
  const isTiny = Math.max(image.naturalWidth, image.naturalHeight) <= TINY;
  image.classList.toggle("tiny", isTiny);
  image.style.setProperty("--own-width", `${image.naturalWidth}px`);
  image.style.setProperty("--own-height", `${image.naturalHeight}px`);
}

/** The button used most says what it is; narrow cards hide the word. */
function withWord(button, word) {
  button.classList.add("with-word");
  button.append(el("span", { text: word }));
  return button;
}

function placeholder(entry) {
  if (entry.kind === "audio") return el("div", { class: "blank" }, icon("sound"));
  const label = { failed: "Failed", interrupted: "Interrupted", stopped: "Stopped" }[entry.status];
  return el("div", { class: label ? "blank" : "blank grain", "aria-hidden": "true" }, label ? el("span", { text: label }) : null);
}

function playWhileSeen(video) {
  new IntersectionObserver(([change]) => {
    if (change.isIntersecting) video.play().catch(() => {});
    else video.pause();
  }).observe(video);
}

/** What the viewer and copied settings list, in order. */
export function factsOf(entry) {
  const { prompt, width, height, ...settings } = entry.settings;
  const facts = Object.entries(settings);
  const { width: w = width, height: h = height } = entry;
  if (w && h) facts.unshift(["size", `${size({ width: w, height: h })} px`]);
  if (Object.keys(entry.inputs ?? {}).length) facts.push(["sent with it", count(Object.keys(entry.inputs).length, "picture")]);
  if (entry.tookS) facts.push(["took", took(entry.tookS)]);
  if (entry.model) facts.push(["model", entry.model]);
  return facts;
}
