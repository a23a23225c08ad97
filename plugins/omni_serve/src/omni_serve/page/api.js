// Talking to the server: the key, errors in one form, and who wants to know whether it answers.

const KEY = "omni-key";

/** What the server has refused, or that it could not be reached (`status` 0). */
export class Problem extends Error {
  constructor(message, { status = 0, param = null, code = null, retryS = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
    this.code = code;
    this.retryS = retryS;
  }

  /** There is no room now, and will be. */
  get isBusy() {
    return this.status === 429 && this.code !== "storage_full";
  }
}

export class Api {
  /** @param askForKey Returns a promise of a key, or of null if the person gives none. */
  constructor(askForKey) {
    this.onReached = () => {};
    this.onLost = () => {};
    this._askForKey = askForKey;
    this._asking = null;
  }

  get hasKey() {
    return sessionStorage.getItem(KEY) !== null;
  }

  /** Send a request and return the response, which is one of success. Asks for a key where one is needed. */
  async send(path, { method = "GET", json, form, signal, timeoutS } = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      const headers = key === null ? {} : { authorization: `Bearer ${key}` };
      if (json !== undefined) headers["content-type"] = "application/json";
      const body = json === undefined ? form : JSON.stringify(json);
      const response = await this._fetch(path, { method, headers, body, signal: withTimeout(signal, timeoutS) });
      if (response.ok) return response;
      const problem = await problemOf(response);
      if (response.status !== 401 || !(await this._newKey(key, problem.message))) throw problem;
    }
  }

  async get(path, options = {}) {
    return (await this.send(path, { timeoutS: 20, ...options })).json();
  }

  async _fetch(path, options) {
    try {
      const response = await fetch(path, { ...options, cache: "no-store", credentials: "same-origin" });
      this.onReached();
      return response;
    } catch (error) {
      if (error.name === "AbortError") throw error;
      if (error.name === "TimeoutError") throw new Problem("The server has not answered in time.", { code: "timeout" });
      this.onLost();
      throw new Problem("The server cannot be reached.");
    }
  }

  /** Return whether there is another key to try. Requests that run into this together ask once. */
  async _newKey(tried, message) {
    if (sessionStorage.getItem(KEY) !== tried) return true;
    this._asking ??= this._askForKey(tried === null ? null : message).finally(() => { this._asking = null; });
    const key = await this._asking;
    if (!key) return false;
    sessionStorage.setItem(KEY, key);
    return true;
  }
}

function withTimeout(signal, timeoutS) {
  const signals = [signal, timeoutS && AbortSignal.timeout(timeoutS * 1000)].filter(Boolean);
  return signals.length > 1 ? AbortSignal.any(signals) : signals[0];
}

async function problemOf(response) {
  const after = Number(response.headers.get("retry-after"));
  const about = { status: response.status, retryS: Number.isFinite(after) && after > 0 ? after : null };
  try {
    return problemFrom((await response.json()).error, about);
  } catch {
    return new Problem(`The server answered ${response.status} ${response.statusText}`.trim() + ".", about);
  }
}

/** Return the problem that an error in OpenAI's form tells of. */
export function problemFrom(error, about = {}) {
  return new Problem(withoutId(error.message), { status: 500, ...about, param: error.param, code: error.code });
}

/** The id of a request means nothing to who looks at its card. */
export function withoutId(message) {
  return message?.replace(/^Request '[^']*'(: the| ) ?/, (_, rest) => (rest === ": the" ? "The " : "It "));
}
