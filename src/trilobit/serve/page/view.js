// The parts of the page: what is being read, the box to write in, and the list beside them.
import { found, path, versions } from "./conversation.js";
import { Component, createRef, html, icon, IconButton, Mark } from "./html.js";
import { errorText, grow, isRunning, Manuscript, Message } from "./message.js";
import { Choice } from "./settings.js";
import { isolated, LANGUAGES, number, starters, t } from "./words.js";

const NEAR = 48; // pixels from the end that still count as being there

export class Log extends Component {
  scroller = createRef();
  state = { away: false };
  pinned = true;

  componentDidMount() {
    this.toEnd();
  }

  componentDidUpdate({ name }) {
    if (name !== this.props.name) this.pinned = true;
    if (this.pinned) this.toEnd();
  }

  toEnd = () => {
    const { current: scroller } = this.scroller;
    scroller.scrollTop = scroller.scrollHeight;
  };

  moved = ({ target }) => {
    this.pinned = target.scrollHeight - target.scrollTop - target.clientHeight < NEAR;
    if (this.state.away === this.pinned) this.setState({ away: !this.pinned });
  };

  // Copying code: its button is in markup that a model's text became.
  clicked = ({ target }) => {
    const button = target.closest("[data-copy]");
    if (button) this.props.app.copyCode(button);
  };

  render({ conversation, kind, model, app, running, editing }, { away }) {
    const way = conversation ? path(conversation) : [];
    return html`<div class="log-frame">
      <div class="log" ref=${this.scroller} role="log" aria-live="off" aria-label=${t("conversation")} tabindex="0" onScroll=${this.moved} onClick=${this.clicked}>
        <div class="column">
          ${!way.length
            ? html`<${Welcome} kind=${kind} model=${model} app=${app} />`
            : kind === "text"
              ? html`<${Manuscript} conversation=${conversation} way=${way} running=${running} editing=${editing} app=${app} />`
              : way.map((message, i) => html`<${Message} key=${message.id} message=${message} conversation=${conversation} running=${running} app=${app}
                  count=${versions(conversation, message).length} editing=${editing === message.id} last=${i === way.length - 1} words=${document.documentElement.lang} />`)}
        </div>
      </div>
      ${away && html`<${IconButton} name="down" label=${t("latest")} onClick=${() => { this.pinned = true; this.toEnd(); }} />`}
    </div>`;
  }
}

function Welcome({ kind, model, app }) {
  if (!model) return html`<div class="welcome"><${Mark} /></div>`;
  const text = kind === "text";
  const begin = starters(model.id);
  return html`<div class="welcome">
    <${Mark} />
    <h2>${t(text ? "textHello" : "chatHello")}</h2>
    ${model.chat && html`<${Choice} label=${t("conversation")} name="kind" value=${kind} onValue=${app.setKind} options=${[["chat", t("chat")], ["text", t("text")]]} />`}
    ${text && html`<p>${t(model.chat ? "textAboutChat" : "textAbout", isolated(model.id))}</p>
      <ul class="starters">${begin.texts.map((start) => html`<li key=${start}><button type="button" lang=${begin.lang} dir=${begin.dir} onClick=${() => app.send(start)}>${start} …</button></li>`)}</ul>`}
    <p class="hint">${t(app.store.keeps ? "about" : "forgetful")}</p>
  </div>`;
}

export class Composer extends Component {
  area = createRef();

  componentDidMount() {
    this.area.current.value = this.props.app.drafts.get(this.props.name) ?? "";
    grow(this.area.current);
    this.setState({ empty: !this.area.current.value.trim() });
    if (!isTouch() && !document.querySelector("dialog[open]")) this.area.current.focus();
  }

  input = ({ target }) => {
    grow(target);
    this.props.app.drafts.set(this.props.name, target.value);
    this.setState({ empty: !target.value.trim() });
  };

  key = (event) => {
    const { app, running } = this.props;
    if (event.isComposing) return;
    if (event.key === "ArrowUp" && !this.area.current.value && !running && app.editLast()) event.preventDefault();
    if (event.key !== "Enter" || event.shiftKey || event.altKey || isTouch()) return;
    event.preventDefault();
    if (!running) this.send();
  };

  // What is sent before the models are known goes when they are.
  componentDidUpdate() {
    if (!this.early || this.props.loading) return;
    this.early = false;
    this.send();
  }

  send = () => {
    const { app, canContinue, disabled, loading } = this.props;
    this.early = loading;
    const text = this.area.current.value.trim();
    if (disabled || (!text && !canContinue)) return;
    this.area.current.value = "";
    this.input({ target: this.area.current });
    app.send(text);
  };

  render({ app, kind, running, disabled, canContinue, problem }, { empty = true }) {
    const words = kind === "text" && canContinue && empty ? "continueText" : "send";
    const placeholder = kind === "chat" ? "message" : canContinue ? "textPlaceholder" : "beginText";
    return html`<form class="composer" onSubmit=${(e) => { e.preventDefault(); this.send(); }}>
      ${problem}
      <div class="box">
        <textarea id="box" ref=${this.area} rows="1" dir=${empty ? undefined : "auto"} aria-label=${t(placeholder)} placeholder=${t(placeholder)} onInput=${this.input} onKeyDown=${this.key}></textarea>
        ${running
          ? html`<button type="button" class="send stop" aria-label=${t("stop")} title=${t("stop")} onClick=${app.stop}>${icon("stop")}</button>`
          : html`<button class="send ${words === "continueText" ? "wide" : ""}" aria-label=${t(words)} title=${t(words)} disabled=${(disabled && !this.props.loading) || (empty && !canContinue)}>${words === "continueText" ? t(words) : icon("send")}</button>`}
      </div>
    </form>`;
  }
}

const isTouch = () => matchMedia("(pointer: coarse)").matches;

/** What stands in the way of the whole page, with the way out. */
export function Problem({ error, model, onRetry, onText }) {
  if (error) {
    return html`<div class="problem" role="alert"><p>${errorText(error)}</p><button type="button" class="button" onClick=${onRetry}>${t("retry")}</button></div>`;
  }
  return html`<div class="problem mild" role="status"><p>${t("noChat", isolated(model.id))}</p><button type="button" class="button" onClick=${onText}>${t("startText")}</button></div>`;
}

export function Context({ conversation, model }) {
  const last = conversation && path(conversation).findLast(({ role }) => role === "assistant");
  if (!last?.tokens?.prompt || !model?.context || last.model !== model.id || isRunning(last)) return null;
  const used = last.tokens.prompt + last.tokens.completion;
  const share = Math.min(1, used / model.context);
  return html`<p class="context ${share > 0.9 ? "full" : ""}"><span class="bar" aria-hidden="true"><span style=${{ width: `${share * 100}%` }}></span></span>
    <span class="figures">${t("contextUsed", number(used), number(model.context))}</span></p>`;
}

// ---- the list ---------------------------------------------------------------------------------

export class Sidebar extends Component {
  // Not for every word of an answer: there may be hundreds of conversations.
  shouldComponentUpdate(next, nextState) {
    const { conversations } = this.props;
    const same = (one, i) => ["id", "title", "updated"].every((name) => one[name] === next.conversations[i]?.[name]);
    return nextState !== this.state || ["current", "settings", "open", "dark"].some((name) => next[name] !== this.props[name]) ||
      next.conversations.length !== conversations.length || !conversations.every(same);
  }

  render({ app, conversations, current, settings, open, dark }, { query = "", renaming }) {
    const shown = (query.trim() ? conversations.filter((one) => found(one, query)) : conversations);
    const other = settings.language === "ar" ? "en" : "ar";
    return html`<aside class="sidebar ${open ? "open" : ""}" aria-label=${t("conversations")}>
      <header><a class="brand" href="#" dir="ltr" onClick=${() => app.menu(false)}><${Mark} />Trilobit</a>
        <span class="only-narrow"><${IconButton} name="close" label=${t("close")} onClick=${() => app.menu(false)} /></span></header>
      <button type="button" class="button new" onClick=${() => app.select(null)}>${icon("plus")}${t("newOne")}</button>
      <label class="search">${icon("search")}<input id="search" type="search" dir=${query ? "auto" : undefined} aria-label=${t("search")} placeholder=${t("search")} value=${query} onInput=${(e) => this.setState({ query: e.target.value })} /></label>
      <nav aria-label=${t("conversations")}>
        ${byDay(shown).map(([day, list]) => html`<section key=${day} aria-labelledby="day-${day}"><h2 id="day-${day}">${t("day")[day]}</h2><ul>
          ${list.map((one) => html`<li key=${one.id} class=${one.id === current ? "current" : ""}>
            ${renaming === one.id
              ? html`<${Rename} title=${one.title} onDone=${(title) => { this.setState({ renaming: null }); app.rename(one, title); }} />`
              : html`<a href="#${one.id}" dir="auto" aria-current=${one.id === current ? "page" : undefined} onClick=${() => app.menu(false)}>${one.title || t("untitled")}</a>
                <span class="row-actions">
                  <${IconButton} name="edit" label="${t("rename")}: ${one.title}" onClick=${() => this.setState({ renaming: one.id })} />
                  <${IconButton} name="export" label="${t("exportOne")}: ${one.title}" onClick=${() => app.export([one])} />
                  <${IconButton} name="remove" label="${t("remove")}: ${one.title}" onClick=${() => app.remove([one])} />
                </span>`}
          </li>`)}</ul></section>`)}
        ${!shown.length && html`<p class="hint">${t(query.trim() ? "noneFound" : "noneYet")}</p>`}
      </nav>
      <footer>
        <button type="button" class="button plain" onClick=${() => app.dialog("settings")}>${icon("settings")}${t("settings")}</button>
        <button type="button" class="button plain language" lang=${other} onClick=${() => app.set({ language: other })}>${LANGUAGES[other]}</button>
        <${IconButton} name=${dark ? "sun" : "moon"} label=${t(dark ? "light" : "dark")} onClick=${() => app.set({ theme: dark ? "light" : "dark" })} />
      </footer>
    </aside>`;
  }
}

class Rename extends Component {
  input = createRef();

  componentDidMount() {
    this.input.current.select();
  }

  render({ title, onDone }) {
    const key = ({ key, target }) => {
      if (key === "Enter") onDone(target.value.trim() || title);
      if (key === "Escape") onDone(title);
    };
    return html`<input ref=${this.input} class="rename" dir="auto" maxlength="200" aria-label=${t("title")} defaultValue=${title} onKeyDown=${key} onBlur=${(e) => onDone(e.target.value.trim() || title)} />`;
  }
}

/** [day, its conversations], latest first. */
function byDay(conversations) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 86_400_000;
  const days = { today: [], yesterday: [], week: [], earlier: [] };
  for (const one of [...conversations].sort((a, b) => b.updated - a.updated)) {
    const { updated } = one;
    days[updated >= midnight ? "today" : updated >= midnight - day ? "yesterday" : updated >= midnight - 6 * day ? "week" : "earlier"].push(one);
  }
  return Object.entries(days).filter(([, list]) => list.length);
}
