// `openai` for JavaScript: chats, responses, embeddings.
import OpenAI from "openai";
import { BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, failing, ok, refused, run, test } from "./outcomes.mjs";

const client = new OpenAI({ baseURL: URL + "/v1", apiKey: KEY, maxRetries: 0, timeout: 60000 });
const messages = [{ role: "user", content: "Say hello." }];
const city = { type: "object", properties: { city: { type: "string" } }, required: ["city"], additionalProperties: false };
const weather = { name: "get_weather", description: "Tells the weather", parameters: city };

test("plain", ["native", "translated", "tgi"], async (model) => {
  const answer = await client.chat.completions.create({ model, messages, max_tokens: 8 });
  ok(answer.choices[0].message.content && answer.usage.completion_tokens > 0);
});

test("plain", ["responses native", "responses tgi"], async (which) => {
  const asked = { model: which.split(" ")[1], input: "Say hello.", max_output_tokens: 16 };
  ok((await client.responses.create(asked)).output_text);
});

test("stream", ["native", "translated", "tgi"], async (model) => {
  const options = { stream: true, stream_options: { include_usage: true } };
  let text = "", usage = null;
  for await (const event of await client.chat.completions.create({ model, messages, max_tokens: 8, ...options })) {
    text += event.choices[0]?.delta.content ?? "";
    usage = event.usage ?? usage;
  }
  ok(text && usage.completion_tokens > 0);
});

test("stream", ["responses native", "responses tgi"], async (which) => {
  const asked = { model: which.split(" ")[1], input: "Say hello.", max_output_tokens: 16 };
  const kinds = [];
  const stream = client.responses.stream(asked);
  for await (const event of stream) kinds.push(event.type);
  ok(kinds[0] === "response.created" && /completed|incomplete/.test(kinds.at(-1)), kinds);
  ok((await stream.finalResponse()).usage.output_tokens > 0);
});

test("tools", ["engine", "tgi"], async (model) => {
  const tools = [{ type: "function", function: weather }];
  const asked = { model, messages: [{ role: "user", content: TOOL }], tools, tool_choice: "required", temperature: 0 };
  const stream = client.chat.completions.stream({ ...asked, max_tokens: 200 });
  const { tool_calls, role } = (await stream.finalChatCompletion()).choices[0].message;
  ok(role === "assistant" && "city" in JSON.parse(tool_calls[0].function.arguments), role);
  ok(tool_calls[0].id.split("call").length === 2, tool_calls[0].id);
});

test("tools", ["runner"], async () => {
  const asked = [];
  const get = { ...weather, function: (given) => (asked.push(given.city), "Sunny"), parse: JSON.parse };
  const tools = [{ type: "function", function: get }];
  const runner = client.chat.completions.runTools({ model: "engine", messages: [{ role: "user", content: TOOL }], tools });
  ok((await runner.finalContent()).includes("Sunny") && asked[0] === "Paris");
});

test("structured", ["native", "tgi"], async (model) => {
  const schema = { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] };
  const response_format = { type: "json_schema", json_schema: { name: "city", schema } };
  const answer = await client.chat.completions.create({ model, messages, response_format, max_tokens: 60 });
  ok(["Paris", "Rome"].includes(JSON.parse(answer.choices[0].message.content).city));
});

test("embeddings", [], async () => {
  ok((await client.embeddings.create({ model: "native", input: ["a", "b"] })).data[1].embedding.length > 100);
});

test("models", [], async () => {
  const found = [];
  for await (const model of client.models.list()) found.push(model.id);
  ok(found.join() === "native,translated,tgi,engine", found);
});

test("401", [], () => refused(401, () => client.withOptions({ apiKey: BAD_KEY }).models.list()));

test("404", [], async () => {
  const error = await refused(404, () => client.chat.completions.create({ model: "no-such-model", messages }));
  ok(error instanceof OpenAI.NotFoundError && error.code === "model_not_found" && error.requestID);
});

test("400", [], async () => {
  const asked = { model: "native", messages: [{ role: "user", content: TOO_LONG }] };
  ok((await refused(400, () => client.chat.completions.create(asked))) instanceof OpenAI.BadRequestError);
});

test("429", [], async () => {
  const hasty = client.withOptions({ apiKey: LIMITED_KEY });
  await hasty.chat.completions.create({ model: "engine", messages });
  const error = await refused(429, () => hasty.chat.completions.create({ model: "engine", messages }));
  ok(error instanceof OpenAI.RateLimitError && Number(error.headers.get("retry-after")) > 0);
});

test("retry", ["503", "429"], async (status) => {
  const asked = { model: "engine", messages: [{ role: "user", content: failing(status) }] };
  ok((await client.withOptions({ maxRetries: 3 }).chat.completions.create(asked)).choices[0].message.content);
});

await run("openai");
