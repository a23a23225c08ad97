// From what the form asks for to cards: picture requests run here, videos and sound are jobs of the server.

import { Problem } from "./api.js";
import { announce } from "./dom.js";
import { makePictures } from "./image_requests.js";
import { Lanes } from "./lanes.js";
import { ofKind, shortened } from "./words.js";

const RETRY_S = 2;

export class Maker {
  constructor({ api, server, gallery, jobs }) {
    this._api = api;
    this._server = server;
    this._gallery = gallery;
    this._jobs = jobs;
    this._lanes = new Lanes();
    this._running = new Map();
    this.onRefused = () => {};
    // The server said when there may be room; where it comes sooner, there is no reason to wait.
    server.addEventListener("change", ({ detail: { before, now } }) => {
      if (now.kind === "ready" && now.waiting < before.waiting) for (const run of this._running.values()) run.wake();
    });
  }

  /** Ids of the cards that wait for a stream of this page. */
  get runningIds() {
    return [...this._running.values()].flatMap((run) => run.ids);
  }

  /** Begin; it ends by itself. */
  async make(ask) {
    if (ask.kind !== "image") return this._addJob(ask);
    const group = crypto.getRandomValues(new Uint32Array(2)).join("-");
    const run = { ask, abort: new AbortController(), wake: () => {}, ids: [] };
    for (let number = 0; number < ask.n; number += 1) {
      const { seed } = ask.settings;
      const settings = seed === undefined ? { ...ask.settings } : { ...ask.settings, seed: seed + number };
      const entry = { id: `${Date.now()}-${group}-${number}`, group, of: ask.n, kind: ask.kind, model: ask.model,
        status: "waiting", settings, inputs: ask.inputs, created: Date.now() + number };
      run.ids.push(entry.id);
      this._gallery.add(entry, { isOwn: true });
    }
    this._running.set(group, run);
    this._gallery.changed();
    announce(`Asked for ${shortened(ask.settings.prompt ?? `one ${ofKind(ask.kind)}`, 80)}.`);
    try {
      await this._run(run);
    } catch (error) {
      this._end(run, error);
    } finally {
      this._running.delete(group);
      this._gallery.changed();
      this._server.askSoon();
    }
  }

  /** Abort the request of a card: closing the connection is what the server takes for it. */
  stop(entry) {
    if (entry.jobId) this._jobs.stop(entry);
    else this._running.get(entry.group)?.abort.abort();
  }

  /** Do not wait any longer to try again. */
  tryNow(entry) {
    this._running.get(entry.group)?.wake();
  }

  async _addJob(ask) {
    try {
      await this._jobs.create(ask);
    } catch (problem) {
      this.onRefused(problem, ask);
    }
  }

  async _run(run) {
    const { signal } = run.abort;
    const tellAll = (news) => run.ids.forEach((id) => this._gallery.update(id, news));
    for (;;) {
      await this._lanes.enter(signal, (ahead) => tellAll({ status: "waiting", ahead }));
      try {
        tellAll({ status: "sending" });
        return await this._send(run, signal);
      } catch (problem) {
        if (!problem.isBusy) throw problem;
        const seconds = problem.retryS ?? RETRY_S;
        tellAll({ status: "busy", message: problem.message, retryAt: Date.now() + seconds * 1000 });
        announce(`The server is full. Trying again in ${seconds} seconds.`);
      } finally {
        this._lanes.leave();
      }
      await this._pause(run, signal);
    }
  }

  async _send({ ask, ids }, signal) {
    await makePictures(this._api, ask, signal, (number, news) => {
      this._server.noteAlive();
      if (news.status === "done") this._finish(ids[number], news);
      else this._gallery.update(ids[number], news);
    });
  }

  _pause(run, signal) {
    const until = this._gallery.get(run.ids[0])?.retryAt ?? Date.now();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, until - Date.now());
      run.wake = () => { clearTimeout(timer); run.wake = () => {}; resolve(); };
      signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
    });
  }

  _finish(id, { seed, ...news }) {
    const entry = this._gallery.get(id);
    if (!entry) return;
    this._gallery.update(id, { ...news, preview: null, settings: { ...entry.settings, seed } });
    this._gallery.keep(entry);
    announce(`Ready: ${shortened(entry.settings.prompt ?? ofKind(entry.kind), 80)}.`);
  }

  _end(run, error) {
    const left = run.ids.map((id) => this._gallery.get(id)).filter((entry) => entry && entry.status !== "done");
    // What was wrong with the form is told there, and needs no card.
    if (error.status >= 400 && error.status < 500) {
      for (const entry of left) this._gallery.forget(entry.id);
      this.onRefused(error, run.ask);
      return;
    }
    const isStopped = run.abort.signal.aborted;
    for (const entry of left) this._gallery.update(entry.id, isStopped ? { status: "stopped" } : { status: "failed", message: error.message });
    this._gallery.unkeep(left);
    announce(isStopped ? "Stopped." : `It failed: ${error.message}`);
    if (!isStopped && !(error instanceof Problem)) console.error(error);  // a mistake of this page
  }
}
