// The server, by the same API that programs use.

const AT_ONCE = 256; // events; a browser that draws once a second shall not have to draw thousands

/** kind: offline, broken (in mid-answer), key, busy (wait: seconds, if told), refused (text: why). */
export class ServerError extends Error {
  constructor(kind, { text = "", wait = 0 } = {}) {
    super(text || kind);
    Object.assign(this, { kind, text, wait });
  }
}

/** The models that write: [{ id, context (0: not told), chat }]. */
export async function models(key) {
  const response = await ask("v1/models", { key });
  const { data } = await response.json();
  return data.filter((model) => model.generates !== false).map((model) => ({ id: model.id, context: model.max_model_len ?? 0, chat: model.chat !== false }));
}

/**
 * What comes of a request: lists of { text?, reasoning?, finish?, usage? }, all of a list at once.
 * Nothing is read before the last list was dealt with, so a server waits for who cannot follow.
 * body: of v1/chat/completions if it has messages, else of v1/completions.
 */
export async function* answer(body, { key, signal }) {
  const route = body.messages ? "v1/chat/completions" : "v1/completions";
  const response = await ask(route, { key, signal, body: { ...body, stream: true, stream_options: { include_usage: true } } });
  let finished = false;
  for await (const come of events(response.body, signal)) {
    const end = come.indexOf("[DONE]");
    const pieces = [];
    let failure = null;
    for (const data of end < 0 ? come : come.slice(0, end)) {
      try {
        pieces.push(pieceOf(data));
      } catch (error) {
        failure = error;
        break;
      }
    }
    finished ||= pieces.some(({ finish }) => finish);
    if (pieces.length) yield pieces;
    if (failure) throw failure;
    if (end >= 0) return;
  }
  if (!finished) throw new ServerError("broken");
}

function pieceOf(data) {
  const { choices, usage, error } = JSON.parse(data);
  if (error) throw new ServerError("refused", { text: String(error.message ?? "") });
  const [choice] = choices ?? [];
  return {
    text: choice?.delta?.content ?? choice?.text ?? "",
    reasoning: choice?.delta?.reasoning_content ?? "",
    finish: choice?.finish_reason,
    usage,
  };
}

async function ask(route, { key, signal, body }) {
  const headers = body ? { "Content-Type": "application/json" } : {};
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    // Beside the page, wherever a proxy may have put it.
    response = await fetch(new URL(route, document.baseURI), {
      method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body), credentials: "omit",
    });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError("offline");
  }
  if (response.ok) return response;
  if (response.status === 401) throw new ServerError("key");
  if (response.status === 429 || response.status === 503) {
    throw new ServerError("busy", { wait: Number(response.headers.get("Retry-After")) || 0 });
  }
  if (response.status === 502 || response.status === 504) throw new ServerError("offline");
  throw new ServerError("refused", { text: await reason(response) });
}

async function reason(response) {
  try {
    const { error } = await response.json();
    return String(error.message);
  } catch {
    return `${response.status} ${response.statusText}`;
  }
}

/** The data of server-sent events: lists of what came at once, or a part of it. */
async function* events(stream, signal) {
  // No transform between: it would read ahead of us.
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split(/\r\n|\n/);
      rest = lines.pop();
      const come = [];
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        if (line || !data.length) continue;
        come.push(data.join("\n"));
        data = [];
      }
      while (come.length) yield come.splice(0, AT_ONCE);
    }
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") throw new DOMException("", "AbortError");
    throw error instanceof ServerError ? error : new ServerError("broken");
  } finally {
    reader.cancel().catch(() => {}); // the server stops writing what nobody reads
  }
}
