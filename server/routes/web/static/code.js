// A request as code: after the lines that point a client here, the call itself.

const json = (value) => JSON.stringify(value, null, 2);
const shell = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((each) => python(each, indent)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const lines = Object.entries(value).map(([key, each]) => `${inner}${JSON.stringify(key)}: ${python(each, inner)},\n`);
  return lines.length ? `{\n${lines.join("")}${indent}}` : "{}";
}

const falClient = (id, input) =>
  `import fal_client\n\nresult = fal_client.subscribe("${id}", arguments=${python(input)})\nprint(result["images"][0]["url"])`;
const falApps = (id, input) =>
  `from fal import apps\n\nresult = apps.submit("${id}", arguments=${python(input)}).get()\nprint(result["images"][0]["url"])`;
const subscribe = (id, input) =>
  `const { data } = await fal.subscribe("${id}", { input: ${json(input)} })\nconsole.log(data.images[0].url)`;
const retired = (id, input) =>
  `const result = await fal.subscribe("${id}", { input: ${json(input)} })\nconsole.log(result.images[0].url)`;
const imported = (id, input) => `import { fal } from "@fal-ai/client"\n\n${subscribe(id, input)}`;

function huggingface(_, { prompt = "", ...rest }) {
  const known = ["num_inference_steps", "guidance_scale", "seed"].filter((name) => name in rest);
  const given = known.map((name) => `, ${name}=${python(rest[name])}`).join("");
  return `import os\nfrom huggingface_hub import InferenceClient\n\nclient = InferenceClient(provider="fal-ai", ` +
    `api_key=os.environ["FAL_KEY"])\npicture = client.text_to_image(${JSON.stringify(prompt)}, ` +
    `model="black-forest-labs/FLUX.1-dev"${given})\npicture.save("picture.png")`;
}

function aiSdk(id, { prompt = "", seed, ...rest }) {
  const call = { prompt, ...(seed == null ? {} : { seed }), providerOptions: { fal: rest } };
  const model = `\n  model: fal.image("${id}"),`;
  return `import { experimental_generateImage as generateImage } from "ai"\n\n` +
    `const { image } = await generateImage(${json(call).replace("{", `{${model}`)})`;
}

const litellm = (id, { prompt = "" }) =>
  `import litellm\n\nresult = litellm.image_generation(model="fal_ai/${id}", prompt=${JSON.stringify(prompt)})\nprint(result.data[0].url)`;

function openai(id, { prompt = "", seed, num_images: count, image_size: size }) {
  const given = count ? `, n=${count}` : "";
  const sides = size && typeof size === "object" ? `, size="${size.width}x${size.height}"` : "";
  const extra = seed == null ? "" : `, extra_body={"seed": ${seed}}`;
  return `from openai import OpenAI\n\nresult = OpenAI().images.generate(model="${id}", prompt=${JSON.stringify(prompt)}` +
    `${given}${sides}${extra})\nprint(result.data[0].url or "in b64_json")`;
}

/** By the client's id: the call, and the language of the file that it is in. */
const CALLS = {
  python: ["Python", falClient], "python-proxy": ["Python", falClient], "fal-apps": ["Python", falApps],
  js: ["JavaScript", subscribe], "js-middleware": ["JavaScript", subscribe], "js-serverless": ["JavaScript", retired],
  browser: ["JavaScript", subscribe], "server-proxy": ["JavaScript", subscribe], "node-proxy": ["JavaScript", imported],
  huggingface: ["Python", huggingface], "ai-sdk": ["JavaScript", aiSdk], litellm: ["Python", litellm], openai: ["Python", openai],
};

function curl(id, input, root, isOpen) {
  const key = isOpen ? "" : " \\\n  -H 'Authorization: Key YOUR_KEY'";
  return `curl -s ${shell(`${root}run/${id}`)}${key} \\\n  -H 'Content-Type: application/json' \\\n  -d ${shell(json(input))}`;
}

/** The blocks to copy for one entry of GET /v1/clients: `[{ name, text }]`. */
export function blocks(client, id, input, root, isOpen) {
  if (client.id === "curl") return [{ name: "Shell", text: curl(id, input, root, isOpen) }];
  const lines = client.lines.join("\n");
  const [language, call] = CALLS[client.id] ?? [];
  if (!call) return [{ name: "Settings", text: lines }];
  const isOneFile = /^(import|const) /.test(client.lines[0]);
  if (isOneFile) return [{ name: language, text: `${lines}\n\n${call(id, input)}` }];
  return [{ name: "Shell, first", text: lines }, { name: `${language}, started from that shell`, text: call(id, input) }];
}
