// One message of a chat, and a text that grows: what was said, what it cost, what can be done with it.
import { Component, createRef, html, IconButton } from "./html.js";
import { joined, versions } from "./conversation.js";
import { blocks } from "./markdown.js";
import { isolated, number, t } from "./words.js";

export const isRunning = ({ state }) => state === "waiting" || state === "writing";

export class Message extends Component {
  shouldComponentUpdate(next) {
    return ["message", "count", "running", "editing", "last", "words"].some((name) => next[name] !== this.props[name]);
  }

  render({ message, conversation, count, running, editing, last, app }) {
    const own = message.role === "user";
    const name = own ? t("you") : message.model;
    if (editing) {
      return html`<article class="message user" aria-label=${name}>
        <${Editor} text=${message.text} label=${t("edit")} onDone=${(text) => app.resend(message, text)} onCancel=${() => app.edit(null)} />
      </article>`;
    }
    return html`<article class="message ${message.role} ${last ? "last" : ""}" aria-label=${name} aria-busy=${isRunning(message)}>
      ${own
        ? html`<div class="said" dir="auto">${message.text}</div>`
        : html`<${Reasoning} message=${message} /><${Prose} text=${message.text} writing=${isRunning(message)} waiting=${message.state === "waiting"} name=${name} />`}
      ${!own && html`<${Failure} message=${message} app=${app} disabled=${running} />`}
      ${!isRunning(message) && html`<footer class="actions">
        ${count > 1 && html`<${Versions} message=${message} conversation=${conversation} disabled=${running} app=${app} />`}
        ${message.text && html`<${Copy} text=${() => message.text} label=${t("copy")} />`}
        ${own
          ? html`<${IconButton} name="edit" label=${t("edit")} disabled=${running} onClick=${() => app.edit(message.id)} />`
          : html`<${IconButton} name="again" label=${t("again")} disabled=${running} onClick=${() => app.again(message)} />`}
        ${!own && html`<${Cost} message=${message} />`}
      </footer>`}
    </article>`;
  }
}

/** The pieces of a text, one after the other: whose is whose shows in their colour. */
export function Manuscript({ conversation, way, running, editing, app }) {
  const last = way.at(-1);
  const forks = [way[0], last].filter((message, i, all) => all.indexOf(message) === i && versions(conversation, message).length > 1);
  if (editing) {
    return html`<div class="manuscript"><${Editor} text=${joined(way)} label=${t("edit")} onDone=${(text) => app.rewrite(text)} onCancel=${() => app.edit(null)} /></div>`;
  }
  return html`<article class="manuscript" aria-label=${conversation.title} aria-busy=${isRunning(last)}>
    <div class="text" dir="auto">
      ${way.map((message, i) => html`<span key=${message.id} class=${message.role}>${piece(way, i)}</span>`)}
      ${isRunning(last) && html`<span class="caret" aria-hidden="true"></span>`}
    </div>
    <${Failure} message=${last} app=${app} disabled=${running} />
    ${!isRunning(last) && html`<footer class="actions">
      ${forks.map((message) => html`<${Versions} key=${message.id} message=${message} conversation=${conversation} disabled=${running} app=${app} />`)}
      <${Copy} text=${() => joined(way)} label=${t("copyText")} />
      <${IconButton} name="edit" label=${t("edit")} disabled=${running} onClick=${() => app.edit(last.id)} />
      ${last.role === "assistant" && html`<${IconButton} name="again" label=${t("again")} disabled=${running} onClick=${() => app.again(last)} />`}
      <${Cost} message=${last} />
    </footer>`}
  </article>`;
}

// With the space that `joined` puts before it.
const piece = (way, i) => joined(way.slice(Math.max(0, i - 1), i + 1)).slice(i ? way[i - 1].text.length : 0);

class Prose extends Component {
  known = new Map();
  redraw = () => this.forceUpdate();

  componentDidMount() {
    addEventListener("highlighter", this.redraw);
  }

  componentWillUnmount() {
    removeEventListener("highlighter", this.redraw);
  }

  render({ text, writing, waiting, name }) {
    if (waiting) return html`<p class="waiting"><span class="dots" aria-hidden="true"><i></i><i></i><i></i></span>${t("answering", isolated(name))}</p>`;
    this.known = blocks(text, this.known);
    return html`<div class="prose ${writing ? "writing" : ""}" dir="auto">
      ${[...this.known.values()].map((markup, place) => html`<div class="block" key=${place} dangerouslySetInnerHTML=${{ __html: markup }}></div>`)}
    </div>`;
  }
}

function Reasoning({ message: { reasoning, text } }) {
  return reasoning && html`<details class="reasoning" open=${!text}><summary>${t("reasoning")}</summary><div dir="auto">${reasoning}</div></details>`;
}

function Versions({ message, conversation, disabled, app }) {
  const all = versions(conversation, message);
  const at = all.indexOf(message);
  const go = (to) => () => app.choose(all[to].id);
  return html`<span class="versions" role="group" aria-label=${t("versions")}>
    <${IconButton} name="back" label=${t("previous")} disabled=${disabled || at === 0} onClick=${go(at - 1)} />
    <span class="figures">${t("version", number(at + 1), number(all.length))}</span>
    <${IconButton} name="forth" label=${t("next")} disabled=${disabled || at === all.length - 1} onClick=${go(at + 1)} />
  </span>`;
}

function Cost({ message: { model, role, text, tokens, state, skipped } }) {
  const parts = [];
  if (tokens) parts.push((tokens.about ? "≈ " : "") + t("speed", number(tokens.completion), tokens.rate ? number(tokens.rate, tokens.rate < 20 ? 1 : 0) : ""));
  if (state === "cut") parts.push(t("cut"));
  if (role === "assistant" && state === "done" && !text) parts.push(t("nothing"));
  if (skipped) parts.push(t("partly"));
  if (state === "stopped") parts.push(t("stopped"));
  return html`<span class="cost"><bdi>${model}</bdi>${parts.map((part) => html`<span>${part}</span>`)}</span>`;
}

/** Why an answer did not come, and what to do about it. */
function Failure({ message: { error, id }, app, disabled }) {
  if (!error) return null;
  return html`<div class="problem"><p dir="auto">${errorText(error)}</p>
    <button type="button" class="button" disabled=${disabled} onClick=${() => app.retry(id)}>${t("retry")}</button>
  </div>`;
}

export function errorText({ kind, text, wait }) {
  if (kind === "offline") return t("noAnswer");
  if (kind === "broken") return t("broken");
  if (kind === "busy") return t("busy", wait && number(wait));
  if (kind === "key") return t("keyAsked");
  return text || t("notTold");
}

export class Copy extends Component {
  render({ text, label }, { done }) {
    const copied = async () => {
      await copy(text());
      this.setState({ done: true });
      setTimeout(() => this.setState({ done: false }), 1500);
    };
    return html`<${IconButton} name=${done ? "check" : "copy"} label=${done ? t("copied") : label} onClick=${copied} />`;
  }
}

/** The clipboard's own interface exists only where a page came encrypted or from this machine. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = document.createElement("textarea");
    area.value = text;
    (document.querySelector("dialog[open]") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

class Editor extends Component {
  area = createRef();

  componentDidMount() {
    const area = this.area.current;
    grow(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  render({ text, label, onDone, onCancel }) {
    const done = () => this.area.current.value.trim() && onDone(this.area.current.value.trimEnd());
    const key = (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) done();
      if (event.key !== "Escape") return;
      event.stopPropagation();
      onCancel();
    };
    return html`<div class="editor">
      <textarea ref=${this.area} dir="auto" aria-label=${label} defaultValue=${text} onInput=${(e) => grow(e.target)} onKeyDown=${key}></textarea>
      <div class="buttons">
        <button type="button" class="button" onClick=${onCancel}>${t("cancel")}</button>
        <button type="button" class="button primary" onClick=${done}>${t("sendEdited")}</button>
      </div>
    </div>`;
  }
}

/** As high as what is written in it; the style sheet says how high at most. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

