// What a reader chose, kept in this browser; and the dialog in which it is chosen.
import { Component, createRef, html, IconButton } from "./html.js";
import { LANGUAGES, t } from "./words.js";

const PLACE = "trilobit";
export const USUAL = { temperature: 0.7, top_p: 1, max_tokens: 512, seed: null };

/** { language, theme: "system" | "light" | "dark", model, key, system, sampling } */
export function readSettings() {
  let kept = {};
  try {
    kept = JSON.parse(localStorage.getItem(PLACE)) ?? {};
  } catch { /* nothing that can be read */ }
  const root = document.documentElement;
  return { theme: "system", model: "", key: "", system: "", ...kept, language: root.lang, sampling: { ...USUAL, ...kept.sampling } };
}

/** Returns false where the browser keeps nothing. */
export function keepSettings(settings) {
  const root = document.documentElement;
  root.lang = settings.language;
  root.dir = settings.language === "ar" ? "rtl" : "ltr";
  if (settings.theme === "system") delete root.dataset.theme;
  else root.dataset.theme = settings.theme;
  try {
    localStorage.setItem(PLACE, JSON.stringify(settings));
    return true;
  } catch {
    return false;
  }
}

/** As a request wants it. */
export function sampling({ sampling: { seed, ...rest } }) {
  return seed === null ? rest : { ...rest, seed };
}

/** A modal window; the browser itself keeps the focus inside and gives it back. */
export class Dialog extends Component {
  window = createRef();

  componentDidMount() {
    this.window.current.showModal();
  }

  render({ title, onClose, children }) {
    const outside = (event) => event.target === this.window.current && onClose();
    return html`<dialog ref=${this.window} aria-labelledby="dialog-title" onClose=${onClose} onMouseDown=${outside}>
      <div class="dialog">
        <header><h2 id="dialog-title">${title}</h2><${IconButton} name="close" label=${t("close")} onClick=${onClose} /></header>
        ${children}
      </div>
    </dialog>`;
  }
}

/** Asked when the server wants a key; wrong: it has refused the last one. */
export function KeyDialog({ settings, wrong, onKey, onClose }) {
  const submit = (event) => {
    event.preventDefault();
    onKey(event.target.elements.key.value.trim());
  };
  return html`<${Dialog} title=${t("keyAsked")} onClose=${onClose}>
    <form onSubmit=${submit}>
      ${wrong && html`<p class="problem" role="alert">${t("keyWrong")}</p>`}
      <${Field} id="key" label=${t("key")} hint=${t("keyKept")}>
        <input id="key" aria-describedby="key-hint" name="key" type="password" dir="ltr" autocomplete="off" required defaultValue=${settings.key} autofocus />
      <//>
      <div class="buttons"><button class="button primary">${t("save")}</button></div>
    </form>
  <//>`;
}

export class SettingsDialog extends Component {
  file = createRef();

  render({ settings, system, conversations, onChange, onSystem, onExport, onImport, onDeleteAll, onClose }) {
    const sample = (name, value) => onChange({ sampling: { ...settings.sampling, [name]: value } });
    const { temperature, top_p, max_tokens, seed } = settings.sampling;
    const usual = Object.keys(USUAL).every((name) => USUAL[name] === settings.sampling[name]);
    const imported = ({ target }) => {
      if (target.files.length) onImport(target.files[0]);
      target.value = "";
    };
    return html`<${Dialog} title=${t("settings")} onClose=${onClose}>
      <section aria-labelledby="s-answers">
        <h3 id="s-answers">${t("sampling")}</h3>
        <${Field} id="system" label=${t("systemPrompt")} hint=${t("systemHint")}>
          <textarea id="system" aria-describedby="system-hint" rows="3" dir=${system ? "auto" : undefined} value=${system} onInput=${(e) => onSystem(e.target.value)}></textarea>
        <//>
        <${Slider} id="temperature" label=${t("temperature")} hint=${t("temperatureHint")} max="2" value=${temperature} onValue=${(v) => sample("temperature", v)} />
        <${Slider} id="top-p" label=${t("topP")} hint=${t("topPHint")} min="0.05" max="1" value=${top_p} onValue=${(v) => sample("top_p", v)} />
        <div class="pair">
          <${Field} id="most" label=${t("maxTokens")}>
            <${Whole} id="most" least=${1} most=${1e6} value=${max_tokens} onValue=${(v) => sample("max_tokens", v ?? USUAL.max_tokens)} />
          <//>
          <${Field} id="seed" label=${t("seed")} hint=${t("seedHint")}>
            <${Whole} id="seed" least=${0} most=${Number.MAX_SAFE_INTEGER} placeholder=${t("randomSeed")} value=${seed} onValue=${(v) => sample("seed", v)} />
          <//>
        </div>
        <div class="buttons"><button type="button" class="button" disabled=${usual} onClick=${() => onChange({ sampling: USUAL })}>${t("reset")}</button></div>
      </section>
      <section aria-labelledby="s-looks">
        <h3 id="s-looks">${t("appearance")}</h3>
        <${Choice} label=${t("theme")} name="theme" value=${settings.theme} onValue=${(theme) => onChange({ theme })}
          options=${[["system", t("system")], ["light", t("light")], ["dark", t("dark")]]} />
        <${Choice} label=${t("language")} name="language" value=${settings.language} onValue=${(language) => onChange({ language })}
          options=${Object.entries(LANGUAGES)} />
      </section>
      <section aria-labelledby="s-server">
        <h3 id="s-server">${t("server")}</h3>
        <form onSubmit=${(e) => e.preventDefault()}>
          <${Field} id="key" label=${t("key")} hint=${t("keyKept")}>
            <input id="key" aria-describedby="key-hint" type="password" dir="ltr" autocomplete="off" value=${settings.key} onChange=${(e) => onChange({ key: e.target.value.trim() })} />
          <//>
        </form>
      </section>
      <section aria-labelledby="s-conversations">
        <h3 id="s-conversations">${t("conversations")}</h3>
        <p class="hint">${t("about")}</p>
        <div class="buttons">
          <button type="button" class="button" disabled=${!conversations} onClick=${onExport}>${t("exportAll")}</button>
          <button type="button" class="button" onClick=${() => this.file.current.click()}>${t("importFile")}</button>
          <input ref=${this.file} type="file" accept=".json,application/json" hidden aria-label=${t("importFile")} onChange=${imported} />
          <button type="button" class="button danger" disabled=${!conversations} onClick=${onDeleteAll}>${t("confirmAll")}</button>
        </div>
      </section>
      <section aria-labelledby="s-keys">
        <h3 id="s-keys">${t("keyboard")}</h3>
        <dl class="keys">${t("keys").map(([key, what]) => html`<div><dt><kbd dir="ltr">${key}</kbd></dt><dd>${what}</dd></div>`)}</dl>
      </section>
    <//>`;
  }
}

/** A control with its name, and what is to know about it: `${id}-hint`. */
function Field({ id, label, value, hint, children }) {
  return html`<div class="field"><span><label for=${id}>${label}</label>${value !== undefined && html`<output for=${id}>${value}</output>`}</span>
    ${children}${hint && html`<small id="${id}-hint">${hint}</small>`}</div>`;
}

function Slider({ id, label, hint, min = "0", max, value, onValue }) {
  return html`<${Field} id=${id} label=${label} value=${value} hint=${hint}>
    <input id=${id} aria-describedby="${id}-hint" type="range" min=${min} max=${max} step="0.05" value=${value} onInput=${(e) => onValue(Number(e.target.value))} />
  <//>`;
}

/** A whole number, or nothing: null. */
function Whole({ id, least, most, value, placeholder, onValue }) {
  const read = ({ target }) => {
    const given = target.value === "" ? null : Math.min(most, Math.max(least, Math.round(target.valueAsNumber)));
    onValue(given);
    target.value = given ?? value ?? "";
  };
  return html`<input id=${id} aria-describedby="${id}-hint" type="number" inputmode="numeric" dir="ltr" min=${least} max=${most} step="1" placeholder=${placeholder} value=${value ?? ""} onChange=${read} />`;
}

export function Choice({ label, name, value, options, onValue }) {
  return html`<fieldset class="choice"><legend>${label}</legend><div>
    ${options.map(([key, text]) => html`<label key=${key}><input type="radio" name=${name} checked=${key === value} onChange=${() => onValue(key)} /><span>${text}</span></label>`)}
  </div></fieldset>`;
}
