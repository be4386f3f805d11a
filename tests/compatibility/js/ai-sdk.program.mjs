// What a user of the AI SDK's fal provider does; follows the lines of `fluxserve env`, which make `fal`.
import { generateImage } from "ai"
import { endpoint, input, perform } from "./telling.mjs"

const model = fal.image(endpoint)

const doing = {
  generateImage: async () => {
    const { image, providerMetadata } = await generateImage({ model, prompt: input.prompt, size: "64x64", seed: 7 })
    const [{ width, height }] = providerMetadata.fal.images
    return { width, height, bytes: image.uint8Array.length, mediaType: image.mediaType }
  },
  "provider options": async () => {
    const providerOptions = { fal: { numInferenceSteps: 3, outputFormat: "png" } }
    const { image } = await generateImage({ model, prompt: input.prompt, size: "64x64", providerOptions })
    return { mediaType: image.mediaType }
  },
  "a wrong field": async () => {
    try {
      await generateImage({ model, prompt: input.prompt, size: "1x99999", maxRetries: 0 })
    } catch (error) {
      return { status: error.statusCode, says: error.message }
    }
    throw new Error("nothing was raised")
  },
}

await perform(doing)
