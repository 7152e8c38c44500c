// The engine apart from the page, which stays awake: a message asks for a text, many bring it.

import { Engine, hasRelaxed } from "./engine.js";

const here = async (name) => {
  const answer = await fetch(new URL(name, import.meta.url));
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.arrayBuffer();
};

const engine = (async () => {
  const core = hasRelaxed() ? "trilobit-relaxed.wasm" : "trilobit.wasm";
  const started = await Engine.load(await here(core), await here("model.trilobit"));
  postMessage({ ready: started.isa });
  return started;
})();
engine.catch((error) => postMessage({ error: `The model does not start: ${error.message}` }));

onmessage = async ({ data }) => {
  try {
    tell(await engine, data);
  } catch (error) {
    postMessage({ error: `No story: ${error.message}` });
  }
};

function tell(started, { text, most, temperature, seed }) {
  const decoder = new TextDecoder();
  const ids = [];
  const begin = performance.now();
  for (const id of started.generate(started.encode(text), { most, temperature, seed })) {
    ids.push(id);
    const piece = decoder.decode(started.tokenizer.bytesOf(id), { stream: true });
    postMessage({ piece });
  }
  const seconds = (performance.now() - begin) / 1e3;
  postMessage({ piece: decoder.decode(), done: { ids, seconds } });
}
