"""Why a run of ATC, msame or ais_bench failed, by the lines that it printed.

failures.json is the table of causes: a row has lower-case regular expressions for printed lines (`texts`, each begins
with plain letters), or error codes of CANN (`codes`, a whole one or the beginning of several), our error, what it means
or what to do, and the source. The wording is ours. Rows apply in this order:
 - of kind `first`: a text that leaves no doubt, wherever it stands (a full disk, a program that cannot start);
 - of no kind: the first of CANN's own messages that a text or a code applies to; then texts of other lines; then the
   code of an inner error, which says nothing;
 - `own`: what the tool itself says, not CANN;
 - texts of warnings, which are only perhaps the cause;
 - `symptom`: a text that follows from something else, whose row names what is possible.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, Optional

import msgspec

from deberta.core import errors
from deberta.core.errors import DebertaError, StageError

_LONGEST_LINE = 1000  # of a longer line this many characters of its beginning and of its end are looked at and shown
_MOST_DETAILS = 50  # lines that are kept of one message
_LEVELS = "DEBUG|INFO|EVENT|TRACE|WARN|WARNING|ERROR|FATAL|CRITICAL"
# `[ERROR] ...`, `[ACL ERROR] ...`, maybe behind a progress bar; `ERROR: ...`, `2026-01-14 06:41:59,991 - INFO - ...`.
_AT_START = rf"^[0-9/:., TZ-]{{0,40}}(?:[\w.]{{1,40}} - )?({_LEVELS})(?=[: ])"
_LEVEL = re.compile(rf"{_AT_START}|(?i:\[(?:[a-z]{{1,20}} )?({_LEVELS})\])")
_LEVEL_AT_START = re.compile(_AT_START)
_LINES = re.compile(r"[^\r\n]+")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[mK]")  # of a terminal
_TRACEBACK = "Traceback (most recent call last):"
# `E10016: ...`, `[ACL ERROR] EE1001: [PID: 129520] 2025-07-08-10:25:28.680.962 ...`, and since CANN 8.5
# `[PID: 129520] 2025-07-08-10:25:28.680.962 Title_Words(EZ3002): ...`, where process and time may be left out.
_STAMP = r"(?:\[PID: *\d{1,20}\] *)?(?:\d[\d:.-]{3,40} *){0,2}"
_CODE = r"([EW][0-9A-Z]\d{4})"
_MESSAGE = re.compile(
    rf"(?:\[[A-Z ]{{1,20}}\] *)?{_STAMP}(?:[A-Za-z][\w/ .-]{{0,100}}\({_CODE}\):?|{_CODE}:) *{_STAMP}(.*)"
)
_DETAIL = re.compile(r"(?:E[0-9A-Z]\d{4})?[ \t]+(.*)")  # the line below, indented or after the code again
_MOST_ERRORS = 3  # that a message shows where no row applies
_ERROR, _PLAIN, _WARNING, _INFORMATION = "error", "plain", "warning", "information"


class FailureRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row of failures.json. `error` is one of our classes; {0} in `advice` is what a text's first group matched."""

    tools: tuple[str, ...]
    error: str
    advice: str
    source: str
    texts: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()
    kind: Literal["first", "", "own", "symptom"] = ""


class FailureTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """failures.json. `sources`: what a row's source stands for."""

    sources: dict[str, str]
    rows: tuple[FailureRow, ...]


TABLE = msgspec.json.decode(Path(__file__).with_name("failures.json").read_bytes(), type=FailureTable)


class Message(NamedTuple):
    """`<code>: <text>` of CANN's; `details` are the lines that belong to it, up to a traceback."""

    code: str
    text: str
    details: Sequence[str] = ()

    @property
    def is_generic(self) -> bool:
        """E19999, EE9999, EZ9999 ...: each part of CANN has one for inner errors, and any other code says more."""
        return self.code.endswith("9999")

    @property
    def line(self) -> str:
        return f"{self.code}: {self.text}"

    @property
    def first_lines(self) -> str:
        """With its first detail, which says what an inner error was."""
        return " ".join((self.line, *self.details[:1]))


class Printed(NamedTuple):
    """The lines of a run, each once and in order. `errors`: those of level ERROR and above, from their level on.

    `plain`: errors and lines without a level; `warnings`: of level WARN; `last`: the last error, or else the last line,
    empty if nothing was printed; `coded`: CANN's own error messages.
    """

    errors: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    last: str = ""
    coded: tuple[Message, ...] = ()


class Cause(NamedTuple):
    """A row that applies: the printed text that shows it, and the row's error and advice."""

    text: str
    error: str
    advice: str
    symptom: bool = False


def lines_of(stdout: str) -> list[str]:
    """What was printed, as lines without colours and empty ones; a progress bar's returns end lines too."""
    return _LINES.findall(_COLOUR.sub("", stdout) if "\x1b" in stdout else stdout)


def read(stdout: str) -> Printed:
    """Sort what a run printed, stdout and stderr together, by level. Lines of level INFO and below are left out.

    A traceback that begins on a line with a level has that level, up to the line that names the exception.
    """
    leveled: dict[str, tuple[str, str]] = {}
    known: set[tuple[str, str]] = set()
    quoted = ""  # the level of the traceback that goes on
    lines: dict[str, list[str]] = {_ERROR: [], _PLAIN: [], _WARNING: [], _INFORMATION: []}
    last: dict[str, str] = {}
    for line in lines_of(stdout):
        level, text = leveled[line] if line in leveled else leveled.setdefault(line, _leveled(line))
        if level != _PLAIN:
            quoted = level if _TRACEBACK in line and level != _ERROR else ""
        elif quoted:
            level, quoted = quoted, quoted if line[0] in " \t" else ""
        if (level, text) not in known:
            known.add((level, text))
            lines[level].append(text)
            if level == _ERROR:
                lines[_PLAIN].append(text)
        if text:
            last[level] = last[""] = text
    errors, plain, warnings = (tuple(lines[level]) for level in (_ERROR, _PLAIN, _WARNING))
    own = messages(plain) if re.search(_CODE, stdout) else ()
    coded = tuple(message for message in own if message.code.startswith("E"))
    return Printed(errors, plain, warnings, last.get(_ERROR) or last.get("", ""), coded)


def _leveled(line: str) -> tuple[str, str]:
    """A line's level and text; without a level the text is the whole line."""
    if len(line) > 2 * _LONGEST_LINE:
        line = f"{line[:_LONGEST_LINE]} ... {line[-_LONGEST_LINE:]}"
    match = _LEVEL.search(line) if "[" in line else _LEVEL_AT_START.match(line)
    if match is None:
        return _PLAIN, line.rstrip()
    name = next(filter(None, match.groups())).upper()
    if name in ("ERROR", "FATAL", "CRITICAL"):
        return _ERROR, line[match.start() :].rstrip()
    return _WARNING if name.startswith("WARN") else _INFORMATION, line.rstrip()


def messages(lines: Iterable[str]) -> list[Message]:
    """CANN's own messages, errors and warnings, with the lines that belong to each."""
    known: list[Message] = []
    details: Optional[list[str]] = None  # of the last message, while its lines go on
    for line in lines:
        indented = line[:1] in (" ", "\t")
        if not indented and (match := _MESSAGE.fullmatch(line)):
            details = []
            known.append(Message(match[1] or match[2], match[3].strip(), details))
        elif details is None or "TraceBack" in line or not line:
            details = None
        elif not known[-1].text:  # it begins below its code
            known[-1] = known[-1]._replace(text=line.strip())
        elif (match := _DETAIL.fullmatch(line)) is None:
            details = None
        elif len(details) < _MOST_DETAILS:
            details.append(match[1].strip())
    return known


def failure(tool: str, printed: Printed, otherwise: DebertaError, sure: bool = True) -> DebertaError:
    """The error of a run that must not count: the cause that its lines show, and its last line.

    `otherwise`: what is known without them; it is the error if they show no cause. `sure` is False for a run that says
    of itself that all went well: a cause is then only possible.
    """
    cause = find(tool, printed)
    shown = [cause.text] if cause else list(printed.errors[:_MOST_ERRORS])
    telling = min(printed.coded, key=_says_little, default=None)
    if telling and (telling.details or "Inner Error" not in telling.text) and (cause is None or cause.symptom):
        shown.insert(0, telling.first_lines)
    shown = [text.strip() for text in dict.fromkeys(shown)]
    clean = _clean(printed.last.strip())
    label = "last error: " if printed.last in printed.errors else "last line: "
    last = f"{label}{clean}" if clean else "it printed nothing"
    last = "" if clean and any(clean.rstrip(" .") in text for text in shown) else last
    if cause is None and (not shown or not sure):
        return type(otherwise)(f"{str(otherwise).rstrip(' .')}; {last or shown[0]}")
    lines = "; ".join(text.rstrip(" .") for text in (*shown, last) if text)
    if cause is None:
        return type(otherwise)(f"{tool}: {lines}: {otherwise}")
    if not sure:
        return type(otherwise)(f"{str(otherwise).rstrip(' .')}. Perhaps {tool}: {lines}: {cause.advice}")
    kind: type[DebertaError] = getattr(errors, cause.error)
    return kind(f"{tool}: {lines}: {cause.advice}")


def ended(tool: str, exit_code: int) -> str:
    """How the system ended a tool, by its exit code or a shell's for it; empty if none of its signals did."""
    number = -exit_code if exit_code < 0 else exit_code - 128 if 128 < exit_code < 160 else 0
    if number == 9:
        return f"{tool} was killed, most likely because memory ran out"
    return f"{tool} was ended by signal {number}" if number else ""


def _clean(line: str) -> str:
    """A message of CANN's without process and time; another line as it is."""
    return next((message.line for message in messages([line])), line)


def _says_little(message: Message) -> tuple[bool, bool]:
    """Inner errors come last, and of them those that say nothing else: the reason is in a second one, or in details."""
    return message.is_generic, message.text.startswith("Inner Error") > len(message.details)


def explain(tool: str, lines: Sequence[str]) -> Optional[DebertaError]:
    """The error of a program's first cause that any of the lines shows; None if none does."""
    printed = read("\n".join(lines))
    return failure(tool, printed, StageError("")) if find(tool, printed) else None


def find(tool: str, printed: Printed) -> Optional[Cause]:
    """The cause of a failed run by the first row that applies; None if none does."""
    rows: dict[str, list[FailureRow]] = {kind: [] for kind in ("first", "", "own", "symptom")}
    for row in TABLE.rows:
        if tool in row.tools and row.texts:
            rows[row.kind].append(row)
    plain = _Text.of(printed.plain)
    is_own = rows["own"] or rows["symptom"]
    of_tool = _Text.of([line for line in printed.plain if not _MESSAGE.fullmatch(line)] if is_own else ())
    return (
        _by_text(rows["first"], plain)
        or _by_message(tool, rows[""], [message for message in printed.coded if not message.is_generic])
        or _by_text(rows[""], plain)
        or _by_code(tool, sorted((message for message in printed.coded if message.is_generic), key=_says_little))
        or _by_text(rows["own"], of_tool)
        or _possible(_by_text([*rows["first"], *rows[""], *rows["own"]], _Text.of(printed.warnings)))
        or _by_text(rows["symptom"], of_tool)
    )


class _Text(NamedTuple):
    """Lines, and the same in lower case in one text, which is searched in time that grows with its length."""

    lines: Sequence[str]
    text: str

    @classmethod
    def of(cls, lines: Sequence[str]) -> _Text:
        return cls(lines, "\n".join(lines).lower())

    def place(self, row: FailureRow) -> Optional[int]:
        """The number of the first line that one of the row's texts is in."""
        matches = [_compiled(text).search(self.text) for text in row.texts if _beginning(text) in self.text]
        starts = [match.start() for match in matches if match]
        return self.text.count("\n", 0, min(starts)) if starts else None


@functools.cache
def _compiled(text: str) -> re.Pattern[str]:
    return re.compile(text)


@functools.cache
def _beginning(text: str) -> str:
    """The plain characters that an expression begins with: to look for them is many times faster."""
    plain = re.match(r"(?:[\w '`=:-](?![?*+{]))*", text)
    assert plain is not None
    return plain[0]


def _by_text(rows: Sequence[FailureRow], text: _Text) -> Optional[Cause]:
    for row in rows:
        place = text.place(row)
        if place is not None:
            return _cause(row, _clean(text.lines[place].strip()))
    return None


def _by_message(tool: str, rows: Sequence[FailureRow], own: Sequence[Message]) -> Optional[Cause]:
    """The first message that a row knows; one of the rows' texts says more than the message's code."""
    text = _Text.of([" ".join((message.text, *message.details)) for message in own])
    places = [(place, row) for row in rows for place in [text.place(row)] if place is not None]
    first, by_text = min(places, key=lambda place: place[0], default=(len(own), None))
    by_code = _by_code(tool, own[:first])
    if by_code or by_text is None:
        return by_code
    return _cause(by_text, own[first].line, text.lines[first])


def _by_code(tool: str, own: Sequence[Message]) -> Optional[Cause]:
    """The first message whose code a row has: the whole code, or else its beginning."""
    first: dict[str, Message] = {}
    for message in own:
        first.setdefault(message.code, message)
    rows = _rows_of_codes(tool)
    for code, message in first.items():
        row = rows.get(code) or rows.get(code[:3])
        if row:
            return _cause(row, message.first_lines if message.is_generic else message.line)
    return None


@functools.cache
def _rows_of_codes(tool: str) -> dict[str, FailureRow]:
    return {code: row for row in TABLE.rows if tool in row.tools for code in row.codes}


def _possible(cause: Optional[Cause]) -> Optional[Cause]:
    return cause and cause._replace(advice=f"perhaps: {cause.advice}", symptom=True)


def _cause(row: FailureRow, shown: str, line: str = "") -> Cause:
    line = line or shown
    matches = (re.search(text, same, re.IGNORECASE) for same in (line, line.lower()) for text in row.texts)
    groups = next((match.groups("") for match in matches if match), ())
    return Cause(shown, row.error, row.advice.format(*groups), row.kind == "symptom")
