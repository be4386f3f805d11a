// The form of one endpoint, made from its schema. `values` has what differs from the endpoint's own defaults.

import { html } from "./vendor/htm-preact.js";
import { Mask, Picture, Pictures } from "./pictures.js";
import { PRESETS, isPicture, sidesOf } from "./schema.js";

/** Fields, those that are seldom needed folded. `errors` are sentences by field name. */
export function Form({ fields, values, errors, onChange }) {
  const picture = values.image_url ?? Object.values(values).find((value) => value instanceof Blob && value.name !== "mask.png");
  const shown = (field) => html`<${Field} key=${field.name} field=${field} value=${values[field.name]} picture=${picture}
    error=${errors[field.name]} onChange=${(value) => onChange(field.name, value)} />`;
  const folded = fields.filter((field) => !field.isMain);
  const isOpen = folded.some((field) => errors[field.name] || values[field.name] !== undefined);
  return html`${fields.filter((field) => field.isMain).map(shown)}
    ${folded.length > 0 && html`<details class="more" open=${isOpen}><summary>Advanced</summary>${folded.map(shown)}</details>`}`;
}

const COMPOUND = ["size", "shape", "mask", "pictures", "rows"];

function Field({ field, value, error, picture, onChange }) {
  const id = `field-${field.name}`;
  const text = aboutOf(field);
  const about = text ? `${id}-about` : undefined;
  const describedBy = [about, error && `${id}-error`].filter(Boolean).join(" ") || undefined;
  const Control = CONTROLS[field.kind];
  const control = html`<${Control} field=${field} id=${id} label=${field.label} value=${value} picture=${picture}
    onChange=${onChange} describedBy=${describedBy} isInvalid=${error ? "true" : undefined} />`;
  const isGroup = COMPOUND.includes(field.kind) || isPicture(field);
  const heading = field.kind === "switch" ? null : isGroup
    ? html`<span class="label" id=${`${id}-label`}>${field.label}</span>` : html`<label class="label" for=${id}>${field.label}</label>`;
  return html`<div class=${`field ${error ? "wrong" : ""}`} data-field=${field.name} role=${isGroup ? "group" : undefined}
      aria-labelledby=${isGroup ? `${id}-label` : undefined}>
    ${heading}${control}
    ${error && html`<p class="error" id=${`${id}-error`}>${error}</p>`}
    ${about && html`<p class="about" id=${about}>${text}</p>`}
  </div>`;
}

const SAYS_NO_MORE = ["prompt", "image_size", "num_images"];

/** What the schema says of a field, as far as the control does not show it. */
function aboutOf({ name, about }) {
  if (SAYS_NO_MORE.includes(name)) return "";
  return about.replace(/^URL or data URI of a (JPEG|picture\.).*$/, "").replace(/^URL or data URI of a mask: w/, "W");
}

const accessible = ({ id, describedBy, isInvalid }) => ({ id, "aria-describedby": describedBy, "aria-invalid": isInvalid });
const textOf = (event) => event.target.value || undefined;
const numberOf = (event) => (event.target.value === "" ? undefined : Number(event.target.value));

function Text({ field, value, onChange, ...rest }) {
  return html`<textarea ...${accessible(rest)} rows="4" maxlength="32768" required=${field.isRequired} value=${value ?? ""}
    placeholder=${field.about} spellcheck="true" onInput=${(event) => onChange(textOf(event))}></textarea>`;
}

function Line({ value, onChange, field, ...rest }) {
  return html`<input type="text" ...${accessible(rest)} value=${value ?? ""} placeholder=${field.initial ?? ""} onInput=${(event) => onChange(textOf(event))} />`;
}

function Amount({ field, value, onChange, label, ...rest }) {
  const { minimum, maximum, initial, isWhole } = field;
  const step = isWhole ? 1 : "any";
  const hasRange = minimum !== undefined && maximum !== undefined;
  return html`<div class="row">
    ${hasRange && html`<input type="range" aria-label=${`${label}, slider`} tabindex="-1" min=${minimum} max=${maximum}
      step=${isWhole ? 1 : maximum - minimum > 5 ? 0.1 : 0.01} value=${value ?? initial} onInput=${(event) => onChange(numberOf(event))} />`}
    <input type="number" class="short" ...${accessible(rest)} min=${minimum} max=${maximum} step=${step} value=${value ?? ""}
      placeholder=${initial} onInput=${(event) => onChange(numberOf(event))} />
  </div>`;
}

function Seed({ value, onChange, ...rest }) {
  return html`<div class="row">
    <input type="number" step="1" ...${accessible(rest)} value=${value ?? ""} placeholder="random" onInput=${(event) => onChange(numberOf(event))} />
    <button type="button" class="quiet" disabled=${value === undefined} onClick=${() => onChange(undefined)}>Random</button>
  </div>`;
}

function Switch({ field, value, onChange, ...rest }) {
  const isOn = value ?? field.initial ?? false;
  return html`<label class="switch"><input type="checkbox" ...${accessible(rest)} checked=${isOn}
    onChange=${(event) => onChange(event.target.checked === field.initial ? undefined : event.target.checked)} /> ${field.label}</label>`;
}

function Choice({ field, value, onChange, ...rest }) {
  const initial = field.initial == null ? "" : String(field.initial);
  return html`<select ...${accessible(rest)} value=${value ?? initial} onChange=${(event) => onChange(event.target.value === initial ? undefined : event.target.value)}>
    ${initial === "" && html`<option value="">—</option>`}
    ${field.options.map((each) => html`<option value=${each}>${each}</option>`)}
  </select>`;
}

/** Radio buttons with the shape drawn, and sides of one's own where the endpoint takes them. */
function Size({ field, value, onChange, ...rest }) {
  const isOwn = value !== null && typeof value === "object";
  const chosen = isOwn ? "own" : (value ?? field.initial ?? "");
  const [width, height] = sidesOf(value ?? field.initial) ?? [1024, 768];
  const pick = (each) => onChange(each === (field.initial ?? "") ? undefined : each === "own" ? { width, height } : each);
  const side = (name) => html`<input type="number" class="short" aria-label=${name} min="1" max="14142"
    value=${value[name]} onInput=${(event) => onChange({ ...value, [name]: numberOf(event) ?? 512 })} />`;
  const options = [...(field.initial == null ? [""] : []), ...field.options, ...(field.kind === "size" ? ["own"] : [])];
  return html`<div class="sizes" role="radiogroup" aria-labelledby=${`${rest.id}-label`} aria-describedby=${rest.describedBy}>
    ${options.map((each, index) => html`<label key=${each} class=${chosen === each ? "chosen" : ""}>
      <input class="hidden" type="radio" name=${rest.id} id=${index ? `${rest.id}-${each}` : rest.id} checked=${chosen === each} onChange=${() => pick(each)} />
      <${Shape} sides=${each === "own" ? (isOwn ? [width, height] : null) : sidesOf(each)} />
      <span>${nameOf(each)}</span><small>${each in PRESETS ? PRESETS[each].join(" × ") : ""}</small></label>`)}
  </div>
  ${isOwn && html`<div class="row">${side("width")} × ${side("height")}</div>`}`;
}

const nameOf = (each) => ({ "": "As the picture", own: "Own sides", match_input: "As the picture" })[each] ??
  each.replace("_hd", " HD").replace(/_(\d+)_(\d+)$/, " $1:$2").replace(/^./, (letter) => letter.toUpperCase());

function Shape({ sides }) {
  if (!sides) return html`<i class="shape dashed" style=${{ width: "26px", height: "20px" }}></i>`;
  const scale = 28 / Math.max(...sides);
  return html`<i class="shape" style=${{ width: `${Math.max(4, sides[0] * scale)}px`, height: `${Math.max(4, sides[1] * scale)}px` }}></i>`;
}

function Rows({ field, value = [], onChange, label }) {
  const change = (index, name, each) => onChange(value.map((row, at) => (at === index ? { ...row, [name]: each } : row)));
  const drop = (index) => onChange(value.length > 1 ? value.filter((_, at) => at !== index) : undefined);
  return html`<div class="rows">${value.map((row, index) => html`<div class="row wrap" key=${index}>
      ${field.columns.map(([name, { type }]) => html`<input key=${name} type=${type === "string" ? "text" : "number"} step="any" class=${type === "string" ? "" : "short"}
        aria-label=${`${label} ${index + 1}: ${name}`} placeholder=${name} value=${row[name] ?? ""}
        onInput=${(event) => change(index, name, type === "string" ? textOf(event) : numberOf(event))} />`)}
      <button type="button" class="quiet" aria-label=${`Remove ${label} ${index + 1}`} onClick=${() => drop(index)}>Remove</button></div>`)}
    <button type="button" class="quiet" onClick=${() => onChange([...value, {}])}>Add</button></div>`;
}

function Json({ value, onChange, ...rest }) {
  const read = (event) => {
    const text = event.target.value.trim();
    let value_;
    try { value_ = text ? JSON.parse(text) : undefined; } catch { value_ = text; }
    onChange(value_);
  };
  const text = value === undefined ? "" : typeof value === "string" ? value : JSON.stringify(value);
  return html`<textarea ...${accessible(rest)} class="code" rows="3" placeholder="JSON" value=${text} onChange=${read}></textarea>`;
}

const CONTROLS = { text: Text, line: Line, number: Amount, seed: Seed, switch: Switch, choice: Choice, size: Size, shape: Size,
  picture: Picture, pictures: Pictures, mask: Mask, rows: Rows, json: Json };
