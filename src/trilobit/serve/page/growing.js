// An answer on its way: what came so far, what it costs, when it is shown.

const LONGEST_MS = 1000; // between two drawings
const COVERED_MS = 250; // for a frame; a covered window has none

/**
 * Shown once a frame at most, whatever came. show(changes): of the message that it becomes.
 * signal: ends every wait.
 */
export class Growing {
  text = "";
  reasoning = "";
  pieces = 0;
  #spoken = 0;
  #shown = 0; // ms
  #go = () => {};

  constructor(show, signal) {
    this.show = show;
    this.signal = signal;
    signal.addEventListener("abort", this.#wake);
    document.addEventListener("visibilitychange", this.#wake);
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
  }

  /**
   * What was added is drawn, and three quarters of the time are left for the reader: whoever waits
   * for this before he adds more is never ahead of what can be drawn.
   */
  async drawn() {
    if (!document.hidden) await this.#until((go) => [requestAnimationFrame(go), setTimeout(go, COVERED_MS)]);
    if (this.signal.aborted) return;
    const start = performance.now();
    // Where nobody looks there are no frames, and all timers are late.
    if (document.hidden && start - this.#shown < LONGEST_MS) return;
    this.#shown = start;
    if (this.text || this.reasoning) this.show({ text: this.text, reasoning: this.reasoning, state: "writing" });
    if (document.hidden) return;
    await this.#until((go) => setTimeout(go)); // behind the browser's own drawing
    if (this.signal.aborted) return;
    const pause = Math.min(LONGEST_MS, 3 * (performance.now() - start));
    await this.#until((go) => setTimeout(go, pause));
  }

  /** Until `begin` calls what it is given, the answer is stopped, or the page hidden or seen. */
  #until(begin) {
    return new Promise((go) => {
      this.#go = go;
      begin(go);
    });
  }

  #wake = () => this.#go();

  end(state, error) {
    this.signal.removeEventListener("abort", this.#wake);
    document.removeEventListener("visibilitychange", this.#wake);
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
