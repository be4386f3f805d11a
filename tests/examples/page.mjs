// examples/browser/previews.html in headless Chromium: draws once, and prints what the page showed on the way.
import { readFileSync } from "node:fs"
import { createServer } from "node:http"
import { once } from "node:events"
import { createRequire } from "node:module"

const [packages, file, server, key] = JSON.parse(process.argv[2])
const require = createRequire(`${packages}/`)
const chromium = (await import(require.resolve("@sparticuz/chromium"))).default
const puppeteer = (await import(require.resolve("puppeteer-core"))).default

const site = createServer((_, response) => response.setHeader("content-type", "text/html").end(readFileSync(file)))
await once(site.listen(0, "127.0.0.1"), "listening")
const lax = ["--disable-web-security", "--disable-site-isolation-trials", "--allow-running-insecure-content"]
const browser = await puppeteer.launch({
  args: chromium.args.filter((flag) => !lax.includes(flag)),
  executablePath: await chromium.executablePath(),
  headless: "shell",
})
try {
  const tab = await browser.newPage()
  tab.on("pageerror", (error) => console.error(String(error)))
  await tab.goto(`http://127.0.0.1:${site.address().port}/?server=${server}&key=${key}`)
  await tab.evaluate(() => {
    window.seen = []
    const note = () => {
      const image = document.querySelector("img")
      seen.push({ said: document.querySelector("[role=status]").textContent, kind: image.src.slice(0, 5), blurred: image.className })
    }
    new MutationObserver(note).observe(document.body, { subtree: true, childList: true, characterData: true })
  })
  await tab.click("button")
  await tab.waitForFunction('document.querySelector("[role=status]").textContent.startsWith("Done")', { timeout: 60000 })
  await tab.waitForFunction('document.querySelector("img").naturalWidth > 0 && !document.querySelector("img").className')
  const shown = await tab.evaluate(() => ({ seen, width: document.querySelector("img").naturalWidth }))
  await tab.type("input", " [[refuse]]")
  await tab.click("button")
  await tab.waitForFunction('!/^(Done|Step)/.test(document.querySelector("[role=status]").textContent)')
  const refusal = await tab.$eval("[role=status]", (element) => element.textContent)
  console.log(JSON.stringify({ ...shown, refusal }))
} finally {
  await browser.close()
  site.close()
}
