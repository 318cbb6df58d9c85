"""Why a user may not connect to an engine's socket that is there, and what to do about it."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from typing import NamedTuple

_OWN_ENGINE = "an engine of your own (rootless Docker or Podman, and DOCKER_HOST)"


class Refusal(NamedTuple):
    reason: str
    advice: str


class Caller(NamedTuple):
    """A user: name, the groups of this session, and those that the system's tables give, which a new session has.

    `known`: whether the system's tables have the user at all; commands for it need the name.
    """

    name: str
    groups: frozenset[int]
    granted: frozenset[int]
    known: bool = True


def caller() -> Caller:
    """The user of this process."""
    groups = frozenset((os.getegid(), *os.getgroups()))
    try:
        entry = pwd.getpwuid(os.geteuid())
    except KeyError:
        return Caller(f"user {os.geteuid()}", groups, frozenset(), known=False)
    return Caller(entry.pw_name, groups, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)))


def status_of(path: str) -> os.stat_result:
    """The owner, group and mode of a socket."""
    return os.stat(path)


def refusal(path: str, user: Caller) -> Refusal:
    """The rights of the socket and its folders, and the user's groups, decide."""
    try:
        status = status_of(path)
    except OSError:
        return Refusal(
            f"a folder above it is closed to {user.name}",
            f"Correct the path, or use {_OWN_ENGINE}",
        )
    owner, group = _user_name(status.st_uid), _group_name(status.st_gid)
    if status.st_gid in user.groups and status.st_mode & stat.S_IWGRP:
        return Refusal(
            f"the system refuses it, though {user.name} is in its group {group}",
            "See whether SELinux or AppArmor does (ausearch -m avc, dmesg)",
        )
    if status.st_gid == 0 or not status.st_mode & stat.S_IWGRP:
        mode = f"{stat.S_IMODE(status.st_mode):o}"
        return Refusal(
            f"it is {owner}'s alone (mode {mode}, group {group})",
            f"Run this command as {owner}, or use {_OWN_ENGINE}",
        )
    if status.st_gid in user.granted:
        return Refusal(
            f"{user.name} was put into its group {group} after this session began",
            f"Log in again, or run in this terminal: newgrp {group}",
        )
    advice = f"Use {_OWN_ENGINE}"
    if user.known:
        advice = f"Run: sudo usermod -aG {group} {user.name}, and log in again; or use {_OWN_ENGINE}"
    return Refusal(f"it is for the group {group}, which {user.name} is not in", advice)


def _user_name(number: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(number).pw_name
    return f"user {number}"


def _group_name(number: int) -> str:
    with contextlib.suppress(KeyError):
        return grp.getgrgid(number).gr_name
    return str(number)
