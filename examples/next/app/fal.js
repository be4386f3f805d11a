// fal's client for the pages: its hosts become prefixes of the server's address, and every call goes through the site's proxy.
import { fal } from "@fal-ai/client"

const server = process.env.NEXT_PUBLIC_FLUXSERVE_URL
const HOST = /^https:\/\/(?:(queue|rest)\.)?[^/]+/

export const config = {
  proxyUrl: "/api/fal/proxy",
  requestMiddleware: async (request) => ({
    ...request,
    url: request.url.replace(HOST, (_, area) => `${server}/${area ?? "run"}`),
  }),
}

fal.config(config)

export { fal }
