// Byte-level BPE (Radford et al. 2019), from a tokenizer.json: text to ids, and ids to text.

// GPT-2's words: contractions, then letters, digits or signs with a space before, then space.
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

export class Tokenizer {
  constructor({ model, pre_tokenizer: words, normalizer, added_tokens: special }) {
    if (model.type !== "BPE" || words?.type !== "ByteLevel" || normalizer || !words.use_regex)
      throw new Error("this page knows byte-level BPE only");
    this.ids = new Map(Object.entries(model.vocab));
    this.ranks = new Map(model.merges.map((pair, rank) => [key(...pair), rank]));
    this.special = new Set(special.map(({ id }) => id));
    this.signs = byteSigns();
    this.bytes = new Map(this.signs.map((sign, byte) => [sign, byte]));
    this.tokens = [];
    for (const [token, id] of this.ids) this.tokens[id] = token;
    this.known = new Map(); // words met before
  }

  encode(text) {
    return (text.match(WORDS) ?? []).flatMap((word) => this.#ids(word));
  }

  // The bytes of a token; none of a special one.
  bytesOf(id) {
    if (this.special.has(id)) return new Uint8Array();
    return Uint8Array.from(this.tokens[id], (sign) => this.bytes.get(sign));
  }

  #ids(word) {
    let ids = this.known.get(word);
    if (!ids) {
      const signs = Array.from(new TextEncoder().encode(word), (byte) => this.signs[byte]);
      ids = this.#merge(signs).map((token) => this.ids.get(token));
      this.known.set(word, ids);
    }
    return ids;
  }

  // The pair that was learned first becomes one, until no pair is known.
  #merge(parts) {
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const rank = this.ranks.get(key(parts[i], parts[i + 1])) ?? Infinity;
        if (rank < best) [best, at] = [rank, i];
      }
      if (at < 0) return parts;
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }
}

const key = (first, second) => `${first} ${second}`; // no token has a space

// The sign that stands for each byte: itself if it can be seen, else one from U+0100 on.
function byteSigns() {
  const seen = (byte) =>
    (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte <= 0xff && byte !== 0xad);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) =>
    String.fromCodePoint(seen(byte) ? byte : next++));
}
