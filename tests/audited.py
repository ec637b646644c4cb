"""Runs reproduce.py and writes down which files it writes, what it starts and connects to.

    python -m tests.audited LOG [arguments of reproduce.py]

It uses one of Python's audit hooks. They cannot be removed, so this needs a process of its own. LOG
gets one JSON list per line: the kind of event and its object. Programs that the run starts are not
followed, and files that a library opens from C or Rust are not seen.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

EVENTS: list[tuple[str, str]] = []
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
#: For each event, the positions of the arguments that are paths it changes.
_CHANGING = {
    "os.rename": (0, 1),
    "os.link": (1,),
    "os.symlink": (1,),
    "os.truncate": (0,),
    **dict.fromkeys(("os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.chown"), (0,)),
    **dict.fromkeys(("shutil.copyfile", "shutil.copytree", "shutil.move"), (1,)),
    "shutil.rmtree": (0,),
}
_STARTING = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")


def hook(event: str, arguments: tuple[Any, ...]) -> None:
    """Keeps an event if it writes, starts or connects to something."""
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes | os.PathLike) and flags & _WRITING:
            EVENTS.append(("write", os.path.abspath(os.fsdecode(path))))
    elif event in _CHANGING:
        for index in _CHANGING[event]:
            if isinstance(arguments[index], str | bytes | os.PathLike):
                EVENTS.append(("write", os.path.abspath(os.fsdecode(arguments[index]))))
    elif event == "subprocess.Popen":
        EVENTS.append(("start", " ".join(map(os.fsdecode, arguments[1]))))
    elif event in _STARTING:
        EVENTS.append(("start", f"{event} {arguments[0]}"))
    elif event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
        EVENTS.append(("connect", str(arguments[1:] if "." in event else arguments)))


if __name__ == "__main__":
    sys.addaudithook(hook)
    import reproduce

    status = reproduce.main(sys.argv[2:])
    lines = [json.dumps(event) + "\n" for event in EVENTS]
    with open(sys.argv[1], "w", encoding="utf-8") as log:
        log.writelines(lines)
    sys.exit(status)
