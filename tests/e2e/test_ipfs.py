"""Clients of IPFS that know nothing of this library fetch a checkpoint by its CID, and read the CAR files that it writes.

They come from npm, once, into a folder outside of this one; where there is no npm, these tests are skipped.
"""

import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import platformdirs
import pytest
import trio

from legion_p2p.core.identity import Identity
from legion_p2p.net.host import open_network
from legion_p2p.store.blocks import BlockStore
from legion_p2p.store.car import read_car, write_car
from legion_p2p.train.gpt_config import PRESETS
from tests.checkpoint_of import checkpointed

NODE_VERSION = "22.23.3"
PACKAGES = (
    "helia@7.1.15", "@helia/bitswap@4.0.19", "@helia/libp2p@2.1.4", "libp2p@3.3.11", "@libp2p/tcp@11.0.28",
    "@libp2p/identify@4.1.14", "@chainsafe/libp2p-noise@17.0.0", "@chainsafe/libp2p-yamux@8.0.1",
    "@multiformats/multiaddr@13.0.3", "@ipld/car@5.4.7", "ipfs-car@3.1.0",
)  # fmt: skip
SCRIPT = Path(__file__).with_name("helia_fetch.mjs")
INSTALL_S, RUN_S = 150, 60


class Node:
    """A node of version 22, and a folder with the packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (self.binary,) = folder.glob("node_modules/node-*/bin/node*")

    def run(self, *words: str | os.PathLike) -> str:
        done = subprocess.run([self.binary, *map(str, words)], capture_output=True, text=True, timeout=RUN_S, cwd=self.folder)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="session")
def node() -> Node:
    """Installed on first use: half a minute, 400 MB. LEGION_IPFS_NODE names another folder for it."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm on this machine")
    system = {"win32": "win"}.get(sys.platform, sys.platform)
    machine = {"x86_64": "x64", "AMD64": "x64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    packages = (f"node-{system}-{machine}@{NODE_VERSION}", *PACKAGES)
    version = hashlib.sha256(" ".join(packages).encode()).hexdigest()[:12]
    where = os.environ.get("LEGION_IPFS_NODE") or platformdirs.user_cache_dir("legion_p2p")
    folder = Path(where) / f"ipfs-node-{version}"
    if not folder.exists():
        draft = folder.with_name(f"{folder.name}.{os.getpid()}")
        draft.mkdir(parents=True)
        (draft / "package.json").write_text(json.dumps({"private": True, "type": "module"}))
        options = ("--no-fund", "--no-audit", "--legacy-peer-deps", "--ignore-scripts", "--loglevel=error")
        try:
            done = subprocess.run(
                [npm, "install", *options, *packages], cwd=draft, capture_output=True, text=True, timeout=INSTALL_S
            )
            failed = done.stderr[-500:] if done.returncode else ""
        except subprocess.TimeoutExpired:
            failed = f"it takes longer than {INSTALL_S} s"
        if failed:
            shutil.rmtree(draft, ignore_errors=True)
            pytest.skip(f"npm cannot install {', '.join(packages)}: {failed}")
        try:
            draft.rename(folder)
        except OSError:  # another test run was faster
            shutil.rmtree(draft, ignore_errors=True)
    return Node(folder)


@pytest.fixture
def stores(tmp_path: Path):
    with BlockStore(tmp_path / "ours") as ours, BlockStore(tmp_path / "theirs") as theirs:
        yield ours, theirs


async def test_helia_fetches_a_checkpoint_from_a_peer_by_its_cid(node: Node, stores, tmp_path: Path) -> None:
    ours, theirs = stores
    run, root = checkpointed(ours, config=PRESETS["xxs"], shard_elements=0)
    fetched = tmp_path / "fetched.car"
    shutil.copy(SCRIPT, node.folder)  # where its imports are found

    async with open_network(Identity.generate(), listen=("/ip4/127.0.0.1/tcp/0",), blocks=ours) as network:
        address = network.addresses()[0]
        await trio.to_thread.run_sync(node.run, SCRIPT.name, address, str(root), fetched)

    assert read_car(theirs, io.BytesIO(fetched.read_bytes())) == (root,)
    expected = dict(ours.walk(root))
    assert {cid: theirs.get(cid) for cid in theirs} == expected
    assert len(expected) > 4 * run.plan.n_shards and network.bitswap.sent_blocks >= len(expected)


def test_ipfs_car_reads_our_car_files(node: Node, stores, tmp_path: Path) -> None:
    ours, _ = stores
    _, root = checkpointed(ours)
    path = tmp_path / "checkpoint.car"
    with open(path, "wb") as file:
        write_car(ours, root, file)

    tool = node.folder / "node_modules" / "ipfs-car" / "bin.js"
    assert node.run(tool, "roots", path).split() == [str(root)]
    assert node.run(tool, "blocks", path).split() == [str(cid) for cid, _ in ours.walk(root)]


def test_every_block_of_our_car_files_is_what_ipfs_reads(node: Node, stores, tmp_path: Path) -> None:
    ours, theirs = stores
    _, root = checkpointed(ours)
    path, copied = tmp_path / "checkpoint.car", tmp_path / "copied.car"
    with open(path, "wb") as file:
        write_car(ours, root, file)
    script = node.folder / "copy_car.mjs"
    script.write_text(COPY_CAR)

    node.run(script, path, copied)

    assert copied.read_bytes() == path.read_bytes()
    assert read_car(theirs, io.BytesIO(copied.read_bytes())) == (root,)


COPY_CAR = """
import fs from 'node:fs'
import { Readable } from 'node:stream'
import { CarReader, CarWriter } from '@ipld/car'
const [from, to] = process.argv.slice(2)
const reader = await CarReader.fromIterable(fs.createReadStream(from))
const { writer, out } = CarWriter.create(await reader.getRoots())
Readable.from(out).pipe(fs.createWriteStream(to))
for await (const block of reader.blocks()) await writer.put(block)
await writer.close()
"""
