// All cards, the newest first; what is done is kept in the browser.

import { byId, el, isStill, setText, toast } from "./dom.js";
import { Card } from "./card.js";
import { forgetMedia } from "./media.js";
import { noteProgress } from "./progress.js";
import { count, ofKind } from "./words.js";

const TICK_MS = 500;
// What is not of one life of the page.
const KEPT = ["id", "group", "of", "kind", "model", "status", "settings", "inputs", "created", "blob", "width", "height", "tookS", "jobId"];

export class Gallery {
  constructor({ api, store, actions, onChange }) {
    this._api = api;
    this._store = store;
    this._actions = actions;
    this._onChange = onChange;
    this._cards = new Map();
    this._hidden = new Set();  // removed, and still on the server while that can be undone
    setInterval(() => { if (!document.hidden) for (const card of this._cards.values()) if (card.isActive) card.draw(); }, TICK_MS);
  }

  /** Show what was kept. What ran when the page was left, in no other tab, was stopped by that. */
  async load(tabs, jobs) {
    const records = await this._store.all();
    const isOpen = records.some((record) => record.status === "running" && !record.jobId);
    const elsewhere = isOpen ? await tabs.othersRun() : new Set();
    for (const record of records) {
      if (record.jobId) await this._loadJob(record, jobs);
      else if (record.status !== "running") this.add(record);
      else if (!elsewhere.has(record.id)) this.add({ ...record, status: "interrupted" });
    }
    this.changed();
  }

  /** Jobs are the server's, and shown by now; the record knows more of how they were asked for. */
  async _loadJob(record, jobs) {
    const { settings, inputs, id } = record;
    if (!this.update(id, { settings, inputs })) await jobs.restore(record);
  }

  get(id) {
    return this._cards.get(id)?.entry ?? null;
  }

  active() {
    return [...this._cards.values()].filter((card) => card.isActive).map((card) => card.entry);
  }

  /** Entries that can be opened, as they are shown. */
  shown() {
    return [...byId("cards").children].map((item) => this.get(item.dataset.id)).filter((entry) => entry?.status === "done" && entry.kind !== "audio");
  }

  /** Add an entry; one of this page's own requests is scrolled to where the gallery is out of sight. */
  add(entry, { isOwn = false } = {}) {
    if (this._cards.has(entry.id) || this._hidden.has(entry.id)) return;
    if (isOwn) this._store.put(recordOf({ ...entry, status: "running" }));
    this._note(entry, entry);
    const card = new Card(entry, this._api, this._actions);
    this._cards.set(entry.id, card);
    const list = byId("cards");
    const next = [...list.children].find((item) => (this.get(item.dataset.id)?.created ?? 0) < entry.created);
    list.insertBefore(card.element, next ?? null);
    if (isOwn) {
      const { top } = card.element.getBoundingClientRect();
      if (top > innerHeight - 120) byId("wall-title").scrollIntoView({ block: "start", behavior: isStill() ? "auto" : "smooth" });
    }
    this.changed();
  }

  /** Note what is new about an entry; returns it, or null if it is no longer there. */
  update(id, news) {
    const card = this._cards.get(id);
    if (!card) return null;
    const before = card.entry.status;
    this._note(card.entry, news);
    Object.assign(card.entry, news);
    card.draw();
    if (before !== card.entry.status) this.changed();
    return card.entry;
  }

  /** Keep an entry that is done. */
  async keep(entry) {
    for (const id of [...await this._store.put(recordOf(entry)), ...await this._store.prune()]) this.forget(id);
  }

  async unkeep(entries) {
    for (const entry of entries) await this._store.delete(entry.id);
  }

  /** Take an entry away for good. */
  forget(id) {
    const card = this._cards.get(id);
    if (!card) return;
    const next = card.element.nextElementSibling ?? card.element.previousElementSibling;
    const hadFocus = card.element.contains(document.activeElement);
    card.element.remove();
    this._cards.delete(id);
    forgetMedia(card.entry);
    this._store.delete(id);
    if (hadFocus) (next?.querySelector("button") ?? byId("wall-title")).focus();
    this.changed();
  }

  /** Take entries away; for a while that can be undone. */
  remove(entries, whenGone = () => {}) {
    for (const entry of entries) {
      this.forget(entry.id);
      this._hidden.add(entry.id);
    }
    toast(entries.length === 1 ? "Removed." : `${entries.length} removed.`, {
      label: "Undo",
      run: () => {
        for (const entry of entries) {
          this._hidden.delete(entry.id);
          this.add(entry);
          if (entry.status === "done") this.keep(entry);
        }
      },
      otherwise: () => entries.forEach(whenGone),
    });
  }

  /** Everything that is not being made. */
  ended() {
    return [...this._cards.values()].filter((card) => !card.isActive).map((card) => card.entry);
  }

  changed() {
    const active = this.active().length;
    const entries = [...this._cards.values()].map((card) => card.entry);
    const done = entries.filter((entry) => entry.status === "done").length;
    byId("empty").hidden = this._cards.size > 0;
    byId("stop-all").hidden = active < 2;
    byId("clear").hidden = entries.length === active;
    const said = [];
    const kinds = new Set(entries.map((entry) => entry.kind));
    if (done) said.push(count(done, kinds.size === 1 ? ofKind([...kinds][0]) : "result"));
    if (active) said.push(`${active} being made`);
    setText(byId("wall-says"), said.join(", "));
    this._onChange(active);
  }

  _note(entry, news) {
    noteProgress(entry, news);
    if (news.estimatedS !== undefined || news.progress !== undefined) entry.toldAt = Date.now();
    if (news.status === "running" && news.progress !== undefined && entry.firstProgress === undefined) {
      Object.assign(entry, { firstProgress: news.progress, firstProgressAt: Date.now() });
    }
  }
}

function recordOf(entry) {
  return Object.fromEntries(KEPT.filter((name) => entry[name] !== undefined).map((name) => [name, entry[name]]));
}

/** Fill the place of the gallery while there is nothing in it. */
export function invite(prompts, hint, onChoose) {
  byId("empty").replaceChildren(
    el("div", { class: "sample grain", "aria-hidden": "true" }),
    el("p", { class: "empty-title", text: prompts.length ? "Nothing here yet. Try one of these:" : "Nothing here yet. Press Generate." }),
    el("div", { class: "chips" }, ...prompts.map((prompt) => el("button", { type: "button", class: "chip", text: prompt, on: { click: () => onChoose(prompt) } }))),
    el("p", { class: "hint", text: hint }));
}
