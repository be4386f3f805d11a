// The keys of this server, what each may take and what was drawn with it. For a key with the scope admin.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { call, getJson, send } from "./api.js";
import { Block } from "./blocks.js";
import { Confirm } from "./confirm.js";

const DAY_MS = 86_400_000;
const SCOPES = { run: "Draw and wait for it", queue: "Submit, poll, fetch, cancel", files: "Send pictures", admin: "See and do everything" };
const LIMITS = { running: "Running at once", waiting: "Waiting at most", per_minute: "Submits a minute", storage_bytes: "Bytes kept" };
const PERIODS = { today: "Today", week: "Last 7 days", month: "This month", year: "Last 400 days" };
const NOTHING = { requests: 0, failures: 0, images: 0, quantity: 0, gpu_seconds: 0, cost: 0 };

/** First and last day, UTC as the server counts. */
function daysOf(period) {
  const now = new Date();
  const back = { today: 0, week: 6, month: now.getUTCDate() - 1, year: 399 }[period];
  return { start: new Date(now - back * DAY_MS).toISOString().slice(0, 10), end: now.toISOString().slice(0, 10) };
}

/** Every item of a list that comes in pages. */
async function all(path, query, name) {
  const items = [];
  for (let cursor = null; ;) {
    const page = await getJson("", `${path}?${new URLSearchParams({ ...query, limit: 1000, ...(cursor ? { cursor } : {}) })}`);
    items.push(...page[name]);
    if (!(cursor = page.next_cursor)) return items;
  }
}

const usageOf = (period) => ({ all_keys: true, expand: "summary", ...daysOf(period) });

export function Keys({ models, ask }) {
  const [keys, setKeys] = useState(null);
  const [usage, setUsage] = useState([]);
  const [period, setPeriod] = useState("month");
  const [showsRevoked, setShowsRevoked] = useState(false);
  const [isMaking, setMaking] = useState(false);
  const [made, setMade] = useState(null);
  const [problem, setProblem] = useState("");
  const refuse = (error) => {
    if (error.status === 401) ask(error.message);
    setProblem(error.message);
  };
  const load = async () => {
    try {
      const listed = await all("v1/keys", { include_revoked: showsRevoked }, "keys");
      setUsage(await all("v1/models/usage", usageOf(period), "summary"));
      setKeys(listed);
      setProblem("");
    } catch (error) { setKeys(null); refuse(error); }
  };
  useEffect(() => { load(); }, [models, period, showsRevoked]);
  const act = (doing) => doing.then(load, refuse);
  const download = async () => {
    const table = await (await call("", `v1/models/usage?${new URLSearchParams({ ...usageOf(period), expand: "", format: "csv" })}`)).blob();
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(table), download: `usage-${daysOf(period).start}-${daysOf(period).end}.csv` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  return html`<main class="history keys">
    <h1>Keys</h1>
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    ${problem && !keys && html`<button type="button" onClick=${() => ask("")}>Use another key</button>`}
    ${keys && html`<div class="filters">
        <label>Use in<select value=${period} onChange=${(event) => setPeriod(event.target.value)}>
          ${Object.entries(PERIODS).map(([id, name]) => html`<option key=${id} value=${id}>${name}</option>`)}</select></label>
        <label class="switch"><input type="checkbox" checked=${showsRevoked} onChange=${(event) => setShowsRevoked(event.target.checked)} /> Revoked ones, too</label>
        <div class="row"><button type="button" onClick=${() => download().catch(refuse)}>Export CSV</button>
          <button type="button" class="primary" onClick=${() => setMaking(true)}>New key</button></div>
      </div>
      <section class="request sum" aria-label="All keys together"><${Figures} rows=${usage} /></section>
      <ul class="requests">${withUsage(keys, usage).map(({ key, rows }) => html`<${Key} key=${key.key_id} entry=${key} rows=${rows} act=${act} />`)}</ul>`}
    ${isMaking && html`<${NewKey} onClose=${() => setMaking(false)} onMade=${(key) => { setMade(key); load(); }} />`}
    ${made && html`<${Secret} made=${made} onClose=${() => setMade(null)} />`}
  </main>`;
}

/** Every key with its lines of use; use of keys that are listed no more stands at the end. */
function withUsage(keys, usage) {
  const known = new Set(keys.map((key) => key.key_id));
  const gone = [...new Set(usage.map((row) => row.auth_method))].filter((id) => !known.has(id));
  const others = gone.map((id) => ({ key_id: id, alias: id ? "No longer listed" : "Without a key", scopes: [], budgets: [], limits: {}, is_configured: true }));
  return [...keys, ...others].map((key) => ({ key, rows: usage.filter((row) => row.auth_method === key.key_id) }));
}

const sum = (rows) => rows.reduce((total, row) => Object.fromEntries(Object.keys(NOTHING).map((name) => [name, total[name] + row[name]])), NOTHING);
const number = (value) => value.toLocaleString(undefined, { maximumFractionDigits: value < 100 ? 2 : 0 });

function Figures({ rows }) {
  const { requests, failures, images, quantity, gpu_seconds: seconds, cost } = sum(rows);
  const shown = { Requests: requests, Failed: failures, Pictures: images, Megapixels: quantity, "GPU seconds": seconds, ...(cost ? { [rows[0].currency]: cost } : {}) };
  return html`<dl class="figures">${Object.entries(shown).map(([name, value]) => html`<div key=${name}><dt>${name}</dt><dd>${number(value)}</dd></div>`)}</dl>`;
}

function Key({ entry, rows, act }) {
  const [isOpen, setOpen] = useState(false);
  const isLiving = !entry.revoked_at && !entry.is_configured;
  const facts = [entry.scopes.join(", "), entry.created_at && `since ${entry.created_at.slice(0, 10)}`, entry.is_configured && entry.scopes.length > 0 && "of the settings"];
  const state = entry.revoked_at ? `revoked ${entry.revoked_at.slice(0, 10)}` : "";
  return html`<li class=${`request ${entry.revoked_at ? "failed" : ""}`}>
    <button type="button" class="summary" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
      <span class="what"><b>${entry.alias || entry.key_id}</b><small>${facts.filter(Boolean).join(" · ")}</small></span>
      <span class="state">${state}</span></button>
    <${Figures} rows=${rows} />
    ${isOpen && html`<div class="details">
      <dl><dt>Id</dt><dd><code>${entry.key_id}</code></dd>${entry.tenant && entry.tenant !== entry.key_id && html`<dt>Tenant</dt><dd>${entry.tenant}</dd>`}
        ${entry.budgets.map((budget) => html`<dt>Budget</dt><dd>${budget.rule}${budget.unit ? `: ${number(budget.used)} of ${number(budget.amount)} ${budget.unit} used, anew on ${budget.renews_on}` : ""}</dd>`)}</dl>
      ${rows.length > 1 && html`<dl>${rows.map((row) => html`<dt>${row.endpoint_id}</dt><dd>${number(row.requests)} requests, ${number(row.images)} pictures, ${number(row.gpu_seconds)} s</dd>`)}</dl>`}
      ${isLiving && html`<${Change} entry=${entry} act=${act} />`}
      ${isLiving && html`<footer><${Confirm} label="Revoke" question="It stops working at once, for good." yes="Revoke it" onYes=${() => act(send("DELETE", `v1/keys/${entry.key_id}`))} /></footer>`}
    </div>`}
  </li>`;
}

/** Name, limits and budgets as fields; `values` is what PATCH and POST take. */
function Fields({ id, values, errors, onChange }) {
  const limit = (name, event) => onChange({ ...values, limits: { ...values.limits, [name]: event.target.value === "" ? null : Number(event.target.value) } });
  return html`<${Named} id=${`${id}-alias`} label="Name" error=${errors.alias}>
      <input type="text" id=${`${id}-alias`} maxlength="255" value=${values.alias} onInput=${(event) => onChange({ ...values, alias: event.target.value })} /></${Named}>
    <div class="filters">${Object.entries(LIMITS).map(([name, label]) => html`<label key=${name}>${label}<input type="number" min="1" placeholder="no limit"
      value=${values.limits[name] ?? ""} onInput=${(event) => limit(name, event)} /></label>`)}</div>
    ${errors.limits && html`<p class="error" role="alert">${errors.limits}</p>`}
    <${Named} id=${`${id}-budgets`} label="Budgets" error=${errors.budgets} about="In money or megapixels, a UTC day or month: 5/day, 200mp/month.">
      <input type="text" id=${`${id}-budgets`} placeholder="no limit" value=${values.budgets} onInput=${(event) => onChange({ ...values, budgets: event.target.value })} /></${Named}>`;
}

function Named({ id, label, error, about, children }) {
  return html`<div class=${`field ${error ? "wrong" : ""}`}><label class="label" for=${id}>${label}</label>${children}
    ${error && html`<p class="error" role="alert">${error}</p>`}${about && html`<p class="about">${about}</p>`}</div>`;
}

const asBody = (values) => ({ ...values, budgets: values.budgets.split(/[,\s]+/).filter(Boolean) });

function Change({ entry, act }) {
  const [values, setValues] = useState({ alias: entry.alias, limits: entry.limits, budgets: entry.budgets.map((each) => each.rule).join(", ") });
  const [errors, setErrors] = useState({});
  const save = (event) => {
    event.preventDefault();
    act(send("PATCH", `v1/keys/${entry.key_id}`, asBody(values)).catch((error) => {
      if (!Object.keys(error.fields).length) throw error;
      setErrors(error.fields);
    }));
  };
  return html`<form class="change" onSubmit=${save} noValidate><${Fields} id=${entry.key_id} values=${values} errors=${errors} onChange=${(to) => { setErrors({}); setValues(to); }} />
    <div class="row"><button>Save</button></div></form>`;
}

function NewKey({ onClose, onMade }) {
  const dialog = useRef();
  const [values, setValues] = useState({ alias: "", limits: {}, budgets: "" });
  const [scopes, setScopes] = useState(["run", "queue", "files"]);
  const [tenant, setTenant] = useState("");
  const [errors, setErrors] = useState({});
  const [problem, setProblem] = useState("");
  useEffect(() => dialog.current.showModal(), []);
  const make = async (event) => {
    event.preventDefault();
    try {
      const made = await (await send("POST", "v1/keys", { ...asBody(values), scopes, ...(tenant ? { tenant } : {}) })).json();
      dialog.current.close();
      onMade({ ...made, alias: values.alias });
    } catch (error) {
      setErrors(error.fields ?? {});
      setProblem(Object.keys(error.fields ?? {}).length ? "" : error.message);
    }
  };
  const pick = (scope) => setScopes(scopes.includes(scope) ? scopes.filter((each) => each !== scope) : [...scopes, scope]);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-labelledby="new-key-title"><form onSubmit=${make} noValidate>
      <h2 id="new-key-title">New key</h2>
      ${problem && html`<p class="error" role="alert">${problem}</p>`}
      <${Fields} id="new" values=${values} errors=${errors} onChange=${(to) => { setErrors({}); setValues(to); }} />
      <fieldset class=${`field ${errors.scopes ? "wrong" : ""}`}><legend class="label">May be used to</legend>
        ${Object.entries(SCOPES).map(([scope, about]) => html`<label key=${scope} class="switch"><input type="checkbox" checked=${scopes.includes(scope)} onChange=${() => pick(scope)} /> ${scope}: ${about}</label>`)}
        ${errors.scopes && html`<p class="error" role="alert">${errors.scopes}</p>`}</fieldset>
      <${Named} id="new-tenant" label="Tenant" error=${errors.tenant} about="Keys of one tenant share requests, files and limits. Empty: its own.">
        <input type="text" id="new-tenant" maxlength="255" value=${tenant} onInput=${(event) => setTenant(event.target.value.trim())} /></${Named}>
      <div class="row"><button class="primary">Make it</button><button type="button" class="quiet" onClick=${() => dialog.current.close()}>Close</button></div>
    </form></dialog>`;
}

function Secret({ made, onClose }) {
  const dialog = useRef();
  useEffect(() => dialog.current.showModal(), []);
  return html`<dialog ref=${dialog} onClose=${onClose} aria-labelledby="secret-title"><form method="dialog">
      <h2 id="secret-title">The key ${made.alias}</h2>
      <p>Copy it now: it is shown this once, and stored nowhere.</p>
      <${Block} name="FAL_KEY" text=${made.key} />
      <div class="row"><button class="primary">Done</button></div>
    </form></dialog>`;
}
