// What a user of the client does, in any of its versions; follows the lines of `fluxserve env`, which set up `fal`.
import { endpoint, file, input, pause, perform, text } from "./telling.mjs"

// Up to 0.15 the answer is the bare output.
const outputOf = (answer) => answer.data ?? answer
const check = (holds, facts) => {
  if (!holds) throw new Error(JSON.stringify(facts))
}

const subscribe = async (options) => {
  const seen = []
  const onQueueUpdate = (update) => seen.push(update.status)
  const answer = await fal.subscribe(endpoint, { input, logs: true, pollInterval: 50, onQueueUpdate, ...options })
  check(seen.at(-1) === "COMPLETED", seen)
  return outputOf(answer)
}

const until = async (requestId, status) => {
  while ((await fal.queue.status(endpoint, { requestId, logs: true })).status !== status) await pause(50)
}

const doing = {
  run: async () => outputOf(await fal.run(endpoint, { input })),
  subscribe: () => subscribe({}),
  "subscribe by stream": () => subscribe({ mode: "streaming" }),
  "submit, status, result": async () => {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input })
    await until(requestId, "COMPLETED")
    return outputOf(await fal.queue.result(endpoint, { requestId }))
  },
  stream: async () => {
    const stream = await fal.stream(endpoint, { input })
    return stream.done()
  },
  upload: async () => ({ uploaded: await text(await fal.storage.upload(file())) }),
  // The client replaces the Blob by an address before it sends the input.
  "upload of an input": async () => outputOf(await fal.run(endpoint, { input: { ...input, image_url: file() } })),
  cancel: async () => {
    const endless = { ...input, prompt: "wait forever" }
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input: endless })
    await fal.queue.cancel(endpoint, { requestId })
    await until(requestId, "COMPLETED")
    return { cancelled: true }
  },
}

await perform(doing)
