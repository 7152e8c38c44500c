// The server, by the same API that programs use.

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
 * What comes of a request: { text?, reasoning?, finish?, usage? }, piece by piece.
 * body: of v1/chat/completions if it has messages, else of v1/completions.
 */
export async function* answer(body, { key, signal }) {
  const route = body.messages ? "v1/chat/completions" : "v1/completions";
  const response = await ask(route, { key, signal, body: { ...body, stream: true, stream_options: { include_usage: true } } });
  let finished = false;
  for await (const data of events(response.body, signal)) {
    if (data === "[DONE]") return;
    const { choices, usage, error } = JSON.parse(data);
    if (error) throw new ServerError("refused", { text: String(error.message ?? "") });
    const [choice] = choices ?? [];
    if (choice?.finish_reason) finished = true;
    yield {
      text: choice?.delta?.content ?? choice?.text ?? "",
      reasoning: choice?.delta?.reasoning_content ?? "",
      finish: choice?.finish_reason,
      usage,
    };
  }
  if (!finished) throw new ServerError("broken");
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

/** The data of server-sent events. */
async function* events(stream, signal) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split(/\r\n|\n/);
      rest = lines.pop();
      for (const line of lines) {
        if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
        if (line || !data.length) continue;
        yield data.join("\n");
        data = [];
      }
    }
  } catch (error) {
    if (signal.aborted || error.name === "AbortError") throw new DOMException("", "AbortError");
    throw error instanceof ServerError ? error : new ServerError("broken");
  } finally {
    reader.cancel().catch(() => {}); // the server stops writing what nobody reads
  }
}
