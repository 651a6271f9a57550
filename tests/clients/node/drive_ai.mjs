// The AI SDK with its three providers: responses (`@ai-sdk/openai`), chats (`-compatible`), messages (`@ai-sdk/anthropic`).
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import * as ai from "ai";
import { z } from "zod";
import { BAD_KEY, KEY, LIMITED_KEY, TOO_LONG, TOOL, URL, failing, ok, refused, run, test } from "./outcomes.mjs";

const ways = ["responses", "chat", "compatible", "messages"];
const { embedMany, generateText, streamText, tool, stepCountIs, Output } = ai;
globalThis.AI_SDK_LOG_WARNINGS = false;

function model(way, name, apiKey = KEY) {
  const baseURL = URL + "/v1";
  if (way === "messages") return createAnthropic({ baseURL, apiKey })(name);
  if (way === "responses") return createOpenAI({ baseURL, apiKey }).responses(name);
  if (way === "chat") return createOpenAI({ baseURL, apiKey }).chat(name);
  const options = { name: "gateway", baseURL, apiKey, includeUsage: true, supportsStructuredOutputs: true };
  return createOpenAICompatible(options)(name);
}

const ask = (way, name, more = {}, key = KEY) =>
  generateText({ model: model(way, name, key), prompt: "Say hello.", maxRetries: 0, ...more });
const statusOf = (error) => error.statusCode ?? error.lastError?.statusCode;

for (const name of ["native", "translated", "tgi"])
  test("plain", ways.map((way) => `${way} ${name}`), async (which) => {
    const answer = await ask(...which.split(" "), { maxOutputTokens: 16 });
    ok(answer.text && answer.usage.outputTokens > 0, JSON.stringify(answer.usage));
  });

for (const name of ["native", "tgi"])
  test("stream", ways.map((way) => `${way} ${name}`), async (which) => {
    let failed = null;
    const [way, name] = which.split(" ");
    const onError = ({ error }) => (failed = error);
    const stream = streamText({ model: model(way, name), prompt: "Say hello.", maxOutputTokens: 16, maxRetries: 0, onError });
    let text = "";
    for await (const piece of stream.textStream) text += piece;
    if (failed) throw failed;
    ok(text && (await stream.usage).outputTokens > 0, JSON.stringify(await stream.usage));
  });

for (const streamed of ["", " stream"])
  test("tools", ways.map((way) => way + streamed), async (which) => {
    const asked = [];
    const execute = async ({ city }) => (asked.push(city), "Sunny");
    const get_weather = tool({ description: "Tells it", inputSchema: z.object({ city: z.string() }), execute });
    const options = { prompt: TOOL, tools: { get_weather }, stopWhen: stepCountIs(3), maxRetries: 0, maxOutputTokens: 100 };
    options.model = model(which.split(" ")[0], "engine");
    const text = streamed ? await streamText(options).text : (await generateText(options)).text;
    ok(asked.join() === "Paris" && text.includes("Sunny"), `${asked} ${text}`);
  });

test("structured", ways, async (way) => {
  const schema = z.object({ city: z.enum(["Paris", "Rome"]) });
  const more = { prompt: "A city as JSON.", output: Output.object({ schema }), maxOutputTokens: 60, temperature: 0 };
  const name = way === "messages" ? "engine" : "translated"; // by way of a tool, which the small model cannot
  ok(["Paris", "Rome"].includes((await ask(way, name, more)).output.city));
});

test("embeddings", ["openai", "compatible"], async (which) => {
  const made = which === "openai"
    ? createOpenAI({ baseURL: URL + "/v1", apiKey: KEY }).embedding("native")
    : createOpenAICompatible({ name: "gateway", baseURL: URL + "/v1", apiKey: KEY }).embeddingModel("native");
  ok((await embedMany({ model: made, values: ["a", "b"], maxRetries: 0 })).embeddings[1].length > 100);
});

test("401", ways, (way) => refused(401, () => ask(way, "native", {}, BAD_KEY), statusOf));
test("404", ways, (way) => refused(404, () => ask(way, "no-such-model"), statusOf));
test("400", ways, (way) => refused(400, () => ask(way, "native", { prompt: TOO_LONG }), statusOf));

test("429", [], async () => {
  await ask("compatible", "engine", {}, LIMITED_KEY);
  const error = await refused(429, () => ask("compatible", "engine", {}, LIMITED_KEY), statusOf);
  ok(Number(error.responseHeaders["retry-after"]) > 0);
});

for (const status of ["503", "429"])
  test("retry", ways.map((way) => `${way} ${status}`), async (which) => {
    const [way, status] = which.split(" ");
    ok((await ask(way, "engine", { prompt: failing(status), maxRetries: 3 })).text);
  });

await run("ai", "@ai-sdk/openai", "@ai-sdk/openai-compatible", "@ai-sdk/anthropic");
