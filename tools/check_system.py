#!/usr/bin/env python3
"""Is there what pip cannot bring? Tells in a second, with the one command that mends it, before pip works for minutes and fails.

    python3 tools/check_system.py [--venv .venv]

libp2p needs fastecdsa 2.3.2, which pip must compile on most systems: that takes a C compiler, the headers of GMP, and those of
Python. Exit code 0: all there, or not needed; 1: something is missing. LEGION_SKIP_SYSTEM_CHECK=1 skips it.

Written for any Python 3.6 or newer: it also has to tell the owner of an old one that it is too old.
"""

import argparse
import glob
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile

OLDEST, NEWEST = (3, 11), (3, 13)
PROGRAM = "#include <gmp.h>\nint main(void) { mpz_t n; mpz_init(n); mpz_clear(n); return 0; }\n"

# What each package manager calls the missing things, and how it is told to install them.
PACKAGES = {
    "apt-get": {"cc": "gcc libc6-dev", "gmp": "libgmp-dev", "headers": "python{v}-dev", "venv": "python{v}-venv"},
    "dnf": {"cc": "gcc", "gmp": "gmp-devel", "headers": "python3-devel", "venv": "python3"},
    "pacman": {"cc": "gcc", "gmp": "gmp", "headers": "python", "venv": "python"},
    "zypper": {"cc": "gcc", "gmp": "gmp-devel", "headers": "python3-devel", "venv": "python3"},
    "brew": {"cc": "gcc", "gmp": "gmp", "headers": "python@{v}", "venv": "python@{v}"},
}
INSTALL = {
    "apt-get": "{sudo}apt-get update && {sudo}apt-get install -y {packages}",
    "dnf": "{sudo}dnf install -y {packages}",
    "pacman": "{sudo}pacman -S --needed --noconfirm {packages}",
    "zypper": "{sudo}zypper --non-interactive install {packages}",
    "brew": "brew install {packages}",
}
BREW_PATHS = 'export CPATH="$(brew --prefix)/include" LIBRARY_PATH="$(brew --prefix)/lib"'  # clang does not look there by itself
WORDS = {
    "cc": "a C compiler",
    "gmp": "the headers of GMP (gmp.h)",
    "headers": "the headers of Python (Python.h)",
    "venv": "Python's venv module",
}


def must_compile(system, machine, version):
    """Whether fastecdsa 2.3.2 comes as source only. It has wheels for Apple silicon alone; on Windows libp2p does without it."""
    if system == "Windows":
        return False
    return not (system == "Darwin" and machine == "arm64" and version in ((3, 11), (3, 12)))


def is_installed(venv):
    """Whether `venv` has fastecdsa already."""
    return bool(glob.glob(os.path.join(venv, "lib*", "python*", "site-packages", "fastecdsa")))


def compiler():
    """The command that builds extensions of Python here, or an empty list."""
    for line in (os.environ.get("CC"), sysconfig.get_config_var("CC"), "cc", "gcc", "clang"):
        words = shlex.split(line or "")
        if words and shutil.which(words[0]):
            return words
    return []


def finds_gmp(cc):
    """Whether `cc` compiles and links a program that uses GMP."""
    with tempfile.TemporaryDirectory() as folder:
        source = os.path.join(folder, "gmp.c")
        with open(source, "w") as file:
            file.write(PROGRAM)
        cflags, ldflags = (shlex.split(os.environ.get(name, "")) for name in ("CFLAGS", "LDFLAGS"))
        words = [*cc, *cflags, source, "-o", os.path.join(folder, "gmp"), *ldflags, "-lgmp"]
        return subprocess.call(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) == 0


def dotted(version):
    return "{}.{}".format(*version[:2])


def tell(text):
    print("check_system: " + text, file=sys.stderr)


def has_module(name):
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def missing(venv):
    """What is not there, as keys of WORDS."""
    found = []
    if not os.path.exists(os.path.join(venv, "bin", "pip")) and not (has_module("venv") and has_module("ensurepip")):
        found.append("venv")  # Debian and Ubuntu keep it apart
    if is_installed(venv) or not must_compile(platform.system(), platform.machine(), sys.version_info[:2]):
        return found
    cc = compiler()
    if not cc:
        found.append("cc")
    if not cc or not finds_gmp(cc):
        found.append("gmp")
    if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
        found.append("headers")
    return found


def command(lacking, which=shutil.which, is_root=None):
    """The one command that brings what is lacking; empty where no package manager is known."""
    manager = next((name for name in PACKAGES if which(name)), None)
    if manager is None:
        return ""
    if is_root is None:
        is_root = not hasattr(os, "geteuid") or os.geteuid() == 0
    version = dotted(sys.version_info)
    packages = " ".join(PACKAGES[manager][what].format(v=version) for what in lacking)
    line = INSTALL[manager].format(sudo="" if is_root else "sudo ", packages=packages)
    return line + " && " + BREW_PATHS if manager == "brew" and "gmp" in lacking else line


def main():
    options = argparse.ArgumentParser(description="Check for what pip cannot bring.")
    options.add_argument("--venv", default=".venv", help="where it will be installed")
    venv = options.parse_args().venv
    if os.environ.get("LEGION_SKIP_SYSTEM_CHECK"):
        return 0
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        tell(f"this is Python {dotted(sys.version_info)}, needed is {dotted(OLDEST)} to {dotted(NEWEST)}")
        return 1
    lacking = missing(venv)
    if not lacking:
        return 0
    tell("missing: " + ", ".join(WORDS[what] for what in lacking))
    if lacking != ["venv"]:
        tell("with it pip compiles fastecdsa, which libp2p needs")
    line = command(lacking)
    tell(f"this brings it:\n\n    {line}\n" if line else "no package manager is known here: install it by hand")
    return 1


if __name__ == "__main__":
    sys.exit(main())
