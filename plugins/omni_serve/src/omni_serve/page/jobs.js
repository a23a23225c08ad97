// Videos and sound are jobs that the server keeps: they go on without this page, and are asked for.

import { withoutId } from "./api.js";
import { announce, toast } from "./dom.js";
import { ofKind, shortened } from "./words.js";

const POLL_S = 1;
const RETRY_S = 5;
const MOST = 100;
const PARTS = { queued: "queued", in_progress: "running", completed: "done", failed: "failed" };

/** Where the jobs of a kind are. */
export const PATHS = { video: "/v1/videos", audio: "/v1/audio/generations" };

export class Jobs {
  /** @param kind What the model makes; of "image" there are no jobs. */
  constructor({ api, gallery, server, kind }) {
    this._kind = kind;
    this._path = PATHS[kind];
    this._api = api;
    this._gallery = gallery;
    this._timer = null;
    // Those that went on while the server could not be reached.
    server.addEventListener("change", ({ detail: { before, now } }) => {
      if (before.kind !== now.kind && now.kind === "ready") this.look();
    });
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.look(); });
  }

  /** Add a job; its card follows. */
  async create(ask) {
    const form = new FormData();
    for (const [name, value] of Object.entries(ask.settings)) form.append(name, typeof value === "object" ? JSON.stringify(value) : String(value));
    for (const [name, blob] of Object.entries(ask.inputs)) form.append(name, blob, name);
    const response = await this._api.send(this._path, { method: "POST", form });
    const job = await response.json();
    const settings = { ...ask.settings, seed: job.seed };
    this._gallery.add({ ...this._entryOf(job), settings, inputs: ask.inputs }, { isOwn: true });
    announce(`Asked for ${shortened(ask.settings.prompt ?? `one ${ofKind(this._kind)}`, 80)}.`);
    this._plan();
  }

  /** End a job that runs; the server forgets it. */
  async stop(entry) {
    try {
      await this._api.send(`${this._path}/${entry.jobId}`, { method: "DELETE" });
      this._gallery.update(entry.id, { status: "stopped" });
      this._gallery.unkeep([entry]);
    } catch (problem) {
      if (problem.status === 404) this._gallery.update(entry.id, { status: "stopped" });
      else toast(`It could not be stopped: ${problem.message}`);
    }
  }

  async delete(entry) {
    await this._api.send(`${PATHS[entry.kind]}/${entry.jobId}`, { method: "DELETE" }).catch(() => {});
  }

  /** Ask for all jobs, and go on asking while one runs. */
  async look() {
    if (!this._path) return;
    clearTimeout(this._timer);
    let jobs;
    try {
      jobs = (await this._api.get(`${this._path}?limit=${MOST}`)).data;
    } catch {
      this._plan(RETRY_S);  // the server's state tells why
      return;
    }
    const queued = jobs.filter((job) => job.status === "queued").sort((one, other) => one.created_at - other.created_at);
    for (const job of jobs) this._show(job, queued.indexOf(job));
    const known = new Set(jobs.map((job) => job.id));
    for (const entry of this._gallery.active()) if (entry.jobId && !known.has(entry.jobId)) await this.restore(entry);
    if (this._gallery.active().some((entry) => entry.jobId) || jobs.some((job) => ["queued", "in_progress"].includes(job.status))) this._plan();
  }

  /** Ask for the job of a record that is not among the newest, and show what has become of it. */
  async restore(record) {
    const { id, settings, inputs } = record;
    try {
      this._show(await this._api.get(`${PATHS[record.kind]}/${record.jobId}`), -1);
    } catch (problem) {
      const gone = { status: "failed", message: "The server no longer has it: it was restarted, or this was deleted or has expired." };
      if (problem.status === 404 && !this._gallery.update(id, gone)) this._gallery.add({ ...record, ...gone });
      else if (problem.status !== 404) this._gallery.add(record);
    }
    this._gallery.update(id, { settings, inputs });
  }

  _plan(seconds = POLL_S) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => { if (!document.hidden) this.look(); }, seconds * 1000);
  }

  _show(job, position) {
    const known = this._gallery.get(job.id);
    const news = this._entryOf(job);
    if (position >= 0) news.position = position;
    if (!known) {
      this._gallery.add(news);
      return;
    }
    if (known.status === news.status && known.progress === news.progress && known.position === news.position) return;
    const { settings, created, ...changes } = news;
    this._gallery.update(job.id, changes);
    if (news.status !== "done") return;
    this._gallery.keep(known);
    announce(`Ready: ${shortened(job.prompt ?? ofKind(this._kind), 80)}.`);
  }

  _entryOf(job) {
    const [width, height] = (job.size || "x").split("x").map(Number);
    const settings = { ...job.fields, ...(job.prompt ? { prompt: job.prompt } : {}), ...(job.seed === null ? {} : { seed: job.seed }), ...(width ? { width, height } : {}) };
    return {
      id: job.id, jobId: job.id, group: job.id, of: 1, kind: this._kind, model: job.model, status: PARTS[job.status] ?? job.status,
      progress: job.progress, settings, inputs: {}, created: job.created_at * 1000, message: withoutId(job.error?.message),
      ...(width ? { width, height } : {}), ...(job.completed_at ? { tookS: job.completed_at - job.created_at } : {}),
    };
  }
}
