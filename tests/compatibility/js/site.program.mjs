// A site with @fal-ai/server-proxy between its pages and the server, and a page's program against that site. Follows the
// lines of `fluxserve env --client server-proxy`: `proxyConfig` for the site, fal.config for the page.
import { once } from "node:events"
import { createServer } from "node:http"
import { Readable } from "node:stream"
import { createRequestHandler } from "@fal-ai/server-proxy/svelte"
import { endpoint, file, input, pause, perform, text } from "./telling.mjs"

console.warn = () => {} // it warns that all endpoints are allowed
const { requestHandler } = createRequestHandler(proxyConfig)

const site = createServer(async (incoming, outgoing) => {
  const { method, headers, url } = incoming
  const body = method === "GET" ? undefined : Readable.toWeb(incoming)
  const request = new Request(`http://site${url}`, { method, headers, body, duplex: "half" })
  const answer = await requestHandler({ request })
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers))
  Readable.fromWeb(answer.body).pipe(outgoing)
})
await once(site.listen(0, "127.0.0.1"), "listening")
// A page writes the path of its own site; in Node the address must be whole.
const proxyUrl = { url: `http://127.0.0.1:${site.address().port}${pageConfig.proxyUrl}`, when: "always" }
fal.config({ ...pageConfig, proxyUrl })

const doing = {
  run: async () => (await fal.run(endpoint, { input })).data,
  subscribe: async () => (await fal.subscribe(endpoint, { input, logs: true, pollInterval: 50 })).data,
  "subscribe by stream": async () => (await fal.subscribe(endpoint, { input, mode: "streaming" })).data,
  stream: async () => (await fal.stream(endpoint, { input })).done(),
  upload: async () => ({ uploaded: await text(await fal.storage.upload(file())) }),
  cancel: async () => {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input: { ...input, prompt: "wait forever" } })
    await fal.queue.cancel(endpoint, { requestId })
    while ((await fal.queue.status(endpoint, { requestId })).status !== "COMPLETED") await pause(50)
    return { cancelled: true }
  },
}

await perform(doing)
