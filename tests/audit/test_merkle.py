"""The Merkle tree against its standard, and signed notes against the format's own example."""

from __future__ import annotations

import hashlib
import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apps.audit import merkle
from apps.audit.notes import Checkpoint, Rejected, Signer, VerifierKey, open_checkpoint, sign_note, verify_note

# The eight leaves and the roots that the reference implementations of RFC 6962 are tested with.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"
)]  # fmt: skip
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
HASHES = [merkle.hash_leaf(leaf) for leaf in LEAVES]


def test_roots_are_those_of_the_standard() -> None:
    assert merkle.root([]).hex() == hashlib.sha256(b"").hexdigest()
    for size, expected in enumerate(ROOTS, 1):
        assert merkle.root(HASHES[:size]).hex() == expected


def test_proofs_are_those_of_the_standard() -> None:
    node = merkle.nodes_of(HASHES)
    assert [one.hex() for one in merkle.inclusion_proof(0, 8, node)] == [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ]
    assert [one.hex() for one in merkle.consistency_proof(6, 8, node)] == [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ]


def test_every_proof_of_small_trees_holds_and_no_altered_one_does() -> None:
    leaves = [merkle.hash_leaf(bytes([number])) for number in range(40)]
    node = merkle.nodes_of(leaves)
    roots = [merkle.root(leaves[:size]) for size in range(41)]
    wrong = merkle.hash_leaf(b"wrong")
    for size in range(1, 41):
        for index in range(size):
            proof = merkle.inclusion_proof(index, size, node)
            assert merkle.verify_inclusion(leaves[index], index, size, proof, roots[size])
            assert not merkle.verify_inclusion(wrong, index, size, proof, roots[size])
            assert not merkle.verify_inclusion(leaves[index], index, size, [*proof, wrong], roots[size])
            assert not merkle.verify_inclusion(leaves[index], (index + 1) % 41, size, proof, roots[size])
        for old in range(size + 1):
            proof = merkle.consistency_proof(old, size, node)
            assert merkle.verify_consistency(old, size, roots[old], roots[size], proof)
            assert not merkle.verify_consistency(old, size, wrong, roots[size], proof)
            if proof:
                assert not merkle.verify_consistency(old, size, roots[old], roots[size], proof[1:])
                assert not merkle.verify_consistency(old, size, roots[old], wrong, proof)


def test_a_range_goes_on_where_it_was_left() -> None:
    leaves = [merkle.hash_leaf(str(number).encode()) for number in range(1_000)]
    cut = random.Random(7).randrange(1, 1_000)
    first = merkle.CompactRange()
    for leaf in leaves[:cut]:
        first.append(leaf)
    second = merkle.CompactRange(first.size, first.peaks)
    for leaf in leaves[cut:]:
        second.append(leaf)
    assert second.root() == merkle.root(leaves)
    with pytest.raises(ValueError, match="perfect subtrees"):
        merkle.CompactRange(3, [leaves[0]])


def test_impossible_proofs_are_refused() -> None:
    node = merkle.nodes_of(HASHES)
    with pytest.raises(ValueError, match="none at 8"):
        merkle.inclusion_proof(8, 8, node)
    with pytest.raises(ValueError, match="does not grow"):
        merkle.consistency_proof(9, 8, node)


def test_notes_of_another_implementation_verify() -> None:
    """The example of the Go implementation of signed notes."""
    key = VerifierKey.parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    body = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
    note = (
        f"{body}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpR"
        "Zb6KE6RyyBwJnAM=\n"
    )
    assert verify_note(note, [key]) == body
    assert str(key) == "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"


@pytest.fixture
def signer() -> Signer:
    return Signer("countersign/test", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def test_a_signed_note_is_read_back_and_an_altered_one_is_refused(signer: Signer) -> None:
    note = sign_note("first\nsecond\n", signer)
    key = VerifierKey.parse(str(signer.verifier_key))
    assert verify_note(note, [key]) == "first\nsecond\n"
    for altered in (note.replace("second", "third"), note.replace("first\n", "first\n\n"), note[:-4] + "AA=\n"):
        with pytest.raises(Rejected):
            verify_note(altered, [key])


def test_only_a_pinned_key_counts(signer: Signer) -> None:
    impostor = Signer(signer.name, Ed25519PrivateKey.from_private_bytes(bytes(32)))
    note = sign_note("text\n", impostor)
    with pytest.raises(Rejected, match="not signed by the pinned key"):
        verify_note(note, [signer.verifier_key])
    assert verify_note(sign_note("text\n", impostor, signer), [signer.verifier_key]) == "text\n"


@pytest.mark.parametrize(
    "text", ["", "no signature\n", "body\n\n", "body\n\n— name\n", "body\n\n— name !!\n", "a\tb\n\n"]
)
def test_malformed_notes_are_refused(text: str, signer: Signer) -> None:
    with pytest.raises(Rejected):
        verify_note(text, [signer.verifier_key])


@pytest.mark.parametrize("body", ["no newline", "tab\t\n", ""])
def test_what_cannot_be_a_note_is_not_signed(body: str, signer: Signer) -> None:
    with pytest.raises(ValueError, match="newline"):
        sign_note(body, signer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name",
        "name+00000000+AAAA",
        "na me+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW",
        "x+c74f20a3+ARpc2Q",
    ],
)
def test_malformed_keys_are_refused(text: str) -> None:
    with pytest.raises(Rejected):
        VerifierKey.parse(text)


def test_checkpoints_belong_to_the_log_of_their_key(signer: Signer) -> None:
    checkpoint = Checkpoint(signer.name, 8, bytes.fromhex(ROOTS[7]))
    assert checkpoint.body() == "countersign/test\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n"
    assert open_checkpoint(sign_note(checkpoint.body(), signer), [signer.verifier_key]) == checkpoint
    for body in (
        "other/log\n8\nXcnaeacGWamtVZy3Ad7ZoqudgjqtL0lgz+Nw7/RgQyg=\n",
        "countersign/test\n08\nAA==\n",
        "text\n",
    ):
        with pytest.raises(Rejected):
            open_checkpoint(sign_note(body, signer), [signer.verifier_key])
