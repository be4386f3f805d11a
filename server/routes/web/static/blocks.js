// Text to copy: a request as code for every client, a key, a command.

import { html, useEffect, useMemo, useRef, useState } from "./vendor/htm-preact.js";
import { connection, getJson, root } from "./api.js";
import { blocks } from "./code.js";

/** One request for every client of `fluxserve env`. */
export function Code({ endpoint, input }) {
  const [clients, setClients] = useState([]);
  const [chosen, setChosen] = useState("curl");
  useEffect(() => { getJson("", "v1/clients").then((answer) => setClients(answer.clients), () => setClients([])); }, []);
  const client = clients.find((each) => each.id === chosen);
  const shown = useMemo(() => (client ? blocks(client, endpoint, input, root.href, !connection.key) : []), [client, endpoint, input]);
  return html`<div class="as-code">
    <label class="label">Client <select value=${chosen} onChange=${(event) => setChosen(event.target.value)}>
      ${clients.map((each) => html`<option key=${each.id} value=${each.id}>${each.title}</option>`)}</select></label>
    ${shown.map((block) => html`<${Block} key=${block.name} ...${block} />`)}
    ${client?.notes.length > 0 && html`<ul class="about">${client.notes.map((note) => html`<li>${note}</li>`)}</ul>`}
  </div>`;
}

/** Text under its name, to copy. */
export function Block({ name, text }) {
  const [isCopied, setCopied] = useState(false);
  const pre = useRef();
  const copy = async () => {
    try { await navigator.clipboard.writeText(text); } catch {
      // Plain HTTP from another machine has no clipboard: the text is selected, and the browser's own copy does it.
      getSelection().selectAllChildren(pre.current);
      document.execCommand("copy");
    }
    setCopied(true);
    setTimeout(() => setCopied(false), 1500);
  };
  return html`<div class="block"><div class="row"><span class="label">${name}</span>
    <button type="button" class="quiet" onClick=${copy} aria-live="polite">${isCopied ? "Copied" : "Copy"}</button></div>
    <pre ref=${pre} tabindex="0" aria-label=${name}>${text}</pre></div>`;
}
