// The core as WebAssembly, and a model in it: ids in, the ids that follow out.

import { frequencies } from "./frequencies.js";
import { readPacked } from "./packed.js";
import { Tokenizer } from "./tokenizer.js";

// A module of one function whose body is a relaxed dot product: an engine without it refuses.
const RELAXED = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 19, 1, 17, 0,
  65, 0, 253, 15, 65, 0, 253, 15, 65, 0, 253, 15, 253, 147, 2, 11,
]);
export const hasRelaxed = () => WebAssembly.validate(RELAXED);

const MATRICES = [
  "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
  "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
];
const NORMS = [
  "input_layernorm", "post_attention_layernorm", "self_attn.attn_sub_norm", "mlp.ffn_sub_norm",
];
const FLOATS = ["F32", "F16", "BF16"]; // in the order of native/kernels.h

// The system that the core is compiled for; it asks only for the environment, and to end.
const system = (memory) => new Proxy({}, {
  get: (_, name) => (...args) => {
    if (name === "proc_exit") throw new Error("the core gave up: out of memory?");
    if (name !== "environ_sizes_get") return 52; // there is no such thing
    for (const place of args) new DataView(memory().buffer).setUint32(place, 0, true);
    return 0;
  },
});

export class Engine {
  // core, file: ArrayBuffers of the compiled core, and of a packed model.
  static async load(core, file) {
    const exports = {};
    const wasi = system(() => exports.memory);
    const { instance } = await WebAssembly.instantiate(core, { wasi_snapshot_preview1: wasi });
    Object.assign(exports, instance.exports);
    exports._initialize();
    return new Engine(exports, new Uint8Array(file));
  }

  constructor(core, file) {
    this.core = core;
    this.model = readPacked(file);
    this.tokenizer = new Tokenizer(this.model.tokenizer);
    this.session = core.open(this.#describe(this.#put(file)));
    this.positions = this.model.config.max_position_embeddings;
    this.room = core.allocate(4 * this.positions);
  }

  get isa() {
    const bytes = new Uint8Array(this.core.memory.buffer, this.core.isa());
    return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
  }

  encode(text) {
    const { bosId } = this.model;
    return [...(bosId === null ? [] : [bosId]), ...this.tokenizer.encode(text)];
  }

  // The ids that follow, until the text ends, there are `most`, or the model has no more room.
  // temperature: 0 takes the likeliest. seed: a BigInt below 2^64.
  *generate(ids, { most = 256, temperature = 0.7, seed = 0n } = {}) {
    const { eos_token_ids: ends } = this.model.config;
    if (ids.length > this.positions)
      throw new Error(`a text of ${ids.length} tokens; this model has room for ${this.positions}`);
    const [low, high] = [seed & 0xffffffffn, seed >> 32n].map(Number);
    this.core.begin(this.session, temperature, low, high);
    let position = 0;
    for (let count = 0; count < most && position + ids.length <= this.positions; count++) {
      new Int32Array(this.core.memory.buffer, this.room, ids.length).set(ids);
      const id = this.core.next(this.session, this.room, ids.length);
      if (id < 0 || ends.includes(id)) return;
      position += ids.length;
      yield id;
      ids = [id];
    }
  }

  #put(bytes) {
    const place = this.core.allocate(bytes.byteLength);
    if (!place) throw new Error("there is not enough memory for the model");
    new Uint8Array(this.core.memory.buffer).set(bytes, place);
    return place;
  }

  // What native/web/session.cpp calls Description, and its LayerTensors.
  #describe(file) {
    const { config: c, find, base3 } = this.model;
    const at = (name) => {
      const tensor = find(name);
      if (!tensor) throw new Error(`the model has no ${name}`);
      return file + tensor.begin;
    };
    const turns = frequencies(c.head_dim, c.rope_theta);
    const embedding = find("model.embed_tokens.weight");
    const head = c.tie_word_embeddings ? "model.embed_tokens" : "lm_head";
    const screened = find("lm_head.screen.coarse.codes") !== null;
    const epsilon = new Uint32Array(Float32Array.of(c.rms_norm_eps).buffer)[0];
    const words = [
      c.vocab_size, c.hidden_size, c.intermediate_size, c.num_hidden_layers,
      c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.max_position_embeddings,
      epsilon, Number(base3), Number(find("model.layers.0.mlp.up_proj.weight").shape.length === 2),
      FLOATS.indexOf(embedding.dtype), this.#put(new Uint8Array(turns.buffer)),
      at("model.norm.weight"), at("model.embed_tokens.weight"), at(`${head}.weight`),
      ...["coarse", "fine"].flatMap((plane) =>
        ["codes", "scales", "residuals"].map((part) =>
          screened ? at(`lm_head.screen.${plane}.${part}`) : 0)),
    ];
    for (let layer = 0; layer < c.num_hidden_layers; layer++) {
      const prefix = `model.layers.${layer}.`;
      words.push(...NORMS.map((name) => at(`${prefix}${name}.weight`)));
      for (const name of MATRICES)
        words.push(at(`${prefix}${name}.weight`), at(`${prefix}${name}.weight_scale`));
    }
    return this.#put(new Uint8Array(Uint32Array.from(words).buffer));
  }
}
