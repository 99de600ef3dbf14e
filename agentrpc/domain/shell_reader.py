"""The walk over the tree that bash's grammar (tree-sitter-bash) makes of a line.

The grammar is generous where bash is not, so all that it says is checked: whatever lies between two nodes must be
blank, words are taken apart here, and a node of a kind that is not known here makes the line uncertain. Uncertain means
that bash may run more than was found, never that nothing was.
"""

import re

import tree_sitter

from agentrpc.domain import shell_grammar as kinds
from agentrpc.domain.shell_expansions import (
    EXPANDED,
    NUMBER,
    check_arithmetic,
    check_content,
    check_document,
    check_parameter,
    may_be_expression,
)
from agentrpc.domain.shell_script import Assignment, Command, Script, in_folders
from agentrpc.domain.shell_words import Redirect, Unsure, Word, Words

__all__ = ["Reader"]

_MAX_COMMANDS = 1000
_MAX_DEPTH = 100


class Reader:
    """One walk over the tree of a line."""

    def __init__(self, line: str) -> None:
        self._line = line
        # One letter for each, so that places in the tree are places in the line; other letters mean nothing to bash.
        self._text = line if line.isascii() else re.sub(r"[^\x00-\x7f]", ".", line)
        self._why = ""
        self._commands: list[tuple[int, Command]] = []
        self._changes: list[str] = []
        self._calculates = self._sets_expression = False
        self._nodes: dict[int, tree_sitter.Node] = {}
        self._words = Words(line, {}, self._expansion)
        self._depth = 0
        # Where commands may run again after a later one, or in an unknown order.
        self._repeated: list[tuple[int, int]] = []
        self._root: tree_sitter.Node | None = None

    def doubt(self, why: str) -> None:
        """Note that bash may run something else; the first reason stays."""
        self._why = self._why or why

    def script(self) -> Script:
        """What was read."""
        if self._calculates and (self._sets_expression or any("function" in change for change in self._changes)):
            self.doubt("it calculates with a variable that it sets")
        if len(self._commands) > _MAX_COMMANDS:
            self.doubt(f"it has more than {_MAX_COMMANDS} commands")
        return Script(
            self._line,
            certain=not self._why,
            why=self._why,
            commands=tuple(in_folders(self._commands, self._repeated, None if self._why else self._root)),
            changes=tuple(dict.fromkeys(self._changes)),
            calculates=self._calculates,
        )

    def read(self) -> None:
        """Walk over the tree.

        Raises:
            Unsure: Bash may read it otherwise, so that it makes no sense to go on.
        """
        parser, query = kinds.grammar()
        root = parser.parse(self._text.encode()).root_node
        self._root = root
        if root.has_error:
            self.doubt("bash's grammar does not cover all of it")
        if kinds.TORN.search(self._text):
            self.doubt("a line that goes on in the middle of an operator or an expansion")
        if kinds.misread(root, self._text):
            self.doubt("an operator that the grammar makes of more than it is")
        found = tree_sitter.QueryCursor(query).captures(root).get("x", [])
        self._nodes = {node.start_byte: node for node in found}
        self._words = Words(self._line, {node.start_byte: node.end_byte for node in found}, self._expansion)
        # What stands before the first statement and behind the last belongs to no node.
        try:
            self._body(root, 0, len(self._text))
        except Unsure as doubt:
            self.doubt(str(doubt))
            self._rescue(root)

    # Statements.

    def _statement(self, node: tree_sitter.Node) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise Unsure("it is nested too deeply")
        try:
            self._dispatch(node)
        except Unsure as doubt:
            self.doubt(str(doubt))
            # Whatever can be found all the same is denied all the same.
            self._rescue(node)
        finally:
            self._depth -= 1

    def _rescue(self, node: tree_sitter.Node) -> None:
        for child in node.children:
            if child.is_named and child.type not in {"word", "comment"} and self._depth <= _MAX_DEPTH:
                self._statement(child)

    def _dispatch(self, node: tree_sitter.Node) -> None:
        kind = node.type
        if kind in kinds.SIMPLE:
            self._simple([node], node)
        elif kind == "redirected_statement":
            self._redirected(node)
        elif kind in kinds.BODIES:
            if kind == "while_statement":
                self._repeated.append((node.start_byte, node.end_byte))
            self._body(node, node.start_byte, node.end_byte)
        elif kind == "compound_statement":
            if self._text.startswith("((", node.start_byte):
                self._arithmetic(node, 2)
            elif not self._text.startswith(("{ ", "{\t", "{\n"), node.start_byte):
                raise Unsure("a brace that begins a word")
            else:
                self._body(node, node.start_byte, node.end_byte)
        elif kind in {"for_statement", "c_style_for_statement"}:
            self._loop(node)
        elif kind == "case_statement":
            self._case(node)
        elif kind == "function_definition":
            self._function(node)
        elif kind == "test_command":
            self._test(node)
        else:
            raise Unsure("it holds something that is not known here")

    def _body(self, node: tree_sitter.Node, start: int, end: int) -> None:
        self._statements(kinds.flat(node), start, end)

    def _statements(
        self, nodes: list[tree_sitter.Node], start: int, end: int, *, tokens: frozenset[str] = kinds.TOKENS
    ) -> None:
        """Statements and the tokens between them."""
        at, separated = start, True
        for child in nodes:
            gap = self._gap(at, child.start_byte)
            at = child.end_byte
            if child.type == "comment":
                self._comment(child)
            elif not child.is_named:
                if child.type not in tokens:
                    raise Unsure("it holds something that is not known here")
                separated = True
            elif child.type in kinds.REDIRECTS:
                self._simple([child], child)
            else:
                self._separated(child, gap, separated=separated)
                separated = False
                self._statement(child)
        self._gap(at, end)

    def _separated(self, node: tree_sitter.Node, gap: str, *, separated: bool) -> None:
        if not separated and "\n" not in gap and node.type not in {"do_group", "elif_clause", "else_clause"}:
            self.doubt("two commands without a separator")

    def _gap(self, start: int, end: int) -> str:
        """What lies between two nodes, which must be blank."""
        gap = self._text[start:end]
        if gap and not kinds.GAP.fullmatch(self._text, start, end) and not (start == 0 and gap.startswith("\\\n")):
            raise Unsure("it holds something that the grammar passes over")
        return gap

    def _comment(self, node: tree_sitter.Node) -> None:
        before, after = self._text[: node.start_byte][-1:], self._text[node.end_byte :][:1]
        inside = self._text[node.start_byte : node.end_byte]
        if before not in {"", " ", "\t", "\n", ";", "&", "|", "(", ")"} or after not in {"", "\n"} or "\n" in inside:
            raise Unsure("a comment that bash may end elsewhere")

    # Simple commands.

    def _redirected(self, node: tree_sitter.Node) -> None:
        body = node.child_by_field_name("body")
        parts = [child for child in node.children if child.type in kinds.REDIRECTS]
        at = node.start_byte
        for child in node.children:
            if "\n" in self._gap(at, child.start_byte).replace("\\\n", "") or child.type == "comment":
                self.doubt("a redirection at the beginning of a line")
            at = child.end_byte
        if body is None:
            self._simple(parts, node)
        elif body.type in kinds.SIMPLE:
            self._simple([body, *parts], node)
        else:
            self._statement(body)
            last = body
            while last.type in kinds.SEVERAL:
                last = next(child for child in reversed(last.children) if child.is_named and child.type != "comment")
            # Of several commands the last is redirected; of a compound one all of it, before anything in it runs.
            self._simple(parts, node if last is body else parts[0], of=last)

    def _simple(
        self, parts: list[tree_sitter.Node], whole: tree_sitter.Node, *, of: tree_sitter.Node | None = None
    ) -> None:
        """A simple command, in the order in which its parts are written; or what redirects a command before it."""
        items: list[Word | Redirect] = []
        documents = [part for part in parts if part.type == "heredoc_redirect"]
        try:
            for part in parts:
                if part not in documents:
                    items += self._words.read(part.start_byte, part.end_byte)
            for part in documents:
                items += self._document(part)
            if len(documents) > 1:
                self.doubt("two here-documents on one line")
        except Unsure as doubt:
            self.doubt(str(doubt))
            self._guess(parts)
        words = [item for item in items if isinstance(item, Word)]
        redirects = tuple(item for item in items if isinstance(item, Redirect))
        source = self._line[whole.start_byte : documents[0].start_byte if documents else whole.end_byte].strip()
        if of is not None:
            self._redirects(of, words, redirects, parts)
            return
        assignments = self._assignments(words)
        if words and words[0].source in kinds.RESERVED:
            self.doubt("a word that bash keeps for itself, in a place that it has not")
        if words and kinds.INDEXED.match(words[0].source):
            self.doubt("an index that is calculated")
        for assignment in assignments:
            if kinds.HIDES.fullmatch(assignment.name.removesuffix("+")):
                self.doubt(f"it sets {assignment.name}")
        if not words:
            self._changes += [f"it sets {assignment.name}" for assignment in assignments]
        if words or redirects or assignments:
            self._commands.append((whole.start_byte, Command(tuple(words), assignments, redirects, source)))

    def _assignments(self, words: list[Word]) -> tuple[Assignment, ...]:
        """Take the assignments off the beginning of a command."""
        found = []
        if any(kinds.CONTINUED.match(word.source) for word in words):
            # It may be a name, or a word that bash keeps for itself: here it does not look like one.
            self.doubt("a word that goes on in the next line")
        while words and (name := kinds.ASSIGNMENT.match(words[0].source)):
            value = self._value(words.pop(0), name.end())
            found.append(Assignment(name[1], value))
            self._set(value)
        return tuple(found)

    def _redirects(
        self, node: tree_sitter.Node, words: list[Word], redirects: tuple[Redirect, ...], parts: list[tree_sitter.Node]
    ) -> None:
        """Redirections behind a command that was read before; what stands behind them is its arguments."""
        for index, (start, command) in enumerate(self._commands):
            if start == node.start_byte and node.type in kinds.SIMPLE and command.words:
                source = self._line[start : parts[-1].end_byte]
                both = (*command.words, *words), command.assignments, (*command.redirects, *redirects)
                self._commands[index] = (start, Command(*both, source))
                return
        if words:
            self.doubt("words behind a redirection of several commands")
        self._commands.append((node.start_byte, Command((), (), redirects)))

    def _value(self, word: Word, start: int) -> Word:
        source = word.source[start:]
        if word.text is None or word.tilde:
            return Word(None, source, "")
        return Word(word.text[start:], source, word.text[start:])

    def _set(self, value: Word) -> None:
        """Remember whether a variable gets a value that arithmetic would take for an expression."""
        if value.text is None or not kinds.PLAIN_VALUE.fullmatch(value.text):
            self._sets_expression = True

    def _guess(self, parts: list[tree_sitter.Node]) -> None:
        """Look for commands in what cannot be taken apart, so that what is denied is found there too."""
        for node in list(self._nodes.values()):
            inside = any(part.start_byte <= node.start_byte < part.end_byte for part in parts)
            if inside and node.type in {"command_substitution", "process_substitution"} and self._depth <= _MAX_DEPTH:
                self._rescue(node)
        name = parts[0].child_by_field_name("name") if parts else None
        if name is not None and re.fullmatch(r"[\w./-]+", self._line[name.start_byte : name.end_byte]):
            text = self._line[name.start_byte : name.end_byte]
            unknown = Word(None, "", "", splits=True)
            self._commands.append((name.start_byte, Command((Word(text, text, text), unknown), source=text)))

    def _document(self, node: tree_sitter.Node) -> list[Word | Redirect]:
        """A here-document and what follows its beginning on the same line; returns the words there."""
        items: list[Word | Redirect] = []
        body = start = end = None
        at = node.start_byte
        for child in node.children:
            kind = child.type
            self._gap(at, child.start_byte)
            at = child.end_byte
            if kind == "heredoc_start":
                start = child
            elif kind == "heredoc_body":
                body = child
            elif kind == "heredoc_end":
                end = child
            elif kind in {"file_redirect", "herestring_redirect"}:
                items += self._words.read(child.start_byte, child.end_byte)
            elif kind == "pipeline":
                self._body(child, child.start_byte, child.end_byte)
            elif child.is_named and kind != "file_descriptor":
                if node.child_by_field_name("operator") is None or child.type in {"word", "string", "concatenation"}:
                    raise Unsure("a here-document with more on its line")
                self._statement(child)
            elif kind not in {"<<", "<<-", "&&", "||", "file_descriptor"}:
                raise Unsure("a here-document with more on its line")
        if start is None or end is None:
            raise Unsure("a here-document that does not end")
        content = check_document(
            self._line,
            (start.start_byte, start.end_byte),
            (end.start_byte, end.end_byte),
            tabs=self._text.startswith("<<-", start.start_byte - 3),
        )
        if body is not None and self._text[content : body.start_byte].strip(" \t\n"):
            raise Unsure("a here-document that bash may begin elsewhere")
        if self._line[start.start_byte] not in "'\"\\":
            check_content(self._shown(content, end.start_byte))
        return items

    # Compound commands.

    def _loop(self, node: tree_sitter.Node) -> None:
        self._repeated.append((node.start_byte, node.end_byte))
        body = node.child_by_field_name("body")
        if body is None or node.children[0].type == "select":
            raise Unsure("a loop of an unknown form")
        self._statement(body)
        if node.type == "c_style_for_statement":
            begin = self._text.find("((", node.start_byte) + 2
            end = self._text.rfind("))", begin, body.start_byte)
            if begin < node.start_byte or end < 0:
                raise Unsure("a loop of an unknown form")
            self._calculation(begin, end)
        else:
            self._loop_head(node)

    def _loop_head(self, node: tree_sitter.Node) -> None:
        """`for NAME in WORDS`."""
        at = node.start_byte
        values = []
        for child in node.children[:-1]:
            self._gap(at, child.start_byte)
            at = child.end_byte
            if child.type == "variable_name":
                name = self._line[child.start_byte : at]
                if kinds.HIDES.fullmatch(name):
                    self.doubt(f"it sets {name}")
                if not kinds.LOOP_NAME.fullmatch(name):
                    self._changes.append(f"it sets {name}")
            elif child.is_named and child.type != "comment":
                values.append(child)
            elif child.type not in {"for", "in", ";", "\n"}:
                raise Unsure("a loop of an unknown form")
        for item in self._words.read(values[0].start_byte, values[-1].end_byte) if values else ():
            if isinstance(item, Redirect):
                raise Unsure("a loop of an unknown form")
            self._set(item)

    def _case(self, node: tree_sitter.Node) -> None:
        at = node.start_byte
        for child in node.children:
            self._gap(at, child.start_byte)
            at = child.end_byte
            if child.type == "case_item":
                self._case_item(child)
            elif child.type == "comment":
                self._comment(child)
            elif child.is_named:
                self._words.read(child.start_byte, child.end_byte)
            elif child.type not in {"case", "in", "esac", ";", "\n"}:
                raise Unsure("a case of an unknown form")

    def _case_item(self, node: tree_sitter.Node) -> None:
        """Patterns, `)`, statements."""
        at, close = node.start_byte, next((i for i, child in enumerate(node.children) if child.type == ")"), None)
        for child in node.children[:close]:
            gap = self._gap(at, child.start_byte)
            at = child.end_byte
            if child.is_named:
                after, word = self._words.word(child.start_byte, at)
                if after != at or word.source == "esac" or "\n" in gap:
                    raise Unsure("a pattern of an unknown form")
            elif child.type not in {"(", "|"}:
                raise Unsure("a case of an unknown form")
        if close is None:
            raise Unsure("a case of an unknown form")
        rest = node.children[close:]
        self._gap(at, rest[0].start_byte)
        self._statements(rest[1:], rest[0].end_byte, node.end_byte, tokens=kinds.TOKENS | {";;", ";&", ";;&"})

    def _function(self, node: tree_sitter.Node) -> None:
        self._repeated.append((0, len(self._text)))
        at = node.start_byte
        for child in node.children:
            self._gap(at, child.start_byte)
            at = child.end_byte
            if child.type == "word":
                name = self._line[child.start_byte : child.end_byte]
                self._changes.append(f"it defines the function {name}")
                if not kinds.FUNCTION_NAME.fullmatch(name):
                    self.doubt("a function with an odd name")
            elif child.type in kinds.REDIRECTS:
                self._simple([child], child, of=node)
            elif child.is_named:
                self._statement(child)
            elif child.type not in {"function", "(", ")"}:
                raise Unsure("a function of an unknown form")

    def _test(self, node: tree_sitter.Node) -> None:
        """`[ … ]` is a command with words; `[[ … ]]` has a grammar of its own."""
        if not self._text.startswith("[[", node.start_byte):
            self._simple([node], node)
            return
        start, end = node.start_byte + 2, node.end_byte - 2
        at, words = start, []
        while at < end:
            letter = self._text[at]
            if letter in " \t()<>!&|" and at not in self._nodes:
                at += 1
                continue
            if letter in "\n;#" or self._text.startswith("]]", at):
                raise Unsure("a test of an unknown form")
            at, word = self._words.word(at, end)
            words.append(word)
        if any(word.source in kinds.CALCULATING for word in words):
            # The operands are expressions.
            self._calculates = True
            if any(may_be_expression(word) for word in words):
                self.doubt("it calculates with a text")

    # Expansions.

    def _expansion(self, at: int) -> None:
        """Look into an expansion or substitution that a word holds."""
        node = self._nodes[at]
        self._depth += 1
        try:
            if self._depth > _MAX_DEPTH:
                raise Unsure("it is nested too deeply")
            if node.type in {"command_substitution", "process_substitution"}:
                self._substitution(node)
            elif node.type == "expansion":
                self._parameter(node)
            elif node.type == "arithmetic_expansion":
                if not self._text.startswith("$((", at):
                    raise Unsure("arithmetic of an old form")
                self._arithmetic(node, 3)
            elif node.type == "array":
                self._words.read(node.start_byte + 1, node.end_byte - 1, lines=True)
        finally:
            self._depth -= 1

    def _substitution(self, node: tree_sitter.Node) -> None:
        text = self._text[node.start_byte : node.end_byte]
        opening = 1 if text.startswith("`") else 2
        inside = text[opening:-1]
        if opening == 1 and re.search(r"[\\#`]|<<", inside):
            self.doubt("backticks that hold a backslash, a comment or a here-document")
        self._statements(node.children[1:-1], node.start_byte + opening, node.end_byte - 1)

    def _shown(self, start: int, end: int) -> str:
        """The text of a stretch without the expansions that the grammar shows there, which are looked into."""
        shown, at = "", start
        while at < end:
            node = self._nodes.get(at)
            if node is not None:
                self._expansion(at)
                at = node.end_byte
                shown += NUMBER if node.type == "arithmetic_expansion" else EXPANDED
            else:
                after = min(
                    (place for place in (self._text.find(letter, at, end) for letter in "$`<>(") if place > at),
                    default=end,
                )
                shown += self._text[at:after]
                at = after
        return shown

    def _parameter(self, node: tree_sitter.Node) -> None:
        """`${…}`: what stands in it is taken for text but for the substitutions that the grammar shows."""
        found = check_parameter(f"${self._shown(node.start_byte + 1, node.end_byte)}")
        self._calculates = self._calculates or found.calculates
        if found.sets:
            if kinds.HIDES.match(self._text, node.start_byte + 2):
                self.doubt("it sets a variable in an expansion")
            self._changes.append("it sets a variable in an expansion")
            self._sets_expression = True

    def _arithmetic(self, node: tree_sitter.Node, opening: int) -> None:
        if not self._text.startswith("))", node.end_byte - 2):
            raise Unsure("arithmetic of an unknown form")
        self._calculation(node.start_byte + opening, node.end_byte - 2)

    def _calculation(self, start: int, end: int) -> None:
        if any(start <= place < end and node.type == "command_substitution" for place, node in self._nodes.items()):
            self.doubt("it calculates with what a command shows")
        found = check_arithmetic(self._shown(start, end))
        self._calculates = self._calculates or found.calculates
        if found.sets:
            self._changes.append("it calculates")
