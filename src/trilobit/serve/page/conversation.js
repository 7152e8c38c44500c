// A conversation is a tree: an edited message or another answer stands beside the first, so nothing
// written is ever lost. What is read is the way from the root to `leaf`.
//
// { id, title, named, created, updated, kind: "chat" | "text", model, system, leaf,
//   messages: [{ id, parent, role, text, reasoning, model, state, error, tokens, skipped }] }
// Parents stand before their children. skipped: characters of a text that the model did not read.

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(10)), (byte) => byte.toString(16).padStart(2, "0")).join("");

export const begin = (kind, model, system) => ({
  id: newId(), title: "", named: false, created: Date.now(), updated: Date.now(),
  kind, model, system, leaf: null, messages: [],
});

/** The messages from the root to the leaf. */
export function path(conversation) {
  const byId = new Map(conversation.messages.map((message) => [message.id, message]));
  const way = [];
  for (let at = byId.get(conversation.leaf); at; at = byId.get(at.parent)) way.push(at);
  return way.reverse();
}

/** With one more message below `parent` (null: at the root), which becomes the leaf. */
export function added(conversation, parent, role, text, more = {}) {
  const message = { id: newId(), parent, role, text, ...more };
  const changed = { ...conversation, messages: [...conversation.messages, message], leaf: message.id, updated: Date.now() };
  return changed.named ? changed : { ...changed, title: titleOf(changed) };
}

export const changed = (conversation, id, more) => ({
  ...conversation,
  messages: conversation.messages.map((message) => (message.id === id ? { ...message, ...more } : message)),
});

/** A message and those that were written in its place. */
export const versions = (conversation, message) =>
  conversation.messages.filter((other) => other.parent === message.parent && other.role === message.role);

/** With another version read, down to the newest message below it. */
export function chosen(conversation, id) {
  let leaf = id;
  const below = () => conversation.messages.findLast((message) => message.parent === leaf);
  for (let next = below(); next; next = below()) leaf = next.id;
  return { ...conversation, leaf };
}

/** Pieces of a text, joined: words that are added do not run into those before. */
export function joined(messages) {
  let text = "";
  for (const { text: piece, role } of messages) {
    text += role === "user" && text && !/\s$/.test(text) && !/^[\s.,;:!?'’”)]/.test(piece) ? ` ${piece}` : piece;
  }
  return text;
}

/**
 * The end of a text that a model has room for, beginning with a sentence where that can be: half of
 * its context is left for what it writes, if so much is wanted. way: how much the text took so far.
 */
export function lastPart(text, way, context, wanted) {
  if (!context) return text;
  const told = way.findLast(({ tokens }) => tokens?.prompt);
  const length = told && joined(way.slice(0, way.indexOf(told) + 1)).length - (told.skipped ?? 0);
  const perToken = told ? length / (told.tokens.prompt + told.tokens.completion) : 2; // characters, fewer than most have
  const most = Math.floor(0.9 * perToken * (context - Math.min(wanted, context / 2)));
  if (text.length <= most) return text;
  const part = text.slice(-most);
  const start = part.match(/[.!?؟。]["”’'»]?\s+|\n+/) ?? part.match(/\s+/);
  return start && start.index < most / 2 ? part.slice(start.index + start[0].length) : part;
}

/** As the chat API wants it; answers that never came are left out. */
export function asMessages(conversation, way) {
  const said = way.filter(({ role, text }) => role === "user" || text);
  const system = conversation.system.trim();
  return [...(system ? [{ role: "system", content: system }] : []), ...said.map(({ role, text }) => ({ role, content: text }))];
}

function titleOf(conversation) {
  const first = path(conversation).find(({ role }) => role === "user")?.text.trim() ?? "";
  const line = first.split("\n", 1)[0];
  const letters = Array.from(line);
  return letters.length > 60 ? `${letters.slice(0, 59).join("").trimEnd()}…` : line;
}

export function found(conversation, query) {
  const wanted = query.trim().toLocaleLowerCase();
  return [conversation.title, ...conversation.messages.map(({ text }) => text)]
    .some((text) => text.toLocaleLowerCase().includes(wanted));
}

// ---- files ------------------------------------------------------------------------------------

const FORMAT = "trilobit-conversations";
const ID = /^[0-9a-f]{20}$/;

export const written = (conversations) => JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1);

/** The conversations of a file, each checked and copied field by field; throws if it is no such file. */
export function readFile(text) {
  const file = JSON.parse(text);
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) throw new Error("format");
  return file.conversations.map(readConversation);
}

function readConversation(given) {
  const known = new Map();
  for (const message of given.messages) {
    const parent = message.parent ?? null;
    if (parent !== null && !known.has(parent)) throw new Error("parent");
    if (!ID.test(message.id) || known.has(message.id) || !["user", "assistant"].includes(message.role)) throw new Error("message");
    const { prompt, completion, rate } = message.tokens ?? {};
    const tokens = [prompt, completion].every(Number.isFinite) ? { prompt, completion, rate: Number(rate) || 0 } : undefined;
    known.set(string(message.id), {
      id: string(message.id), parent, role: message.role, text: string(message.text),
      reasoning: string(message.reasoning ?? ""), model: string(message.model ?? ""),
      state: ["cut", "stopped"].includes(message.state) ? message.state : "done", tokens,
      skipped: Number(message.skipped) || 0,
    });
  }
  if (!ID.test(given.id) || (given.leaf !== null && !known.has(given.leaf))) throw new Error("id");
  return {
    id: string(given.id), title: string(given.title).slice(0, 200), named: given.named === true,
    created: time(given.created), updated: time(given.updated),
    kind: given.kind === "text" ? "text" : "chat", model: string(given.model),
    system: string(given.system), leaf: given.leaf, messages: [...known.values()],
  };
}

function string(value) {
  if (typeof value !== "string") throw new Error("text");
  return value;
}

function time(value) {
  if (!Number.isFinite(value)) throw new Error("time");
  return Math.min(value, Date.now());
}
