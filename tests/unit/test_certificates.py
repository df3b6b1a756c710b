"""Certificates that prove a libp2p identity, and those that do not."""

import ssl
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import NameOID, ObjectIdentifier
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.security.tls.certificate import LIBP2P_EXTENSION_OID, create_cert_template, encode_signed_key, generate_certificate

from legion_p2p.core.identity import Identity
from legion_p2p.errors import DecodeError
from legion_p2p.net.certificates import MAX_CERTIFICATE_BYTES, MAX_TRUSTED, Certificates, check_certificate, strict_context

NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "libp2p")])
NOW = datetime.now(UTC)


def template(begins: datetime = NOW - timedelta(days=1), ends: datetime = NOW + timedelta(days=1)) -> x509.CertificateBuilder:
    return x509.CertificateBuilder(NAME, NAME, None, 1, begins, ends)


def made(identity: Identity, builder: x509.CertificateBuilder) -> bytes:
    return ssl.PEM_cert_to_DER_cert(generate_certificate(create_new_key_pair(identity.seed).private_key, builder)[0])


def test_a_peers_own_certificate_proves_its_identity():
    identity = Identity.generate()

    check_certificate(Certificates(identity).own, identity.peer_id)


def test_each_start_makes_a_certificate_of_its_own():
    identity = Identity.generate()

    assert Certificates(identity).own != Certificates(identity).own


def test_a_certificate_of_somebody_else_proves_nothing():
    identity, other = Identity.generate(), Identity.generate()

    with pytest.raises(DecodeError, match=f"a certificate of {other.peer_id}"):
        check_certificate(Certificates(other).own, identity.peer_id)


def test_an_expired_certificate_is_refused():
    identity = Identity.generate()

    with pytest.raises(DecodeError, match="expired"):
        check_certificate(made(identity, template(ends=NOW - timedelta(hours=1))), identity.peer_id)


def test_a_certificate_of_the_future_is_refused():
    identity = Identity.generate()

    with pytest.raises(DecodeError, match="not yet valid"):
        check_certificate(made(identity, template(begins=NOW + timedelta(hours=1))), identity.peer_id)


def test_a_signature_over_another_key_is_refused():
    identity = Identity.generate()
    key_pair = create_new_key_pair(identity.seed)
    stolen = encode_signed_key(key_pair.public_key.serialize(), key_pair.private_key.sign(b"libp2p-tls-handshake:another key"))
    forged = template().add_extension(x509.UnrecognizedExtension(LIBP2P_EXTENSION_OID, stolen), critical=False)

    certificate = _signed_by_its_own_key(forged)

    with pytest.raises(DecodeError, match="signature invalid"):
        check_certificate(certificate, identity.peer_id)


def test_a_certificate_without_the_extension_is_refused():
    with pytest.raises(DecodeError, match="extension"):
        check_certificate(_signed_by_its_own_key(template()), Identity.generate().peer_id)


def test_an_unknown_critical_extension_is_refused():
    identity = Identity.generate()
    unknown = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"x")

    check_certificate(made(identity, template().add_extension(unknown, critical=False)), identity.peer_id)
    with pytest.raises(DecodeError, match=r"critical extension 1\.2\.3\.4"):
        check_certificate(made(identity, template().add_extension(unknown, critical=True)), identity.peer_id)


@pytest.mark.parametrize("change", [lambda der: der[:-1], lambda der: der + b"x", lambda der: b"", lambda der: b"\x30\x82" * 9])
def test_what_is_no_certificate_is_refused(change):
    identity = Identity.generate()

    with pytest.raises(DecodeError, match="not a valid certificate"):
        check_certificate(change(Certificates(identity).own), identity.peer_id)


def test_a_certificate_over_the_limit_is_not_even_parsed():
    identity = Identity.generate()
    padding = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), bytes(MAX_CERTIFICATE_BYTES))
    large = made(identity, create_cert_template().add_extension(padding, critical=False))

    with pytest.raises(DecodeError, match=f"limit is {MAX_CERTIFICATE_BYTES}"):
        check_certificate(large, identity.peer_id)


def test_of_no_more_than_so_many_peers_a_certificate_is_kept():
    mine = Certificates(Identity.generate())
    others = [Identity.generate() for _ in range(MAX_TRUSTED + 1)]

    for other in others:
        mine.trust(other.peer_id, made(other, template()))

    assert mine.trusted(others[0].peer_id) is None
    assert mine.trusted(others[1].peer_id) is not None


def test_nothing_older_than_tls_1_3_is_spoken_and_both_sides_are_verified():
    for protocol in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER):
        context = strict_context(protocol)

        assert context.minimum_version is ssl.TLSVersion.TLSv1_3
        assert context.verify_mode is ssl.CERT_REQUIRED
    assert strict_context(ssl.PROTOCOL_TLS_SERVER).num_tickets == 0


def _signed_by_its_own_key(builder: x509.CertificateBuilder) -> bytes:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding

    key = ec.generate_private_key(ec.SECP256R1())
    return builder.public_key(key.public_key()).sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
