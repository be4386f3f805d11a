// The requests of this key, the newest first: found by words, state, endpoint, label or id; shown whole; drawn again; deleted.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { getJson, local, root, send } from "./api.js";
import { Code } from "./blocks.js";
import { Confirm } from "./confirm.js";

const PAGE = 25;
const STATES = ["queued", "running", "completed", "failed", "cancelled"];
const NOTHING = { q: "", status: "", endpoint_id: "", tag: "", request_id: "", start: "", end: "" };

export function History({ models, ask }) {
  const [typed, setTyped] = useState(NOTHING);  // what stands in the fields: an answer that comes while somebody types leaves it there
  const [filters, setFilters] = useState(NOTHING);  // what the list was asked by
  const [page, setPage] = useState({ items: [], next_cursor: null });
  const [problem, setProblem] = useState("");
  const asked = useRef(0);
  const load = async (cursor) => {
    const mine = ++asked.current;  // answers overtake each other: only the last that was asked for is shown
    const query = new URLSearchParams({ limit: PAGE, expand: "payloads", ...(cursor ? { cursor } : {}) });
    for (const [name, value] of Object.entries(filters)) if (value) query.append(name, name === "end" ? `${value}T23:59:59` : value);
    try {
      const got = await getJson("", `v1/models/requests/by-endpoint?${query}`);
      if (mine !== asked.current) return;
      setPage((before) => (cursor ? { ...got, items: [...before.items, ...got.items] } : got));
      setProblem("");
    } catch (error) {
      if (mine !== asked.current) return;
      if (error.status === 401) ask(error.message);
      setProblem(error.message);
    }
  };
  useEffect(() => { load(); }, [filters, models]);
  const fill = (values) => { setTyped(values); setFilters(values); };
  const field = (name) => ({
    value: typed[name],
    onInput: (event) => setTyped({ ...typed, [name]: event.target.value }),
    onChange: (event) => fill({ ...typed, [name]: event.target.value.trim() }),
  });
  const used = [...new Set([...models.map((model) => model.endpoint_id), filters.endpoint_id].filter(Boolean))];
  const remove = async (id) => {
    try {
      await send("DELETE", `v1/models/requests/${id}/payloads`);
      setPage((before) => ({ ...before, items: before.items.filter((item) => item.request_id !== id) }));
    } catch (error) { setProblem(error.message); }
  };
  return html`<main class="history">
    <h1>History</h1>
    <form class="filters" role="search" onSubmit=${(event) => { event.preventDefault(); load(); }}>
      <label>Words<input type="search" placeholder="of the prompt" ...${field("q")} /></label>
      <label>State<select ...${field("status")}><option value="">Any</option>${STATES.map((each) => html`<option value=${each}>${each}</option>`)}</select></label>
      <label>Endpoint<select ...${field("endpoint_id")}><option value="">Any</option>${used.map((id) => html`<option key=${id} value=${id}>${id}</option>`)}</select></label>
      <label>From<input type="date" ...${field("start")} /></label>
      <label>To<input type="date" ...${field("end")} /></label>
      <label>Label<input type="text" placeholder="name=value" ...${field("tag")} /></label>
      <label>Request id<input type="text" ...${field("request_id")} /></label>
      <div class="row"><button>Refresh</button><button type="button" class="quiet" onClick=${() => fill(NOTHING)}>Reset</button></div>
    </form>
    ${problem && html`<p class="error" role="alert">${problem}</p>`}
    ${!problem && page.items.length === 0 && html`<p class="empty">No such request.</p>`}
    <ul class="requests">${page.items.map((item) => html`<${Request} key=${item.request_id} item=${item} remove=${remove} />`)}</ul>
    ${page.next_cursor && html`<button type="button" onClick=${() => load(page.next_cursor)}>Show more</button>`}
  </main>`;
}

const when = (iso) => new Date(iso).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

function Request({ item, remove }) {
  const [isOpen, setOpen] = useState(false);
  const images = item.json_output?.images ?? [];
  const facts = [item.endpoint_id, when(item.sent_at), item.duration !== null && `${item.duration.toFixed(1)} s`].filter(Boolean);
  const prompt = item.json_input ? item.json_input.prompt || "Without a text" : "Not kept, as its caller asked";
  return html`<li class="request ${item.status}">
    <button type="button" class="summary" aria-expanded=${isOpen} onClick=${() => setOpen(!isOpen)}>
      ${images.length ? html`<img loading="lazy" src=${local(images[0].url)} alt="" width="56" height="56" onError=${gone} />` : html`<i class="none"></i>`}
      <span class="what"><b>${prompt}</b><small>${facts.join(" · ")}</small></span>
      <span class="state">${item.status}</span>
    </button>
    ${isOpen && html`<${Details} item=${item} images=${images} remove=${remove} />`}
  </li>`;
}

const gone = (event) => event.target.classList.add("gone");

function Details({ item, images, remove }) {
  const [logs, setLogs] = useState([]);
  const [showsCode, setShowsCode] = useState(false);
  const app = item.endpoint_id.split("/").slice(0, 2).join("/");
  useEffect(() => {
    getJson("queue", `${app}/requests/${item.request_id}/status?logs=1`).then(
      (status) => setLogs(status.logs ?? []), (error) => setLogs([{ timestamp: "", message: error.message }]));
  }, [item.request_id, item.status]);
  const times = { Sent: item.sent_at, Started: item.started_at, Ended: item.ended_at };
  const again = item.json_input && new URL(`playground/${item.endpoint_id}#${encodeURIComponent(JSON.stringify(withSeed(item)))}`, root);
  return html`<div class="details">
    ${images.length > 0 && html`<div class="gallery">${images.map((image) => html`<a key=${image.url} href=${local(image.url)} aria-label="Open the picture"><img src=${local(image.url)} width=${image.width} height=${image.height} alt=${item.json_input?.prompt ?? "Result"} onError=${gone} /></a>`)}</div>`}
    <dl><dt>Request</dt><dd><code>${item.request_id}</code></dd>
      ${Object.entries(times).map(([name, at]) => at && html`<dt>${name}</dt><dd>${when(at)}</dd>`)}
      ${item.gpu_seconds != null && html`<dt>GPU</dt><dd>${item.gpu_seconds.toFixed(2)} s</dd>`}
      ${item.status_code && html`<dt>Answer</dt><dd>${item.status_code}${item.billable_units ? `, ${item.billable_units} MP` : ""}</dd>`}
      ${Object.entries(item.tags ?? {}).map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl>
    ${item.json_input && html`<pre tabindex="0" aria-label="Input">${JSON.stringify(item.json_input, null, 2)}</pre>`}
    ${item.json_output?.detail && html`<pre tabindex="0" aria-label="Refusal" class="error">${typeof item.json_output.detail === "string" ? item.json_output.detail : JSON.stringify(item.json_output.detail, null, 2)}</pre>`}
    ${logs.length > 0 && html`<pre tabindex="0" aria-label="Log">${logs.map((line) => `${line.timestamp.slice(11, 23)} ${line.message}`).join("\n")}</pre>`}
    <footer>${again && html`<a class="button" href=${again}>Replay with changes</a>
      <button type="button" class="quiet" aria-expanded=${showsCode} onClick=${() => setShowsCode(!showsCode)}>As code</button>`}
      ${item.ended_at && html`<${Confirm} label="Delete" question="It goes for good, with its pictures." yes="Delete it" onYes=${() => remove(item.request_id)} />`}</footer>
    ${showsCode && html`<${Code} endpoint=${item.endpoint_id} input=${withSeed(item)} />`}
  </div>`;
}

/** The input, with the seed that was drawn for it: a replay begins with the same picture. */
function withSeed({ json_input: input, json_output: output }) {
  return output?.seed == null || !Number.isSafeInteger(output.seed) ? input : { ...input, seed: output.seed };
}
