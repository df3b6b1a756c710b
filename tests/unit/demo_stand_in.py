"""Stands in for the commands that the demo starts: says what they would say, and trains nothing."""

import json
import os
import sys
import time

STEP_S = 0.01


def say(event: str, **fields: object) -> None:
    print(json.dumps({"event": event, "at": time.time(), **fields}), flush=True)


def value(of: str, default: str = "0") -> str:
    return sys.argv[sys.argv.index(of) + 1] if of in sys.argv else default


def main() -> None:
    if "--listen" in sys.argv and "--steps" not in sys.argv:
        print("--initial-peers /ip4/127.0.0.1/tcp/1/p2p/12D3KooW", flush=True)
        time.sleep(600)
    is_alone = "--times" in sys.argv
    if not is_alone:
        say("status.served", address="127.0.0.1:1")
    for step in range(1, int(value("--steps")) + 1):
        time.sleep(STEP_S)
        say("step", step=step, loss=1.0, tokens_per_s=1.0)
    say("lone.finished" if is_alone else "run.finished", step=int(value("--steps")), val_loss=1.0, tokens_per_s=1.0)
    if not is_alone:
        os._exit(0)  # as commands end


if __name__ == "__main__":
    main()
