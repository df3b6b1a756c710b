"""How the user of this machine tells a running peer what to do: `POST /control` beside the status, on loopback.

Any user of the machine can connect to loopback, and any process can listen on a port that a peer has left. So the user's control
key (store/control_key.py) is never sent. A command comes with a proof that its sender can read the key: an HMAC over a challenge
of the peer, its port and the command. A challenge counts once. A process that listens in place of a peer learns nothing that
another peer would accept, and a web page cannot make a proof.

    GET  /control    {"challenge": "..."}
    POST /control    a command as JSON (core/control.py), its proof in the header Legion-Proof; answered with a ControlStatus
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable

import msgspec
import trio

from legion_p2p.core.control import MAX_COMMAND_BYTES, Command, decode_command, encode_command
from legion_p2p.errors import DecodeError, NetworkError, UsageError
from legion_p2p.net.http_client import LocalAnswer, ask_locally
from legion_p2p.net.http_server import Answer, Asked
from legion_p2p.observe.status import ControlStatus

PATH = "/control"
PROOF = "Legion-Proof"
CONTROL_S = 5.0  # a busy peer answers within one; only a stopped one needs longer
TRIES = 3  # a challenge may be used up by another program of this user between asking and answering
_DOMAIN = b"legion/control/1\0"


def proof_of(key: bytes, challenge: str, port: int, body: bytes) -> str:
    """What shows that whoever sends `body` to the peer at `port` can read the key."""
    said = b"\0".join((_DOMAIN, challenge.encode(), str(port).encode(), body))
    return hmac.new(key, said, hashlib.sha256).hexdigest()


class _Challenge(msgspec.Struct, frozen=True):
    challenge: str


class ControlDoor:
    """The peer's side of it."""

    def __init__(self, key: bytes, obey: Callable[[Command], ControlStatus]) -> None:
        self._key = key
        self._obey = obey
        self._challenge = secrets.token_hex(16)

    def challenge(self) -> Answer:
        """Of `GET /control`."""
        return 200, "application/json", msgspec.json.encode(_Challenge(self._challenge))

    def command(self, asked: Asked) -> Answer:
        """Of `POST /control`."""
        expected = proof_of(self._key, self._challenge, asked.port, asked.body)
        if not hmac.compare_digest(expected.encode(), asked.header(PROOF).encode()):
            return 403, "text/plain", b"only the user of this peer may tell it what to do\n"
        self._challenge = secrets.token_hex(16)
        try:
            status = self._obey(decode_command(asked.body))
        except (DecodeError, UsageError) as bad:
            return 400, "text/plain", f"{bad}\n".encode()
        return 200, "application/json", msgspec.json.encode(status)


async def send_command(host: str, port: int, key: bytes, command: Command) -> ControlStatus:
    """Tell the peer whose status is at `host:port`.

    Raises: NetworkError, if nobody answers there, or the peer belongs to another user; UsageError, if it refuses the command.
    """
    body = encode_command(command)
    assert len(body) <= MAX_COMMAND_BYTES
    answer = LocalAnswer(403, b"")
    for _ in range(TRIES):
        with trio.move_on_after(CONTROL_S) as patience:
            challenge = await _challenge_of(host, port)
            answer = await ask_locally(host, port, PATH, body=body, headers=((PROOF, proof_of(key, challenge, port, body)),))
        if patience.cancelled_caught:
            raise NetworkError(f"{host}:{port} did not answer in {CONTROL_S:g} s (stopped, or very busy)")
        if answer.code != 403:
            break
    text = answer.body.decode(errors="replace").strip()[:300]
    if answer.code == 403:
        raise NetworkError(f"{host}:{port} does not take commands from this user: {text}")
    if answer.code == 400:
        raise UsageError(text)
    try:
        if answer.code == 200:
            return msgspec.json.decode(answer.body, type=ControlStatus)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise NetworkError(f"{host}:{port} answered {answer.code} to a command: {text}")


async def _challenge_of(host: str, port: int) -> str:
    answer = await ask_locally(host, port, PATH)
    try:
        if answer.code == 200:
            return msgspec.json.decode(answer.body, type=_Challenge).challenge
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    raise NetworkError(f"{host}:{port} takes no commands: it is a bootstrap node, a peer of an older version, or none of ours")
