// The site's own proxy: pages call it, FAL_KEY stays on the site's server.
import { createRouteHandler } from "@fal-ai/server-proxy/nextjs"

const { host } = new URL(process.env.NEXT_PUBLIC_FLUXSERVE_URL)

// Without allowedUrlPatterns the package lets fal's hosts through, and nothing else.
export const { GET, POST, PUT } = createRouteHandler({
  allowedUrlPatterns: [`${host}/**`],
  // Paths of that server: what the pages may draw with, now or queued, and uploads.
  allowedEndpoints: ["{run,queue}/fal-ai/flux/**", "rest/storage/**"],
  allowUnauthorizedRequests: true, // ask who is there, once the site knows people
})
