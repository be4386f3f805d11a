// Watches a Node process from its first line: which names it resolves, which addresses it calls, what it starts.
//
//     WATCH_FILE=FILE node --import ./watch.mjs ...
//
// Loopback passes. Everything else is written down and refused, before a packet leaves.
import childProcess from "node:child_process"
import dgram from "node:dgram"
import dns from "node:dns"
import fs from "node:fs"
import { syncBuiltinESMExports } from "node:module"
import net from "node:net"

const file = fs.openSync(process.env.WATCH_FILE, "a")
const isLoopback = (target) =>
  target === "localhost" || target === "::1" || (net.isIPv4(target) && target.startsWith("127.")) || target.startsWith("/")

const passes = (event, target) => {
  const result = isLoopback(target)
  fs.writeSync(file, `${JSON.stringify({ event, target, passes: result })}\n`)
  return result
}
const refusal = (target) => Object.assign(new Error(`the watch let nothing go to ${target}`), { code: "ECONNREFUSED" })

// connect(options), connect(port, host), connect(path); net.connect hands over [options, callback] in an array.
const targetOf = ([first, second]) => {
  const options = Array.isArray(first) ? first[0] : first
  if (typeof options === "object") return options.path ?? options.host ?? "localhost"
  return Number.isNaN(Number(options)) ? String(options) : typeof second === "string" ? second : "localhost"
}
const connect = net.Socket.prototype.connect
net.Socket.prototype.connect = function (...args) {
  const target = targetOf(args)
  if (passes("connect", target)) return connect.apply(this, args)
  process.nextTick(() => this.destroy(refusal(target)))
  return this
}

const guard = (owner, name, targetOfCall) => {
  const real = owner[name]
  owner[name] = function (...args) {
    const target = String(targetOfCall(args))
    if (!passes(name, target)) throw refusal(target)
    return real.apply(this, args)
  }
}
for (const owner of [dns, dns.promises, dns.Resolver.prototype, dns.promises.Resolver.prototype]) {
  for (const name of Object.getOwnPropertyNames(owner)) {
    if (/^(lookup|resolve|reverse)/.test(name) && typeof owner[name] === "function") guard(owner, name, ([host]) => host)
  }
}
for (const name of ["connect", "send"]) guard(dgram.Socket.prototype, name, (args) => args.find((arg) => typeof arg === "string"))
for (const name of ["spawn", "spawnSync", "exec", "execFile", "execSync", "execFileSync", "fork"]) {
  guard(childProcess, name, ([command]) => `subprocess ${command}`)
}
syncBuiltinESMExports()
