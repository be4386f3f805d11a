// The route and the page's client of examples/next, bundled as a site bundles them, without Next.js: its response class is the
// web's own, which it extends. Prints what the page got, and what the route refused.
import { once } from "node:events"
import { createServer } from "node:http"
import { createRequire } from "node:module"
import { Readable } from "node:stream"
import { pathToFileURL } from "node:url"

const [packages, example, folder] = JSON.parse(process.argv[2])
const server = process.env.NEXT_PUBLIC_FLUXSERVE_URL
const { build } = createRequire(`${packages}/`)("esbuild")
const next = {
  name: "next",
  setup: (bundler) => {
    bundler.onResolve({ filter: /^next\/server$/ }, () => ({ path: "next/server", namespace: "next" }))
    bundler.onLoad({ filter: /.*/, namespace: "next" }, () => ({ contents: "exports.NextResponse = Response" }))
  },
}

async function bundled(file) {
  const outfile = `${folder}/${file.replaceAll("/", "-")}.mjs`
  await build({
    entryPoints: [`${example}/app/${file}`],
    outfile,
    bundle: true,
    format: "esm",
    platform: "node",
    nodePaths: [`${packages}/node_modules`],
    alias: { "@fal-ai/client": "fal-1.10" },
    banner: { js: 'import { createRequire } from "node:module"; const require = createRequire(import.meta.url);' },
    plugins: [next],
  })
  return import(pathToFileURL(outfile))
}

console.warn = () => {} // the package warns that who asks is not checked
const route = await bundled("api/fal/proxy/route.js")
const site = createServer(async (incoming, outgoing) => {
  const { method, headers, url } = incoming
  const body = method === "GET" ? undefined : Readable.toWeb(incoming)
  const answer = await route[method](new Request(`http://site${url}`, { method, headers, body, duplex: "half" }))
  outgoing.writeHead(answer.status, Object.fromEntries(answer.headers))
  Readable.fromWeb(answer.body).pipe(outgoing)
})
await once(site.listen(0, "127.0.0.1"), "listening")
const proxy = `http://127.0.0.1:${site.address().port}/api/fal/proxy`

const { config, fal } = await bundled("fal.js")
fal.config({ ...config, proxyUrl: { url: proxy, when: "always" } }) // a page writes the path alone
const lines = []
const { data } = await fal.subscribe("fal-ai/flux/dev", {
  input: { prompt: "a fox", num_inference_steps: 2 },
  logs: true,
  onQueueUpdate: (update) => lines.push(update.status),
})
const asked = async (target) => {
  const headers = { "x-fal-target-url": target, "content-type": "application/json" }
  return (await fetch(proxy, { method: "POST", headers, body: '{"prompt": "a fox"}' })).status
}
const elsewhere = [await asked("https://fal.run/fal-ai/flux/dev"), await asked(`${server}/run/fal-ai/flux-pro`)]
console.log(JSON.stringify({ url: data.images[0].url, last: lines.at(-1), elsewhere }))
process.exit(0)
