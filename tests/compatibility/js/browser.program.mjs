// What a page of another origin does with @fal-ai/client, in headless Chromium: the page's code is the printed lines and
// page.program.mjs, bundled as sites bundle it. Everything the browser asks for is told, and no name is resolved.
import { once } from "node:events"
import { readFileSync } from "node:fs"
import { createServer } from "node:http"
import chromium from "@sparticuz/chromium"
import { build } from "esbuild"
import puppeteer from "puppeteer-core"

const [endpoint, input, operations] = JSON.parse(process.argv[1])
const lines = process.env.PRINTED_LINES
const contents = `${lines}\n${readFileSync("page.program.mjs")}`
const bundle = await build({ stdin: { contents, resolveDir: "." }, bundle: true, write: false, platform: "browser" })

const page = `<!doctype html><meta charset="utf-8"><script type="module">${bundle.outputFiles[0].text}</script>`
const site = createServer((_, response) => response.setHeader("content-type", "text/html").end(page))
await once(site.listen(0, "127.0.0.1"), "listening")

// The package's own flags would switch the same-origin policy off, which is what a page has to deal with.
const lax = ["--disable-web-security", "--disable-site-isolation-trials", "--allow-running-insecure-content"]
const flags = chromium.args.filter((flag) => !lax.includes(flag))
const browser = await puppeteer.launch({
  args: [...flags, "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
  executablePath: await chromium.executablePath(),
  headless: "shell",
})
try {
  const tab = await browser.newPage()
  tab.on("pageerror", (error) => console.error(String(error)))
  tab.on("console", (message) => console.error(message.text()))
  const tellRequest = (address) => {
    const { hostname, protocol, host } = new URL(address)
    const target = `${protocol}//${host}`
    console.log(JSON.stringify({ request: { target, passes: hostname === "127.0.0.1" || protocol === "data:" } }))
  }
  tab.on("request", (request) => tellRequest(request.url()))
  const devtools = await tab.createCDPSession()
  await devtools.send("Network.enable")
  devtools.on("Network.webSocketCreated", ({ url }) => tellRequest(url))
  await tab.goto(`http://127.0.0.1:${site.address().port}/`)
  await tab.waitForFunction("window.perform", { timeout: 60000 })
  console.log(JSON.stringify({ browser: await browser.version() }))
  for (const operation of operations) {
    const answer = await tab.evaluate((...given) => window.perform(...given), operation, endpoint, input)
    console.log(JSON.stringify({ operation, ...answer }))
  }
} finally {
  await browser.close()
  site.close()
}
