// The page's own code; follows the lines of `fluxserve env --client browser`, which set up `fal`.
const file = () => new Blob(["what was uploaded"], { type: "text/plain" })

const load = (url) =>
  new Promise((resolve, reject) => {
    const image = Object.assign(new Image(), { crossOrigin: "anonymous", src: url })
    image.onload = () => resolve({ width: image.naturalWidth, height: image.naturalHeight })
    image.onerror = () => reject(new Error(`${url} was not shown`))
  })

const doing = {
  run: async (endpoint, input) => {
    const { data, requestId } = await fal.run(endpoint, { input })
    return { ...data, requestId }
  },
  subscribe: async (endpoint, input) => (await fal.subscribe(endpoint, { input, logs: true })).data,
  "subscribe by stream": async (endpoint, input) => (await fal.subscribe(endpoint, { input, mode: "streaming" })).data,
  stream: async (endpoint, input) => (await fal.stream(endpoint, { input })).done(),
  upload: async () => ({ uploaded: await (await fetch(await fal.storage.upload(file()))).text() }),
  "show a result": async (endpoint, input) => {
    const { data } = await fal.run(endpoint, { input })
    const [{ url, content_type: declared, width, height }] = data.images
    const answer = await fetch(url, { credentials: "omit" })
    return { declared: { type: declared, width, height }, type: answer.headers.get("content-type"), ...(await load(url)) }
  },
  realtime: (endpoint, input) =>
    new Promise((resolve, reject) => {
      const connection = fal.realtime.connect(endpoint, { onResult: resolve, onError: reject })
      connection.send(input)
    }),
  "a wrong field": async (endpoint, input) => {
    try {
      await fal.run(endpoint, { input: { ...input, num_inference_steps: 0 } })
    } catch (error) {
      return { name: error.name, status: error.status, requestId: error.requestId, field: error.body.detail[0].loc[1] }
    }
    throw new Error("nothing was raised")
  },
}

window.perform = async (operation, endpoint, input) => {
  try {
    return { value: await doing[operation](endpoint, input) }
  } catch (error) {
    return { error: `${error.name}: ${error.message}` }
  }
}
