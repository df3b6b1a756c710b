"""Introduce peers to each other, from Python: what the command legion-bootstrap does. Imports no torch.

    python examples/03_host_a_bootstrap_node.py --listen /ip4/0.0.0.0/tcp/4710 --identity bootstrap.key

It prints what to paste after a peer's command, and runs until Ctrl+C. With the same key file and port it has the same address
after a restart. Under trio, this fits into any nursery of a larger program.
"""

import argparse
import signal

import trio

import legion_p2p as legion


async def host(listen: list[str], identity: str | None) -> None:
    # A signal is waited for as an event, so that it always ends the block and never some task inside it.
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with legion.open_bootstrap(listen=listen, identity=identity) as node:
            print("--initial-peers", *node.addresses(), flush=True)
            await anext(signals)
    print("left")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listen", nargs="+", default=["/ip4/127.0.0.1/tcp/0"], metavar="ADDR", help="where to listen")
    parser.add_argument("--identity", metavar="FILE", help="key file, made on first use; none: a new identity each time")
    args = parser.parse_args()
    trio.run(host, args.listen, args.identity)
