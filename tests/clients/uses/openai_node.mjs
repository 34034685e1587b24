// OpenAI's client for Node.

import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI, { toFile } from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { chat, counts, dataUrl, medium, model, post, url } from "./common.mjs";

const client = new OpenAI({ baseURL: `${url}/v1`, maxRetries: 0 });
const messages = [{ role: "user", content: "What is 3 + 4?" }];
const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome", "Paris"] }, day: { enum: ["Monday", "Tuesday"] } },
  required: ["city", "day"],
  additionalProperties: false,
};
const weather = { name: "get_weather", description: "Weather in a city", parameters };
const request = {
  messages: [{ role: "user", content: "What is the weather in Rome on Monday?" }],
  max_tokens: 300,
};
const City = z.object({ city: z.enum(["Rome", "Paris"]), rain: z.boolean() });
const rain = { messages: [{ role: "user", content: "Will it rain in Rome?" }], max_tokens: 300 };

test("answer", async () => {
  const answer = await client.chat.completions.create({ model, messages });
  const expected = await chat({ messages });
  assert.equal(answer.choices[0].message.content, expected.content);
  assert.deepEqual(counts(answer.usage), counts(expected.usage));
});

/** The joined text and the usage of a streamed chat completion. */
async function readStream(body) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const stream = await client.chat.completions.create({ model, ...body, ...options });
  let [content, usage] = ["", null];
  for await (const chunk of stream) {
    content += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  return { content, usage };
}

test("stream with usage", async () => {
  const { content, usage } = await readStream({ messages });
  const expected = await chat({ messages });
  assert.equal(content, expected.content);
  assert.deepEqual(counts(usage), counts(expected.usage));
});

test("stream helper", async () => {
  const body = { model, messages, stream_options: { include_usage: true } };
  const stream = client.chat.completions.stream(body);
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  const expected = await chat({ messages });
  assert.equal(text, expected.content);
  assert.equal(final.choices[0].message.content, expected.content);
  assert.equal(final.usage.total_tokens, expected.usage.total_tokens);
});

for (const [name, part] of Object.entries({
  "picture.png": (bytes) => ({
    type: "image_url",
    image_url: { url: dataUrl(bytes, "image/png") },
  }),
  "recording.wav": (bytes) => ({
    type: "input_audio",
    input_audio: { data: bytes.toString("base64"), format: "wav" },
  }),
})) {
  test(`${name}, whole and streamed`, async () => {
    const { bytes, question } = medium(name);
    const content = [part(bytes), { type: "text", text: question }];
    const body = { messages: [{ role: "user", content }] };
    const answer = await client.chat.completions.create({ model, ...body });
    const expected = await chat(body);
    assert.equal(answer.choices[0].message.content, expected.content);
    const image = name === "picture.png";
    assert.equal(answer.adapter, image ? "vision" : "speech");
    assert.ok(answer.usage.prompt_tokens_details[image ? "image_tokens" : "audio_tokens"] > 0);
    const { content: text, usage } = await readStream(body);
    assert.equal(text, expected.content);
    assert.deepEqual(counts(usage), counts(expected.usage));
  });
}

test("required tool call and its result", async () => {
  const tools = [{ type: "function", function: weather }];
  const first = await client.chat.completions.create({
    model,
    ...request,
    tools,
    tool_choice: "required",
  });
  assert.equal(first.choices[0].finish_reason, "tool_calls");
  const { message } = first.choices[0];
  const [call] = message.tool_calls;
  assert.equal(call.function.name, "get_weather");
  assert.deepEqual(Object.keys(JSON.parse(call.function.arguments)), ["city", "day"]);
  const result = { role: "tool", tool_call_id: call.id, content: "It is sunny." };
  const body = { max_tokens: 100, tools, messages: [...request.messages, message, result] };
  const second = await client.chat.completions.create({ model, ...body });
  const expected = await chat(body);
  assert.equal(second.choices[0].message.content, expected.content);
  assert.equal(second.usage.prompt_tokens, expected.usage.prompt_tokens);
});

test("runTools calls the function", async () => {
  const cities = [];
  const call = (args) => (cities.push(args.city), `sunny in ${args.city}`);
  const runner = client.chat.completions.runTools({
    model,
    ...request,
    tool_choice: { type: "function", function: { name: "get_weather" } },
    tools: [{ type: "function", function: { ...weather, parse: JSON.parse, function: call } }],
  });
  await runner.done();
  assert.equal(cities.length, 1);
  const [, answer, result] = runner.messages;
  assert.equal(result.content, `sunny in ${cities[0]}`);
  assert.equal(result.tool_call_id, answer.tool_calls[0].id);
});

test("structured output by a zod schema", async () => {
  const format = zodResponseFormat(City, "city");
  const answer = await client.chat.completions.parse({ model, ...rain, response_format: format });
  const { parsed, content } = answer.choices[0].message;
  assert.deepEqual(parsed, City.parse(JSON.parse(content)));
});

test("responses, whole and streamed", async () => {
  const input = "What is 3 + 4?";
  const whole = await client.responses.create({ model, input });
  const expected = await post("/v1/responses", { model, input });
  assert.equal(whole.output_text, expected.output[0].content[0].text);
  assert.equal(whole.usage.total_tokens, expected.usage.total_tokens);
  const stream = client.responses.stream({ model, input });
  let text = "";
  for await (const event of stream) {
    if (event.type === "response.output_text.delta") text += event.delta;
  }
  const final = await stream.finalResponse();
  assert.equal(text, whole.output_text);
  assert.equal(final.output_text, whole.output_text);
  assert.equal(final.usage.output_tokens, whole.usage.output_tokens);
});

test("responses continue one another", async () => {
  const first = await client.responses.create({ model, input: "What is 3 + 4?" });
  const next = { model, input: "What is 5 + 2?", previous_response_id: first.id };
  const second = await client.responses.create(next);
  const turns = [
    { role: "user", content: "What is 3 + 4?" },
    { role: "assistant", content: first.output_text },
    { role: "user", content: "What is 5 + 2?" },
  ];
  const expected = await chat({ messages: turns });
  assert.equal(second.output_text, expected.content);
  assert.equal(second.usage.input_tokens, expected.usage.prompt_tokens);
});

test("responses with an image, a tool call and its result", async () => {
  const { bytes } = medium("picture.png");
  const image = { type: "input_image", image_url: dataUrl(bytes, "image/png"), detail: "auto" };
  const input = [{ role: "user", content: [image, { type: "input_text", text: "Photo of Rome" }] }];
  const tools = [{ type: "function", ...weather, strict: true }];
  const required = { tools, tool_choice: "required", max_output_tokens: 300 };
  const first = await client.responses.create({ model, input, ...required });
  const [call] = first.output;
  assert.equal(call.type, "function_call");
  assert.deepEqual(Object.keys(JSON.parse(call.arguments)), ["city", "day"]);
  assert.ok(first.usage.input_tokens_details.image_tokens > 0);
  input.push(call, { type: "function_call_output", call_id: call.call_id, output: "sunny" });
  const body = { model, input, tools, max_output_tokens: 20 };
  const second = await client.responses.create(body);
  const expected = await post("/v1/responses", body);
  const texts = (items) => items.map((item) => item.content ?? item.arguments);
  assert.deepEqual(texts(second.output), texts(expected.output));
  assert.equal(second.usage.input_tokens, expected.usage.input_tokens);
});

test("responses by a zod schema", async () => {
  const body = { model, input: rain.messages, max_output_tokens: 300 };
  const format = zodTextFormat(City, "city");
  const answer = await client.responses.parse({ ...body, text: { format } });
  assert.deepEqual(answer.output_parsed, City.parse(JSON.parse(answer.output_text)));
});

test("transcription, whole and streamed", async () => {
  const file = await toFile(medium("recording.wav").bytes, "recording.wav");
  const whole = await client.audio.transcriptions.create({ model, file });
  const plain = await client.audio.transcriptions.create({ model, file, response_format: "text" });
  assert.equal(plain.trim(), whole.text);
  let text = "";
  let end = null;
  for await (const event of await client.audio.transcriptions.create({
    model,
    file,
    stream: true,
  })) {
    if (event.type === "transcript.text.delta") text += event.delta;
    else end = event;
  }
  assert.equal(end.text, whole.text);
  assert.equal(text, whole.text);
  assert.ok(whole.text.length > 0);
});

test("translation", async () => {
  const file = await toFile(medium("recording.wav").bytes, "recording.wav");
  const whole = await client.audio.translations.create({ model, file });
  const text = await client.audio.translations.create({ model, file, response_format: "text" });
  assert.ok(whole.text.length > 0);
  assert.equal(text.trim(), whole.text);
});

test("errors", async () => {
  const image_url = { url: "data:image/png;base64,AAAA" };
  const content = [{ type: "image_url", image_url }];
  for (const stream of [false, true]) {
    const bad = { model, messages: [{ role: "user", content }], stream };
    await assert.rejects(client.chat.completions.create(bad), (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError || error.status === 415);
      assert.equal(error.param, "messages[0].content[0].image_url.url");
      assert.equal(error.type, "invalid_request_error");
      return true;
    });
    const unknown = { model: "no-such-model", messages, stream };
    await assert.rejects(client.chat.completions.create(unknown), (error) => {
      assert.ok(error instanceof OpenAI.NotFoundError);
      assert.equal(error.code, "model_not_found");
      return true;
    });
  }
});

test("an answer that is left ends, whole and streamed", async () => {
  const aborted = async () => {
    const metrics = await (await fetch(`${url}/metrics`)).text();
    const count = /request_success_total\{finished_reason="abort".* (\S+)/.exec(metrics);
    return Number(count?.[1] ?? 0);
  };
  const until = async (count) => {
    for (let tries = 0; (await aborted()) < count; tries++) {
      assert.ok(tries < 200, "the server goes on");
      await new Promise((done) => setTimeout(done, 50));
    }
  };
  const before = await aborted();
  const body = { model, messages, max_tokens: 4000, ignore_eos: true };
  const stream = await client.chat.completions.create({ ...body, stream: true });
  let pieces = 0;
  for await (const _ of stream) if (++pieces === 2) break;
  await until(before + 1);

  const controller = new AbortController();
  const waiting = client.chat.completions.create(body, { signal: controller.signal });
  setTimeout(() => controller.abort(), 500);
  await assert.rejects(waiting, OpenAI.APIUserAbortError);
  await until(before + 2);
});

const tls = "OpenAIRealtimeWS connects by TLS only, and the server leaves TLS to a proxy";
test("live transcription", { skip: tls }, () => {});

test("models", async () => {
  const names = [];
  for await (const entry of client.models.list()) names.push(entry.id);
  assert.ok(names.includes(model));
});
