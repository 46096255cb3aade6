// The cases: a template, its variables, and whether the rendering is strict. What they should answer, make.mjs finds
// out. `differs` is where we choose otherwise than Handlebars.js, with the reason.

export const now = new Date("2024-02-29T13:05:09.123Z");

const items = { items: ["a", "b", "c"] };
const people = { people: [{ name: "Ada", tags: ["x", "y"] }, { name: "Bo", tags: [] }] };
const order = { order: { id: 7, client: { name: "Ada" }, lines: [{ sku: "p1", n: 2 }, { sku: "p2", n: 1 }] } };
const chat = {
  chat: [
    { role: "user", content: "Hi" },
    { role: "assistant", content: null, tool_calls: [{ id: "1", type: "function", function: { name: "look", arguments: '{"q":1}' } }] },
    { role: "tool", content: "found" },
    { role: "assistant", content: "Hello <you>" },
  ],
};

const plain = [
  ["no tag at all", "Hello, World!", {}],
  ["a variable", "Hello, {{name}}!", { name: "Ada" }],
  ["blanks round the name", "Hello, {{   name   }}!", { name: "Ada" }],
  ["two variables", "{{a}} {{b}}", { a: "1", b: "2" }],
  ["a path", "{{order.client.name}}", order],
  ["a path with slashes", "{{order/client/name}}", order],
  ["a path with an index", "{{order.lines.[1].sku}}", order],
  ["a name in brackets", "{{[first name]}}, {{[a.b]}}", { "first name": "Ada", "a.b": "dot" }],
  ["a name with a hyphen", "{{first-name}}", { "first-name": "Ada" }],
  ["a name with umlauts", "{{größe}}", { größe: "XL" }],
  ["nothing is escaped", "{{a}} {{{a}}} {{&a}}", { a: "<b> & \"c\" 'd' `e` =" }],
  ["a missing variable is empty", "Hello, {{x}}!", {}],
  ["a missing member is empty", "[{{order.x.y}}]", order],
  ["null is empty", "[{{n}}]", { n: null }],
  ["numbers print as in JavaScript", "{{a}} {{b}} {{c}} {{d}} {{e}} {{f}}", { a: 1, b: 1.5, c: -0.25, d: 1e21, e: 1e-7, f: 0.00001 }],
  ["whole floats print without a point", "{{a}} {{b}}", { a: 2.0, b: 100000.0 }],
  ["booleans print as words", "{{a}} {{b}}", { a: true, b: false }],
  ["zero prints", "{{a}}", { a: 0 }],
  ["a value is never rendered", "{{a}}", { a: "{{b}} {{#if c}}", b: "no" }],
  ["braces that are text", "{ {{a}} } {\"k\": \"{{a}}\"}", { a: "1" }],
  ["an escaped tag", "\\{{a}} {{a}}", { a: "1" }],
  ["an escaped tag up to the next one", "\\{{a}} b \\{{c}} {{a}}", { a: "1" }],
  ["two backslashes are one, and a tag", "\\\\{{a}}", { a: "1" }],
  ["a backslash elsewhere", "a\\b {{a}}\\", { a: "1" }],
  ["a comment", "a{{! no }}b{{!-- {{no}} --}}c", {}],
  ["an empty comment", "a{{!----}}b{{!}}c{{!--}}d", {}],
  ["a literal is a name", "[{{1}}{{true}}{{\"a b\"}}]", { 1: "one", true: "yes", "a b": "quoted" }],
  ["the length of an array", "{{items.length}} {{#if items.length}}some{{/if}}", items],
  ["the length of a string", "{{a.length}} {{#if (gt a.length 2)}}long{{/if}}", { a: "abc" }],
  ["the root from inside", "{{#each items}}{{@root.x}}{{this}} {{/each}}", { ...items, x: "-" }],
  ["this", "{{#with a}}{{this}} {{.}}{{/with}}", { a: "v" }],
  ["lookup", "{{lookup order \"id\"}} {{lookup items 1}} {{lookup items \"x\"}}", { ...order, ...items }],
];

const json = [
  ["an object prints as JSON", "{{data}}", { data: '{"name":"Ada","age":30}' }],
  ["an array prints its items", "{{data}}", { data: "[1, 2, 3]" }],
  ["an array of objects", "{{data}}", { data: '[{"a":1},{"b":[]}]' }],
  ["an array of arrays", "{{data}}", { data: "[[1,2],[3,null,true]]" }],
  ["an empty array prints nothing", "[{{data}}]", { data: "[]" }],
  ["an empty object", "{{data}}", { data: "{}" }],
  ["a deep object", "{{data}}", { data: '{"a":{"b":[1,{"c":null}],"d":"é \\"q\\" \\n"},"e":[],"f":{},"g":1.0,"h":1e-7}' }],
  ["a member of a JSON text", "{{data.a.b}}", { data: '{"a":{"b":"x"}}' }],
  ["an item of a JSON text", "{{data.[1]}}", { data: '["x","y"]' }],
  ["each over a JSON text", "{{#each data}}{{this}};{{/each}}", { data: " [1,2] " }],
  ["each over a JSON object", "{{#each data}}{{@key}}={{this}};{{/each}}", { data: '{"x":1,"y":[2,3]}' }],
  ["a JSON text inside JSON stays a text", "{{data.a}}", { data: '{"a":"[1,  2]"}' }],
  ["a number stays a text", "{{#if (eq data \"007\")}}{{data}}{{/if}}", { data: "007" }],
  ["the text false is true", "{{#if data}}yes{{else}}no{{/if}}", { data: "false" }],
  ["the text 0 is true", "{{#if data}}yes{{else}}no{{/if}}", { data: "0" }],
  ["the text null is a text", "{{data}}{{#if data}}!{{/if}}", { data: "null" }],
  ["broken JSON stays a text", "{{data}}", { data: '{"a":1,}' }],
  ["JavaScript is no JSON", "{{data}}", { data: "[NaN]" }],
  ["a quoted text stays quoted", "{{data}}", { data: '"x"' }],
  ["a native object prints as JSON", "{{order}}", order],
  ["a native array of objects", "{{people}}", people],
  ["text round an object", "<{{order.client}}>", order],
  ["toJSON of an object", "{{toJSON order}}", order],
  ["toJSON of an array", "{{toJSON items}}", items],
  ["toJSON of texts and numbers", "{{toJSON a}} {{toJSON b}} {{toJSON c}} {{toJSON d}}", { a: "q\"\n", b: 1.5, c: true, d: null }],
  ["toJSON of what is missing", "[{{toJSON x}}]", {}],
  ["last", "{{last items}} [{{last none}}] [{{last x}}] [{{last a}}]", { ...items, none: [], a: "text" }],
  ["a block over last", "{{#with (last people)}}{{name}}{{/with}}", people],
];

const blocks = [
  ["if true", "{{#if a}}yes{{/if}}", { a: "x" }],
  ["if false", "{{#if a}}yes{{/if}}", { a: "" }],
  ["if missing", "{{#if a}}yes{{else}}no{{/if}}", {}],
  ["if of an empty array", "{{#if a}}yes{{else}}no{{/if}}", { a: [] }],
  ["if of an empty object", "{{#if a}}yes{{else}}no{{/if}}", { a: {} }],
  ["if of zero", "{{#if a}}yes{{else}}no{{/if}}{{#if a includeZero=true}}yes{{/if}}", { a: 0 }],
  ["if of null", "{{#if a}}yes{{else}}no{{/if}}", { a: null }],
  ["else if", "{{#if a}}A{{else if b}}B{{else}}C{{/if}}", { b: true }],
  ["else if twice", "{{#if a}}A{{else if b}}B{{else if c}}C{{else}}D{{/if}}", { c: 1 }],
  ["else of an else if", "{{#if a}}A{{else if b}}B{{else}}C{{/if}}", {}],
  ["a caret is an else", "{{#if a}}A{{^}}B{{/if}}", {}],
  ["unless", "{{#unless a}}no a{{/unless}}{{#unless b}}no b{{else}}b{{/unless}}", { b: 1 }],
  ["nested ifs", "{{#if a}}{{#if b}}ab{{else}}a{{/if}}{{else}}{{#if b}}b{{/if}}{{/if}}", { a: 1 }],
  ["a blank after a block's tag stays", "{{#if a}} {{a}}{{/if}}|{{#if a}} {{/if}}|{{#each l}} {{this}}{{/each}}", { a: "x", l: [1, 2] }],
  ["with", "{{#with order.client}}{{name}} of {{../order.id}}{{/with}}", order],
  ["with and else", "{{#with x}}a{{else}}none{{/with}}", {}],
  ["with and a block parameter", "{{#with order.client as |c|}}{{c.name}} {{order.id}}{{../order.id}}{{/with}}", order],
  ["each over an array", "{{#each items}}{{@index}}:{{this}} {{/each}}", items],
  ["each, first and last", "{{#each items}}{{#if @first}}<{{/if}}{{this}}{{#unless @last}},{{/unless}}{{#if @last}}>{{/if}}{{/each}}", items],
  ["each over objects", "{{#each people}}{{name}}{{/each}}", people],
  ["each over an object", "{{#each order.client}}{{@key}}={{this}}{{/each}}", order],
  ["each with an index as key", "{{#each items}}{{@key}}{{/each}}", items],
  ["each over nothing", "{{#each items}}x{{else}}empty{{/each}}", { items: [] }],
  ["each over what is missing", "{{#each items}}x{{else}}empty{{/each}}", {}],
  ["each over a text", "{{#each a}}x{{else}}empty{{/each}}", { a: "abc" }],
  ["each with block parameters", "{{#each items as |it i|}}{{i}}{{it}} {{/each}}", items],
  ["nested each", "{{#each people}}{{name}}:{{#each tags}}{{this}}{{../name}}{{@../index}} {{/each}};{{/each}}", people],
  ["the parent of the parent", "{{#each people}}{{#each tags}}{{../../x}}{{/each}}{{/each}}", { ...people, x: "." }],
  ["if does not change the parent", "{{#each people}}{{#if name}}{{../x}}{{/if}}{{/each}}", { ...people, x: "." }],
  ["block parameters reach inner blocks", "{{#each people as |p|}}{{#each p.tags as |t|}}{{p.name}}{{t}}{{/each}}{{/each}}", people],
  ["else if in an each", "{{#each items}}{{this}}{{else if x}}X{{else}}none{{/each}}", { x: 1 }],
  ["a section", "{{#order}}{{id}}{{/order}}{{^none}}none{{/none}}{{#items}}{{this}}{{/items}}", { ...order, ...items }],
  ["this and its member", "{{#each people}}{{this.name}} {{./name}}{{/each}}", people],
  ["a variable that is named like a helper", "[{{last}}] {{this.last}} {{#if last}}{{./last}}{{/if}}", { last: "z" }],
  ["a variable that is named like an operator", "[{{this.eq}}] {{#if (eq this.eq \"q\")}}same{{/if}}", { eq: "q" }],
];

const operators = [
  ["eq of texts", "{{#if (eq a \"x\")}}yes{{else}}no{{/if}}", { a: "x" }],
  ["eq of a number and its text", "{{eq 1 \"1\"}} {{eq \"1.0\" 1}} {{eq \" 1 \" 1}} {{eq \"\" 0}} {{eq \"a\" 0}}", {}],
  ["eq of booleans", "{{eq true 1}} {{eq true \"1\"}} {{eq true \"true\"}} {{eq false \"\"}} {{eq false \"false\"}}", {}],
  ["eq of null and undefined", "{{eq n x}} {{eq n 0}} {{eq x \"\"}} {{eq n false}} {{eq n null}} {{eq x undefined}}", { n: null }],
  ["eq of arrays and their texts", "{{eq l \"a,b\"}} {{eq one 1}} {{eq l l}} {{eq l m}}", { l: ["a", "b"], m: ["a", "b"], one: [1] }],
  ["eq of objects", "{{eq o o}} {{eq o p}} {{eq o \"x\"}}", { o: { a: 1 }, p: { a: 1 } }],
  ["eq in other bases", "{{eq \"0x10\" 16}} {{eq \"1e3\" 1000}} {{eq \"Infinity\" \"Infinity\"}} {{eq \"1_000\" 1000}} {{eq \"-5\" -5}}", {}],
  ["ne", "{{ne 1 \"1\"}} {{ne 1 2}} {{ne n x}}", { n: null }],
  ["lt of numbers and texts", "{{lt 1 2}} {{lt \"2\" 10}} {{lt \"2\" \"10\"}} {{lt \"abc\" 1}} {{lt 1 \"abc\"}} {{lt \"a\" \"b\"}}", {}],
  ["lt of null and undefined", "{{lt n 1}} {{lt x 1}} {{gt x 1}} {{gte n 0}} {{lte n n}} {{lte x x}}", { n: null }],
  ["lt of booleans", "{{lt false true}} {{gt true 0}} {{gte true true}}", {}],
  ["lt of arrays", "{{lt one 2}} {{gt l m}} {{lt l 1}}", { one: [1], l: ["b"], m: ["a"] }],
  ["gt, gte and lte", "{{gt 2 1}} {{gt 1 1}} {{gte 1 1}} {{gte 0 1}} {{lte 1 1}} {{lte 2 1}}", {}],
  ["comparison by code units", "{{lt a b}} {{gt a b}}", { a: "\u{1F600}", b: "\uFFFD" }],
  ["and, or", "{{and 1 \"x\" true}} {{and 1 0}} {{and l o}} {{or 0 \"\" x}} {{or 0 \"a\"}} {{and}} {{or}}", { l: [], o: {} }],
  ["a decision by and", "{{#if (and (eq a 1) (or b (gt c 3)))}}yes{{else}}no{{/if}}", { a: "1", b: false, c: 4 }],
  ["else if with operators", "{{#if (eq v \"A\")}}Welcome{{else if (eq v \"B\")}}Adios{{/if}}", { v: "B" }],
  ["unless with an operator", "{{#unless (eq a b)}}differ{{/unless}}", { a: 1, b: 2 }],
  ["a comparison of numbers in texts", "{{#if (gt score \"50\")}}more{{else}}less{{/if}}", { score: "7" }],
  ["an operator that lacks an argument", "{{eq \"a\"}} {{lt 1}} {{ne x}}", {}],
  ["escaped quotes in a string", "{{eq a \"x\\\"y\"}} {{eq b 'it\\'s'}}", { a: 'x"y', b: "it's" }],
];

const whitespace = [
  ["newlines round else", "{{#if a}}\nWelcome\n{{else}}\nGoodbye\n{{/if}}", { a: 1 }],
  ["newlines round else, the other branch", "{{#if a}}\nWelcome\n{{else}}\nGoodbye\n{{/if}}", {}],
  ["one newline only", "{{#if a}}x\n\n{{else}}\n\ny\n\n{{/if}}", {}],
  ["a newline before /if", "{{#if a}}Welcome\n{{/if}}", { a: 1 }],
  ["a newline before /unless and /with", "{{#unless a}}U\n{{/unless}}{{#with b}}W\n{{/with}}.", { b: "x" }],
  ["lines after /if", "a\n{{#if x}}\nb\n{{/if}}\nc", { x: 1 }],
  ["lines after an if that is not", "a\n{{#if x}}\nb\n{{/if}}\nc", {}],
  ["a trailing newline", "a {{x}}\n", { x: "b" }],
  ["one trailing newline of two", "a {{x}}\n\n", { x: "b" }],
  ["a trailing newline from a value", "{{x}}", { x: "b\n" }],
  ["a trailing newline without a tag", "text\n", {}],
  ["each on its own lines", "{{#each items}}\n  - {{this}}\n{{/each}}", items],
  ["each in a list", "List:\n{{#each items}}\n- {{this}}\n{{/each}}\nEnd", items],
  ["an indented block", "a\n  {{#if x}}\n    b\n  {{/if}}\nc", { x: 1 }],
  ["a comment on its own line", "a\n{{! gone }}\nb\n  {{!-- gone --}}  \nc", {}],
  ["else if on its own line", "{{#if a}}\nA\n{{else if b}}\nB\n{{/if}}\n.", { b: 1 }],
  ["a chain on its own lines, first", "{{#if a}}\nA\n{{else if b}}\nB\n{{else if c}}\nC\n{{/if}}\nD", { a: 1 }],
  ["a chain on its own lines, last", "{{#if a}}\nA\n{{else if b}}\nB\n{{else if c}}\nC\n{{/if}}\nD", { c: 1 }],
  ["an indented chain", "{{#if a}}\n  A\n  {{else if b}}\n  B\n  {{else}}\n  C\n  {{/if}}\nD", { b: 1 }],
  ["tildes", "a  {{~x~}}  b  {{~#if x~}}  c  {{~else~}}  d  {{~/if~}}  e", { x: "-" }],
  ["tildes on lines", "{{~#if a}}\ntext\n{{~/if}}\nmore", { a: 1 }],
  ["tildes behind tags on lines", "x\n  {{#if a~}}\n  text\n  {{/if~}}\n  more", { a: 1 }],
  ["tildes round a brace", "{\n{{~x~}}\n}", { x: "y" }],
  ["a tilde in a comment", "a {{~! no ~}} b {{~!-- no --~}} c", {}],
  ["tabs and carriage returns", "a\r\n\t{{#if x}}\r\nb\r\n\t{{/if}}\r\nc", { x: 1 }],
  ["carriage returns round else", "{{#if x}}\r\nb\r\n{{else}}\r\nc\r\n{{/if}}\r\nd", {}],
  ["blocks one after the other", "{{#if c}}Welcome{{else}}\nGoodbye\n{{/if}}\n{{#unless c}}\nStay\n{{/unless}}\n{{#each l}}\nItem\n{{/each}}\n{{#with o}}\nContext\n{{/with}}", { c: false, l: [1, 2], o: {} }],
  ["an if at the end", "Bot.\n{{#if h}}\nHistory\n{{/if}}", { h: "x" }],
  ["an if at the end that is not", "Bot.\n{{#if h}}\nHistory\n{{/if}}", {}],
];

const dates = [
  ["today", "{{$date}}", {}],
  ["today by a pattern", "{{$date \"yyyy\"}}", {}],
  ["a date by a pattern", "{{$date \"2024-09-01\" \"MM\"}}", {}],
  ["a variable by a pattern", "{{$date d \"MM/dd\"}}", { d: "2024-09-01" }],
  ["a pattern in a variable", "{{$date d p}}", { d: "2024-09-01", p: "EEEE" }],
  ["a bad date", "[{{$date \"invalid_date_string\" \"MM\"}}]", {}],
  ["a missing date", "[{{$date x \"MM\"}}]", {}],
  ["a null date", "[{{$date n \"MM\"}}]", { n: null }],
  ["impossible dates", "[{{$date \"2024-02-30\" \"d\"}}{{$date \"2023-13-01\" \"d\"}}{{$date \"24-1-1\" \"d\"}}{{$date \"2024-01-01T25:00\" \"d\"}}]", {}],
  ["a time in ms", "{{$date t \"yyyy-MM-dd HH:mm:ss.SSS\"}}", { t: 1725148800123 }],
  ["a date with an offset", "{{$date \"2024-09-01T01:30:00+02:00\" \"yyyy-MM-dd HH:mm\"}} {{$date \"2024-09-01T01:30:00Z\" \"HH:mm\"}}", {}],
  ["forms of ISO 8601", "{{$date \"20240901\" \"d\"}} {{$date \"2024-245\" \"d MMM\"}} {{$date \"2024-W36-1\" \"d MMM\"}} {{$date \"2024-09\" \"d MMM\"}} {{$date \"2024\" \"d MMM\"}} {{$date \"2024-09-01 10:20\" \"HH\"}}", {}],
  ["quoted text in a pattern", "{{$date \"yyyy 'year' '' o''clock\"}}|{{$date \"h 'o''clock'\"}}|{{$date \"'open\"}}", {}],
  ["a pattern with unknown letters", "[{{$date \"yyyy foo\"}}]", {}],
  ["patterns that date-fns refuses", "[{{$date \"YYYY\"}}{{$date \"YY\"}}{{$date \"DD\"}}{{$date \"D\"}}]", {}],
  ["a pattern with other signs", "{{$date \"yyyy/MM/dd_HH-mm (ss) é\"}}", {}],
  ["$date in a condition", "{{#if (eq ($date \"2024-09-01\" \"yyyy\") \"2024\")}}now{{/if}}", {}],
  ["$date beside others", "{{a}} {{$date \"d\"}} {{a}}", { a: "x" }],
];

const days = ["2024-01-01T00:00:00", "2024-02-29T13:05:09.123", "2023-12-31T12:00:00", "2021-01-03T23:59:59.999", "2022-11-11T04:30:00", "0987-06-22"];
const tokens =
  "y yo yy yyy yyyy yyyyy Y Yo YYY R RR RRRR u uuuu Q Qo QQ QQQ QQQQ QQQQQ q qo qq qqq qqqq M Mo MM MMM MMMM MMMMM L Lo LL LLL LLLL w wo ww I Io II d do dd ddd Do DDD " +
  "E EE EEE EEEE EEEEE EEEEEE i io ii iii iiii e eo ee eee eeee c co cc ccc cccc a aa aaa aaaa aaaaa b bb bbb bbbb bbbbb B BBBB h ho hh H Ho HH K Ko KK k ko kk m mo mm s so ss " +
  "S SS SSS SSSS SSSSSS X XX XXX x xx xxx xxxx O OOOO z zzzz t T P PP PPP PPPP p pp ppp pppp Pp PPpp PPPppp PPPPpppp G GGGG GGGGG";
const dateTokens = tokens.split(" ").map((token) => [
  `date-fns token ${token}`,
  days.map((day) => `{{$date "${day}" "${token}"}}`).join("|"),
  {},
]);

const conversations = [
  ["formatMessages", "{{formatMessages chat}}", chat],
  ["formatMessagesWithToolCalls", "{{formatMessagesWithToolCalls chat}}", chat],
  ["formatMessage", "{{#each chat}}{{formatMessage this}}\n{{/each}}", chat],
  ["formatMessageWithToolCalls", "{{formatMessageWithToolCalls (last chat)}} {{formatMessageWithToolCalls chat.[1]}}", chat],
  ["formatMessages of a JSON text", "{{formatMessages chat}}", { chat: JSON.stringify(chat.chat) }],
  ["formatMessages of no array", "[{{formatMessages x}}{{formatMessages a}}{{formatMessage x}}]", { a: "text" }],
];

const faults = [
  ["an unclosed tag", "Hello, {{firstName", {}],
  ["a tag closed by one brace", "Hello, {{firstName}!", {}],
  ["an unclosed block", "a\n{{#if x}}b\n", { x: 1 }],
  ["a block closed by another's name", "{{#if x}}b{{/each}}", { x: 1 }],
  ["a block that was never opened", "b{{/if}}", {}],
  ["an else outside", "a{{else}}b", {}],
  ["two elses", "{{#if a}}1{{else}}2{{else}}3{{/if}}", {}],
  ["a brace too many", "{\"n\": {{n}}}", { n: 1 }],
  ["an index without brackets", "{{items.0}}", items],
  ["a parent inside a path", "{{a.../b}}", {}],
  ["an unclosed parenthesis", "{{#if (eq a b}}x{{/if}}", {}],
  ["a parenthesis too many", "{{#if (eq a b))}}x{{/if}}", {}],
  ["an unclosed string", "{{eq a \"b}}", {}],
  ["an empty tag", "a {{}} b", {}],
  ["a faulty tag in a branch that is not taken", "{{#if x}}{{a b=}}{{/if}}", {}],
  ["an unclosed comment", "a {{!-- b }} c", {}],
  ["a helper that there is not", "{{shout name}}!", { name: "Ada" }],
  ["an if without a condition", "{{#if}}x{{/if}}", {}],
  ["a partial that there is not", "a {{> other}}", {}],
];

const strict = [
  ["strict: all there", "{{a}} {{o.b}}", { a: "1", o: { b: "2" } }],
  ["strict: a missing variable", "Hello, {{name}}!", {}],
  ["strict: a missing member", "{{order.x}}", order],
  ["strict: the member of what is missing", "{{a.b.c}}", { a: {} }],
  ["strict: null is there", "[{{n}}]", { n: null }],
  ["strict: a missing condition", "{{#if x}}a{{else}}b{{/if}}{{#unless x}}c{{/unless}}", {}],
  ["strict: a missing variable in a branch that is not taken", "{{#if x}}{{y}}{{else}}b{{/if}}", {}],
  ["strict: a missing variable in the branch that is taken", "{{#if x}}{{y}}{{else}}b{{/if}}", { x: 1 }],
  ["strict: missing arguments of operators", "{{#if (eq x \"a\")}}a{{else}}b{{/if}}{{or x y}}", {}],
  ["strict: each over what is missing", "{{#each x}}a{{else}}b{{/each}}", {}],
  ["strict: with what is missing", "{{#with x}}a{{else}}b{{/with}}", {}],
  ["strict: a missing member of an item", "{{#each people}}{{age}}{{/each}}", people],
  ["strict: a parse error", "{{#if x}}", {}],
  ["strict: today", "{{$date \"yyyy\"}}", {}],
];

const differing = [
  [
    "numbers side by side", "{{a}}{{b}}", { a: 1, b: 2 },
    { expected: "12", because: "Handlebars.js adds up adjacent numbers when it does not escape; we print them" },
  ],
  [
    "the keys of an object", "{{#each o}}{{@key}} {{/each}}", { o: '{"b":1,"2":2,"1":3}' },
    { expected: "b 2 1 ", because: "JavaScript puts keys that are numbers first; we keep the order as given" },
  ],
  [
    "a number of more than 53 bits", "{{n}}", { n: "[12345678901234567890]" },
    { expected: "12345678901234567890", because: "JavaScript rounds it; we print what was given" },
  ],
  [
    "a block in an else", "{{#if a}}A{{else each l}}{{this}}{{/if}}", { l: ["x"] },
    { fails: true, because: "the engine knows `else if` and `else unless` only" },
  ],
  [
    "an inline partial", "{{#*inline \"p\"}}x{{/inline}}{{> p}}", {},
    { fails: true, because: "there are no partials" },
  ],
  [
    "a raw block", "{{{{raw}}}}{{a}}{{{{/raw}}}}", {},
    { fails: true, because: "without a helper `raw` Handlebars.js prints nothing; write \\{{" },
  ],
  [
    "both quotes in one string", "{{eq a \"it's \\\"q\\\"\"}}", { a: "x" },
    { fails: true, because: "the engine cannot read an escaped quote" },
  ],
  [
    "closing braces in a string", "{{eq a \"}}\"}}", { a: "}}" },
    { fails: true, because: "the engine ends a tag at the first braces" },
  ],
  [
    "blanks in a path", "{{a/ b}}", { a: { b: "x" } },
    { fails: true, because: "a blank in a path is a mistake" },
  ],
  [
    "a tilde in a chain", "{{#each l}}A{{else if b}}B{{~else if c}}C {{/each}}.", { c: 1 },
    { expected: "C .", because: "Handlebars.js takes white space at the far end of the branch, too" },
  ],
  [
    "an escaped else", "{{#if a}}x\\{{else}}\ny{{/if}}", { a: 1 },
    { expected: "x{{else}}\ny", because: "only a real {{else}} takes the newlines round it" },
  ],
  [
    "a brace on the line before an else", "{{#if a}}{\n{{else}}}\n{{/if}}", { a: 1 },
    { expected: "{", because: "the newline goes, but the brace does not become a part of the tag" },
  ],
];

const listed = [
  ...plain, ...json, ...blocks, ...operators, ...whitespace, ...dates, ...dateTokens, ...conversations, ...faults,
].map(([name, template, variables]) => ({ name, template, variables }));

export const cases = [
  ...listed,
  ...strict.map(([name, template, variables]) => ({ name, template, variables, strict: true })),
  ...differing.map(([name, template, variables, differs]) => ({ name, template, variables, differs })),
];
