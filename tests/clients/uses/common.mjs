// What the uses of Node clients share. The file has no uses of its own.

import { readFileSync } from "node:fs";
import { join } from "node:path";

export const url = process.env.POLYPHI_URL;
export const model = process.env.POLYPHI_MODEL;
const folder = process.env.POLYPHI_MEDIA;
const entries = JSON.parse(readFileSync(join(folder, "media.json"), "utf8"));

/** A file of `media.json`: its bytes, and a question about it. */
export const medium = (name) => ({ ...entries[name], bytes: readFileSync(join(folder, name)) });

export const dataUrl = (bytes, type) => `data:${type};base64,${bytes.toString("base64")}`;

/** The JSON answer to a request that is sent without any client. */
export async function post(route, body) {
  const request = { method: "POST", headers: { "Content-Type": "application/json" } };
  const response = await fetch(url + route, { ...request, body: JSON.stringify(body) });
  if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);
  return response.json();
}

/** The message and the usage of a chat completion that is requested without any client. */
export async function chat(body) {
  const answer = await post("/v1/chat/completions", { model, ...body });
  return { ...answer.choices[0].message, usage: answer.usage };
}

/** Usage without the number of cached tokens, which depends on earlier requests. */
export function counts(usage) {
  const { cached_tokens, ...details } = usage.prompt_tokens_details;
  return { ...usage, prompt_tokens_details: details };
}
