// The page to draw in: a form on the left, what was drawn on the right.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";
import { ApiError, draw, getJson, local, upload } from "./api.js";
import { Code } from "./blocks.js";
import { Form } from "./form.js";
import { fieldsOf, isPicture } from "./schema.js";

const PREVIEWS = 8; // at most so many unfinished pictures a request
const FIRST = "fal-ai/flux/dev";
const uploaded = new WeakMap();

export function Playground({ path, models, go, ask }) {
  const endpoint = path.replace(/^playground\/?/, "") || FIRST;
  const [fields, setFields] = useState(null);
  const [values, setValues] = useState(() => fromAddress());
  const [errors, setErrors] = useState({});
  const [problem, setProblem] = useState("");
  const [runs, setRuns] = useState([]);
  const form = useRef();
  const results = useRef();

  useEffect(() => {
    setErrors({});
    setProblem("");
    getJson("", `api/openapi/queue/openapi.json?endpoint_id=${encodeURIComponent(endpoint)}`)
      .then((document) => setFields(fieldsOf(document)), (error) => { setFields(null); refuse(error); });
  }, [endpoint, models]);

  const refuse = (error) => {
    if (error.status === 401) ask(error.message);
    setErrors(error.fields ?? {});
    setProblem(error.message);
  };
  const change = (name, value) => {
    setErrors(({ [name]: _, ...others }) => others);
    setValues(({ [name]: _, ...others }) => (value === undefined ? others : { ...others, [name]: value }));
  };
  const update = (id, changes) => setRuns((all) => all.map((run) => (run.id === id ? { ...run, ...changes } : run)));
  const begin = async () => {
    const known = Object.fromEntries(Object.entries(values).filter(([name]) => fields?.some((field) => field.name === name)));
    const missing = missingIn(fields ?? [], known);
    setErrors(missing);
    setProblem("");
    if (Object.keys(missing).length) return;
    const run = { id: crypto.randomUUID?.() ?? String(Math.random()), endpoint, input: known, state: "waiting", began: performance.now(),
      stop: new AbortController(), steps: known.num_inference_steps ?? fields.find((field) => field.name === "num_inference_steps")?.initial ?? 28 };
    setRuns((all) => [run, ...all]);
    if (matchMedia("(max-width: 900px)").matches) requestAnimationFrame(() => results.current.scrollIntoView({ block: "start" }));
    try {
      run.input = await withAddresses(known);
      update(run.id, { input: run.input });
      await follow(run, (changes) => update(run.id, changes));
    } catch (error) {
      if (error.name === "AbortError") return update(run.id, { state: "cancelled", preview: null });
      if (!(error instanceof ApiError)) throw error;
      const isForForm = error.status === 401 || error.status === 404 || Object.keys(error.fields).length > 0;
      if (isForForm) { setRuns((all) => all.filter((each) => each.id !== run.id)); refuse(error); }
      else update(run.id, { state: "failed", problem: error.message, preview: null });
    }
  };
  useEffect(() => {
    // Focus goes where the first thing must be changed.
    if (Object.keys(errors).length) form.current?.querySelector(".field.wrong :is(input:not([type=range]), textarea, select, canvas)")?.focus();
  }, [errors]);
  useShortcuts(form, runs, change, fields);

  const submit = (event) => { event.preventDefault(); begin(); };
  const others = Object.entries(errors).filter(([name]) => !fields?.some((field) => field.name === name));
  const actions = { change, update, reuse: (input) => setValues(input), remove: (id) => setRuns((all) => all.filter((run) => run.id !== id)) };
  const isBusy = runs.some(isActive);
  return html`<main class="playground">
    <h1 class="hidden">Playground</h1>
    <form ref=${form} onSubmit=${submit} noValidate aria-label="What to draw">
      <${Endpoints} models=${models} endpoint=${endpoint} onChange=${(id) => go(`playground/${id}`)} />
      ${fields && html`<${Form} fields=${fields} values=${values} errors=${errors} onChange=${change} />`}
      <div class="send">
        ${problem && html`<p class="error" role="alert">${problem} ${others.map(([name, text]) => `${name}: ${text}`).join(" ")}</p>`}
        <button class="primary" disabled=${!fields}>Draw</button>
        <button type="button" class="quiet" onClick=${() => { setValues({}); setErrors({}); setProblem(""); }}>Reset</button>
        <span class="hint"><kbd>Ctrl</kbd> <kbd>Enter</kbd> draws, <kbd>Esc</kbd> cancels</span>
      </div>
    </form>
    <section ref=${results} class="results" aria-label="Pictures" aria-busy=${isBusy}>
      <p class="hidden" role="status">${announcement(runs[0])}</p>
      ${runs.length ? runs.map((run) => html`<${Run} key=${run.id} run=${run} actions=${actions} fields=${fields ?? []} />`)
        : html`<p class="empty">Pictures appear here, step by step while they are drawn.</p>`}
    </section>
  </main>`;
}

const isActive = (run) => run.state === "waiting" || run.state === "drawing";

function announcement(run) {
  if (!run) return "";
  return { waiting: "Waiting", drawing: "Drawing", done: "The pictures are ready", cancelled: "Cancelled", failed: run.problem }[run.state];
}

/** What an address ends with after a replay: `#{"prompt": ...}`. */
function fromAddress() {
  try { return JSON.parse(decodeURIComponent(location.hash.slice(1))) ?? {}; } catch { return {}; }
}

function missingIn(fields, values) {
  const missing = fields.filter((field) => field.isRequired && values[field.name] === undefined);
  const unsafe = "seed" in values && !Number.isSafeInteger(values.seed) ? { seed: "A browser can send whole numbers up to 9007199254740991." } : {};
  return { ...Object.fromEntries(missing.map((field) => [field.name, isPicture(field) ? "Needed: choose or paint one." : "Needed: write what to draw."])), ...unsafe };
}

/** The input with every picture of this page stored on the server, once. */
async function withAddresses(value) {
  if (value instanceof Blob) {
    if (!uploaded.has(value)) uploaded.set(value, await upload(value));
    return uploaded.get(value);
  }
  if (Array.isArray(value)) return Promise.all(value.map(withAddresses));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(await Promise.all(Object.entries(value).map(async ([name, each]) => [name, await withAddresses(each)])));
}

async function follow(run, update) {
  const every = Math.max(1, Math.round(run.steps / PREVIEWS));
  for await (const event of draw(run.endpoint, run.input, every, run.stop.signal)) {
    if (event.step === undefined) update({ state: "done", result: event, preview: null, took: (performance.now() - run.began) / 1000 });
    else update({ state: "drawing", step: event.step, steps: event.num_inference_steps, ...(event.images.length ? { preview: event.images } : {}) });
  }
}

function useShortcuts(form, runs, change, fields) {
  const now = useRef();
  now.current = { runs, change, fields };
  useEffect(() => {
    const key = (event) => {
      if (document.querySelector("dialog[open]")) return;
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.current.requestSubmit();
      if (event.key === "Escape") now.current.runs.filter(isActive).forEach((run) => run.stop.abort());
    };
    const paste = (event) => {
      const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
      const takers = (now.current.fields ?? []).filter(isPicture);
      const inside = document.activeElement.closest?.("[data-field]")?.dataset.field;
      const field = takers.find((each) => each.name === inside) ?? takers.find((each) => each.kind !== "mask");
      if (!file || !field) return;
      event.preventDefault();
      now.current.change(field.name, field.kind === "pictures" ? [file] : file);
    };
    document.addEventListener("keydown", key);
    document.addEventListener("paste", paste);
    return () => { document.removeEventListener("keydown", key); document.removeEventListener("paste", paste); };
  }, []);
}

const CATEGORIES = { "text-to-image": "From a text", "image-to-image": "From a picture", inpainting: "Repaint", control: "Along edges or depth", "image-editing": "Edit by instruction", undefined: "Not served" };

function Endpoints({ models, endpoint, onChange }) {
  const chosen = models.find((model) => model.endpoint_id === endpoint)?.metadata;
  const groups = Object.groupBy ? Object.groupBy(models, (model) => model.metadata.category) : { "text-to-image": models };
  const answers = chosen?.served_by && `Answered by ${chosen.served_by}${chosen.with ? ` with ${chosen.with}` : ""}${chosen.is_substitute ? ", a substitute" : ""}.`;
  return html`<div class="field">
    <label class="label" for="endpoint">Endpoint</label>
    <select id="endpoint" value=${endpoint} onChange=${(event) => onChange(event.target.value)}>
      ${!chosen && html`<option value=${endpoint}>${endpoint}</option>`}
      ${Object.entries(groups).map(([category, listed]) => html`<optgroup label=${CATEGORIES[category] ?? category}>
        ${listed.map(({ endpoint_id: id, metadata }) => html`<option key=${id} value=${id} disabled=${metadata.status !== "active"}>${id}</option>`)}</optgroup>`)}
    </select>
    <p class="about">${chosen && `${chosen.display_name}. `}${answers || chosen?.reason}</p>
  </div>`;
}

function Run({ run, actions, fields }) {
  const [showsCode, setShowsCode] = useState(false);
  const images = run.result?.images ?? run.preview ?? [];
  const seed = run.result?.seed;
  const facts = [run.endpoint, run.result && `seed ${seed}`, run.took && `${run.took.toFixed(1)} s`].filter(Boolean);
  const pictureField = fields.find((field) => field.kind === "picture");
  return html`<article class=${`run ${run.state}`} aria-label=${run.input.prompt ?? run.endpoint}>
    <header><h2>${run.input.prompt || "Without a text"}</h2><p>${facts.join(" · ")}</p></header>
    ${isActive(run) && html`<div class="progress">
      <progress max=${run.steps ?? 1} value=${run.step ?? 0} aria-label="Steps"></progress>
      <span>${run.state === "waiting" ? "waiting" : `step ${run.step} of ${run.steps}`}</span>
      <button type="button" onClick=${() => run.stop.abort()}>Cancel</button></div>`}
    ${run.state === "cancelled" && html`<p class="note">Cancelled.</p>`}
    ${run.problem && html`<p class="error" role="alert">${run.problem}</p>`}
    ${images.length > 0 && html`<div class="gallery">${images.map((image, index) => html`<figure key=${index}>
      <img src=${local(image.url)} width=${image.width} height=${image.height} alt=${alt(run, index)} class=${run.result ? "" : "preview"} />
      ${run.result?.has_nsfw_concepts?.[index] && html`<p class="note">The safety checker made this one black.</p>`}
      ${run.result && html`<figcaption>
        <a class="button quiet" href=${local(image.url)} download=${fileName(run, image, index)}>Download</a>
        ${seed != null && html`<button type="button" class="quiet" onClick=${() => actions.change("seed", seed + index)}>Use this seed</button>`}
        ${pictureField && html`<button type="button" class="quiet" onClick=${() => actions.change(pictureField.name, image.url)}>Use as input</button>`}
      </figcaption>`}</figure>`)}</div>`}
    ${!isActive(run) && html`<footer>
      <button type="button" class="quiet" aria-expanded=${showsCode} onClick=${() => setShowsCode(!showsCode)}>As code</button>
      <button type="button" class="quiet" onClick=${() => actions.reuse(run.input)}>Edit again</button>
      <button type="button" class="quiet" onClick=${() => actions.remove(run.id)}>Remove</button></footer>`}
    ${showsCode && html`<${Code} endpoint=${run.endpoint} input=${run.result ? { ...run.input, ...(seed == null ? {} : { seed }) } : run.input} />`}
  </article>`;
}

const alt = (run, index) => `${run.result ? "" : "Unfinished: "}${run.input.prompt ?? run.endpoint}${index ? `, picture ${index + 1}` : ""}`;

function fileName(run, image, index) {
  const words = (run.input.prompt ?? "picture").toLowerCase().replace(/[^a-z0-9]+/g, "-").slice(0, 40).replace(/^-|-$/g, "");
  const kind = (image.content_type ?? "image/png").split("/")[1].replace("jpeg", "jpg");
  return `${words || "picture"}-${(run.result.seed ?? 0) + index}.${kind}`;
}
