"""Single mutations of CUDA C++: what scripts/mutate-kernels tries. Works on tokens; what does not compile is thrown away later.

Kinds, as a comment `// mutant: KIND: reason` names them:
  barrier    __syncthreads, __syncwarp, a fence deleted
  copy       a wait or commit of asynchronous copies deleted, or one more group left under way
  guard      if (...) return; (or continue, break) deleted
  term       one term of a && b or a || b deleted
  condition  a comparison replaced by true or by false
  clamp      min(a, b) or max(a, b) replaced by a or by b
  flip       < and <=, > and >= exchanged
  loop       the first or the last round of a for loop left out

Code that only one of the two compilers sees (#if with MPA_HOST or __CUDA_ARCH__) is left alone: nothing could show the difference here.
"""
import re
from dataclasses import dataclass

WORDS = re.compile(
    r"""(?P<comment>//[^\n]*|/\*.*?\*/)|(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+')|(?P<number>\.?\d(?:[eEpP][+-]|[\w.'])*)
    |(?P<name>[A-Za-z_]\w*)|(?P<sign>(?<=\s)>>=?|<<=?|<=|>=|==|!=|&&|\|\||[-+*/%&|^]=|->|::|\+\+|--|[^\s\w])""",
    re.DOTALL | re.VERBOSE,
)
CLOSES = {")": "(", "]": "[", "}": "{", ">": "<"}
ASSIGNS = {"=", "+=", "-=", "*=", "/=", "%=", "&=", "|=", "^=", "<<=", ">>="}
ORDERED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">"}
COMPARES = {*ORDERED, "==", "!="}
BARRIERS = {"__syncthreads", "__syncwarp", "__threadfence", "__threadfence_block"}
COPIES = re.compile(r"cp_async\w*_(wait|commit)\w*|mbarrier_\w+|fence_\w+|wgmma_(fence|commit|wait)\w*|bar_sync\w*|named_barrier\w*")
# What ends a term of && or ||, and what ends a side of a comparison.
TERM_ENDS = {",", ";", "?", ":", "return", "||", "{", "}", *ASSIGNS}
SIDE_ENDS = TERM_ENDS | {"&&", "&", "|", "^", "==", "!="}
# Not run, or of no effect at run time.
SKIPPED = {"static_assert", "template", "__launch_bounds__", "alignas"}


@dataclass(frozen=True)
class Token:
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Mutant:
    kind: str
    start: int
    end: int
    new: str
    what: str

    def apply(self, text):
        """The changed text; what is deleted leaves blanks, so that lines and columns stay."""
        old = text[self.start : self.end]
        pad = re.sub(r"[^\n]", " ", old)[len(self.new) :] if "\n" not in old[: len(self.new)] else ""
        return text[: self.start] + self.new + pad + text[self.end :]


def blanked(text):
    return re.sub(r"[^\n]", " ", text)


def visible(text):
    """The text with comments, contents of strings, preprocessor lines and one-sided code blanked: offsets stay."""
    def hide(match):
        if match["comment"]:
            return blanked(match[0])
        return match[0][0] + " " * (len(match[0]) - 2) + match[0][-1] if match["string"] else match[0]

    out, conditions, goes_on = [], [], False
    for line in WORDS.sub(hide, text).splitlines(keepends=True):
        directive = re.match(r"\s*#\s*(\w+)", line)
        if directive and not goes_on:
            if directive[1] in ("if", "ifdef", "ifndef"):
                conditions.append("MPA_HOST" in line or "__CUDA_ARCH__" in line)
            elif directive[1] == "endif" and conditions:
                conditions.pop()
        hidden = goes_on or directive or any(conditions)
        goes_on = bool(directive or goes_on) and line.rstrip().endswith("\\")
        out.append(blanked(line) if hidden else line)
    return "".join(out)


class Source:
    """The tokens of a file and which brackets belong together."""

    def __init__(self, text):
        self.text = visible(text)
        self.tokens = [Token(m[0], m.start(), m.end()) for m in WORDS.finditer(self.text)]
        self.pair = {}
        self.outer = []  # of each token: the bracket that it stands in, or None
        open_ = []
        for i, token in enumerate(self.tokens):
            if token.text in "([{" or (token.text == "<" and self.is_bracket(i)):
                self.outer.append(open_[-1] if open_ else None)
                open_.append(i)
                continue
            if token.text in CLOSES and (token.text != ">" or self.is_bracket(i)):
                # A template's bracket that was none is dropped when the one around it closes.
                while open_ and self.at(open_[-1]) == "<" and CLOSES[token.text] != "<":
                    open_.pop()
                if open_ and self.at(open_[-1]) == CLOSES[token.text]:
                    self.pair[i] = open_.pop()
                    self.pair[self.pair[i]] = i
            self.outer.append(open_[-1] if open_ else None)

    def at(self, i):
        return self.tokens[i].text if 0 <= i < len(self.tokens) else ""

    def is_bracket(self, i):
        """Of < and >: a template's; a comparison has blanks on both sides (the code is formatted)."""
        token = self.tokens[i]
        spaced = self.text[token.start - 1 : token.start].isspace() and self.text[token.end : token.end + 1].isspace()
        return not spaced or self.at(i - 1) == "template"

    def left(self, i, ends):
        """The first token of what ends before token i."""
        i -= 1
        while i >= 0 and self.at(i) not in ends:
            if i in self.pair and self.pair[i] < i:
                i = self.pair[i]
            elif i in self.pair or self.at(i) in "([{":
                break
            i -= 1
        return i + 1

    def right(self, i, ends):
        """The last token of what begins after token i."""
        i += 1
        while i < len(self.tokens) and self.at(i) not in ends:
            if i in self.pair and self.pair[i] > i:
                i = self.pair[i]
            elif i in self.pair or self.at(i) in ")]}":
                break
            i += 1
        return i - 1

    def words(self, first, last):
        return self.text[self.tokens[first].start : self.tokens[last].end]

    def replace(self, kind, first, last, new, what=None):
        old = " ".join(self.words(first, last).split())
        return Mutant(kind, self.tokens[first].start, self.tokens[last].end, new, what or f"`{old}` -> `{new}`")

    def skipped(self, i):
        """Inside what has no effect at run time."""
        while (i := self.outer[i]) is not None:
            if self.at(i - 1) in SKIPPED:
                return True
        return False


def calls(source, i):
    """Deleted barriers, waits and commits; waits that leave one more group under way."""
    name = source.at(i)
    kind = "barrier" if name in BARRIERS else "copy" if COPIES.fullmatch(name) else None
    if not kind or source.at(i - 1) not in (";", "{", "}", ")", "else", ":", ""):
        return
    bracket = source.pair.get(i + 1) if source.at(i + 1) == "<" else None
    end = source.pair.get(i + 1 if bracket is None else bracket + 1)
    if end is None or source.at(end + 1) != ";":
        return
    yield source.replace(kind, i, end, "", f"`{source.words(i, end)}` deleted")
    if bracket is not None and "wait" in name:
        yield source.replace(kind, i + 2, bracket - 1, f"({source.words(i + 2, bracket - 1)}) + 1")


def leaves(source, i):
    """Of an `if` at i: the last token of `if (...) return ...;`, else None."""
    end = source.pair.get(i + 1) if source.at(i) == "if" and source.at(i + 1) == "(" else None
    if end is None:
        return None
    braces = source.at(end + 1) == "{"
    first = end + (2 if braces else 1)
    if source.at(first) not in ("return", "continue", "break"):
        return None
    last = source.right(first, {";"}) + 1
    last += braces
    whole = source.at(last) == ("}" if braces else ";") and source.at(last + 1) != "else"
    return last if whole else None


def guards(source, i):
    last = leaves(source, i)
    if last is not None:
        yield source.replace("guard", i, last, ";", f"`{' '.join(source.words(i, last).split())}` deleted")


def terms(source, i):
    if source.at(i) not in ("&&", "||") or source.skipped(i):
        return
    ends = TERM_ENDS | {"&&"} if source.at(i) == "&&" else TERM_ENDS - {"||"}
    first, last = source.left(i, ends), source.right(i, ends | {"||"})
    if first < i < last and (source.at(first - 1) != source.at(i)):
        yield source.replace("term", first, i, "", f"`{source.words(first, i)}` deleted")
    if first < i < last:
        yield source.replace("term", i, last, "", f"`{source.words(i, last)}` deleted")


def comparisons(source, i):
    sign = source.at(i)
    if sign not in COMPARES or (sign in "<>" and source.is_bracket(i)) or source.skipped(i):
        return
    opener = source.outer[i]
    keyword = source.at(opener - 1) if opener is not None and source.at(opener) == "(" else ""
    # A number that is halved until it is 0 stays 0.
    halved = keyword == "for" and re.search(r"/=|>>=", source.words(opener, source.pair[opener]))
    if sign in ORDERED and not halved:
        yield source.replace("flip", i, i, ORDERED[sign])
    first, last = source.left(i, SIDE_ENDS), source.right(i, SIDE_ENDS)
    if not first < i < last:
        return
    around = source.at(first - 1), source.at(last + 1)
    # A term's deletion says the same; a loop that does not end, and a guard that always leaves, are noticed by anything.
    if {"&&", "||"} & set(around) or keyword == "for":
        return
    for new in ("true", "false"):
        loop_forever = keyword == "while" and new == "true"
        guard = keyword == "if" and leaves(source, opener - 1) is not None
        if not (loop_forever or guard):
            yield source.replace("condition", first, last, new)


def clamps(source, i):
    if source.at(i) not in ("min", "max", "fminf", "fmaxf") or source.at(i + 1) != "(" or source.at(i - 1) in (".", "::"):
        return
    end = source.pair.get(i + 1)
    comma = source.right(i + 1, {","}) + 1
    if end is None or not comma < end or source.right(comma, {","}) + 1 != end:
        return
    for first, last in ((i + 2, comma - 1), (comma + 1, end - 1)):
        yield source.replace("clamp", i, end, f"({source.words(first, last)})")


def step_of(source, first, last):
    """By how much `x += S`, `x++` and the like go on, and which way."""
    for i in range(first, last + 1):
        if source.at(i) in ("+=", "-="):
            return f"({source.words(i + 1, last)})", source.at(i)[0]
        if source.at(i) in ("++", "--"):
            return "1", source.at(i)[0]
    return "1", None


def loops(source, i):
    if source.at(i) != "for" or source.at(i + 1) != "(" or i + 1 not in source.pair:
        return
    end = source.pair[i + 1]
    semicolon = source.right(i + 1, {";"}) + 1
    second = source.right(semicolon, {";"}) + 1
    if not (source.at(semicolon) == source.at(second) == ";" and second + 1 < end):
        return
    step, way = step_of(source, second + 1, end - 1)
    begin = source.right(i + 1, {"=", ";"}) + 1
    if way and source.at(begin) == "=":
        last = source.right(begin, {",", ";"})
        start = f"({source.words(begin + 1, last)}) {way} {step}"
        yield source.replace("loop", begin + 1, last, start)
    for k in range(semicolon + 1, second):
        if source.at(k) in ORDERED and not (source.at(k) in "<>" and source.is_bracket(k)) and source.outer[k] == i + 1:
            last = source.right(k, SIDE_ENDS)
            less = "-" if source.at(k)[0] == "<" else "+"
            yield source.replace("loop", k + 1, last, f"({source.words(k + 1, last)}) {less} {step}")


def mutants(text):
    """All mutants of a file, in the order of its lines."""
    source = Source(text)
    found = {}
    for i in range(len(source.tokens)):
        for make in (calls, guards, terms, comparisons, clamps, loops):
            for mutant in make(source, i):
                found.setdefault((mutant.start, mutant.end, mutant.new), mutant)
    return sorted(found.values(), key=lambda m: (m.start, m.end, m.new))


def explanation(lines, number, kind):
    """The reason of `// mutant: KIND: reason` on line `number` (from 1) or in the comment right above it, and the line it stands on."""
    above = number - 1
    while above >= 1 and lines[above - 1].lstrip().startswith("//"):
        above -= 1
    for n in range(above + 1, number + 1):
        for match in re.finditer(r"//\s*mutant:\s*([\w, ]+):\s*(.+)", lines[n - 1]):
            if kind in re.split(r",\s*", match[1].strip()):
                return match[2], n
    return None
