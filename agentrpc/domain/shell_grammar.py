"""Bash's grammar as a parser, and what the kinds of its nodes mean to the reader."""

import re
from collections.abc import Iterator
from functools import cache

import tree_sitter
import tree_sitter_bash


@cache
def grammar() -> tuple[tree_sitter.Parser, tree_sitter.Query]:
    """The parser, and what finds expansions and substitutions in its trees."""
    language = tree_sitter.Language(tree_sitter_bash.language())
    return tree_sitter.Parser(language), tree_sitter.Query(language, f"[{' '.join(f'({x})' for x in EXPANSIONS)}] @x")


EXPANSIONS = (
    "command_substitution", "process_substitution", "expansion", "simple_expansion", "arithmetic_expansion", "array",
)  # fmt: skip
BODIES = frozenset({
    "do_group", "elif_clause", "else_clause", "if_statement", "list", "negated_command", "pipeline", "subshell",
    "while_statement",
})  # fmt: skip
SEVERAL = frozenset({"list", "negated_command", "pipeline"})
SIMPLE = frozenset({
    "command", "declaration_command", "unset_command", "variable_assignment", "variable_assignments",
})  # fmt: skip
REDIRECTS = frozenset({"file_redirect", "heredoc_redirect", "herestring_redirect"})
# Tokens of the grammar that stand between statements.
TOKENS = frozenset({
    "!", "&", "&&", "(", ")", ";", "do", "done", "elif", "else", "fi", "if", "in", "then", "until", "while", "{",
    "|", "|&", "||", "}", "\n",
})  # fmt: skip
# What bash takes for its own at the beginning of a command; a simple command that begins so was read wrongly.
RESERVED = frozenset({
    "!", "[[", "]]", "case", "do", "done", "elif", "else", "esac", "fi", "for", "function", "if", "in", "select",
    "then", "until", "while", "{", "}",
})  # fmt: skip
GAP = re.compile(r"(?:[ \t\n]|(?<=[ \t\n])\\\n)*")
ASSIGNMENT = re.compile(r"([A-Za-z_][A-Za-z0-9_]*(?:\[[0-9]+\])?\+?)=")
CONTINUED = re.compile(r"[^'\"$`]*\\\n")
TORN = re.compile(r"[<>$|&;(){}!`\[\]]\\\n")
# What may stand before a descriptor; the empty text is the beginning of the line.
_BEFORE = frozenset({"", *" \t\n;&|()<>`"})
INDEXED = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\[")
PLAIN_VALUE = re.compile(r"[A-Za-z0-9_./@%+,: -]*")
# Operators of `[[ … ]]` whose operands are arithmetic.
CALCULATING = frozenset({"-eq", "-ge", "-gt", "-le", "-lt", "-ne", "-R", "-v"})
# Variables whose values bash runs, or reads commands from.
HIDES = re.compile(r"BASH_ENV|ENV|PS[0-9]|PROMPT_COMMAND|BASH_FUNC.*|SHELLOPTS|BASHOPTS")
LOOP_NAME = re.compile(r"[a-z][a-z0-9]*")
FUNCTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


def flat(node: tree_sitter.Node) -> list[tree_sitter.Node]:
    """The children of a node; of a list, which the grammar nests to the left, those of the lists in it."""
    parts: list[tree_sitter.Node] = []
    while node.type == "list" and node.children[0].type == "list":
        parts += reversed(node.children[1:])
        node = node.children[0]
    return [*node.children, *reversed(parts)]


def misread(root: tree_sitter.Node, text: str) -> bool:
    """Whether the grammar took part of a word, such as `-`, into an operator or descriptor, as it does before `<<`."""
    for node in _nodes(root):
        found = text[node.start_byte : node.end_byte]
        if node.type == "file_descriptor":
            if not found.isdecimal() or text[: node.start_byte][-1:] not in _BEFORE:
                return True
        elif not node.is_named and node.type != found:
            return True
    return False


def _nodes(root: tree_sitter.Node) -> Iterator[tree_sitter.Node]:
    cursor = root.walk()
    while True:
        if cursor.node is not None:
            yield cursor.node
        if cursor.goto_first_child():
            continue
        while not cursor.goto_next_sibling():
            if not cursor.goto_parent():
                return
