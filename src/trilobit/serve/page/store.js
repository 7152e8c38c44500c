// Conversations in this browser: one IndexedDB record each. Other tabs are told of changes. Where
// the browser keeps nothing (a private window), the page goes on without.

export class Store {
  #base = null;
  #tabs = typeof BroadcastChannel === "function" ? new BroadcastChannel("trilobit") : null;
  #waiting = new Map(); // id -> conversation (null: delete it) that is not written yet
  #timer = 0;
  #onLost = () => {};

  /** All conversations. Nothing may be kept before they are there. */
  async open() {
    addEventListener("pagehide", () => this.flush());
    try {
      const opening = indexedDB.open("trilobit", 1);
      opening.onupgradeneeded = () => opening.result.createObjectStore("conversations", { keyPath: "id" });
      this.#base = await done(opening);
      return await done(this.#table("readonly").getAll());
    } catch {
      this.#base = null;
      return [];
    }
  }

  /**
   * onOther(id, conversation or undefined): another tab changed it, or deleted it. onLost(): the
   * browser would not keep what it was given.
   */
  listen(onOther, onLost) {
    this.#onLost = onLost;
    if (!this.#tabs) return;
    this.#tabs.onmessage = async ({ data: id }) => {
      const now = await this.#get(id);
      if (!this.#waiting.has(id)) onOther(id, now);
    };
  }

  get keeps() {
    return this.#base !== null;
  }

  /** soon: not at once, as an answer that is being written changes many times a second. */
  put(conversation, { soon = false } = {}) {
    this.#waiting.set(conversation.id, conversation);
    if (soon) this.#timer ||= setTimeout(() => this.flush(), 300);
    else this.flush();
  }

  remove(id) {
    this.#waiting.set(id, null);
    this.flush();
  }

  async flush() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    const changes = [...this.#waiting];
    this.#waiting.clear();
    if (!this.#base || !changes.length) return;
    const table = this.#table("readwrite");
    for (const [id, conversation] of changes) {
      if (conversation) table.put(conversation);
      else table.delete(id);
    }
    table.transaction.commit(); // now: the page may be left the next moment
    const kept = await new Promise((resolve) => {
      table.transaction.oncomplete = () => resolve(true);
      table.transaction.onabort = () => resolve(false);
    });
    if (!kept) this.#onLost();
    for (const [id] of changes) this.#tabs?.postMessage(id);
  }

  #get(id) {
    return this.#base ? done(this.#table("readonly").get(id)) : undefined;
  }

  #table(mode) {
    return this.#base.transaction("conversations", mode).objectStore("conversations");
  }
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = request.onblocked = () => reject(request.error);
  });
}
