// The packed file (docs/format.md): its config, its tokenizer, and where its tensors lie.

// What this page's core computes; a model that wants more is refused by the name of the field.
const PLAIN = {
  hidden_act: "relu2", sub_norms: true, qk_norms: false, post_norms: false,
  projection_norm_eps: null, embedding_scale: 1, query_pre_attn_scalar: null, rope_scaling: null,
  sliding_window: null, scales: "tensor", ternary_embeddings: false,
};

// bytes: a Uint8Array of the whole file.
export function readPacked(bytes) {
  const length = Number(new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true));
  const data = 8 + length;
  if (!(data < bytes.length)) throw new Error("the model's file ends in its header");
  const { __metadata__: about, ...tensors } = JSON.parse(text(bytes.subarray(8, data)));
  if (about?.format !== "trilobit" || about.version !== "5")
    throw new Error("this is no packed model of version 5");
  const config = JSON.parse(about.config);
  for (const [field, value] of Object.entries(PLAIN))
    if (config[field] !== value) throw new Error(`${field}: this page runs only ${value}`);
  const find = (name) => {
    const tensor = tensors[name];
    if (!tensor) return null;
    const [begin, end] = tensor.data_offsets.map((offset) => offset + data);
    if (end > bytes.length) throw new Error(`the model's file ends in ${name}`);
    return { begin, end, dtype: tensor.dtype, shape: tensor.shape };
  };
  const file = find("tokenizer.json");
  if (!file) throw new Error("the model has no tokenizer");
  return {
    config, find,
    base3: about.layout === "1.6-bit",
    bosId: about.add_bos === "true" ? config.bos_token_id : null,
    tokenizer: JSON.parse(text(bytes.subarray(file.begin, file.end))),
  };
}

function text(bytes) {
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
}
