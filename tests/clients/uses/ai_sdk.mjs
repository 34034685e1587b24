// The AI SDK (`ai`) with its provider for OpenAI-compatible servers.

import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateObject, generateText, NoObjectGeneratedError, Output } from "ai";
import { stepCountIs, streamObject, streamText, tool } from "ai";
import { z } from "zod";
import { chat, dataUrl, medium, model, post, url } from "./common.mjs";

const settings = { name: "polyphi", baseURL: `${url}/v1`, includeUsage: true };
const phi = createOpenAICompatible(settings)(model);
const withSchemas = createOpenAICompatible({ ...settings, supportsStructuredOutputs: true })(model);
const prompt = "What is 3 + 4?";
const messages = [{ role: "user", content: prompt }];
const City = z.object({ city: z.enum(["Rome", "Paris"]), rain: z.boolean() });
const rain = { prompt: "Will it rain in Rome?", maxOutputTokens: 300, maxRetries: 0 };
const once = { maxRetries: 0 };

test("generateText", async () => {
  const result = await generateText({ model: phi, prompt, ...once });
  const expected = await chat({ messages });
  assert.equal(result.text, expected.content);
  assert.equal(result.finishReason, "stop");
  assert.equal(result.usage.inputTokens, expected.usage.prompt_tokens);
  assert.equal(result.usage.outputTokens, expected.usage.completion_tokens);
});

test("streamText", async () => {
  const result = streamText({ model: phi, prompt, ...once });
  let text = "";
  for await (const delta of result.textStream) text += delta;
  const [usage, expected] = [await result.usage, await chat({ messages })];
  assert.equal(text, expected.content);
  assert.equal(usage.inputTokens, expected.usage.prompt_tokens);
  assert.equal(usage.outputTokens, expected.usage.completion_tokens);
});

test("settings of a call and of the provider", async () => {
  const system = "Be brief.";
  const providerOptions = { polyphi: { top_k: 5 } };
  const sampling = { temperature: 0.7, topP: 0.9, seed: 3, maxOutputTokens: 8 };
  const result = await generateText({ model: phi, system, prompt, providerOptions, ...sampling });
  const expected = await chat({
    messages: [{ role: "system", content: system }, ...messages],
    temperature: 0.7,
    top_p: 0.9,
    top_k: 5,
    seed: 3,
    max_tokens: 8,
  });
  assert.equal(result.text, expected.content);
});

test("image", async () => {
  const { bytes, question } = medium("picture.png");
  const content = [
    { type: "text", text: question },
    { type: "image", image: bytes, mediaType: "image/png" },
  ];
  const result = await generateText({ model: phi, messages: [{ role: "user", content }], ...once });
  const image = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
  const expected = await chat({ messages: [{ role: "user", content: [content[0], image] }] });
  assert.equal(result.text, expected.content);
  assert.equal(result.usage.inputTokens, expected.usage.prompt_tokens);
});

test("audio", async () => {
  const { bytes, question } = medium("recording.wav");
  const text = { type: "text", text: question };
  const file = { type: "file", data: bytes, mediaType: "audio/wav" };
  const turns = [{ role: "user", content: [file, text] }];
  const result = await generateText({ model: phi, messages: turns, ...once });
  const data = bytes.toString("base64");
  const audio = { type: "input_audio", input_audio: { data, format: "wav" } };
  const expected = await chat({ messages: [{ role: "user", content: [audio, text] }] });
  assert.equal(result.text, expected.content);
  assert.equal(result.usage.inputTokens, expected.usage.prompt_tokens);
});

const cities = [];
const weather = tool({
  description: "Weather in a city",
  inputSchema: z.object({ city: z.string(), day: z.string() }),
  execute: ({ city }) => (cities.push(city), `It is sunny in ${city}.`),
});
const forecast = {
  model: phi,
  prompt: "What is the weather in Rome on Monday?",
  tools: { get_weather: weather },
  toolChoice: "required",
  prepareStep: ({ stepNumber }) => (stepNumber ? { toolChoice: "auto" } : {}),
  stopWhen: stepCountIs(2),
  maxOutputTokens: 300,
  ...once,
};

/** Check both steps of a conversation with a tool: the call, and the answer to its result. */
async function checkSteps([first, second]) {
  const [call] = first.toolCalls;
  assert.equal(first.finishReason, "tool-calls");
  assert.equal(call.toolName, "get_weather");
  assert.deepEqual(Object.keys(call.input), ["city", "day"]);
  assert.equal(cities.pop(), call.input.city);
  const [result] = first.toolResults;
  assert.equal(result.output, `It is sunny in ${call.input.city}.`);
  assert.ok(second.usage.inputTokens > first.usage.inputTokens);
  const { body } = second.request; // a text, or of streams an object
  const { messages, tools } = typeof body === "string" ? JSON.parse(body) : body;
  const [, answer, output] = messages;
  assert.equal(output.tool_call_id, answer.tool_calls[0].id);
  assert.equal(output.content, result.output);
  const expected = await chat({ messages, tools, max_tokens: 300 });
  assert.equal(second.text, expected.content ?? "");
}

test("tool call and its result", async () => {
  const result = await generateText(forecast);
  await checkSteps(result.steps);
});

test("tool call and its result, streamed", async () => {
  const result = streamText(forecast);
  await result.consumeStream();
  await checkSteps(await result.steps);
});

test("generateObject", async () => {
  const result = await generateObject({ model: withSchemas, schema: City, ...rain });
  assert.deepEqual(result.object, City.parse(result.object));
});

test("generateObject of a choice", async () => {
  const cities = { output: "enum", enum: ["Rome", "Paris"] };
  const result = await generateObject({ model: withSchemas, ...cities, ...rain });
  assert.ok(cities.enum.includes(result.object));
});

test("generateObject by default asks for any JSON object", async () => {
  const cut = { prompt, maxOutputTokens: 8, ...once };
  const expected = await chat({
    messages,
    response_format: { type: "json_object" },
    max_tokens: 8,
  });
  await assert.rejects(generateObject({ model: phi, schema: City, ...cut }), (error) => {
    assert.ok(NoObjectGeneratedError.isInstance(error), "8 tokens are no city");
    assert.equal(error.text, expected.content);
    assert.equal(error.finishReason, "length");
    return true;
  });
});

test("generateText with an output schema", async () => {
  const output = Output.object({ schema: City });
  const result = await generateText({ model: withSchemas, output, ...rain });
  assert.deepEqual(result.output, City.parse(JSON.parse(result.text)));
});

test("streamObject", async () => {
  const result = streamObject({ model: withSchemas, schema: City, ...rain });
  let last;
  for await (const partial of result.partialObjectStream) last = partial;
  assert.deepEqual(last, City.parse(await result.object));
});

test("completion model", async () => {
  const complete = createOpenAICompatible(settings).completionModel(model);
  const result = await generateText({ model: complete, prompt: "3 + 4 =", maxOutputTokens: 5 });
  const expected = await post("/v1/completions", result.request.body);
  assert.equal(result.text, expected.choices[0].text);
  assert.equal(result.usage.outputTokens, expected.usage.completion_tokens);
});

test("error", async () => {
  const image = Buffer.from("no picture");
  const content = [{ type: "image", image, mediaType: "image/png" }];
  const call = generateText({ model: phi, messages: [{ role: "user", content }], ...once });
  await assert.rejects(call, (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.data.error.param, "messages[0].content[0].image_url.url");
    assert.equal(error.message, error.data.error.message);
    assert.equal(error.isRetryable, false);
    return true;
  });
});
