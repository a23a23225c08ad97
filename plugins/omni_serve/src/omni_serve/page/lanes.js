// Browsers open six connections to a server that speaks HTTP/1.1. A stream takes one for as long as it lasts; if all
// were streams, nothing else could be asked. So some stay free, and streams beyond that wait their turn here.

const OF_HTTP_1 = 4;
const OF_HTTP_2 = 64;

export class Lanes {
  constructor() {
    const [page] = performance.getEntriesByType("navigation");
    this._free = /^h[23]/.test(page?.nextHopProtocol ?? "") ? OF_HTTP_2 : OF_HTTP_1;
    this._waiting = [];
  }

  /**
   * Wait for a lane; it is the caller's until `leave`.
   *
   * @param signal Ends the wait with an AbortError.
   * @param tellAhead Called with how many are ahead, whenever that changes.
   */
  async enter(signal, tellAhead) {
    signal.throwIfAborted();
    if (this._free > 0) {
      this._free -= 1;
      return;
    }
    const waiting = { tellAhead };
    const turn = new Promise((resolve, reject) => {
      waiting.resolve = resolve;
      signal.addEventListener("abort", () => {
        this._waiting = this._waiting.filter((one) => one !== waiting);
        this._tell();
        reject(signal.reason);
      }, { once: true });
    });
    this._waiting.push(waiting);
    tellAhead(this._waiting.length - 1);
    await turn;
  }

  leave() {
    const next = this._waiting.shift();
    if (next) next.resolve();
    else this._free += 1;
    this._tell();
  }

  _tell() {
    this._waiting.forEach((one, index) => one.tellAhead(index));
  }
}
