"""Certificates that are bound to libp2p identities, as libp2p's TLS specification says, and TLS contexts that trust one of them.

A certificate is self-signed with a key made for it. An extension holds the identity's public key and its signature over the
certificate's key, so the certificate proves an identity. Two peers exchange their certificates over a connection that is
authenticated already; each then accepts exactly this certificate, from whoever proves to have its key (TLS 1.3, both ways).
"""

import os
import ssl
import tempfile
from collections.abc import Callable
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID
from libp2p.security.tls.certificate import (
    LIBP2P_EXTENSION_OID,
    create_cert_template,
    generate_certificate,
    verify_certificate_chain,
)

from legion_p2p.core.bounded import BoundedMap
from legion_p2p.core.identity import Identity, PeerId
from legion_p2p.errors import DecodeError

MAX_CERTIFICATE_BYTES = 2048  # one with the largest names and both keys on a curve has some 500
MAX_TRUSTED = 512  # peers whose contexts are kept: as many as there may be connections; others are verified again


class TrustedPeer:
    """TLS with one peer, which must present one certificate. Contexts are made when they are first used: each takes 5 ms."""

    def __init__(self, der: bytes, make: Callable[[int, bytes], ssl.SSLContext]) -> None:
        """`make`: a context for a protocol that trusts a certificate."""
        self.der = der
        self._make = make

    @cached_property
    def client(self) -> ssl.SSLContext:
        """For the side that dials."""
        return self._make(ssl.PROTOCOL_TLS_CLIENT, self.der)

    @cached_property
    def server(self) -> ssl.SSLContext:
        """For the side that listens."""
        return self._make(ssl.PROTOCOL_TLS_SERVER, self.der)


class Certificates:
    """This peer's certificate, and those of others."""

    def __init__(self, identity: Identity) -> None:
        key_pair = create_new_key_pair(identity.seed)
        self._certificate, self._key = generate_certificate(key_pair.private_key, create_cert_template())
        self.own = ssl.PEM_cert_to_DER_cert(self._certificate)
        """DER, to be told to others."""
        self._trusted: BoundedMap[PeerId, TrustedPeer] = BoundedMap(MAX_TRUSTED)

    def trust(self, peer: PeerId, der: bytes) -> TrustedPeer:
        """TLS with `peer`, which says that this is its certificate.

        Raises: DecodeError, if the certificate does not prove that.
        """
        known = self._trusted.get(peer)
        if known is None or known.der != der:
            check_certificate(der, peer)
            known = self._trusted[peer] = TrustedPeer(der, self._context)
        return known

    def trusted(self, peer: PeerId) -> TrustedPeer | None:
        """TLS with `peer`, whose certificate was checked before."""
        return self._trusted.get(peer)

    def _context(self, protocol: int, der: bytes) -> ssl.SSLContext:
        context = strict_context(protocol)
        context.load_verify_locations(cadata=der)
        # the ssl module reads keys from files only
        handle, path = tempfile.mkstemp(prefix="legion-", suffix=".pem")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                file.write(self._key + self._certificate)
            context.load_cert_chain(path)
        finally:
            os.unlink(path)
        return context


def strict_context(protocol: int) -> ssl.SSLContext:
    """TLS 1.3 and nothing older, both sides authenticated, no sessions to resume. It trusts nobody yet."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name is a ticket; the certificate is compared as a whole
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself is trusted, not one that signed it
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def check_certificate(der: bytes, peer: PeerId) -> None:
    """Raises: DecodeError, if this is no valid certificate of `peer` now."""
    if len(der) > MAX_CERTIFICATE_BYTES:
        raise DecodeError(f"certificate of {len(der)} bytes, limit is {MAX_CERTIFICATE_BYTES}")
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certificate.public_bytes(Encoding.DER) != der:
            raise ValueError("more than a certificate")
        for extension in certificate.extensions:
            unknown = isinstance(extension.value, x509.UnrecognizedExtension) and extension.oid != LIBP2P_EXTENSION_OID
            if extension.critical and unknown:
                raise ValueError(f"unknown critical extension {extension.oid.dotted_string}")
        owner = ID.from_pubkey(verify_certificate_chain([certificate]))
    except Exception as bad:  # whatever libraries raise on what a stranger sent
        raise DecodeError(f"not a valid certificate: {bad}") from bad
    if str(owner) != peer:
        raise DecodeError(f"a certificate of {owner}, presented by {peer}")
