"""From Handlebars as its users write it to the Handlebars that our engine reads.

The engine parses loosely: it drops blanks after a block's tag, gives `~` precedence over lines
that a tag stands on alone, misses faults in a branch that it does not take, and lacks some
forms. So every tag is read here first, by the grammar of Handlebars.js, and written anew in
forms on which the two agree; white space is settled here.

Refused though Handlebars.js has them: partials, raw blocks, `{{else each …}}`, `{{else with …}}`,
a string with both kinds of quotes or with `}}` in it, blanks inside a path.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from schemas.template_budget import MAX_TAGS, SPEND, TAG_STEPS

# Helpers that print what they are given: a missing argument of theirs is a missing variable.
PRINTING: Final = frozenset(
    {
        "$date",
        "$length",
        "formatMessage",
        "formatMessageWithToolCalls",
        "formatMessages",
        "formatMessagesWithToolCalls",
        "last",
        "lookup",
        "toJSON",
    }
)
# The hash argument by which a printing helper learns the path of its argument of that index.
PATH_OF: Final = "path_{}"
# What the data of a rendering must have for the engine's dialect: a name for null, and one for a brace before a tag.
DATA_NULL: Final = "null"
DATA_BRACE: Final = "{"
BRACE_TAG: Final = f"{{{{@[{DATA_BRACE}]}}}}"

_TAG = re.compile(
    r"""
    (?P<escaped> (?<!\\)\\\{\{ )
    | \{\{(?P<comment_open>~?)!(?: (?=--).*?--(?P<comment_close>~?)\}\} | (?!--).*?\}\} )
    | (?P<raw> \{\{\{\{ )
    | \{\{(?P<triple_open>~?)\{(?P<triple>.*?)\}(?P<triple_close>~?)\}\}
    | \{\{(?P<open>~?)(?P<sigil>[\#^/>&*]?)(?P<body>.*?)(?P<close>~?)\}\}(?P<brace>\}?)
    | (?P<unclosed> \{\{ )
    """,
    re.DOTALL | re.VERBOSE,
)
_ELSE = re.compile(r"\s*else(?:\s+(?P<chained>.+?))?\s*", re.DOTALL)
_BRACES = re.compile(r"(\{{2,})")
_BRACES_BEFORE_TAG = re.compile(r"(\{{2,}|\{+\Z)")
# A tag is charged for the characters of a short text; longer ones charge by themselves.
_PRINTED_CHARS: Final = 64
# What a tag that stands alone on its line takes with it.
_LINE_REST = re.compile(r"[ \t]*\r?\n?")

# What ends a name, a number or a literal; as the lexer of Handlebars.js has it.
_ID = r"""[^\s!"#%-,./;->@\[-^`{-~]+"""
_SEGMENT = rf"(?:\.\.|\.(?=[/\s)]|$)|\[(?:\\\]|[^\]])*\]|{_ID})"
_TOKEN = re.compile(
    rf"""
    (?P<string> "(?:\\"|[^"])*" | '(?:\\'|[^'])*' )
    | (?P<literal> (?:-?\d+(?:\.\d+)?|true|false|null|undefined)(?=[\s)]|$) )
    | (?P<block_params> as\s+\|[^|]*\| )
    | (?P<hash> (?:{_ID}|\[[^\]]*\])\s*= )
    | (?P<path> @?{_SEGMENT}(?:[./]{_SEGMENT})*(?=[\s)]|$) )
    | (?P<open> \( )
    | (?P<close> \) )
    """,
    re.VERBOSE,
)
# The engine does not know the length of a string, the helper `$length` does.
_MEASURED = re.compile(r"(.*[^./])[./]length", re.DOTALL)
_SEGMENTS = re.compile(rf"{_SEGMENT}|[./]")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


class TemplateSyntaxError(ValueError):
    """A template is not Handlebars; the text says what is wrong."""


def engine_source(source: str) -> str:
    """Return the template in the engine's dialect; TemplateSyntaxError if Handlebars.js would not parse it.

    Newlines round `{{else}}` and before `{{/if}}`, `{{/unless}}` and `{{/with}}` are removed.
    """
    reader = _Reader(source)
    reader.read()
    _control_whitespace(reader.texts, reader.tags)
    return _written(reader.texts, reader.tags)


@dataclass
class _Text:
    """Text between tags, as it is and as it will be printed."""

    original: str
    value: str = ""


@dataclass(frozen=True)
class _Tag:
    """A tag in the engine's dialect, and what becomes of the white space on its sides."""

    text: str
    open_tilde: bool = False
    close_tilde: bool = False
    leaves_line: bool = False
    # Whether a branch begins behind it, and whether one ends before it.
    opens: bool = False
    closes: bool = False
    # Where Handlebars.js looks for the line's start of a tag that closes a chain: behind the first `{{else if}}`.
    chain_ends_at: int | None = None


@dataclass
class _Block:
    name: str
    line: int
    has_else: bool = False
    is_chained: bool = False
    chain_ends_at: int | None = None


@dataclass
class _Reader:
    """Reads a template into tags and the texts round them: `texts[0] tags[0] texts[1] tags[1] … texts[-1]`."""

    source: str
    texts: list[_Text] = field(default_factory=lambda: [_Text("")])
    tags: list[_Tag] = field(default_factory=list)
    blocks: list[_Block] = field(default_factory=list)

    def read(self) -> None:
        """Read the whole template."""
        at = 0
        while (tag := _TAG.search(self.source, at)) is not None:
            before = self.source[at : tag.start()]
            if tag["escaped"] is not None:
                self.texts[-1].original += before + "{{"
                at = tag.end()
                continue
            # Two backslashes before a tag are one, and the tag is one.
            self.texts[-1].original += before[:-1] if before.endswith("\\\\") else before
            at = self._read_tag(tag)
        if self.blocks:
            raise TemplateSyntaxError("unclosed block")
        self.texts[-1].original += self.source[at:]

    def _read_tag(self, tag: re.Match[str]) -> int:
        """Read one tag and return where the text goes on."""
        if tag["unclosed"] is not None:
            raise TemplateSyntaxError("unclosed tag")
        if tag["raw"] is not None:
            raise TemplateSyntaxError(f"line {self._line(tag)}: there are no raw blocks; write \\{{{{ to print braces")
        if tag["comment_open"] is not None:
            close_tilde = bool(tag["comment_close"]) or tag[0].endswith("~}}")
            self._add(_Tag("{{!}}{{!}}", bool(tag["comment_open"]), close_tilde, leaves_line=True))
            return tag.end()
        if tag["triple"] is not None:
            if self.source[tag.end() : tag.end() + 1] == "}" and not tag["triple_close"]:
                raise self._fault(tag, "has a brace too many; put a blank before the last '}'")
            self._add(_Tag(self._printed(tag, tag["triple"]), bool(tag["triple_open"]), bool(tag["triple_close"])))
            return tag.end()
        return self._read_double(tag)

    def _read_double(self, tag: re.Match[str]) -> int:
        sigil, body = tag["sigil"], tag["body"]
        at = tag.end() - len(tag["brace"])
        if not sigil and (match := _ELSE.fullmatch(body)) is not None:
            return self._read_else(tag, match["chained"], at)
        if sigil == "^" and not body.strip():
            return self._read_else(tag, None, at)
        if tag["brace"] and not tag["close"]:
            raise self._fault(tag, "has a brace too many; put a blank before the last '}'")
        if sigil in ("", "&"):
            self._add(_Tag(self._printed(tag, body), bool(tag["open"]), bool(tag["close"])))
        elif sigil == "/":
            self._close(tag, body.strip())
        elif sigil in ("#", "^") and body[:1] not in (">", "*"):
            call = self._call(tag, body)
            self.blocks.append(_Block(call.head, self._line(tag)))
            self._add_block_tag(tag, f"{sigil}{call.text}")
        else:
            raise self._fault(tag, "is a partial or a decorator, and there are none")
        return at

    def _read_else(self, tag: re.Match[str], chained: str | None, at: int) -> int:
        if not self.blocks or self.blocks[-1].has_else:
            raise self._fault(tag, "has no block that it could belong to")
        block = self.blocks[-1]
        self._end_branch(block)
        if chained is not None:
            block.is_chained = True
            call = self._call(tag, chained)
            if call.head not in ("if", "unless"):
                raise self._fault(tag, "chains a block other than `if` and `unless`; nest it after {{else}}")
            self._add_block_tag(tag, f"else {call.text}")
            return at
        block.has_else = True
        if self.source[tag.start() : at] == "{{else}}":
            self._drop_newline()
            at += len(_newline_at(self.source, at))
        self._add_block_tag(tag, "else")
        return at

    def _close(self, tag: re.Match[str], name: str) -> None:
        if not self.blocks:
            raise self._fault(tag, "closes a block that was never opened")
        block = self.blocks.pop()
        if _bare(block.name) != _bare(name):
            raise self._fault(tag, f"stands where {{{{/{block.name}}}}} should close the block of line {block.line}")
        if tag[0] in ("{{/if}}", "{{/unless}}", "{{/with}}"):
            self._drop_newline()
        self._end_branch(block)
        self._add_block_tag(tag, f"/{block.name}", chain_ends_at=block.chain_ends_at)

    def _end_branch(self, block: _Block) -> None:
        if block.is_chained and block.chain_ends_at is None:
            block.chain_ends_at = len(self.texts) - 1

    def _add_block_tag(self, tag: re.Match[str], text: str, *, chain_ends_at: int | None = None) -> None:
        # The comment keeps the engine from looking for a line that the tag stands on alone.
        written = f"{{{{{text}}}}}{{{{!}}}}"
        self._add(
            _Tag(
                written,
                bool(tag["open"]),
                bool(tag["close"]),
                leaves_line=True,
                opens=not text.startswith("/"),
                closes=text.startswith(("/", "else")),
                chain_ends_at=chain_ends_at,
            )
        )

    def _add(self, tag: _Tag) -> None:
        if len(self.tags) == MAX_TAGS:
            raise TemplateSyntaxError(f"more than {MAX_TAGS} tags")
        self.tags.append(tag)
        self.texts.append(_Text(""))

    def _drop_newline(self) -> None:
        if self.texts[-1].original.endswith("\n"):
            self.texts[-1].original = self.texts[-1].original[:-1].removesuffix("\r")

    def _printed(self, tag: re.Match[str], body: str) -> str:
        """Return the tag that prints a value or calls a helper."""
        call = self._call(tag, body)
        if not call.params and not call.hash:
            measured = _MEASURED.fullmatch(call.head)
            if _is_literal(call.head):
                # Alone in a tag, Handlebars.js takes a literal for the name of a variable.
                call.head = f"[{_bare(call.head)}]"
            elif measured is not None:
                call = _Call("$length", [measured[1]])
        paths = ""
        if call.head in PRINTING:
            paths = "".join(
                f" {PATH_OF.format(index)}='{param}'"
                for index, param in enumerate(call.params)
                if param[0] not in "\"'(" and "'" not in param
            )
        return f"{{{{{call.text}{paths}}}}}"

    def _call(self, tag: re.Match[str], body: str) -> _Call:
        try:
            return _Call.read(body)
        except TemplateSyntaxError as exc:
            raise self._fault(tag, str(exc)) from exc

    def _line(self, tag: re.Match[str]) -> int:
        return self.source.count("\n", 0, tag.start()) + 1

    def _fault(self, tag: re.Match[str], what: str) -> TemplateSyntaxError:
        return TemplateSyntaxError(f"line {self._line(tag)}: {_shortened(tag[0])} {what}")


def _control_whitespace(texts: list[_Text], tags: list[_Tag]) -> None:
    """Set what is printed of every text: `~` takes all white space, a tag alone on its line takes the line.

    A tag that closes a chain of `{{else if}}` leaves its indent, as in Handlebars.js.
    """
    for text in texts:
        text.value = text.original
    for index, tag in enumerate(tags):
        before, after = texts[index], texts[index + 1]
        line = before if tag.chain_ends_at is None else texts[tag.chain_ends_at]
        if (
            tag.leaves_line
            and _starts_line(line, first=line is texts[0])
            and _ends_line(after, last=after is texts[-1])
        ):
            if tag.chain_ends_at is None:
                before.value = before.value.rstrip(" \t")
            after.value = _LINE_REST.sub("", after.value, count=1)
        if tag.open_tilde:
            before.value = before.value.rstrip()
        if tag.close_tilde:
            after.value = after.value.lstrip()


def _starts_line(text: _Text, *, first: bool) -> bool:
    blank = text.original[len(text.original.rstrip()) :]
    return "\n" in blank or (first and blank == text.original)


def _ends_line(text: _Text, *, last: bool) -> bool:
    blank = text.original[: len(text.original) - len(text.original.lstrip())]
    return "\n" in blank or (last and blank == text.original)


def _written(texts: list[_Text], tags: list[_Tag]) -> str:
    written = [""]
    # The branches that are open: where each one's charge stands, its steps, its characters.
    branches = [[0, 0, 0]]
    for text, tag in zip(texts[:-1], tags, strict=True):
        branches[-1][2] += len(text.value)
        written.append(_written_text(text.value, before_tag=True))
        if tag.closes:
            _charge(written, branches.pop())
        branches[-1][1] += _steps(tag.text)
        branches[-1][2] += _PRINTED_CHARS
        written.append(tag.text)
        if tag.opens:
            branches.append([len(written), 0, 0])
            written.append("")
    branches[-1][2] += len(texts[-1].value)
    _charge(written, branches.pop())
    return "".join(written) + _written_text(texts[-1].value, before_tag=False)


def _charge(written: list[str], branch: list[int]) -> None:
    at, steps, chars = branch
    written[at] = f"{{{{{SPEND} {TAG_STEPS + steps} {chars}}}}}"


def _steps(tag: str) -> int:
    """Return what a tag costs: the engine reads it anew each time, what stands in brackets at each of their levels."""
    depth = deepest = 0
    for character in tag:
        depth += (character == "(") - (character == ")")
        deepest = max(deepest, depth)
    return TAG_STEPS + len(tag) * (1 + deepest) // 4


def _written_text(text: str, *, before_tag: bool) -> str:
    """Return a text in which no brace or backslash can be taken for a tag's, or for one before a tag."""
    if not before_tag and "{{" not in text:
        return text
    *chunks, last = (_BRACES_BEFORE_TAG if before_tag else _BRACES).split(text)
    written = [
        BRACE_TAG * len(chunk) if index % 2 else _written_backslashes(chunk) for index, chunk in enumerate(chunks)
    ]
    return "".join(written) + (_written_backslashes(last) if before_tag else last)


def _written_backslashes(text: str) -> str:
    """Return a text before a tag: there, the engine takes one backslash of several away."""
    return f"{text}\\" if text.endswith("\\") else text


@dataclass
class _Call:
    """What stands in a tag: a name, its arguments, its named arguments, all in the engine's dialect."""

    head: str
    params: list[str] = field(default_factory=list)
    hash: list[str] = field(default_factory=list)
    block_params: str = ""

    @property
    def text(self) -> str:
        """Return the call as the engine reads it."""
        text = " ".join([self.head, *self.params, *self.hash])
        return f"{text} {self.block_params}" if self.block_params else text

    @classmethod
    def read(cls, body: str) -> _Call:
        """Read all of a tag's inside."""
        tokens = _tokens(body)
        call = cls._from(tokens)
        if tokens:
            raise TemplateSyntaxError("has a ')' too many")
        return call

    @classmethod
    def _from(cls, tokens: list[tuple[str, str]], *, nested: bool = False) -> _Call:
        if not tokens:
            raise TemplateSyntaxError("names nothing")
        call = cls(cls._head(tokens))
        while tokens and tokens[0][0] != "close":
            kind, text = tokens[0]
            if call.block_params or (call.hash and kind not in ("hash", "block_params")):
                raise TemplateSyntaxError(f"has '{text}' after its last argument")
            if kind == "hash":
                tokens.pop(0)
                call.hash.append(f"{text.removesuffix('=').rstrip()}={cls._value(tokens)}")
            elif kind == "block_params" and not nested:
                tokens.pop(0)
                call.block_params = _block_params(text)
            else:
                call.params.append(cls._value(tokens))
        return call

    @classmethod
    def _head(cls, tokens: list[tuple[str, str]]) -> str:
        kind, text = tokens[0]
        if kind in ("path", "literal"):
            tokens.pop(0)
            return _path(text) if kind == "path" else text
        return cls._value(tokens)

    @classmethod
    def _value(cls, tokens: list[tuple[str, str]]) -> str:
        if not tokens:
            raise TemplateSyntaxError("has a name without a value after its '='")
        kind, text = tokens.pop(0)
        if kind == "string":
            return _string(text)
        if kind == "path":
            path = _path(text)
            measured = _MEASURED.fullmatch(path)
            return path if measured is None else f"($length {measured[1]})"
        if kind == "literal":
            return f"@{text}" if text in ("null", "undefined") else text
        if kind != "open":
            raise TemplateSyntaxError(f"has '{text}' where a value should stand")
        inner = cls._from(tokens, nested=True)
        if not tokens:
            raise TemplateSyntaxError("has a '(' that is not closed")
        tokens.pop(0)
        return f"({inner.text})"


def _tokens(body: str) -> list[tuple[str, str]]:
    tokens: list[tuple[str, str]] = []
    at = 0
    while True:
        while at < len(body) and body[at].isspace():
            at += 1
        if at == len(body):
            return tokens
        match = _TOKEN.match(body, at)
        if match is None:
            raise TemplateSyntaxError(f"has '{_shortened(body[at:].strip())}', which cannot be read")
        tokens.append((str(match.lastgroup), match[0]))
        at = match.end()


def _string(text: str) -> str:
    """Return a string that has no escaped quote, over which the engine stumbles."""
    quote, other = text[0], "'" if text[0] == '"' else '"'
    if f"\\{quote}" not in text:
        return text
    if other in text:
        raise TemplateSyntaxError("has a string with both kinds of quotes; make it a variable")
    return other + text[1:-1].replace(f"\\{quote}", quote) + other


def _path(text: str) -> str:
    """Return a path in which only the first segments are `.`, `..` or `this`, and numbers stand in brackets."""
    data, path = ("@", text[1:]) if text.startswith("@") else ("", text)
    written = []
    named = False
    segments = _SEGMENTS.findall(path)
    for index, segment in enumerate(segments):
        if index % 2:
            written.append(segment)
            continue
        if segment in (".", "..", "this"):
            if named:
                raise TemplateSyntaxError(f"has '{segment}' inside the path '{text}'")
        else:
            named = True
        if _NUMBER.fullmatch(segment):
            if index == len(segments) - 1:
                raise TemplateSyntaxError(f"has '{text}'; an index is written in brackets: .[{segment}]")
            segment = f"[{segment}]"  # noqa: PLW2901 - one segment in two spellings
        written.append(segment)
    return data + "".join(written)


def _block_params(text: str) -> str:
    names = text[text.index("|") + 1 : -1].split()
    if not names or not all(re.fullmatch(_ID, name) for name in names):
        raise TemplateSyntaxError(f"has '{text}', which names no block parameters")
    return f"as |{' '.join(names)}|"


def _newline_at(text: str, at: int) -> str:
    for newline in ("\r\n", "\n"):
        if text.startswith(newline, at):
            return newline
    return ""


def _is_literal(head: str) -> bool:
    if head[0] in "\"'":
        return "]" not in head
    return head in ("true", "false", "null", "undefined") or _NUMBER.fullmatch(head) is not None


def _shortened(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"


def _bare(name: str) -> str:
    return name[1:-1] if re.fullmatch(r"""".*"|'.*'|\[.*\]""", name, re.DOTALL) else name
