// Drives the unmodified @fal-ai/client through one scenario: JSON in argv, JSON lines out.
// The only thing it is told about the server is fal.config's argument, as `fluxserve env --client js` prints it.
import { readFileSync } from "node:fs"
import { ApiError, fal, ValidationError } from "@fal-ai/client"

const [scenario, endpoint, input] = JSON.parse(process.argv[2])
fal.config(JSON.parse(process.env.FAL_CONFIG))

const tell = (event, facts) => console.log(JSON.stringify({ event, at: Date.now() / 1000, ...facts }))
// The words of the Python client for the same three states.
const names = { IN_QUEUE: "Queued", IN_PROGRESS: "InProgress", COMPLETED: "Completed" }
const onQueueUpdate = (update) =>
  tell("update", { status: names[update.status] ?? update.status, logs: (update.logs ?? []).map((log) => log.message) })
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

const follow = async (requestId, onUpdate, interval) => {
  for (;;) {
    const status = await fal.queue.status(endpoint, { requestId, logs: true })
    onQueueUpdate(status)
    if (status.status === "COMPLETED") return
    await onUpdate(status)
    await pause(interval)
  }
}

const scenarios = {
  async subscribe() {
    const onEnqueue = (requestId) => tell("enqueued", { request_id: requestId })
    const options = { input, logs: true, pollInterval: 100, onEnqueue, onQueueUpdate }
    const { data, requestId } = await fal.subscribe(endpoint, options)
    tell("result", { result: data, request_id: requestId })
  },
  async run() {
    const { data, requestId } = await fal.run(endpoint, { input })
    tell("result", { result: data, request_id: requestId })
  },
  async queue() {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input })
    tell("enqueued", { request_id: requestId })
    await follow(requestId, () => {}, 100)
    const { data } = await fal.queue.result(endpoint, { requestId })
    tell("result", { result: data, request_id: requestId })
  },
  async cancel() {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input })
    tell("enqueued", { request_id: requestId })
    let cancelled = false
    const cancelOnce = async (status) => {
      if (cancelled || !status.logs?.some((log) => log.message.startsWith("step"))) return
      cancelled = true
      await fal.queue.cancel(endpoint, { requestId })
      onQueueUpdate(await fal.queue.status(endpoint, { requestId, logs: true }))
      tell("cancelled", {})
    }
    await follow(requestId, cancelOnce, 10)
    const { data } = await fal.queue.result(endpoint, { requestId })
    tell("result", { result: data })
  },
  // Many endpoints side by side; `@upload PATH` in an input becomes a Blob, which the client uploads by itself.
  async pictures() {
    const named = (value) => {
      if (Array.isArray(value)) return value.map(named)
      if (value !== null && typeof value === "object")
        return Object.fromEntries(Object.entries(value).map(([name, each]) => [name, named(each)]))
      const path = typeof value === "string" && value.match(/^@(?:upload|inline) (.*)$/)?.[1]
      return path ? new Blob([readFileSync(path)], { type: "image/png" }) : value
    }
    const waiting = [...input.calls]
    const ask = async () => {
      for (let call = waiting.shift(); call; call = waiting.shift()) {
        const [endpoint, fields] = call
        try {
          const { data } = await fal.subscribe(endpoint, { input: named(fields), pollInterval: 100 })
          tell("result", { endpoint, result: data })
        } catch (error) {
          if (!(error instanceof ApiError)) throw error
          tell("error", { endpoint, status: error.status, detail: error.body?.detail })
        }
      }
    }
    await Promise.all([ask(), ask(), ask(), ask()])
  },
}

try {
  await scenarios[scenario]()
} catch (error) {
  if (!(error instanceof ApiError)) throw error
  const fieldErrors = error instanceof ValidationError ? error.fieldErrors : null
  tell("error", { status: error.status, detail: error.body?.detail, message: error.message, fieldErrors })
}
