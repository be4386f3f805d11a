// A button that asks once more before what cannot be undone.

import { html, useEffect, useRef, useState } from "./vendor/htm-preact.js";

export function Confirm({ label, question, yes, onYes }) {
  const [isAsking, setAsking] = useState(false);
  const first = useRef();
  useEffect(() => { if (isAsking) first.current.focus(); }, [isAsking]);
  if (!isAsking) return html`<button type="button" class="quiet danger" onClick=${() => setAsking(true)}>${label}</button>`;
  return html`<span class="row wrap" role="group" aria-label=${question}><span>${question}</span>
    <button ref=${first} type="button" class="danger" onClick=${() => { setAsking(false); onYes(); }}>${yes}</button>
    <button type="button" class="quiet" onClick=${() => setAsking(false)}>Keep</button></span>`;
}
