// The requests of Continue, an assistant in VS Code and JetBrains: its adapters for OpenAI's and Anthropic's API.

import assert from "node:assert/strict";
import { test } from "node:test";
import { constructLlmApi } from "@continuedev/openai-adapters";
import { chat, dataUrl, medium, model, post, url } from "./common.mjs";

const settings = { apiBase: `${url}/v1/`, apiKey: "none" };
const openai = constructLlmApi({ provider: "openai", ...settings });
const anthropic = constructLlmApi({ provider: "anthropic", ...settings });
const { signal } = new AbortController();
const messages = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "What is 3 + 4?" },
];
const parameters = {
  type: "object",
  properties: { filepath: { type: "string", description: "Path of a file" } },
  required: ["filepath"],
};
const readFile = { name: "read_file", description: "Read a file", parameters };
const tools = [{ type: "function", function: readFile }];
const ask = { messages: [{ role: "user", content: "Read a.txt" }], tools, max_tokens: 300 };

/** The text, the tool calls and the usage of streamed chunks. */
async function readStream(chunks) {
  const whole = { content: "", calls: [], usage: null };
  for await (const { choices, usage } of chunks) {
    whole.usage = usage ?? whole.usage;
    const { content, tool_calls } = choices[0]?.delta ?? {};
    whole.content += content ?? "";
    for (const { id, function: part } of tool_calls ?? []) {
      if (id && id !== whole.calls.at(-1)?.id)
        whole.calls.push({ id, name: part.name, arguments: "" });
      whole.calls.at(-1).arguments += part.arguments ?? "";
    }
  }
  return whole;
}

for (const [name, api] of Object.entries({ openai, anthropic })) {
  test(`chat by ${name}`, async () => {
    const body = { model, messages, max_tokens: 100 };
    const expected = await chat({ messages });
    const answer = await api.chatCompletionNonStream({ ...body }, signal);
    assert.equal(answer.choices[0].message.content, expected.content);
    const stream = api.chatCompletionStream({ ...body, stream: true }, signal);
    const { content, usage } = await readStream(stream);
    assert.equal(content, expected.content);
    assert.equal(usage.prompt_tokens, expected.usage.prompt_tokens);
    assert.equal(usage.completion_tokens, expected.usage.completion_tokens);
  });

  test(`tool call and its result by ${name}`, async () => {
    const tool_choice = { type: "function", function: { name: "read_file" } };
    const body = { model, ...ask, tool_choice, stream: true };
    const [call] = (await readStream(api.chatCompletionStream(body, signal))).calls;
    assert.equal(call.name, "read_file");
    assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["filepath"]);
    const { id, ...part } = call;
    const turns = [
      ...ask.messages,
      { role: "assistant", content: " ", tool_calls: [{ id, type: "function", function: part }] },
      { role: "tool", content: "seven", tool_call_id: id },
    ];
    const next = { model, ...ask, messages: turns, max_tokens: 20, stream: true };
    assert.ok((await readStream(api.chatCompletionStream(next, signal))).usage.prompt_tokens > 0);
  });

  test(`image by ${name}`, async () => {
    const { bytes, question } = medium("picture.png");
    const image = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
    const turns = [{ role: "user", content: [image, { type: "text", text: question }] }];
    const expected = await chat({ messages: turns });
    const body = { model, messages: turns, max_tokens: 100, stream: true };
    assert.equal((await readStream(api.chatCompletionStream(body, signal))).content, expected.content);
  });
}

test("autocomplete", async () => {
  const prompt = "<fim_prefix>def add(a, b):\n    return <fim_suffix>\n<fim_middle>";
  const body = { model, prompt, max_tokens: 20, temperature: 0.01, stop: ["\n", "<fim_prefix>"] };
  const expected = await post("/v1/completions", body);
  let text = "";
  for await (const { choices } of openai.completionStream({ ...body, stream: true }, signal))
    text += choices[0].text;
  assert.equal(text, expected.choices[0].text);
});

test("embeddings", async () => {
  const { data } = await openai.embed({ model, input: ["a cat", "a dog"] });
  assert.equal(data.length, 2);
  assert.equal(data[0].embedding.length, data[1].embedding.length);
});

test("models", async () => {
  assert.ok((await openai.list()).some(({ id }) => id === model));
});
