// What test_node.py has the official Node client do. One line of JSON for each step goes to stdout; where Python looks
// at the server in between, the step waits for a line from it.

import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import OpenAI, { toFile } from "openai";

const { url, image, audio, recording } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const lines = createInterface({ input: process.stdin })[Symbol.asyncIterator]();
const tell = (step, found) => console.log(JSON.stringify({ step, ...found }));
const looked = () => lines.next();

const ask = (content, more = {}) =>
  client.chat.completions.create({
    model: "tiny",
    messages: [{ role: "user", content }],
    max_tokens: 12,
    ...more,
  });
const picture = { type: "image_url", image_url: { url: `data:image/png;base64,${image}` } };
const clip = { type: "input_audio", input_audio: { data: audio, format: "wav" } };
const contents = {
  text: "the quick fox",
  image: [{ type: "text", text: "what is this?" }, picture],
  audio: [clip, { type: "text", text: "say it" }],
};

for (const [kind, content] of Object.entries(contents)) {
  const whole = await ask(content);
  let text = "";
  let usage = null;
  let pieces = 0;
  const stream = await ask(content, { stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    pieces += 1;
    usage = chunk.usage ?? usage;
  }
  tell(kind, { text: whole.choices[0].message.content, adapter: whole.adapter, usage: whole.usage,
               streamed: { text, pieces, usage } });
}

const parameters = {
  type: "object",
  properties: { city: { enum: ["Rome"] } },
  required: ["city"],
  additionalProperties: false,
};
const runner = client.chat.completions.runTools({
  model: "tiny",
  messages: [{ role: "user", content: "How warm is it?" }],
  max_tokens: 600,
  tool_choice: { type: "function", function: { name: "weather" } },
  tools: [{
    type: "function",
    function: { name: "weather", parameters, parse: JSON.parse, function: ({ city }) => `20 degrees in ${city}` },
  }],
});
await runner.done();
tell("tools", { messages: runner.messages });

const held = await client.chat.completions.parse({
  model: "tiny",
  messages: [{ role: "user", content: "Where?" }],
  max_tokens: 400,
  response_format: { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } },
});
tell("json_schema", { parsed: held.choices[0].message.parsed });

const file = () => toFile(Buffer.from(recording, "base64"), "clip");
const heard = { file: await file(), model: "tiny" };
tell("transcription", { answer: await client.audio.transcriptions.create(heard) });
const events = [];
for await (const event of await client.audio.transcriptions.create({ ...heard, file: await file(), stream: true })) {
  events.push(event);
}
tell("transcription stream", { events });
tell("translation", { answer: await client.audio.translations.create({ file: await file(), model: "tiny" }) });

for (const [step, wrong] of Object.entries({
  "bad part": { messages: [{ role: "user", content: [{ type: "image_url", image_url: { url: "data:,x" } }] }] },
  "bad model": { model: "mini" },
})) {
  for (const stream of [false, true]) {
    try {
      await ask("hi", { ...wrong, stream });
      tell(step, { kind: "none" });
    } catch (error) {
      const { status, code, param, type } = error;
      tell(step, { kind: error.constructor.name, status, code, param, type });
    }
  }
}

const stream = await ask("the quick fox", { max_tokens: 1900, stream: true });
for await (const _ of stream) {
  tell("streams", {});
  await looked();
  break; // leaving the loop aborts the request
}
tell("left a stream", { aborted: stream.controller.signal.aborted });
await looked();

const controller = new AbortController();
const messages = [{ role: "user", content: "the quick fox" }];
const waiting = client.chat.completions
  .create({ model: "tiny", messages, max_tokens: 1900 }, { signal: controller.signal })
  .then(() => "none", (error) => error.constructor.name);
tell("waits", {});
await looked();
controller.abort();
tell("left an answer", { kind: await waiting });
await looked();
process.exit(0);
