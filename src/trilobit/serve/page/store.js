// Conversations in this browser: one IndexedDB record each. Other tabs are told of changes. Where
// the browser keeps nothing (a private window), the page goes on without.

export class Store {
  #base = null;
  #tabs = typeof BroadcastChannel === "function" ? new BroadcastChannel("trilobit") : null;
  #waiting = new Map(); // id -> conversation (null: delete it) that is not written yet
  #timer = 0;

  /** All conversations; onOther(id, conversation or undefined): another tab changed one. */
  async open(onOther) {
    addEventListener("pagehide", () => this.flush());
    if (this.#tabs) {
      this.#tabs.onmessage = async ({ data: id }) => {
        if (!this.#waiting.has(id)) onOther(id, await this.#get(id));
      };
    }
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

  get keeps() {
    return this.#base !== null;
  }

  /** Soon: a running answer is written a few times a second at most. */
  put(conversation) {
    this.#waiting.set(conversation.id, conversation);
    this.#timer ||= setTimeout(() => this.flush(), 300);
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
    await new Promise((resolve) => {
      table.transaction.oncomplete = table.transaction.onabort = resolve;
    });
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
