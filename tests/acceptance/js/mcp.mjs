// Drives the unmodified TypeScript client of the Model Context Protocol: JSON lines in, JSON lines out.
// The first argument is the address of a server's /mcp; others are a program that speaks it over stdin and stdout.
import { createInterface } from "node:readline"
import { Client } from "@modelcontextprotocol/sdk/client/index.js"
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js"
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js"

const [place, ...args] = process.argv.slice(2)
const requestInit = { headers: { Authorization: `Bearer ${process.env.FAL_KEY}` } }
const transport = () =>
  args.length
    ? new StdioClientTransport({ command: place, args, env: process.env })
    : new StreamableHTTPClientTransport(new URL(place), { requestInit })

const client = new Client({ name: "an-agent", version: "1" })
await client.connect(transport())

const call = async ({ tool, input }) => {
  const progress = []
  const onprogress = (seen) => progress.push(seen)
  const { content, isError } = await client.callTool({ name: tool, arguments: input }, undefined, { onprogress })
  return { content, isError: isError ?? false, progress }
}

const answer = async (asked) => {
  if (asked.tool) return call(asked)
  const { tools } = await client.listTools()
  return { server: client.getServerVersion(), tools: tools.map(({ name, description }) => ({ name, description })) }
}

for await (const line of createInterface({ input: process.stdin })) {
  const told = await answer(JSON.parse(line)).catch((error) => ({ failed: String(error) }))
  process.stdout.write(`${JSON.stringify(told)}\n`)
}
await client.close()
