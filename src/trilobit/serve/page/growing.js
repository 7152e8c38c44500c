// An answer on its way: what came so far, what it costs, when it is shown.

/** Shown as often as drawing it is cheap. show(changes): of the message that it becomes. */
export class Growing {
  text = "";
  reasoning = "";
  pieces = 0;
  #spoken = 0;
  #timer = 0;
  #pause = 16; // ms

  constructor(show) {
    this.show = show;
  }

  add({ text, reasoning, finish, usage }) {
    if (text || reasoning) {
      this.first ??= performance.now();
      this.last = performance.now();
      this.pieces += 1;
    }
    this.text += text;
    this.reasoning += reasoning;
    this.finish ??= finish;
    this.usage ??= usage;
    this.#timer ||= setTimeout(() => this.#draw(), this.#pause);
  }

  #draw() {
    const start = performance.now();
    this.#timer = 0;
    if (this.text || this.reasoning) this.show({ text: this.text, reasoning: this.reasoning, state: "writing" });
    // After the browser has drawn: three quarters of the time are left for the reader.
    requestAnimationFrame(() => setTimeout(() => {
      this.#pause = Math.min(500, Math.max(16, 3 * (performance.now() - start)));
    }));
  }

  end(state, error) {
    clearTimeout(this.#timer);
    this.show({ text: this.text, reasoning: this.reasoning, state, error, tokens: this.#tokens() });
  }

  #tokens() {
    if (!this.pieces) return undefined;
    const completion = this.usage?.completion_tokens ?? this.pieces;
    // Of what came behind the first piece; too little of it tells nothing.
    const writing = this.last - this.first;
    const rate = this.pieces > 4 && writing > 10 ? (1000 * (completion - 1)) / writing : 0;
    return { prompt: this.usage?.prompt_tokens ?? 0, completion, rate, about: !this.usage };
  }

  /** What has come in whole paragraphs since the last time. */
  paragraphs() {
    const end = this.text.lastIndexOf("\n\n");
    if (end <= this.#spoken) return [];
    const more = this.text.slice(this.#spoken, end);
    this.#spoken = end;
    return [more];
  }

  rest() {
    return this.text.slice(this.#spoken).trim();
  }
}
