// Makes tests/fixtures/templates.json: what Handlebars.js and date-fns themselves answer to the cases of cases.mjs,
// set up by the rules of the template language (CONTRACT.md 1.5). The Python rendering is tested against it.
//
//     cd ops/template-fixtures && npm ci && node make.mjs
//
// `node make.mjs --check` writes nothing and fails if the file is not what it would write.
process.env.TZ = "UTC";

import { readFileSync, writeFileSync } from "node:fs";
import { format, parseISO } from "date-fns";
import Handlebars from "handlebars";
import { cases, now } from "./cases.mjs";

const FILE = new URL("../../tests/fixtures/templates.json", import.meta.url);
const DEFAULT_PATTERN = "MMMM dd, yyyy";

// date-fns warns of tokens that are mostly mistakes (YYYY, DD).
console.warn = () => {};

function date(value, pattern) {
  try {
    if (value == null && pattern == null) return format(now, DEFAULT_PATTERN);
    if (typeof value === "string" && typeof pattern !== "string") return format(now, value);
    if (value == null) return "";
    return format(typeof value === "string" ? parseISO(value) : new Date(value), pattern);
  } catch {
    return "";
  }
}

function message(value, withToolCalls) {
  if (!value) return "";
  const line = `[${value.role}] ${value.content || ""}`;
  if (!withToolCalls || !value.tool_calls?.length) return line;
  const calls = value.tool_calls.map((call) => `  - ${call.function.name}(${call.function.arguments})`);
  return [line, "Tool Calls:", ...calls].join("\n");
}

const messages = (values, withToolCalls) =>
  Array.isArray(values) ? values.map((value) => message(value, withToolCalls)).join("\n\n") : "";

// Every helper gets its arguments without the options that Handlebars.js adds.
const helpers = {
  eq: (a, b) => a == b,
  ne: (a, b) => a != b,
  lt: (a, b) => a < b,
  gt: (a, b) => a > b,
  lte: (a, b) => a <= b,
  gte: (a, b) => a >= b,
  and: (...values) => values.every(Boolean),
  or: (...values) => values.some(Boolean),
  $date: date,
  toJSON: (value) => JSON.stringify(value, null, 2),
  last: (value) => (Array.isArray(value) && value.length ? value[value.length - 1] : null),
  formatMessage: (value) => message(value, false),
  formatMessages: (value) => messages(value, false),
  formatMessageWithToolCalls: (value) => message(value, true),
  formatMessagesWithToolCalls: (value) => messages(value, true),
};

for (const [name, helper] of Object.entries(helpers)) {
  Handlebars.registerHelper(name, function (...args) {
    return helper(...args.slice(0, -1));
  });
}

// An object prints as JSON that is indented by two spaces; a hidden conversion leaves its members alone.
function printable(value) {
  if (Array.isArray(value)) return value.map(printable);
  if (value === null || typeof value !== "object") return value;
  const copy = Object.fromEntries(Object.entries(value).map(([key, member]) => [key, printable(member)]));
  const hint = { value: () => JSON.stringify(copy, null, 2), enumerable: false };
  return Object.defineProperty(copy, Symbol.toPrimitive, hint);
}

// A string that is the JSON of an array or an object is that array or object; any other stays a string.
function variable(value) {
  if (typeof value !== "string") return printable(value);
  try {
    const parsed = JSON.parse(value);
    return parsed !== null && typeof parsed === "object" ? printable(parsed) : value;
  } catch {
    return value;
  }
}

const withoutNewlines = (template) =>
  template
    .replace(/(?:\r?\n)?(\{\{else\}\})(?:\r?\n)?/g, "$1")
    .replace(/\r?\n(\{\{\/(?:if|unless|with)\}\})/g, "$1");

function answer({ template, variables, strict }) {
  const context = Object.fromEntries(Object.entries(variables).map(([name, value]) => [name, variable(value)]));
  try {
    const compiled = Handlebars.compile(withoutNewlines(template), { noEscape: true, strict });
    return { expected: compiled(context).replace(/\n$/, "") };
  } catch (error) {
    const missing = /^"(.*?)" not defined in /.exec(error.message);
    if (strict) return missing ? { missing: missing[1] } : { fails: true };
    return { expected: template, fails: true };
  }
}

const made = {
  made_by: "ops/template-fixtures/make.mjs",
  versions: JSON.parse(readFileSync(new URL("package.json", import.meta.url))).dependencies,
  now: now.toISOString(),
  cases: cases.map((entry) => {
    const full = { variables: {}, strict: false, ...entry };
    const { differs, ...asked } = full;
    return { ...asked, ...answer(full), ...(differs && { differs }) };
  }),
};

const names = new Set(made.cases.map((entry) => entry.name));
if (names.size !== made.cases.length) throw new Error("two cases have the same name");

const text = JSON.stringify(made, null, 1) + "\n";
if (process.argv.includes("--check")) {
  if (readFileSync(FILE, "utf8") !== text) {
    console.error("tests/fixtures/templates.json is stale; run node make.mjs");
    process.exit(1);
  }
} else {
  writeFileSync(FILE, text);
  console.log(`${made.cases.length} cases`);
}
