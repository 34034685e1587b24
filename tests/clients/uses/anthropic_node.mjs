// Anthropic's client for Node.

import assert from "node:assert/strict";
import { test } from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import { betaZodTool } from "@anthropic-ai/sdk/helpers/beta/zod";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { chat, dataUrl, medium, model, url } from "./common.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "What is 3 + 4?" }];
const options = { model, max_tokens: 100 };
const seville = [{ role: "user", content: "What is the weather in Seville on Tuesday?" }];
const properties = { city: { enum: ["Seville", "Oslo"] }, day: { enum: ["Monday", "Tuesday"] } };
const weather = {
  name: "get_weather",
  description: "Weather in a city",
  input_schema: {
    type: "object",
    properties,
    required: ["city", "day"],
    additionalProperties: false,
  },
};
const Color = z.object({ color: z.enum(["red", "green"]), shape: z.enum(["circle", "square"]) });

/** The tokens of a message's prompt; Anthropic counts those of a cached prefix separately. */
const promptTokens = ({ usage }) => usage.input_tokens + (usage.cache_read_input_tokens ?? 0);

test("message and count of tokens", async () => {
  const message = await client.messages.create({ ...options, messages });
  const expected = await chat({ messages });
  assert.equal(message.content[0].text, expected.content);
  assert.equal(message.stop_reason, "end_turn");
  assert.equal(promptTokens(message), expected.usage.prompt_tokens);
  assert.equal(message.usage.output_tokens, expected.usage.completion_tokens);
  const count = await client.messages.countTokens({ model, messages });
  assert.equal(count.input_tokens, promptTokens(message));
});

test("stream", async () => {
  const system = [{ type: "text", text: "Be brief.", cache_control: { type: "ephemeral" } }];
  const whole = await client.messages.create({ ...options, system, messages });
  const stream = client.messages.stream({ ...options, system, messages });
  let text = "";
  stream.on("text", (delta) => (text += delta));
  const final = await stream.finalMessage();
  assert.equal(text, whole.content[0].text);
  assert.equal(final.content[0].text, text);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
  const types = [];
  for await (const event of await client.messages.create({ ...options, messages, stream: true }))
    types.push(event.type);
  assert.equal(types[0], "message_start");
  assert.equal(types.at(-1), "message_stop");
});

test("image", async () => {
  const { bytes, question } = medium("picture.png");
  const text = { type: "text", text: question };
  const source = { type: "base64", media_type: "image/png", data: bytes.toString("base64") };
  const content = [{ type: "image", source }, text];
  const message = await client.messages.create({
    ...options,
    messages: [{ role: "user", content }],
  });
  const image = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
  const expected = await chat({ messages: [{ role: "user", content: [image, text] }] });
  assert.equal(message.content[0].text, expected.content);
});

test("tool call and its result", async () => {
  const tool_choice = { type: "tool", name: "get_weather", disable_parallel_tool_use: true };
  const request = { ...options, tools: [weather], tool_choice, messages: seville };
  const message = await client.messages.create(request);
  const [block] = message.content;
  assert.equal(message.stop_reason, "tool_use");
  assert.ok(properties.city.enum.includes(block.input.city));
  const streamed = await client.messages.stream(request).finalMessage();
  assert.deepEqual(streamed.content[0].input, block.input);
  const result = { type: "tool_result", tool_use_id: block.id, content: "20 C" };
  const turns = [
    ...seville,
    { role: "assistant", content: message.content },
    { role: "user", content: [result] },
  ];
  const answer = await client.messages.create({ ...options, tools: [weather], messages: turns });
  assert.ok(promptTokens(answer) > promptTokens(message));
});

test("tool runner", async () => {
  const calls = [];
  const inputSchema = z.object({ city: z.enum(["Seville", "Oslo"]) });
  const description = weather.description;
  const run = ({ city }) => (calls.push(city), "20 C");
  const tool = betaZodTool({ name: "get_weather", description, inputSchema, run });
  const tool_choice = { type: "any", disable_parallel_tool_use: true };
  const request = { ...options, tools: [tool], tool_choice, messages: seville, max_iterations: 2 };
  const turns = [];
  for await (const message of client.beta.messages.toolRunner(request)) turns.push(message);
  assert.equal(turns.length, 2);
  assert.equal(turns[0].content[0].input.city, calls[0]);
  assert.ok(promptTokens(turns[1]) > promptTokens(turns[0]));
});

test("structured output by a zod schema", async () => {
  const output_config = { format: zodOutputFormat(Color) };
  const message = await client.messages.parse({ ...options, messages, output_config });
  assert.deepEqual(message.parsed_output, Color.parse(JSON.parse(message.content[0].text)));
});

test("models", async () => {
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id);
  assert.ok(names.includes(model));
  assert.equal((await client.models.retrieve(model)).type, "model");
});

test("errors", async () => {
  const unknown = { ...options, model: "claude", messages };
  await assert.rejects(client.messages.create(unknown), (error) => {
    assert.ok(error instanceof Anthropic.NotFoundError);
    assert.equal(error.error.error.type, "not_found_error");
    return true;
  });
  const long = { ...options, max_tokens: 20_000, messages };
  await assert.rejects(client.messages.create(long), Anthropic.BadRequestError);
});
