// Fields that take pictures: by drop, paste, file or address; and masks painted over a picture.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { local } from "./api.js";

const TYPES = "image/jpeg,image/png,image/webp";
const pictureIn = (items) => [...(items ?? [])].find((file) => file.type.startsWith("image/"));

/** An address to show for a value: a Blob of this page, or an address that the server knows. */
export function useAddress(value) {
  const address = useMemo(() => (value instanceof Blob ? URL.createObjectURL(value) : value ? local(value) : null), [value]);
  useEffect(() => () => { if (address?.startsWith("blob:")) URL.revokeObjectURL(address); }, [address]);
  return address;
}

/** One picture. */
export function Picture({ id, label, value, onChange, describedBy, isInvalid }) {
  const [isOver, setOver] = useState(false);
  const address = useAddress(value);
  const isPlain = !value || value instanceof Blob || value.startsWith("data:");
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    const file = pictureIn(event.dataTransfer.files);
    if (file) onChange(file);
  };
  return html`<div class="picture">
    <label class=${`drop ${isOver ? "over" : ""}`} onDrop=${drop} onDragLeave=${() => setOver(false)}
        onDragOver=${(event) => { event.preventDefault(); setOver(true); }}>
      <input class="hidden" type="file" id=${id} accept=${TYPES} aria-label=${label} aria-describedby=${describedBy}
        aria-invalid=${isInvalid} onChange=${(event) => event.target.files[0] && onChange(event.target.files[0])} />
      ${address ? html`<img src=${address} alt="Chosen picture" />` : html`<span><b>Choose a picture</b>, drop or paste one</span>`}
    </label>
    <div class="row">
      <input type="text" inputmode="url" aria-label=${`${label}: address`} placeholder="or its address: https://…"
        value=${isPlain ? "" : value} onChange=${(event) => onChange(event.target.value.trim() || undefined)} />
      ${value && html`<button type="button" class="quiet" onClick=${() => onChange(undefined)}>Remove</button>`}
    </div>
  </div>`;
}

/** Several pictures. */
export function Pictures({ id, label, value = [], onChange, ...rest }) {
  const change = (index, picture) => {
    const all = value.slice();
    all.splice(index, 1, ...(picture ? [picture] : []));
    onChange(all.length ? all : undefined);
  };
  return html`<div class="pictures-field">${[...value, undefined].map((each, index) => html`<${Picture} key=${index}
    id=${index ? `${id}-${index}` : id} label=${`${label} ${index + 1}`} value=${each} onChange=${(to) => change(index, to)} ...${rest} />`)}</div>`;
}

const PAINTED = "mask.png";
const isGiven = (value) => value !== undefined && !(value instanceof Blob && value.name === PAINTED);

/** A mask: a picture of its own (chosen, dropped or pasted), or painted over `picture`. White is drawn anew. */
export function Mask({ id, label, value, onChange, picture, ...rest }) {
  const [painting, setPainting] = useState(true);
  if (!picture || !painting || isGiven(value)) {
    return html`<div><${Picture} id=${id} label=${label} value=${value} onChange=${onChange} ...${rest} />
      ${picture
        ? html`<button type="button" class="quiet" onClick=${() => { setPainting(true); onChange(undefined); }}>Paint it instead</button>`
        : html`<p class="about">With a picture above, the mask can be painted.</p>`}</div>`;
  }
  return html`<${Brush} id=${id} label=${label} picture=${picture} onChange=${onChange} ...${rest}
    onFile=${() => { setPainting(false); onChange(undefined); }} />`;
}

function Brush({ id, label, picture, onChange, onFile, describedBy, isInvalid }) {
  const address = useAddress(picture);
  const canvas = useRef();
  const [strokes, setStrokes] = useState([]);
  const [size, setSize] = useState(10);
  const [erases, setErases] = useState(false);
  const [cursor, setCursor] = useState(null);
  const current = useRef(null);
  const show = (all) => paint(canvas.current, all);

  const keep = (all) => {
    setStrokes(all);
    show(all);
    all.length ? exported(canvas.current).then(onChange) : onChange(undefined);
  };
  const ready = (event) => {
    const { naturalWidth: width, naturalHeight: height } = event.target;
    const scale = Math.min(1, 2048 / Math.max(width, height));
    canvas.current.width = Math.round(width * scale);
    canvas.current.height = Math.round(height * scale);
    keep([]);
  };
  const width = () => (size / 100) * Math.max(canvas.current.width, canvas.current.height);
  const begin = (points) => ({ points, width: width(), erases });
  const place = (event) => {
    const box = canvas.current.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * canvas.current.width, ((event.clientY - box.top) / box.height) * canvas.current.height];
  };
  const down = (event) => {
    canvas.current.setPointerCapture(event.pointerId);
    current.current = begin([place(event)]);
    setCursor(null);
    show([...strokes, current.current]);
  };
  const move = (event) => {
    if (!current.current) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) current.current.points.push(place(each));
    show([...strokes, current.current]);
  };
  const up = () => {
    if (current.current) keep([...strokes, current.current]);
    current.current = null;
  };
  const key = (event) => {
    const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    const { width: across, height: down_ } = canvas.current;
    const at = cursor ?? [across / 2, down_ / 2];
    if (by) {
      const far = width() / 2;
      setCursor([clamp(at[0] + by[0] * far, across), clamp(at[1] + by[1] * far, down_)]);
    } else if (event.key === " ") keep([...strokes, begin([at])]);
    else return;
    event.preventDefault();
  };
  const ring = cursor && { left: `${(cursor[0] / canvas.current.width) * 100}%`, top: `${(cursor[1] / canvas.current.height) * 100}%` };
  const drop = (event) => {
    event.preventDefault();
    const file = pictureIn(event.dataTransfer.files);
    if (file) onChange(file);
  };
  return html`<div class="brush" onDrop=${drop} onDragOver=${(event) => event.preventDefault()}>
    <div class="stage">
      <img src=${address} alt="" onLoad=${ready} />
      <canvas ref=${canvas} id=${id} tabindex="0" role="application" aria-label=${`${label}: paint what is drawn anew; arrow keys move, space paints`}
        aria-describedby=${describedBy} aria-invalid=${isInvalid} onPointerDown=${down} onPointerMove=${move} onPointerUp=${up}
        onPointerCancel=${up} onKeyDown=${key}></canvas>
      ${ring && html`<span class="ring" style=${ring}></span>`}
    </div>
    <div class="row wrap">
      <button type="button" aria-pressed=${!erases} onClick=${() => setErases(false)}>Brush</button>
      <button type="button" aria-pressed=${erases} onClick=${() => setErases(true)}>Eraser</button>
      <label class="inline">Width <input type="range" min="1" max="40" value=${size} onInput=${(event) => setSize(+event.target.value)} /></label>
    </div>
    <div class="row wrap">
      <button type="button" class="quiet" disabled=${!strokes.length} onClick=${() => keep(strokes.slice(0, -1))}>Undo</button>
      <button type="button" class="quiet" onClick=${() => keep([...strokes, { inverts: true }])}>Invert</button>
      <button type="button" class="quiet" disabled=${!strokes.length} onClick=${() => keep([])}>Clear</button>
      <button type="button" class="quiet" onClick=${onFile}>Use a file</button>
    </div>
  </div>`;
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);

function paint(canvas, strokes) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = context.fillStyle = getComputedStyle(canvas).color;
  for (const { points, width, erases, inverts } of strokes) {
    context.globalCompositeOperation = inverts ? "xor" : erases ? "destination-out" : "source-over";
    if (inverts) { context.fillRect(0, 0, canvas.width, canvas.height); continue; }
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(...points[0]);
    for (const point of points) context.lineTo(...point);
    context.stroke();
  }
}

/** What was painted, white on black, as a PNG. */
function exported(canvas) {
  const made = document.createElement("canvas");
  made.width = canvas.width;
  made.height = canvas.height;
  const context = made.getContext("2d");
  context.drawImage(canvas, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, made.width, made.height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, made.width, made.height);
  return new Promise((resolve) => made.toBlob((blob) => resolve(new File([blob], PAINTED, { type: "image/png" })), "image/png"));
}
