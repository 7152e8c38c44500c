// The page as a whole: its state, and everything that can be done.
import { answer, models, ServerError } from "./api.js";
import { added, asMessages, begin, changed, chosen, joined, lastPart, newId, path, readFile, written } from "./conversation.js";
import { Growing } from "./growing.js";
import { Component, html, IconButton, render } from "./html.js";
import { copy, errorText, isRunning } from "./message.js";
import { keepSettings, KeyDialog, readSettings, sampling, SettingsDialog } from "./settings.js";
import { Store } from "./store.js";
import { Composer, Context, Log, Problem, Sidebar } from "./view.js";
import { isolated, t } from "./words.js";

const SPOKEN = 20; // paragraphs that stand where a screen reader hears them
const SCREEN = ["(max-width: 760px)", "(prefers-color-scheme: dark)"];

class App extends Component {
  store = this.props.store;
  drafts = new Map(); // conversation -> what is being written
  runs = new Map(); // conversation -> { abort }
  state = {
    settings: readSettings(), conversations: new Map(this.props.kept.map((one) => [one.id, ended(one)])), current: null, kind: null,
    models: [], error: null, dialog: null, keyWrong: false, open: false, editing: null, toast: null, spoken: [],
  };

  componentDidMount() {
    addEventListener("hashchange", this.arrive);
    addEventListener("keydown", this.key);
    for (const event of ["focus", "online"]) addEventListener(event, () => this.state.error && !this.state.dialog && this.loadModels());
    for (const query of SCREEN) matchMedia(query).addEventListener("change", () => this.forceUpdate());
    keepSettings(this.state.settings);
    this.loadModels();
    this.store.listen(this.changedElsewhere, () => this.toast(t("notKept")));
    this.arrive();
  }

  /** setState, at once: what comes before the next drawing sees it too. */
  now(more) {
    Object.assign(this.state, more);
    this.setState(more);
  }

  // ---- what is where --------------------------------------------------------------------------

  get conversation() {
    return this.state.conversations.get(this.state.current);
  }

  /** The model that answers next. */
  get model() {
    const { models: served, settings } = this.state;
    const wanted = [this.conversation?.model, settings.model];
    return wanted.map((name) => served.find(({ id }) => id === name)).find(Boolean) ?? served[0];
  }

  get kind() {
    if (this.conversation) return this.conversation.kind;
    return this.model?.chat === false ? "text" : this.state.kind ?? "chat";
  }

  arrive = () => {
    const id = location.hash.slice(1);
    const current = this.state.conversations.has(id) ? id : null;
    this.setState({ current, editing: null, open: false });
  };

  select = (id) => {
    this.setState({ current: id, editing: null, open: false });
    // The address is kept, so that reloading and going back lead where one was.
    const address = id ? `#${id}` : location.pathname + location.search;
    if (location.hash.slice(1) !== (id ?? "")) history.pushState(null, "", address);
    if (!id && !matchMedia("(pointer: coarse)").matches) document.getElementById("box")?.focus();
  };

  setKind = (kind) => this.setState({ kind });
  menu = (open) => this.setState({ open });
  dialog = (dialog) => this.setState({ dialog, keyWrong: false, open: false });
  edit = (editing) => this.setState({ editing }, () => editing ?? document.getElementById("box")?.focus());

  editLast() {
    const last = this.conversation && path(this.conversation).findLast(({ role }) => role === "user");
    if (last) this.edit(last.id);
    return Boolean(last);
  }

  set = (more) => {
    const settings = { ...this.state.settings, ...more };
    keepSettings(settings);
    this.now({ settings });
    if ("key" in more) this.loadModels(settings);
  };

  setModel = (model) => {
    this.set({ model });
    if (this.conversation) this.put({ ...this.conversation, model });
  };

  setSystem = (system) => {
    this.set({ system });
    if (this.conversation) this.put({ ...this.conversation, system });
  };

  key = (event) => {
    if (document.querySelector("dialog[open]")) return;
    const command = event.ctrlKey || event.metaKey;
    if (event.key === "Escape" && this.state.open) this.menu(false);
    else if (event.key === "Escape") this.stop();
    else if (command && !event.shiftKey && event.key.toLowerCase() === "k") {
      event.preventDefault();
      this.setState({ open: matchMedia(SCREEN[0]).matches }, () => document.getElementById("search").focus());
    } else if (command && event.shiftKey && event.key.toLowerCase() === "o") {
      event.preventDefault();
      this.select(null);
    }
  };

  // ---- conversations --------------------------------------------------------------------------

  /** Show and keep a conversation, new or changed. */
  put(conversation, how) {
    this.now({ conversations: new Map(this.state.conversations).set(conversation.id, conversation) });
    this.store.put(conversation, how);
  }

  changedElsewhere = (id, conversation) => {
    const conversations = new Map(this.state.conversations);
    if (conversation) conversations.set(id, conversation);
    else {
      conversations.delete(id);
      this.runs.get(id)?.abort();
    }
    this.now({ conversations });
  };

  rename = (conversation, title) => {
    const now = this.state.conversations.get(conversation.id);
    if (now && title !== now.title) this.put({ ...now, title, named: true });
  };

  /** Gone, until it is undone. */
  remove = (gone) => {
    const conversations = new Map(this.state.conversations);
    for (const { id } of gone) {
      this.runs.get(id)?.abort();
      conversations.delete(id);
      this.store.remove(id);
    }
    this.now({ conversations });
    if (gone.some(({ id }) => id === this.state.current)) this.select(null);
    const text = gone.length === 1 ? t("deleted", isolated(gone[0].title)) : t("deletedAll");
    this.toast(text, () => gone.forEach((one) => this.put(ended(one))));
  };

  export = (conversations) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([written(conversations.map(ended))], { type: "application/json" }));
    link.download = `trilobit-${new Date().toISOString().slice(0, 10)}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  };

  import = async (file) => {
    let read;
    try {
      read = readFile(await file.text());
    } catch {
      return this.toast(t("notConversations", isolated(file.name.slice(0, 80))));
    }
    const { conversations } = this.state;
    const same = ({ id, messages }) => JSON.stringify(messages) === JSON.stringify(readFile(written([ended(conversations.get(id))]))[0].messages);
    const fresh = read.filter((one) => !conversations.has(one.id) || !same(one));
    for (const one of fresh) this.put(conversations.has(one.id) ? { ...one, id: newId() } : one);
    return this.toast(t("imported", fresh.length, read.length - fresh.length));
  };

  toast(text, undo) {
    clearTimeout(this.toastTimer);
    this.setState({ toast: { text, undo } });
    this.toastTimer = setTimeout(() => this.setState({ toast: null }), 10_000);
  }

  copyCode(button) {
    copy(button.closest("figure").querySelector("pre").textContent);
    button.textContent = t("copied");
    setTimeout(() => { button.textContent = t("copy"); }, 1500);
  }

  // ---- answers --------------------------------------------------------------------------------

  send = (text) => {
    const now = this.conversation ?? begin(this.kind, this.model.id, this.state.settings.system);
    const asked = text ? added(now, now.leaf, "user", text) : now;
    if (!this.conversation) {
      this.put(asked);
      this.select(asked.id);
    }
    this.run(asked, asked.leaf);
  };

  again = (message) => (message.error ? this.retry(message.id) : this.run(this.conversation, message.parent));

  /** Another message in the place of one, and its answer; both ways stay. */
  resend = (message, text) => {
    const asked = added(this.conversation, message.parent, "user", text);
    this.edit(null);
    this.run(asked, asked.leaf);
  };

  rewrite = (text) => {
    this.put(added(this.conversation, null, "user", text));
    this.edit(null);
  };

  choose = (id) => this.put(chosen(this.conversation, id));

  retry = (id) => {
    const now = this.conversation;
    const failed = now.messages.find((message) => message.id === id);
    // What brought nothing is not worth a version.
    const without = failed.text ? now : { ...now, messages: now.messages.filter((message) => message !== failed) };
    this.run(without, failed.parent);
  };

  stop = () => this.runs.get(this.state.current)?.abort();

  async run(before, parent) {
    const { id } = before;
    if (this.runs.has(id)) return;
    const { model } = this;
    const way = path({ ...before, leaf: parent });
    const text = joined(way);
    const prompt = lastPart(text, way, model.context, this.state.settings.sampling.max_tokens);
    const what = before.kind === "text" ? { prompt } : { messages: asMessages(before, way), include_reasoning: true };
    const skipped = before.kind === "text" ? text.length - prompt.length : 0;
    const asked = added({ ...before, model: model.id }, parent, "assistant", "", { reasoning: "", model: model.id, state: "waiting", skipped });
    const controller = new AbortController();
    const growing = new Growing((more) => {
      const now = this.state.conversations.get(id);
      if (now) this.put(changed(now, asked.leaf, more), { soon: isRunning(more) });
    }, controller.signal);
    this.runs.set(id, controller);
    this.put(asked);
    this.setState({ spoken: [[0, t("answering", model.id)]] });
    try {
      const body = { model: model.id, ...what, ...sampling(this.state.settings) };
      for await (const pieces of answer(body, { key: this.state.settings.key, signal: controller.signal })) {
        for (const piece of pieces) growing.add(piece);
        this.speak(growing.paragraphs());
        await growing.drawn();
      }
      growing.end(growing.finish === "length" ? "cut" : "done");
      this.speak([growing.rest(), t("finished")]);
    } catch (error) {
      if (error.name === "AbortError") {
        growing.end("stopped");
        this.speak([growing.rest(), t("stopped")]);
      } else await this.failed(error, growing, asked.leaf);
    }
    this.runs.delete(id);
    if (!model.context) this.loadModels(); // told once the model is open
    this.forceUpdate();
  }

  async failed(error, growing, id) {
    // Where the page is being left, its requests fail too; then nothing has gone wrong.
    await new Promise((resolve) => { setTimeout(resolve, 100); });
    const known = error instanceof ServerError ? error : new ServerError("broken");
    if (!(error instanceof ServerError)) console.error(error);
    const kind = known.kind === "offline" && growing.text ? "broken" : known.kind;
    growing.end("failed", { kind, text: known.text.slice(0, 500), wait: known.wait });
    this.speak([errorText(known)]);
    if (kind === "key") this.setState({ dialog: "key", keyWrong: Boolean(this.state.settings.key), after: id });
  }

  /** To a screen reader: whole paragraphs, not every token. Those long spoken go. */
  speak(paragraphs) {
    const more = paragraphs.filter(Boolean);
    if (!more.length) return;
    this.setState(({ spoken }) => {
      const next = (spoken.at(-1)?.[0] ?? 0) + 1;
      return { spoken: [...spoken, ...more.map((words, i) => [next + i, words])].slice(-SPOKEN) };
    });
  }

  loadModels = async (settings = this.state.settings) => {
    try {
      const told = await models(settings.key);
      // A model that is closed for now is still what it was.
      const known = (id) => this.state.models.find((one) => one.id === id);
      const error = told.length ? null : new ServerError("refused", { text: t("noModel") });
      this.setState({ models: told.map((one) => (one.context ? one : known(one.id) ?? one)), error });
    } catch (error) {
      const known = error instanceof ServerError ? error : new ServerError("refused", { text: String(error.message) });
      this.setState(known.kind === "key" ? { error: known, dialog: "key", keyWrong: Boolean(settings.key) } : { error: known });
    }
  };

  onKey = (key) => {
    const { after } = this.state;
    this.setState({ dialog: null, after: null });
    this.set({ key });
    if (after && this.conversation?.messages.some(({ id }) => id === after)) this.retry(after);
  };

  // ---- what is seen ---------------------------------------------------------------------------

  render(_, { settings, conversations, current, models: served, error, dialog, open, editing, toast, spoken, keyWrong }) {
    const { conversation, model, kind } = this;
    const running = this.runs.has(current);
    const misfit = model && conversation?.kind === "chat" && !model.chat;
    const [narrow, nightly] = SCREEN.map((query) => matchMedia(query).matches);
    const dark = settings.theme === "dark" || (settings.theme === "system" && nightly);
    document.title = conversation?.title ? `${conversation.title} · Trilobit` : "Trilobit";
    const problem = (error || misfit) && html`<${Problem} error=${error} model=${model} onRetry=${() => this.loadModels()} onText=${() => this.select(null)} />`;
    const all = [...conversations.values()];
    return html`
      <a class="skip" href="#box" onClick=${(e) => { e.preventDefault(); document.getElementById("box").focus(); }}>${t("skip")}</a>
      <${Sidebar} app=${this} conversations=${all} current=${current} settings=${settings} open=${open} dark=${dark} />
      ${open && html`<div class="shade only-narrow" onClick=${() => this.menu(false)}></div>`}
      <main inert=${open && narrow}>
        <header class="top">
          <span class="only-narrow"><${IconButton} name="menu" label=${t("menu")} onClick=${() => this.menu(true)} /></span>
          <h1 dir="auto">${conversation?.title || t("newOne")}</h1>
          ${served.length > 0 && html`<label class="model"><span class="unseen">${t("model")}</span>
            <select dir="ltr" value=${model.id} disabled=${running} onChange=${(e) => this.setModel(e.target.value)}>
              ${served.map(({ id }) => html`<option key=${id} value=${id} selected=${id === model.id}>${id}</option>`)}
            </select></label>`}
          <span class="only-narrow"><${IconButton} name="plus" label=${t("newOne")} onClick=${() => this.select(null)} /></span>
        </header>
        <${Log} name=${current} conversation=${conversation} kind=${kind} model=${model} running=${running} editing=${editing} app=${this} />
        <${Composer} key=${current ?? "new"} name=${current} app=${this} kind=${kind} running=${running} problem=${problem} loading=${!model && !error}
          disabled=${!model || misfit} canContinue=${kind === "text" && conversation?.leaf != null && !misfit && Boolean(model)} />
        <div class="below"><${Context} conversation=${conversation} model=${model} /></div>
      </main>
      <div class="unseen" role="status" aria-live="polite" aria-relevant="additions">${spoken.map(([number, words]) => html`<p key=${number}>${words}</p>`)}</div>
      ${toast && html`<div class="toast" role="status"><span>${toast.text}</span>
        ${toast.undo && html`<button type="button" class="button plain" onClick=${() => { toast.undo(); this.setState({ toast: null }); }}>${t("undo")}</button>`}
        <${IconButton} name="close" label=${t("close")} onClick=${() => this.setState({ toast: null })} /></div>`}
      ${dialog === "settings" && html`<${SettingsDialog} settings=${settings} system=${conversation?.system ?? settings.system} conversations=${all.length}
        onChange=${this.set} onSystem=${this.setSystem} onExport=${() => this.export(all)} onImport=${this.import}
        onDeleteAll=${() => { this.dialog(null); this.remove(all); }} onClose=${() => this.dialog(null)} />`}
      ${dialog === "key" && html`<${KeyDialog} settings=${settings} wrong=${keyWrong} onKey=${this.onKey} onClose=${() => this.dialog(null)} />`}`;
  }
}

/** As it is when nobody is writing it any more. */
function ended(conversation) {
  const messages = conversation.messages.map((message) => (isRunning(message) ? { ...message, state: "stopped" } : message));
  return { ...conversation, messages };
}

const store = new Store();
const kept = await store.open();
render(html`<${App} store=${store} kept=${kept} />`, document.body);
