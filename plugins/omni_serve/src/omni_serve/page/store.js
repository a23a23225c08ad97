// What the gallery keeps in the browser: settings and files, the newest first, within limits.

const NAME = "omni-gallery";
const MOST_ENTRIES = 300;
const MOST_BYTES = 256 << 20;

/** Without IndexedDB (some private windows), everything works and nothing is kept. */
export class Store {
  static async open() {
    const store = new Store();
    try {
      const opening = indexedDB.open(NAME, 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("entries", { keyPath: "id" }).createIndex("created", "created");
      store._database = await done(opening);
    } catch {
      store._database = null;
    }
    return store;
  }

  get keeps() {
    return this._database !== null;
  }

  /** Return all records, the oldest first. */
  async all() {
    if (!this.keeps) return [];
    return done(this._objects("readonly").index("created").getAll());
  }

  /** Keep a record. Where there is no room, the oldest go first; returns the ids of those that went. */
  async put(record) {
    if (!this.keeps) return [];
    const gone = [];
    for (;;) {
      try {
        await done(this._objects("readwrite").put(record));
        return gone;
      } catch (error) {
        const oldest = (await this.all()).find((one) => one.id !== record.id && one.blob);
        if (error.name !== "QuotaExceededError" || !oldest) {
          console.info("the gallery keeps no more:", error.name);
          return gone;
        }
        await this.delete(oldest.id);
        gone.push(oldest.id);
      }
    }
  }

  async delete(id) {
    if (this.keeps) await done(this._objects("readwrite").delete(id));
  }

  /** Remove the oldest beyond the limits; returns their ids. */
  async prune() {
    const records = (await this.all()).reverse();
    let bytes = 0;
    const gone = [];
    for (const [number, record] of records.entries()) {
      bytes += record.blob?.size ?? 0;
      for (const input of Object.values(record.inputs ?? {})) bytes += input.size;
      if (number >= MOST_ENTRIES || bytes > MOST_BYTES) gone.push(record.id);
    }
    for (const id of gone) await this.delete(id);
    return gone;
  }

  _objects(mode) {
    return this._database.transaction("entries", mode).objectStore("entries");
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}
