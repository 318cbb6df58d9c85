"""Completion of command lines: what may follow, and the scripts by which bash, zsh and fish ask for it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from invoke.exceptions import ParseError

from deberta.host.cli.command import COMMANDS

# Each asks the program as it was typed, so that `inv` on PATH, ./inv and /path/inv all complete.
SCRIPTS = {
    "bash": r"""# Completion for inv, ./inv and /path/inv: eval "$(./inv --print-completion-script bash)" in ~/.bashrc.
_deberta_ascend() {
    local program=${COMP_WORDS[0]/#\~/$HOME} line
    COMPREPLY=()
    while IFS= read -r line; do
        [ -z "$line" ] || COMPREPLY+=("$line")
    done < <("$program" --complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -o default -F _deberta_ascend inv ./inv
""",
    "zsh": r"""# Completion for inv, ./inv and /path/inv: eval "$(./inv --print-completion-script zsh)" in ~/.zshrc.
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_deberta_ascend() {
    local program=${words[1]/#\~/$HOME}
    local -a candidates
    candidates=("${(@f)$("$program" --complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    candidates=(${candidates:#})
    if (( $#candidates )); then compadd -a candidates; else _files; fi
}
compdef _deberta_ascend inv ./inv
""",
    "fish": r"""# Completion for inv, ./inv and /path/inv: ./inv --print-completion-script fish | source in config.fish.
function __deberta_ascend
    set -l words (commandline --current-process --tokenize --cut-at-cursor)
    set -l program (string replace --regex '^~' $HOME -- $words[1])
    set -l current (commandline --current-token --cut-at-cursor)
    set -l candidates ($program --complete -- $words[2..-1] "$current" 2>/dev/null)
    if test (count $candidates) -gt 0
        printf '%s\n' $candidates
    else
        __fish_complete_path "$current"
    end
end
complete --command inv --no-files --arguments '(__deberta_ascend)'
""",
}


def script(shell: str) -> str:
    """The script for a shell. Raises ParseError for a shell that has none."""
    if shell not in SCRIPTS:
        raise ParseError(f"there is no completion for {shell!r}, only for: {', '.join(SCRIPTS)}")
    return SCRIPTS[shell]


def candidates(line: str, core: Sequence[str], profiles: Iterable[str]) -> list[str]:
    """What the last word of a line may become; nothing where it may be any file or text.

    `core`: the program's own options. Words have no quotes: a path with spaces completes as a file.
    """
    *before, current = line.split(" ")
    if before and os.path.basename(before[0]) in ("inv", "invoke"):  # plain invoke's own script gives it too
        before = before[1:]
    position = next((at for at, word in enumerate(before) if word in COMMANDS), None)
    if position is None:
        known = core if current.startswith("-") else [*COMMANDS]
        return _starting(current, [] if before and before[-1] in ("-f", "--config") else known)
    command = COMMANDS[before[position]]
    flags = {flag: entry for entry in command.all_options for flag in entry.flags}
    previous = flags.get(before[-1])
    if previous is not None and previous.kind is not bool:
        values = profiles if previous.name == "profile" else previous.choices
        return _starting(current, values)
    typed = [word for word in before[position + 1 :] if not word.startswith("-")]
    positional = [entry for entry in command.options.values() if entry.positional]
    if not current.startswith("-") and len(typed) < len(positional):
        entry = positional[len(typed)]
        return _starting(current, COMMANDS if entry.name == "task" else entry.choices)
    if before[-1:] == [before[position]] and before[position] == "explain":
        return _starting(current, COMMANDS)
    return _starting(current, ["--help", *(flag for flag, entry in flags.items() if not entry.positional)])


def _starting(current: str, values: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(value for value in values if value.startswith(current)))
