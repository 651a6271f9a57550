// The cases of one client: each is tried, and what became of it printed as a line of JSON.
import { readFileSync } from "node:fs";
import { randomUUID } from "node:crypto";

export const { GATEWAY_URL: URL, GATEWAY_KEY: KEY, GATEWAY_LIMITED_KEY: LIMITED_KEY } = process.env;
export const BAD_KEY = KEY.slice(0, -1) + (KEY.endsWith("x") ? "y" : "x");
export const TOO_LONG = "word ".repeat(20000);
export const TOOL = "PLEASE USE A TOOL and tell me about the weather in Paris.";

const cases = [];

/** Register a function as a case, tried once for each variant, which it gets as its argument. */
export function test(name, variants, run) {
  for (const variant of variants.length ? variants : [""]) cases.push({ name, variant, run });
}

export function ok(value, note = "") {
  if (!value) throw new Error(`not so: ${note || value}`);
}

/** A prompt that the engine answers with this status, the first time. */
export const failing = (status) => `FAIL ONCE WITH ${status}: ${randomUUID()}`;

/** The error that a call ends in, which must have this status. */
export async function refused(status, call, statusOf = (error) => error.status) {
  let got;
  try {
    got = await call();
  } catch (error) {
    if (statusOf(error) !== status) throw new Error(`${statusOf(error)} and not ${status}: ${error}`, { cause: error });
    return error;
  }
  throw new Error(`no error, but ${JSON.stringify(got)?.slice(0, 200)}`);
}

/** Try all cases, in order; `packages` are told with their versions. */
export async function run(...packages) {
  const folder = new globalThis.URL("node_modules/", import.meta.url);
  const versionOf = (name) => JSON.parse(readFileSync(new globalThis.URL(`${name}/package.json`, folder))).version;
  const say = (value) => process.stdout.write(JSON.stringify(value) + "\n");
  say({ version: packages.map((name) => `${name} ${versionOf(name)}`).join(", ") });
  const only = process.argv.slice(2);
  for (const { name, variant, run } of cases) {
    if (only.length && !only.includes(name)) continue;
    try {
      await run(variant);
      say({ case: name, variant, ok: true, note: "" });
    } catch (error) {
      say({ case: name, variant, ok: false, note: `${error?.stack ?? error}`.slice(0, 1500) });
    }
  }
  process.exit(0);
}
