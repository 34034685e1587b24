// LlamaIndex for Node: its models by chat completions and by responses, agents, and a vector index.

import assert from "node:assert/strict";
import { test } from "node:test";
import { OpenAI, OpenAIEmbedding, OpenAIResponses } from "@llamaindex/openai";
import { agent } from "@llamaindex/workflow";
import { Document, Settings, tool, VectorStoreIndex } from "llamaindex";
import { z } from "zod";
import { chat, dataUrl, medium, model, url } from "./common.mjs";

const settings = { model, apiKey: "none", baseURL: `${url}/v1`, maxRetries: 0 };
const messages = [
  { role: "system", content: "Be brief." },
  { role: "user", content: "What is 3 + 4?" },
];
const greedy = { ...settings, temperature: 0 };
const Color = z.object({ color: z.enum(["red", "green"]), shape: z.enum(["circle", "square"]) });

for (const [name, Model] of Object.entries({ chat: OpenAI, responses: OpenAIResponses })) {
  test(`chat and stream by ${name}`, async () => {
    const phi = new Model(greedy);
    const { content } = await chat({ messages, temperature: 0 });
    assert.equal((await phi.chat({ messages })).message.content, content);
    let text = "";
    for await (const { delta, raw } of await phi.chat({ messages, stream: true }))
      // Its chunks of other events of a response repeat the last delta.
      if (!raw.type || raw.type === "response.output_text.delta") text += delta;
    assert.equal(text, content);
    assert.ok((await new Model(settings).chat({ messages })).message.content.length > 0);
  });

  test(`image by ${name}`, async () => {
    const { bytes, question } = medium("picture.png");
    const text = { type: "text", text: question };
    const picture = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
    const turns = [{ role: "user", content: [picture, text] }];
    const expected = await chat({ messages: turns, temperature: 0 });
    const answer = await new Model(greedy).chat({ messages: turns });
    assert.equal(answer.message.content, expected.content);
  });
}

const noAudio = "its OpenAI model refuses audio parts itself";
test("audio", { skip: noAudio }, () => {});

test("structured output by a zod schema", async () => {
  const { message } = await new OpenAI(greedy).chat({ messages, responseFormat: Color });
  Color.parse(JSON.parse(message.content));
});

const cities = [];
const weather = tool({
  name: "get_weather",
  description: "Weather in a city",
  parameters: z.object({ city: z.enum(["Seville", "Oslo"]) }),
  execute: ({ city }) => (cities.push(city), `20 C in ${city}`),
});

test("tool call and its result", async () => {
  const turns = [{ role: "user", content: "What is the weather in Seville?" }];
  const additionalChatOptions = { tool_choice: "required" };
  const forced = new OpenAI({ ...greedy, additionalChatOptions });
  const { message } = await forced.chat({ messages: turns, tools: [weather] });
  const [call] = message.options.toolCall;
  const input = typeof call.input === "string" ? JSON.parse(call.input) : call.input;
  const result = { id: call.id, result: weather.call(input), isError: false };
  turns.push(message, { role: "user", content: "", options: { toolResult: result } });
  const final = await new OpenAI(greedy).chat({ messages: turns, tools: [weather] });
  assert.ok(final.raw.usage.prompt_tokens > 0 && cities.length === 1);
});

test("agent", async () => {
  const phi = new OpenAI({ ...greedy, maxTokens: 100 });
  const clerk = agent({ llm: phi, tools: [weather], systemPrompt: "Be brief." });
  const { data } = await clerk.run("What is 3 + 4?");
  assert.ok(data.message !== undefined);
});

test("vector index", async () => {
  Settings.llm = new OpenAI(greedy);
  Settings.embedModel = new OpenAIEmbedding(settings);
  const texts = ["Seville is warm.", "Oslo is cold."];
  const documents = texts.map((text) => new Document({ text }));
  const index = await VectorStoreIndex.fromDocuments(documents);
  const { message, sourceNodes } = await index.asQueryEngine().query({ query: "Is Oslo cold?" });
  assert.equal(sourceNodes.length, 2);
  assert.ok(message.content.length > 0);
});
