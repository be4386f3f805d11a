// The frame of all pages: which one is asked for, the way between them, the key, light and dark.

import { html, render, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { connection, getJson, root } from "./api.js";
import { History } from "./history.js";
import { Keys } from "./keys.js";
import { Playground } from "./playground.js";

const PAGES = { history: History, keys: Keys };
const here = () => decodeURI(location.pathname.slice(root.pathname.length)).replace(/\/$/, "");

function App() {
  const [path, setPath] = useState(here());
  const [models, setModels] = useState([]);
  const [asked, setAsked] = useState(null);
  const go = (to) => {
    history.pushState(null, "", new URL(to, root));
    setPath(to);
  };
  useEffect(() => {
    const back = () => setPath(here());
    addEventListener("popstate", back);
    return () => removeEventListener("popstate", back);
  }, []);
  const load = () => getJson("", "v1/models").then((list) => setModels(list.models), (error) => error.status === 401 && setAsked(error.message));
  useEffect(() => { load(); }, []);
  const Page = PAGES[path] ?? Playground;
  return html`<${Header} path=${path} onKey=${() => setAsked("")} />
    <${Page} path=${path} models=${models} go=${go} ask=${setAsked} />
    ${asked !== null && html`<${Connection} reason=${asked} onClose=${() => { setAsked(null); load(); }} />`}`;
}

function Header({ path, onKey }) {
  const [theme, setTheme] = useState(() => localStorage.getItem("fluxserve.theme") ?? "");
  useEffect(() => {
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
    theme ? localStorage.setItem("fluxserve.theme", theme) : localStorage.removeItem("fluxserve.theme");
  }, [theme]);
  return html`<header class="top">
    <a class="name" href=${root.href}><img src=${new URL("ui/icon.svg", root)} alt="" width="24" height="24" />fluxserve</a>
    <nav aria-label="Pages"><a href=${root.href} aria-current=${path in PAGES ? undefined : "page"}>Playground</a>
      ${Object.keys(PAGES).map((page) => html`<a key=${page} href=${new URL(page, root)} aria-current=${path === page ? "page" : undefined}>${page[0].toUpperCase() + page.slice(1)}</a>`)}
      <a href=${new URL("docs", root)}>API</a></nav>
    <button type="button" class="quiet" onClick=${onKey}>${connection.key ? "Key set" : "Key"}</button>
    <label class="inline"><span class="hidden">Colours</span><select value=${theme} onChange=${(event) => setTheme(event.target.value)}>
      <option value="">Auto</option><option value="light">Light</option><option value="dark">Dark</option></select></label>
  </header>`;
}

/** Asks for the key, which stays in this tab, and for the way that calls take. */
function Connection({ reason, onClose }) {
  const dialog = useRef();
  const [key, setKey] = useState(connection.key);
  const [viaProxy, setViaProxy] = useState(connection.viaProxy);
  useEffect(() => dialog.current.showModal(), []);
  const keep = (event) => {
    event.preventDefault();
    connection.key = key.trim();
    connection.viaProxy = viaProxy;
    dialog.current.close();
  };
  return html`<dialog ref=${dialog} onClose=${onClose} aria-labelledby="connection-title">
    <form onSubmit=${keep}>
      <h2 id="connection-title">Connection</h2>
      ${reason && html`<p class="error" role="alert">${reason}</p>`}
      <label class="label" for="key">Key</label>
      <input id="key" type="password" autocomplete="off" spellcheck="false" value=${key} onInput=${(event) => setKey(event.target.value)} />
      <p class="about">Kept in this tab until it is closed; sent to this server alone. An open server needs none.</p>
      <label class="switch"><input type="checkbox" checked=${viaProxy} onChange=${(event) => setViaProxy(event.target.checked)} /> Send through /api/fal/proxy</label>
      <p class="about">The form in which fal's browser client calls.</p>
      <div class="row"><button class="primary">Use it</button><button type="button" class="quiet" onClick=${() => dialog.current.close()}>Close</button></div>
    </form></dialog>`;
}

render(html`<${App} />`, document.getElementById("app"));
