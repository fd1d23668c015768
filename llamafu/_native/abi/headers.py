"""Declarations out of C headers, with no C preprocessor.

libllama promises no stable binary interface, so its own header is the only sure description of a build.
`extract` reads the text of `llama.h` and its neighbours and returns cffi declarations of just the names
that Llamafu uses (`symbols`) and of every type that those need: no comments, no macros, no inline code.
`scripts/extract_cdefs.py` writes the result to `cdefs/`; `families` derives a family from a header
found beside a library in the same way.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_NOISE = re.compile(r'extern\s+"C"\s*\{|"(?:[^"\\\n]|\\.)*"|/\*.*?\*/|//[^\n]*', re.DOTALL)
_ELEMENTS = re.compile(r"\[\s*(\w+)\s*/\s*sizeof\(int(\d+)_t\)\s*\]")
_WORD = re.compile(r"[A-Za-z_]\w*")
_DECORATION = re.compile(r"\b(?:LLAMA_API|GGML_API|GGML_BACKEND_API|MTMD_API|GGML_RESTRICT|GGML_CALL|GGML_DEPRECATED_API)\b")
_ATTRIBUTE = re.compile(r"\b(?:GGML_ATTRIBUTE_FORMAT|__attribute__|LLAMA_ATTRIBUTE_FORMAT)\s*\((?:[^()]|\([^()]*\))*\)")
_TAGGED = re.compile(r"^(?:typedef\s+)?(struct|union|enum)\s+(\w+)\s*(\{.*\})?\s*(\w*)$", re.DOTALL)
_ANONYMOUS = re.compile(r"^typedef\s+(?:struct|union|enum)\s*\{.*\}\s*(\w+)$", re.DOTALL)
_FUNCTION_POINTER = re.compile(r"^typedef\b.*?\(\s*\*\s*(\w+)\s*\)\s*\(", re.DOTALL)
_TYPEDEF = re.compile(r"^typedef\b.*?(\w+)$", re.DOTALL)
_FUNCTION = re.compile(r"^[\w\s*]*?\b(\w+)\s*\((.*)\)$", re.DOTALL)
_DEFINE = re.compile(r"^[ \t]*#[ \t]*define[ \t]+(\w+)[ \t]+\(?(-?(?:0x[0-9a-fA-F]+|\d+))\)?[uUlL]*[ \t]*$", re.MULTILINE)
_KEYWORDS = frozenset(
    "struct union enum typedef const volatile void char short int long float double signed unsigned bool size_t "
    "int8_t uint8_t int16_t uint16_t int32_t uint32_t int64_t uint64_t static inline extern FILE".split()
)


@dataclass(frozen=True, slots=True)
class _Declaration:
    names: tuple[str, ...]
    text: str
    is_function: bool
    is_opaque: bool


def extract(headers: list[str], wanted: frozenset[str]) -> str:
    """Return cffi declarations of `wanted` and of all types that they use.

    `headers` are header texts in the order of inclusion (ggml first). Names that no header declares are left
    out: builds differ in what they offer, and the symbol table says what a library really has.
    """
    constants: dict[str, str] = {}
    declarations: list[_Declaration] = []
    for text in headers:
        constants.update({m[1]: m[2] for m in _DEFINE.finditer(text)})
        declarations.extend(_declarations(text))
    # Tags and functions have namespaces of their own in C: upstream has an enum and a function of one name.
    functions = {d.names[0]: d for d in declarations if d.is_function and d.names[0] in wanted}
    home: dict[str, _Declaration] = {}
    for declaration in declarations:
        for name in () if declaration.is_function else declaration.names:
            known = home.get(name)
            if known is None or (known.is_opaque and not declaration.is_opaque):
                home[name] = declaration
    kept = {id(d) for d in functions.values()} | _closure(wanted, functions, home)
    lines = [_substitute(d.text, constants, home) + ";" for d in declarations if id(d) in kept]
    opaque = sorted(_undeclared_tags(lines, home))
    return "\n".join([*(f"{tag};" for tag in opaque), *lines]) + "\n"


def _closure(wanted: frozenset[str], functions: dict[str, _Declaration], home: dict[str, _Declaration]) -> set[int]:
    """Return the ids of every type declaration that the wanted types and functions need."""
    queue = [home[name] for name in wanted if name in home] + list(functions.values())
    reached: set[int] = set()
    while queue:
        declaration = queue.pop()
        if id(declaration) in reached:
            continue
        reached.add(id(declaration))
        words = set(_WORD.findall(declaration.text)) - _KEYWORDS
        queue.extend(home[word] for word in words if word in home)
    return reached


def _undeclared_tags(lines: list[str], home: dict[str, _Declaration]) -> set[str]:
    """Return the structs that are used through a pointer and declared nowhere: cffi wants them announced."""
    text = "\n".join(lines)
    return {f"{kind} {tag}" for kind, tag in re.findall(r"\b(struct|union)\s+(\w+)", text) if tag not in home}


def _substitute(text: str, constants: dict[str, str], home: dict[str, _Declaration]) -> str:
    """Replace macros in array bounds and enum values by their numbers."""

    def number(match: re.Match[str]) -> str:
        word = match[0]
        return constants[word] if word in constants and word not in home else word

    return _ELEMENTS.sub(lambda match: f"[{int(match[1]) * 8 // int(match[2])}]", _WORD.sub(number, text))


def _declarations(text: str) -> list[_Declaration]:
    # Comments and string literals go in one pass: either may hold what looks like the start of the other.
    body = _NOISE.sub(lambda match: " 0 " if match[0].startswith('"') else " ", text).replace("\\\n", " ")
    body = _without_directives(body)
    body = _ATTRIBUTE.sub(" ", _DECORATION.sub(" ", body))
    body = _unwrap_deprecated(body)
    return [declaration for piece in _split(body) if (declaration := _classify(piece)) is not None]


def _without_directives(text: str) -> str:
    """Drop preprocessor lines; of `#ifdef __cplusplus` and `#if 0` blocks keep only the other branch."""
    kept: list[str] = []
    hidden: list[bool] = []
    for line in text.split("\n"):
        stripped = line.strip()
        if not stripped.startswith("#"):
            if not any(hidden):
                kept.append(line)
            continue
        directive = stripped[1:].strip()
        if directive.startswith("if"):
            hidden.append((directive.endswith("__cplusplus") and not directive.startswith("ifndef")) or directive == "if 0")
        elif directive.startswith(("else", "elif")) and hidden:
            hidden[-1] = not hidden[-1] if directive == "else" else True
        elif directive.startswith("endif") and hidden:
            hidden.pop()
    return "\n".join(kept)


def _unwrap_deprecated(text: str) -> str:
    """`DEPRECATED(declaration, "hint");` -> `declaration;`."""
    while (start := re.search(r"\b(?:GGML_)?DEPRECATED\s*\(", text)) is not None:
        depth, at = 1, start.end()
        comma = at
        while depth and at < len(text):
            char = text[at]
            depth += (char == "(") - (char == ")")
            if char == "," and depth == 1:
                comma = at
            at += 1
        text = text[: start.start()] + text[start.end() : comma] + text[at:]
    return text


def _split(text: str) -> list[str]:
    """Top-level pieces: up to a `;` outside braces, or an inline function body, which is dropped."""
    pieces: list[str] = []
    depth, begin = 0, 0
    for match in re.finditer(r"[{};]", text):
        char, at = match[0], match.start()
        if char == "{":
            depth += 1
        elif char == "}":
            depth = max(0, depth - 1)
            head = text[begin:at].lstrip()
            if depth == 0 and not head.startswith(("typedef", "struct", "union", "enum")):
                begin = at + 1
        elif depth == 0:
            pieces.append(re.sub(r"\s+", " ", text[begin:at]).strip())
            begin = at + 1
    return [piece for piece in pieces if piece]


def _classify(piece: str) -> _Declaration | None:
    """Return what a top-level piece of a header declares; None for what cffi does not need."""
    piece = piece.lstrip("} ")
    if piece.startswith(("static", "extern")):
        return None
    if (match := _TAGGED.match(piece)) is not None:
        tag, braces, alias = match[2], match[3], match[4]
        text = re.sub(r"\bstatic const\b.*?;", "", piece)
        names = (tag, *([alias] if alias else []), *_enumerators(match[1], braces))
        return _Declaration(names, text, is_function=False, is_opaque=braces is None)
    if (match := _ANONYMOUS.match(piece)) is not None:
        return _Declaration((match[1],), piece, is_function=False, is_opaque=False)
    if (match := _FUNCTION_POINTER.match(piece) or _TYPEDEF.match(piece)) is not None:
        return _Declaration((match[1],), piece, is_function=False, is_opaque=False)
    if (match := _FUNCTION.match(piece)) is not None and "{" not in piece:
        return _Declaration((match[1],), piece, is_function=True, is_opaque=False)
    return None


def _enumerators(kind: str, braces: str | None) -> list[str]:
    if kind != "enum" or braces is None:
        return []
    return [m[0] for entry in braces.strip("{} ").split(",") if (m := _WORD.search(entry)) is not None]
