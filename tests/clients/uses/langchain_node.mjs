// LangChain's ChatOpenAI for Node, by chat completions and by responses, and its embeddings.

import assert from "node:assert/strict";
import { test } from "node:test";
import { HumanMessage, SystemMessage, ToolMessage } from "@langchain/core/messages";
import { tool } from "@langchain/core/tools";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { chat, dataUrl, medium, model, url } from "./common.mjs";

const settings = { model, apiKey: "none", maxRetries: 0, configuration: { baseURL: `${url}/v1` } };
const sum = "What is 3 + 4?";
const seville = "What is the weather in Seville on Tuesday?";
const Color = z.object({ color: z.enum(["red", "green"]), shape: z.enum(["circle", "square"]) });
const schema = z.object({ city: z.enum(["Seville", "Oslo"]), day: z.enum(["Monday", "Tuesday"]) });
const getWeather = tool(({ city }) => `20 C in ${city}`, {
  name: "get_weather",
  description: "Weather in a city",
  schema,
});

for (const useResponsesApi of [false, true]) {
  const phi = new ChatOpenAI({ ...settings, useResponsesApi });
  const api = useResponsesApi ? "responses" : "chat";

  test(`invoke and stream by ${api}`, async () => {
    const expected = await chat({
      messages: [
        { role: "system", content: "Be brief." },
        { role: "user", content: sum },
      ],
    });
    const turns = [new SystemMessage("Be brief."), new HumanMessage(sum)];
    const answer = await phi.invoke(turns);
    assert.equal(answer.text, expected.content);
    assert.equal(answer.usage_metadata.input_tokens, expected.usage.prompt_tokens);
    assert.equal(answer.usage_metadata.output_tokens, expected.usage.completion_tokens);
    let whole;
    for await (const chunk of await phi.stream(turns)) whole = whole?.concat(chunk) ?? chunk;
    assert.equal(whole.text, answer.text);
    assert.equal(whole.usage_metadata.total_tokens, answer.usage_metadata.total_tokens);
  });

  test(`tool call and its result by ${api}`, async () => {
    const forced = phi.bindTools([getWeather], { tool_choice: "get_weather" });
    const answer = await forced.invoke(seville);
    const [call] = answer.tool_calls;
    assert.equal(call.name, "get_weather");
    schema.parse(call.args);
    let whole;
    for await (const chunk of await forced.stream(seville)) whole = whole?.concat(chunk) ?? chunk;
    assert.deepEqual(whole.tool_calls[0].args, call.args);
    const result = await getWeather.invoke(call);
    assert.ok(result instanceof ToolMessage);
    const turns = [new HumanMessage(seville), answer, result];
    const final = await phi.bindTools([getWeather]).invoke(turns);
    assert.ok(final.usage_metadata.input_tokens > answer.usage_metadata.input_tokens);
  });

  test(`structured output by ${api}`, async () => {
    Color.parse(await phi.withStructuredOutput(Color).invoke(sum));
  });

  test(`image by ${api}`, async () => {
    const { bytes, question } = medium("picture.png");
    const text = { type: "text", text: question };
    const picture = { type: "image_url", image_url: { url: dataUrl(bytes, "image/png") } };
    const expected = await chat({ messages: [{ role: "user", content: [text, picture] }] });
    const answer = await phi.invoke([new HumanMessage({ content: [text, picture] })]);
    assert.equal(answer.text, expected.content);
  });
}

for (const method of ["jsonSchema", "functionCalling"]) {
  test(`structured output by the method ${method}`, async () => {
    const phi = new ChatOpenAI(settings).withStructuredOutput(Color, { method });
    Color.parse(await phi.invoke(sum));
  });
}

test("audio as a content block", async () => {
  const { bytes, question } = medium("recording.wav");
  const text = { type: "text", text: question };
  const data = bytes.toString("base64");
  const audio = { type: "input_audio", input_audio: { data, format: "wav" } };
  const expected = await chat({ messages: [{ role: "user", content: [text, audio] }] });
  const block = { type: "audio", source_type: "base64", mime_type: "audio/wav", data };
  const answer = await new ChatOpenAI(settings).invoke([new HumanMessage({ content: [text, block] })]);
  assert.equal(answer.text, expected.content);
});

test("batch", async () => {
  const questions = [0, 1, 2].map((n) => `What is ${n} + 4?`);
  const answers = await new ChatOpenAI(settings).batch(questions);
  for (const [i, content] of questions.entries())
    assert.equal(answers[i].text, (await chat({ messages: [{ role: "user", content }] })).content);
});

test("embeddings", async () => {
  const embeddings = new OpenAIEmbeddings(settings);
  const [cat, dog] = await embeddings.embedDocuments(["a cat", "a dog"]);
  assert.equal(cat.length, dog.length);
  assert.notDeepEqual(cat, dog);
  assert.equal((await embeddings.embedQuery("a cat")).length, cat.length);
});

test("errors", async () => {
  const bad = new ChatOpenAI({ ...settings, topP: 7 });
  await assert.rejects(bad.invoke(sum), (error) => error.status === 400 && error.param === "top_p");
});
