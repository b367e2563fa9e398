"""Program with prestarted children: it tells what they know, does what it is told, and may be killed.

`python -m tests.support.programs.prestarting [THREAD]`: with an argument it has a second thread before it starts them.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from multiprocessing.connection import Connection

from ggufd.processes.prestarted import PrestartedProcess

WAIT_S = 60.0

imported: list[str] = []
"""What a copy of this process has, and a process of its own has not."""


def tell(conn: Connection, word: str) -> None:
    """Main of a child: tells what it has, then waits for the end of its pipe."""
    conn.send((word, list(imported), os.getppid()))
    conn.recv()


def main() -> None:
    if len(sys.argv) > 1:
        threading.Thread(target=time.sleep, args=(WAIT_S,), daemon=True).start()
    imported.append("before")
    children = [PrestartedProcess(name, tell, may_fork=True) for name in ("one", "two")]
    told = []
    for child in children:
        child.conn.send((child.process.name,))
        assert child.conn.poll(WAIT_S)
        told.append([*child.conn.recv(), child.process.pid])
    print(json.dumps(told), flush=True)
    for line in sys.stdin:
        child = children[int(line)]
        child.conn.close()
        child.process.join(WAIT_S)
        print(json.dumps(child.process.exitcode), flush=True)


if __name__ == "__main__":
    main()
