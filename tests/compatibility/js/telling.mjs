// What every program here does: the operations named in argv, one after the other, each told as a JSON line.
export const [endpoint, input, operations] = JSON.parse(process.argv[1])
export const file = () => new Blob(["what was uploaded"], { type: "text/plain" })
export const text = async (url) => (await fetch(url)).text()
export const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms))

export const perform = async (doing) => {
  for (const operation of operations) {
    let answer
    try {
      answer = { value: await doing[operation]() }
    } catch (error) {
      answer = { error: `${error.name}: ${error.message} ${error.cause ?? ""} ${JSON.stringify(error.body ?? null)}` }
    }
    console.log(JSON.stringify({ operation, ...answer }))
  }
  process.exit(0)
}
