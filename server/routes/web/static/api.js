// How the pages talk to the server: its public API, at the address that this file came from.

export const root = new URL("../", import.meta.url);

const TARGETS = { run: "https://fal.run/", queue: "https://queue.fal.run/", rest: "https://rest.fal.ai/" };

/** What this tab knows: a key, and whether calls take the form of fal's proxy protocol. Gone when the tab closes. */
export const connection = {
  get key() { return sessionStorage.getItem("fluxserve.key") ?? ""; },
  set key(value) { sessionStorage.setItem("fluxserve.key", value); },
  get viaProxy() { return sessionStorage.getItem("fluxserve.proxy") === "1"; },
  set viaProxy(value) { sessionStorage.setItem("fluxserve.proxy", value ? "1" : "0"); },
};

/** A refusal: `fields` maps a field's name to its sentence; what belongs to no field is the message. */
export class ApiError extends Error {
  constructor(status, body) {
    const listed = Array.isArray(body?.detail) ? body.detail : [];
    super(sentence(status, body, listed));
    this.status = status;
    this.fields = {};
    for (const { loc = [], msg } of listed) {
      const [place, field, ...inner] = loc[0] === "body" ? loc : ["body", ...loc];
      if (place && field !== undefined) this.fields[field] ??= inner.length ? `${inner.join(" ")}: ${msg}` : msg;
    }
    if (body?.error?.param) this.fields[body.error.param.split(".")[0]] = body.error.message; // below /v1, the first alone
  }
}

function sentence(status, body, listed) {
  if (listed.length) return listed.length === 1 ? "One field needs a change." : `${listed.length} fields need a change.`;
  const said = body?.detail ?? body?.error?.message; // below /v1 errors have OpenAI's shape
  if (typeof said === "string") return said;
  return `The server answered ${status}.`;
}

/** fetch in one of fal's areas (`run`, `queue`, `rest`). Throws ApiError for a refusal, and for no answer. */
export async function call(area, path, init = {}) {
  const headers = new Headers(init.headers);
  if (connection.key) headers.set("authorization", `Key ${connection.key}`);
  if (init.body && !headers.has("content-type")) headers.set("content-type", "application/json");
  let url = new URL(area ? `${area}/${path}` : path, root);
  if (connection.viaProxy && TARGETS[area]) {
    headers.set("x-fal-target-url", TARGETS[area] + path);
    url = new URL("api/fal/proxy", root);
  }
  const answer = await fetch(url, { ...init, headers }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { detail: "The server does not answer. Is it running?" });
  });
  if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null));
  return answer;
}

export const getJson = async (area, path) => (await call(area, path)).json();
export const send = (method, path, body) => call("", path, { method, body: body && JSON.stringify(body) });
export const postJson = async (area, path, body) => (await call(area, path, { method: "POST", body: JSON.stringify(body) })).json();

/** Draw now: yields an event a step, and last the result. Aborting `signal` cancels the request. */
export async function* draw(endpoint, input, previewEvery, signal) {
  const init = { method: "POST", body: JSON.stringify(input), signal, headers: { accept: "text/event-stream" } };
  const answer = await call("run", `${endpoint}/stream?preview_every=${previewEvery}`, init);
  for await (const event of events(answer.body)) {
    if (event.detail !== undefined) throw new ApiError(500, event);
    yield event;
  }
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value.replaceAll("\r", "")).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5)).join("\n");
      if (data) yield JSON.parse(data);
    }
  }
}

/** Store a picture; the address under which an input may name it. */
export async function upload(blob) {
  const name = blob.name ?? `picture.${blob.type.split("/")[1] ?? "png"}`;
  const made = await postJson("rest", "storage/upload/initiate", { content_type: blob.type, file_name: name });
  const answer = await fetch(local(made.upload_url), { method: "PUT", body: blob, headers: { "content-type": blob.type } });
  if (!answer.ok) throw new ApiError(answer.status, await answer.json().catch(() => null));
  return made.file_url;
}

/** A file's address as this page reaches it: other programs may be given another name of the same server. */
export function local(address) {
  if (address.startsWith("data:")) return address;
  const at = address.search(/\/(files|cdn)\//);
  return at < 0 ? address : new URL(address.slice(at + 1), root).href;
}
