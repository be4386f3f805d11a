// Runs pieces of code against the unmodified @fal-ai/client: JSON lines in, JSON lines out.
// A piece sees `fal` (set up by FAL_CONFIG), `client` (the package), `middleware`, `serverUrl`, `pause`, `crypto` and
// its own variables.
import crypto from "node:crypto"
import { createInterface } from "node:readline"
import * as client from "@fal-ai/client"

const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`)
console.log = console.warn = console.error // what the client prints is for a reader

const config = JSON.parse(process.env.FAL_CONFIG)
const fal = client.createFalClient(config)
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

// The recipe for every version: the four hosts become prefixes of the server's plain address.
const areas = { "fal.run": "run", "queue.fal.run": "queue", "rest.fal.ai": "rest", "rest.alpha.fal.ai": "rest" }
const rewrite = async (request) => {
  const url = new URL(request.url)
  return { ...request, url: `${process.env.SERVER_URL}/${areas[url.host]}${url.pathname}${url.search}` }
}
const middleware = { credentials: config.credentials, requestMiddleware: rewrite }

const classOf = (error) => {
  if (error instanceof client.ValidationError) return "ValidationError"
  return error instanceof client.ApiError ? "ApiError" : (error?.name ?? "Error")
}
const factsOf = (error) => ({
  name: classOf(error),
  text: String(error?.message ?? error),
  status: error?.status ?? null,
  body: error?.body ?? null,
  requestId: error?.requestId ?? null,
  timeoutType: error?.timeoutType ?? null,
  isUserTimeout: error?.isUserTimeout ?? null,
  fieldErrors: error instanceof client.ValidationError ? error.fieldErrors : null,
})

const Piece = Object.getPrototypeOf(async () => {}).constructor
const given = { client, crypto, fal, middleware, pause, serverUrl: process.env.SERVER_URL }

for await (const line of createInterface({ input: process.stdin })) {
  const { code, names } = JSON.parse(line)
  const scope = { ...given, ...names }
  try {
    const value = await new Piece(...Object.keys(scope), `{${code}}`)(...Object.values(scope))
    answer({ value: value ?? null })
  } catch (error) {
    answer({ error: factsOf(error) })
  }
}
