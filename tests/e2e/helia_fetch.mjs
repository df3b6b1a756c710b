// An IPFS client that knows nothing of legion_p2p: it fetches a DAG by its CID from one peer, over bitswap, and writes it as a CAR file.
// node helia_fetch.mjs ADDRESS CID FILE
import fs from 'node:fs'
import { Readable } from 'node:stream'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { CarWriter } from '@ipld/car'
import * as dagCbor from '@ipld/dag-cbor'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { multiaddr } from '@multiformats/multiaddr'
import { createHeliaLight } from 'helia'
import { CID } from 'multiformats/cid'

const [address, wanted, file] = process.argv.slice(2)
const helia = await withBitswap(withLibp2pLight(createHeliaLight({ codecs: [dagCbor] }), {
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
})).start()
await helia.libp2p.dial(multiaddr(address))

const root = CID.parse(wanted)
const { writer, out } = CarWriter.create([root])
const written = new Promise((resolve) => Readable.from(out).pipe(fs.createWriteStream(file)).on('finish', resolve))
const seen = new Set([root.toString()])
let waiting = [root]
while (waiting.length > 0) {
  const blocks = await Promise.all(waiting.map(async (cid) => {
    const got = await helia.blockstore.get(cid, { signal: AbortSignal.timeout(30_000) })
    return { cid, bytes: got instanceof Uint8Array ? got : await joined(got) }
  }))
  waiting = []
  for (const { cid, bytes } of blocks) {
    await writer.put({ cid, bytes })
    if (cid.code === dagCbor.code) links(dagCbor.decode(bytes))
  }
}
await writer.close()
await written
await helia.stop()
process.exit(0)

async function joined (parts) {
  const all = []
  for await (const part of parts) all.push(part)
  return Buffer.concat(all)
}

function links (value) {
  const cid = CID.asCID(value)
  if (cid != null) {
    if (!seen.has(cid.toString())) {
      seen.add(cid.toString())
      waiting.push(cid)
    }
  } else if (value != null && typeof value === 'object' && !(value instanceof Uint8Array)) {
    Object.values(value).forEach(links)
  }
}
