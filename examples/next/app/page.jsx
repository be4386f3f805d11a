"use client"

import { useState } from "react"
import { fal } from "./fal"

export default function Page() {
  const [line, setLine] = useState("")
  const [url, setUrl] = useState("")

  async function draw(form) {
    try {
      const { data } = await fal.subscribe("fal-ai/flux/dev", {
        input: { prompt: form.get("prompt"), image_size: "square" },
        logs: true,
        onQueueUpdate: (update) => setLine(update.logs?.at(-1)?.message ?? update.status),
      })
      setUrl(data.images[0].url)
      setLine("done")
    } catch (error) {
      setLine(error.message)
    }
  }

  return (
    <form action={draw}>
      <input name="prompt" defaultValue="a red circle on a blue background" required />
      <button>Draw</button>
      <p role="status">{line}</p>
      {url && <img src={url} alt="" width="512" />}
    </form>
  )
}
