"""One process of the demo: it runs the commands of legion_p2p that the demo names, and never outlives it.

The demo holds the other end of this process's stdin. A line `{"module": ..., "args": [...]}` runs a command here as
`python -m module args` would; when the demo ends, however that happens (kill -9 too), stdin ends, and so does this process.
What takes long to import is imported first, beside the others, so that all of them start their work within moments.
"""

import json
import os
import queue
import runpy
import signal
import sys
import threading
from typing import Any

LOADED = "loaded"


def main() -> None:
    orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), name="demo", daemon=True).start()
    if "--preload" in sys.argv:
        import legion_p2p.peer
        import legion_p2p.train.trainer  # noqa: F401
    print(json.dumps({"event": LOADED}), flush=True)
    while True:
        order = orders.get()
        sys.argv = [order["module"], *order["args"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)


def _listen(orders: "queue.SimpleQueue[dict[str, Any]]") -> None:
    rest = b""
    while data := os.read(0, 1 << 16):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            orders.put(json.loads(line))
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


if __name__ == "__main__":
    main()
