// Drives Langtail's own client against the gateway, and prints what it was told as one line of JSON.
//
//     LANGTAIL_API_KEY=… node drive.mjs BASE_URL WORKSPACE PROJECT ASSISTANT
import { Langtail } from "langtail";

const [baseURL, organization, project, assistant] = process.argv.slice(2);
const raw = [];
const langtail = new Langtail({
  baseURL,
  organization,
  project,
  onResponse: (response) => raw.push(response.id),
});
const told = {};
const text = (completion) => completion.choices[0].message.content;
const user = (content) => ({ role: "user", content });
const refused = async (promise) => promise.then(() => null, (error) => error.message);

// A prompt with variables and messages begins a thread, which goes on.
let threadId;
const onThreadId = (id) => (threadId = id);
const first = await langtail.prompts.invoke(
  { prompt: assistant, environment: "production", variables: { name: "Bo" }, messages: [user("Who am I?")] },
  { onThreadId },
);
told.first = { text: text(first), status: first.httpResponse.status, object: first.object, usage: first.usage };
told.begun = threadId;

const next = await langtail.assistants.invoke(
  { assistant, environment: "production", threadId, messages: [user("And you?")], metadata: { page: "home" } },
  { onThreadId },
);
told.next = { text: text(next), sameThread: threadId === told.begun, id: next.id };

const stream = await langtail.prompts.invoke(
  { prompt: assistant, environment: "production", threadId, stream: true, messages: [user("Once more.")] },
  { onThreadId },
);
told.streamed = "";
for await (const chunk of stream) {
  told.streamed += chunk.choices[0]?.delta?.content ?? "";
  told.finish = chunk.choices[0]?.finish_reason ?? told.finish;
}
told.streamedThread = threadId === told.begun;

threadId = null;
const secret = await langtail.prompts.invoke(
  { prompt: assistant, environment: "production", doNotRecord: true, messages: [user("Secret.")] },
  { onThreadId },
);
told.secret = { text: text(secret), threadId, id: secret.id };

const tools = [{ type: "function", function: { name: "ask", description: "Ask.", parameters: { type: "object" } } }];
const called = await langtail.prompts.invoke({ prompt: assistant, environment: "production", tools, messages: [user("Ask.")] });
told.called = called.choices[0].message.tool_calls;

const pinned = await langtail.prompts.invoke({ prompt: assistant, environment: "preview", version: "1", messages: [user("v1?")] });
told.pinned = text(pinned);
told.unknown = await refused(langtail.prompts.invoke({ prompt: "unknown", environment: "production" }));
told.config = await langtail.prompts.get({ prompt: assistant, environment: "production" });
told.deployments = await langtail.prompts.listDeployments();
told.responses = raw.length;

// Threads; the client checks every answer against its own schemas.
const { threads } = langtail;
const made = await threads.create({ metadata: { user: "Bo" } });
told.made = made;
told.updated = (await threads.update(made.id, { n: 2 })).metadata;
told.retrieved = (await threads.retrieve(made.id)).metadata;
const page = await threads.list({ limit: 1 });
told.page = { ids: page.data.map((each) => each.id), last: page.last_id, more: page.has_more };
told.behind = (await threads.list({ limit: 1, after: page.last_id })).data.map((each) => each.id !== made.id);
const messages = await threads.messages.list(told.begun, { order: "desc", limit: 2 });
told.messages = messages.data.map((each) => [each.content.role, each.content.content]);
const [last] = messages.data;
told.requestLogId = (await threads.messages.retrieve(told.begun, last.id)).requestLogId;
told.marked = (await threads.messages.update(told.begun, last.id, { seen: "yes" })).metadata;
told.messageDeleted = await threads.messages.del(told.begun, last.id);
told.left = (await threads.messages.list(told.begun)).data.length;
told.deleted = await threads.del(told.begun);
told.gone = await refused(threads.retrieve(told.begun));
told.deletedInvoked = await refused(
  langtail.prompts.invoke({ prompt: assistant, environment: "production", threadId: told.begun }),
);

console.log(JSON.stringify(told));
