"""legion-ctl service: a peer that the system's service manager starts with the user's session or with the machine.

On Linux a user unit of systemd is written and started. For launchd and Windows' Task Scheduler the file is written, and the
commands that load it are shown: nothing is started there.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated
from xml.sax.saxutils import escape

from cyclopts import App, Parameter

from legion_p2p.cli.failures import DONE, FAILED
from legion_p2p.errors import StoreError, UsageError
from legion_p2p.files.paths import shown
from legion_p2p.files.writing import make_folder, write_whole

SYSTEMCTL_S = 90.0  # a peer that leaves in order has up to 75 s
UNIT = "legion-peer.service"
LABEL = "org.legion-p2p.peer"
TASK = "legion-peer"

service = App(name="service", help="Start a peer automatically: systemd, launchd, Task Scheduler.")


@service.command
def install(*words: Annotated[str, Parameter(allow_leading_hyphen=True, metavar="OPTIONS")]) -> int:
    """Write a service that runs legion-peer with these options, and start it if the system has systemd.

    Example: legion-ctl service install --run NAME --initial-peers @/home/me/peers.txt --when idle

    Parameters
    ----------
    words
        Options of legion-peer.
    """
    if not any(word.partition("=")[0] in ("--run", "--new-run", "--config") for word in words):
        raise UsageError("service install: give the options of legion-peer, at least --run NAME")
    kind = kind_here()
    path, text = file_of(kind, (command(), *words))
    make_folder(path.parent)
    write_whole(path, text.encode("utf-16" if kind == "task" else "utf-8"))
    print(f"written to {shown(path)}")
    if kind != "systemd":
        print("\n".join(how_to_start(kind, path)))
        return DONE
    for step in (("daemon-reload",), ("enable", UNIT), ("restart", UNIT)):  # one that runs takes its new options as well
        _systemctl(*step)
    print(f"started; from now on it starts with each session. {_linger_hint()}")
    return DONE


@service.command
def uninstall() -> int:
    """Stop the service and remove its file. The peer leaves its run in order.

    Example: legion-ctl service uninstall
    """
    kind = kind_here()
    path = path_of(kind)
    if kind == "systemd" and path.exists():
        _systemctl("disable", "--now", UNIT)
    elif kind != "systemd":
        print("\n".join(how_to_stop(kind, path)))
    if not path.exists():
        print("no service is installed")
        return DONE
    path.unlink()
    if kind == "systemd":
        _systemctl("daemon-reload")
    print(f"removed {shown(path)}")
    return DONE


@service.command
def status() -> int:
    """Show whether the service is installed and runs. Exits with 1 if it does not.

    Example: legion-ctl service status
    """
    kind = kind_here()
    path = path_of(kind)
    if not path.exists():
        print("no service is installed: legion-ctl service install --run NAME")
        return FAILED
    print(f"installed: {shown(path)}")
    if kind != "systemd":
        return DONE
    asked = _run("is-active", UNIT)
    print(f"state: {asked.stdout.strip() or 'unknown'}; its lines: journalctl --user -u {UNIT}")
    return DONE if asked.returncode == 0 else FAILED


def kind_here() -> str:
    """systemd, launchd or task. Raises: UsageError, where there is none of them."""
    if sys.platform == "darwin":
        return "launchd"
    if sys.platform == "win32":
        return "task"
    if shutil.which("systemctl") is None:
        raise UsageError("there is no systemd on this machine: start legion-peer the way other services are started here")
    return "systemd"


def command() -> str:
    """The legion-peer beside the Python that runs. Raises: UsageError, if it is nowhere."""
    beside = Path(sys.executable).with_name("legion-peer.exe" if sys.platform == "win32" else "legion-peer")
    found = str(beside) if beside.exists() else shutil.which("legion-peer")
    if found is None:
        raise UsageError("legion-peer is not installed where it can be found: pip install legion_p2p")
    return found


def path_of(kind: str) -> Path:
    """Where the system looks for it."""
    home = Path.home()
    if kind == "systemd":
        return Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "systemd" / "user" / UNIT
    if kind == "launchd":
        return home / "Library" / "LaunchAgents" / f"{LABEL}.plist"
    return home / f"{TASK}.xml"


def file_of(kind: str, words: tuple[str, ...]) -> tuple[Path, str]:
    """The file of a service of this kind that runs these words. Raises: UsageError, for a word that no such file can hold."""
    if any("\n" in word or "\0" in word for word in words):
        raise UsageError("service install: an option with a line break")
    made = {"systemd": systemd_unit, "launchd": launchd_plist, "task": scheduler_task}[kind]
    return path_of(kind), made(words)


def systemd_unit(words: tuple[str, ...]) -> str:
    return f"""[Unit]
Description=Peer of legion_p2p

[Service]
ExecStart={" ".join(_systemd_quoted(word) for word in words)}
Restart=on-failure
RestartSec=30
# Leaving in order hands over what only this peer has.
KillSignal=SIGTERM
TimeoutStopSec=75
SuccessExitStatus=143
LimitNOFILE=4096
Nice=5

[Install]
WantedBy=default.target
"""


def launchd_plist(words: tuple[str, ...]) -> str:
    arguments = "\n".join(f"    <string>{escape(word)}</string>" for word in words)
    return f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key>
  <string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array>
{arguments}
  </array>
  <key>RunAtLoad</key>
  <true/>
  <key>KeepAlive</key>
  <dict>
    <key>SuccessfulExit</key>
    <false/>
  </dict>
  <key>ExitTimeOut</key>
  <integer>75</integer>
  <key>ProcessType</key>
  <string>Background</string>
</dict>
</plist>
"""


def scheduler_task(words: tuple[str, ...]) -> str:
    program, *options = words
    return f"""<?xml version="1.0" encoding="UTF-16"?>
<Task version="1.2" xmlns="http://schemas.microsoft.com/windows/2004/02/mit/task">
  <Triggers>
    <LogonTrigger>
      <Enabled>true</Enabled>
    </LogonTrigger>
  </Triggers>
  <Settings>
    <MultipleInstancesPolicy>IgnoreNew</MultipleInstancesPolicy>
    <ExecutionTimeLimit>PT0S</ExecutionTimeLimit>
    <Priority>8</Priority>
    <RestartOnFailure>
      <Interval>PT1M</Interval>
      <Count>999</Count>
    </RestartOnFailure>
  </Settings>
  <Actions>
    <Exec>
      <Command>{escape(program)}</Command>
      <Arguments>{escape(subprocess.list2cmdline(options))}</Arguments>
    </Exec>
  </Actions>
</Task>
"""


def how_to_start(kind: str, path: Path) -> list[str]:
    """The commands that load the file."""
    if kind == "launchd":
        return ["to start it:", f"  launchctl bootstrap gui/$(id -u) {shlex.quote(str(path))}"]
    return ["to start it, run in a terminal:", f'  schtasks /Create /TN {TASK} /XML "{path}"', f"  schtasks /Run /TN {TASK}"]


def how_to_stop(kind: str, path: Path) -> list[str]:
    """The commands that unload it."""
    if kind == "launchd":
        return ["to stop it:", f"  launchctl bootout gui/$(id -u) {shlex.quote(str(path))}"]
    return ["to stop it:", f"  schtasks /End /TN {TASK}", f"  schtasks /Delete /TN {TASK} /F"]


def _systemd_quoted(word: str) -> str:
    """A word as ExecStart= reads it: % and $ stand for themselves only where they are doubled."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return plain if plain and not any(c in plain for c in " \t'\"\\;") else f'"{plain}"'


def _linger_hint() -> str:
    return "To let it run while nobody is logged in: loginctl enable-linger"


def _systemctl(*words: str) -> None:
    """Raises: StoreError, if systemd refuses."""
    asked = _run(*words)
    if asked.returncode:
        said = " ".join((asked.stderr or asked.stdout).split())[:300]
        raise StoreError(f"systemctl --user {' '.join(words)} failed: {said or f'exit code {asked.returncode}'}")


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            ["systemctl", "--user", *words], capture_output=True, text=True, timeout=SYSTEMCTL_S, check=False
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as failed:
        raise StoreError(f"systemctl --user {' '.join(words)}: {failed}") from failed
