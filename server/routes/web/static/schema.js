// An endpoint's published schema as a list of fields to show.

/** Sides of fal's size presets. */
export const PRESETS = {
  square_hd: [1024, 1024], square: [512, 512], portrait_4_3: [768, 1024],
  portrait_16_9: [576, 1024], landscape_4_3: [1024, 768], landscape_16_9: [1024, 576],
};

const MAIN = ["prompt", "image_size", "aspect_ratio", "resolution_mode", "strength", "num_images", "num_inference_steps",
  "guidance_scale", "seed", "safety_tolerance", "enable_safety_checker"];
const LABELS = { num_inference_steps: "Steps", guidance_scale: "Guidance", num_images: "Pictures", image_size: "Size",
  aspect_ratio: "Shape", enable_safety_checker: "Safety checker", safety_tolerance: "Safety tolerance", loras: "LoRAs",
  image_url: "Picture", image_urls: "Pictures", mask_url: "Mask", resolution_mode: "Size" };
const WITHOUT_EFFECT = /^(Not supported|Accepted|Must be)/;

/** `{ name, label, kind, about, ... }` of every field that has an effect, those to show at once first. */
export function fieldsOf(document) {
  const schemas = document.components.schemas;
  const [path] = Object.keys(document.paths).filter((each) => each.startsWith("/queue/") && document.paths[each].post);
  const reference = document.paths[path].post.requestBody.content["application/json"].schema.$ref;
  const schema = schemas[reference.split("/").pop()];
  const required = schema.required ?? [];
  const fields = Object.entries(schema.properties)
    .filter(([name, each]) => name !== "sync_mode" && !WITHOUT_EFFECT.test(each.description ?? ""))
    .map(([name, each]) => fieldOf(name, each, schemas, required.includes(name)));
  return fields.sort((one, other) => rank(one) - rank(other));
}

const rank = (field) => (field.isMain ? (isPicture(field) ? 0.5 : MAIN.indexOf(field.name)) : 100);
export const isPicture = (field) => ["picture", "pictures", "mask"].includes(field.kind);

function fieldOf(name, property, schemas, isRequired) {
  const ways = alternatives(property, schemas);
  const one = ways.find((way) => way.enum) ?? ways[0] ?? {};
  const label = LABELS[name] ?? name.replaceAll("_", " ").replace(/^./, (letter) => letter.toUpperCase());
  const field = { name, label, isRequired, initial: property.default, about: property.description ?? one.description ?? "",
    minimum: one.minimum ?? one.exclusiveMinimum, maximum: one.maximum, isWhole: one.type === "integer",
    options: one.enum ? [...new Set(one.enum.map(String))] : null, kind: kindOf(name, one, ways, schemas) };
  field.isMain = MAIN.includes(name) || (isPicture(field) && isRequired);
  if (field.kind === "rows") field.columns = Object.entries(alternatives(one.items, schemas)[0].properties);
  return field;
}

function kindOf(name, one, ways, schemas) {
  const pictures = ways.some((way) => /URL or data URI/.test(way.description ?? ""));
  if (name === "image_size") return "size";
  if (name === "mask_url" || name === "change_map_image_url") return "mask";
  if (pictures || /image_url$/.test(name)) return "picture";
  if (one.type === "array") {
    const [item] = alternatives(one.items, schemas);
    if (/URL or data URI/.test(item.description ?? "")) return "pictures";
    const isFlat = Object.values(item.properties ?? {}).every((each) => ["string", "number", "integer"].includes(each.type));
    return item.properties && isFlat ? "rows" : "json";
  }
  if (one.enum) return one.enum.some((each) => /^\d+:\d+$/.test(each)) ? "shape" : "choice";
  if (name === "seed") return "seed";
  if (name === "prompt" || name === "negative_prompt") return "text";
  return { integer: "number", number: "number", boolean: "switch", string: "line" }[one.type] ?? "json";
}

/** The schemas of which a value may be any, references followed, null left out. */
function alternatives(schema, schemas) {
  if (!schema) return [];
  if (schema.$ref) return alternatives({ ...schemas[schema.$ref.split("/").pop()] }, schemas);
  const union = schema.anyOf ?? schema.oneOf;
  const ways = union ? union.flatMap((way) => alternatives(way, schemas)) : [schema];
  const described = schema.description && !/URL or data URI/.test(schema.description) ? {} : null;
  return ways.filter((way) => way.type !== "null").map((way) => (described ? way : { description: schema.description, ...way }));
}

/** Width and height of a value of `image_size`, `aspect_ratio` or the like; null where it follows something else. */
export function sidesOf(value) {
  if (value == null) return null;
  if (typeof value === "object") return [value.width ?? 512, value.height ?? 512];
  return PRESETS[value] ?? (/^\d+:\d+$/.test(value) ? value.split(":").map(Number) : null);
}
