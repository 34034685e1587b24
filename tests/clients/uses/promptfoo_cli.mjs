// promptfoo, by its command: prompts with assertions against providers of OpenAI's and Anthropic's API.

import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { mkdtemp, readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { promisify } from "node:util";
import { chat, dataUrl, medium, model, url } from "./common.mjs";

const config = { apiBaseUrl: `${url}/v1`, apiKey: "none" };
const provider = (kind, extra) => ({ id: `openai:${kind}:${model}`, config: { ...config, ...extra } });
const parameters = {
  type: "object",
  properties: { city: { enum: ["Seville", "Oslo"] } },
  required: ["city"],
  additionalProperties: false,
};

/** The results of `promptfoo eval` with a configuration. */
async function evaluate(body) {
  const folder = await mkdtemp(join(tmpdir(), "promptfoo-"));
  const [file, out] = [join(folder, "config.json"), join(folder, "out.json")];
  await writeFile(file, JSON.stringify(body));
  const quiet = { PROMPTFOO_DISABLE_TELEMETRY: "1", PROMPTFOO_DISABLE_UPDATE: "1" };
  const env = { ...process.env, ...quiet, PROMPTFOO_CONFIG_DIR: folder };
  const options = ["eval", "-c", file, "-o", out, "--no-cache", "--no-table"];
  await promisify(execFile)("node_modules/.bin/promptfoo", options, { env }).catch((error) => {
    if (error.code !== 100) throw error; // 100: an assertion failed, which the results say
  });
  return JSON.parse(await readFile(out, "utf8")).results.results;
}

test("chat, responses, completions and messages", async () => {
  const messages = { id: `anthropic:messages:${model}`, config: { ...config, apiBaseUrl: url } };
  const providers = [
    provider("chat"),
    provider("responses"),
    provider("completion", { max_tokens: 5 }),
    messages,
  ];
  const tests = [{ vars: { a: 3 }, assert: [{ type: "javascript", value: "output.length > 0" }] }];
  const results = await evaluate({ prompts: ["What is {{a}} + 4?"], providers, tests });
  assert.deepEqual([...new Set(results.map(({ error }) => error))], [undefined]);
  const { content } = await chat({ messages: [{ role: "user", content: "What is 3 + 4?" }] });
  const outputs = Object.fromEntries(results.map((r) => [r.provider.id.split(":")[1], r.response.output]));
  assert.equal(outputs.chat, content);
  assert.equal(outputs.responses, content);
  assert.equal(outputs.messages, content);
});

test("schema and tools", async () => {
  const json_schema = { name: "city", strict: true, schema: parameters };
  const weather = { name: "get_weather", description: "Weather in a city", parameters };
  const providers = [
    provider("chat", { response_format: { type: "json_schema", json_schema } }),
    provider("chat", { tools: [{ type: "function", function: weather }], tool_choice: "required" }),
  ];
  const prompts = ["What is the weather in Seville?"];
  const [object, call] = await evaluate({ prompts, providers, tests: [{ vars: { n: 1 } }] });
  assert.ok(parameters.properties.city.enum.includes(object.response.output.city));
  assert.equal(call.response.output[0].function.name, "get_weather");
});

test("picture in a prompt of messages", async () => {
  const { bytes, question } = medium("picture.png");
  const image = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
  const messages = [{ role: "user", content: [{ type: "text", text: question }, image] }];
  const prompts = [JSON.stringify(messages)];
  const [result] = await evaluate({ prompts, providers: [provider("chat")], tests: [{ vars: { n: 1 } }] });
  assert.equal(result.response.output, (await chat({ messages })).content);
});

test("similarity by embeddings", async () => {
  const assertion = { type: "similar", value: "7", threshold: 0, provider: provider("embedding") };
  const tests = [{ assert: [assertion] }];
  const prompts = ["What is 3 + 4?"];
  const [result] = await evaluate({ prompts, providers: [provider("chat")], tests });
  assert.equal(result.success, true, result.error);
});
