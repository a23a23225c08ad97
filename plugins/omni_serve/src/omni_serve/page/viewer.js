// One result, large, with everything that made it.

import { factsOf, fit } from "./card.js";
import { announce, el, iconButton } from "./dom.js";
import { labelOf } from "./fields.js";
import { mediaOf } from "./media.js";
import { ofKind, plain, size } from "./words.js";

export class Viewer {
  /** @param entries Returns what can be looked through. */
  constructor(api, actions, entries) {
    this._api = api;
    this._actions = actions;
    this._entries = entries;
    this._stage = el("div", { class: "stage" });
    this._about = el("div", { class: "about" });
    this._dialog = el("dialog", { class: "viewer", "aria-label": "Result" }, this._stage, this._about,
      iconButton("close", "Close", () => this._dialog.close(), { className: "tool viewer-close" }));
    this._dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("video, audio")) return;  // which have a use for arrows
      if (event.key === "ArrowLeft") this._go(-1);
      if (event.key === "ArrowRight") this._go(1);
    });
    // A click beside everything is one on the dialog itself.
    this._dialog.addEventListener("click", (event) => { if (event.target === this._dialog) this._dialog.close(); });
    this._dialog.addEventListener("close", () => this._stage.replaceChildren());
    document.body.append(this._dialog);
  }

  async open(entry) {
    this._entry = entry;
    if (!this._dialog.open) this._dialog.showModal();
    this._drawAbout(entry);
    try {
      const { url, type } = await mediaOf(this._api, entry);
      if (this._entry === entry) await this._drawMedia(entry, url, type);
    } catch (problem) {
      this._stage.replaceChildren(el("p", { class: "frame-says", text: `It cannot be shown: ${problem.message}` }));
    }
  }

  _go(by) {
    const entries = this._entries();
    const next = entries[entries.findIndex((one) => one.id === this._entry.id) + by];
    if (!next) return;
    this.open(next);
    announce(next.settings.prompt ?? ofKind(next.kind));
  }

  async _drawMedia(entry, url, type) {
    const alt = entry.settings.prompt ?? ofKind(entry.kind);
    if (type.startsWith("video/")) {
      this._stage.replaceChildren(el("video", { class: "shown", src: url, controls: true, loop: true, autoplay: true, playsinline: true, "aria-label": alt }));
      return;
    }
    const image = el("img", { class: "shown", src: url, alt });
    await image.decode();
    fit(image);
    const scale = el("p", { class: "scale" });
    this._stage.replaceChildren(image, scale);
    const times = image.getBoundingClientRect().width / image.naturalWidth;
    const natural = size({ width: image.naturalWidth, height: image.naturalHeight });
    scale.textContent = times > 1.05 ? `${natural} px, shown ${plain(Number(times.toFixed(1)))} times as large`
      : times < 0.95 ? `${natural} px, shown at ${Math.round(times * 100)} %` : `${natural} px`;
  }

  _drawAbout(entry) {
    const { _actions: actions } = this;
    const close = (action) => () => { this._dialog.close(); action(entry); };
    const quiet = { words: true, className: "quiet" };
    const facts = factsOf(entry).flatMap(([name, value]) => [
      el("dt", { text: labelOf(name) }), el("dd", { text: typeof value === "object" ? JSON.stringify(value) : plain(value) })]);
    const entries = this._entries();
    const at = entries.findIndex((one) => one.id === entry.id);
    const step = (name, label, by) => {
      const button = iconButton(name, label, () => this._go(by));
      button.disabled = !entries[at + by];
      return button;
    };
    const wasIn = this._about.contains(document.activeElement) ? document.activeElement.getAttribute("aria-label") : null;
    this._about.replaceChildren(
      el("h2", { text: entry.settings.prompt || `A ${ofKind(entry.kind)}` }),
      el("dl", { class: "facts" }, ...facts),
      el("div", { class: "about-tools" },
        iconButton("reuse", "Reuse settings", close(actions.reuse), { words: true, className: "primary" }),
        iconButton("download", "Download", () => actions.download(entry), quiet),
        actions.canEdit() && entry.kind === "image" ? iconButton("edit", "Edit this picture", close(actions.edit), quiet) : null,
        iconButton("copy", "Copy settings", () => actions.copySettings(entry), quiet),
        iconButton("copy", "Copy as curl", () => actions.copyCurl(entry), quiet),
        iconButton("bin", "Remove", close(actions.remove), quiet)),
      el("div", { class: "row" }, step("left", "Newer", -1), step("right", "Older", 1)));
    if (wasIn) this._about.querySelector(`[aria-label="${CSS.escape(wasIn)}"]`)?.focus();
  }
}
