// Whether the server is there, busy, asleep or ending: asked for gently, and only while somebody looks.

const IDLE_S = 5;
const BUSY_S = 1.5;
const SOON_S = 0.25;
const LONGEST_BACKOFF_S = 10;

export class Server extends EventTarget {
  /** @param hasWork Returns whether this page waits for anything. */
  constructor(api, hasWork) {
    super();
    this.state = { kind: "starting", waiting: 0, running: 0, retryAt: null };
    this._api = api;
    this._hasWork = hasWork;
    this._failures = 0;
    this._timer = null;
    this._asking = false;
    api.onReached = () => { this._reachedAt = Date.now(); };
    // A request that fails says so at once; how the server is, is asked at once too.
    api.onLost = () => this.askSoon();
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.ask(); });
  }

  /** Note that something came: a stream that delivers is better than any probe. */
  noteAlive() {
    this._reachedAt = Date.now();
  }

  /** Ask once what comes together has come. */
  askSoon() {
    if (this.state.kind !== "gone") this._plan(SOON_S);
  }

  async ask() {
    if (this._asking) return;
    this._asking = true;
    clearTimeout(this._timer);
    try {
      const numbers = await this._api.get("/v1/omni/stats", { timeoutS: 10 });
      this._failures = 0;
      const kind = numbers.is_draining ? "ending" : numbers.sleep_level > 0 ? "asleep" : "ready";
      this._become({ kind, waiting: numbers.waiting, running: numbers.running, retryAt: null });
      this._plan(this._hasWork() || numbers.running + numbers.waiting > 0 ? BUSY_S : IDLE_S);
    } catch (error) {
      this._failed(error);
    } finally {
      this._asking = false;
    }
  }

  async wake() {
    await this._api.send("/v1/omni/wake_up", { method: "POST" });
    await this.ask();
  }

  _failed(error) {
    const again = Math.min(LONGEST_BACKOFF_S, 2 ** this._failures++);
    const isAlive = Date.now() - (this._reachedAt ?? 0) < 5000;
    if (error.status === 401) {
      this._become({ ...this.state, kind: "locked", retryAt: null });
      return;  // until a key is given; asking again would ask the person again
    }
    if (error.status > 0 || (isAlive && error.code === "timeout")) {
      this._plan(again);
      return;
    }
    this._become({ kind: "gone", waiting: 0, running: 0, retryAt: Date.now() + again * 1000 });
    this._plan(again);
  }

  _plan(seconds) {
    clearTimeout(this._timer);
    this._timer = setTimeout(() => { if (!document.hidden) this.ask(); }, seconds * 1000);
  }

  _become(state) {
    const before = this.state;
    this.state = state;
    this.dispatchEvent(new CustomEvent("change", { detail: { before, now: state } }));
  }
}
