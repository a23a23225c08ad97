// Several tabs share one gallery: each knows only of its own running requests, and is asked for them.

const WAIT_MS = 300;

export class Tabs {
  /** @param running Returns the ids of what runs in this tab. */
  constructor(running) {
    this._channel = new BroadcastChannel("omni-gallery");
    this._answers = new Set();
    this._channel.addEventListener("message", ({ data }) => {
      if (data === "what runs?") this._channel.postMessage([...running()]);
      else if (Array.isArray(data)) for (const id of data) this._answers.add(id);
    });
  }

  /** Return the ids of what runs in other tabs. */
  async othersRun() {
    this._answers.clear();
    this._channel.postMessage("what runs?");
    await new Promise((resolve) => setTimeout(resolve, WAIT_MS));
    return new Set(this._answers);
  }
}
