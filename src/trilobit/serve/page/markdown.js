// Markdown -> markup that is safe to show. Three walls: markup in a text stays text (there is no
// tokenizer for it), what comes out is sanitised, and the page's policy lets nothing run or load.
import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js"; // sets DOMPurify
import { t } from "./words.js";

const TAGS = ["a", "blockquote", "br", "button", "code", "del", "div", "em", "figcaption", "figure", "h3", "h4", "h5", "h6",
  "hr", "li", "ol", "p", "pre", "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"];
const ATTRIBUTES = ["align", "class", "data-copy", "dir", "href", "rel", "start", "tabindex", "target", "type"];
const LONGEST_COLOURED = 30_000; // characters; colouring more would make typing stall

const SHORT = 5000; // characters, of which no arrangement takes long
const LONGEST_MS = 400; // for all of a text; thirty times what a long one takes

let highlighter = null;
let asked = false;

const escaped = (text) => text.replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  tokenizer: { html() {}, tag() {} },
  renderer: {
    heading({ tokens, depth }) {
      const level = Math.min(6, depth + 2); // below the page's own
      return `<h${level}>${this.parser.parseInline(tokens)}</h${level}>`;
    },
    // Nothing is fetched that a model names: a picture is a link to it.
    image: ({ href, text }) => link(href, escaped(text || href)),
    link({ href, tokens }) {
      return link(href, this.parser.parseInline(tokens));
    },
    code: ({ text, lang }) => code(text, (lang ?? "").match(/^[\w+#.-]{1,30}/)?.[0] ?? ""),
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
    table(token) {
      const rows = [token.header, ...token.rows].map((row) => `<tr>${row.map((cell) => this.tablecell(cell)).join("")}</tr>`);
      return `<div class="table" tabindex="0"><table><thead>${rows[0]}</thead><tbody>${rows.slice(1).join("")}</tbody></table></div>`;
    },
  },
});

function link(href, inner) {
  return /^(https?:\/\/|mailto:)/i.test(href) ? `<a href="${escaped(href)}" target="_blank" rel="noopener noreferrer">${inner}</a>` : inner;
}

function code(text, language) {
  let inner = escaped(text);
  if (highlighter?.getLanguage(language) && text.length < LONGEST_COLOURED) {
    inner = highlighter.highlight(text, { language, ignoreIllegals: true }).value;
  }
  return `<figure class="code" dir="ltr"><figcaption><span>${escaped(language)}</span>` +
    `<button type="button" data-copy="code">${escaped(t("copy"))}</button></figcaption>` +
    `<pre tabindex="0"><code>${inner}</code></pre></figure>`;
}

function clean(markup) {
  return DOMPurify.sanitize(markup, { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOW_DATA_ATTR: false, RETURN_TRUSTED_TYPE: true });
}

// The sanitiser makes links safe by dropping their target; ours always have one.
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.nodeName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
});

/**
 * A text as blocks of markup. `before` is the answer for a shorter form of the text: blocks that have
 * not changed are the same objects, so that a growing answer is drawn at its end only. What takes the
 * parser too long, or is nested beyond what it bears, is shown as it is from then on.
 * Returns a Map: source and place -> markup.
 */
export function blocks(text, before = new Map()) {
  const made = new Map();
  if (!before.plain) {
    const start = performance.now();
    try {
      marked.lexer(text).forEach((token, place) => {
        if (token.type === "space" || token.type === "def") return;
        if (token.type === "code" && token.lang) askHighlighter();
        const name = `${place} ${highlighter ? "+" : ""} ${document.documentElement.lang} ${token.raw}`;
        made.set(name, before.get(name) ?? clean(marked.parser([token])));
      });
      made.plain = text.length > SHORT && performance.now() - start > LONGEST_MS;
      return made;
    } catch {
      made.clear();
    }
  }
  made.plain = true;
  return made.set(text, clean(`<div class="plain">${escaped(text)}</div>`));
}

/** Loaded when there is code to colour; the page draws itself again when it is there. */
async function askHighlighter() {
  if (asked) return;
  asked = true;
  highlighter = (await import("./vendor/highlight.min.js")).default;
  dispatchEvent(new Event("highlighter"));
}
