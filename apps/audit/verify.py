#!/usr/bin/env python3
"""Checks an audit log's export or an evidence pack, offline: one file, Python 3.11 and the package ``cryptography``.

    python verify.py audit.jsonl --key audit.vkey --anchor anchors/
    python verify.py pack.zip --key audit.vkey --checkpoint old.note

It says OK and what that covers (exit code 0), or names the first event that is not as it was (1). The product checks
itself with the same code, so what an auditor runs is what it runs. The formats are public: the tree of RFC 6962,
signed notes, verifier keys and checkpoints as C2SP describes them (https://c2sp.org/signed-note, /tlog-checkpoint).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

GENESIS: Final = "0" * 64
"""The previous hash of the first event."""
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
EXPORT_FORMAT: Final = "countersign.audit-export/v1"
PACK_FORMAT: Final = "countersign.evidence-pack/v1"
PRUNED: Final = "audit_log.pruned"
"""The action of the event that says which bodies retention took."""
NO_BODY: Final = "{}"
"""What the database keeps in the place of a body that retention took."""
_ED25519: Final = b"\x01"  # the signature type of C2SP signed notes
_NAME: Final = re.compile(r"[^\s+]{1,200}")
_MAX_NOTE: Final = 1_000_000
_MAX_MANIFEST_FILES: Final = 10_000
_MAX_LINE: Final = 4_000_000
_SIZE: Final = re.compile("0|[1-9][0-9]{0,17}")
_HEX: Final = re.compile("[0-9a-f]{64}")


class Rejected(ValueError):
    """Something is not what it claims to be; the message is a clause that says why."""


# Merkle tree: RFC 6962, section 2.1, with the checks of proofs as RFC 9162 writes them.


def hash_leaf(content: bytes) -> bytes:
    """The hash of a leaf's content."""
    return hashlib.sha256(b"\x00" + content).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The first ``size`` leaves as their perfect subtrees, left to right: all it takes to append and to have the root.

    At most one subtree for each bit of ``size``, so a log of any length takes next to no memory.
    """

    __slots__ = ("peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size = size
        self.peaks = list(peaks)
        if len(self.peaks) != size.bit_count():
            raise ValueError(f"{size} leaves have {size.bit_count()} perfect subtrees, not {len(self.peaks)}")

    def append(self, leaf: bytes) -> None:
        """Add the hash of one more leaf."""
        peaks, carry = self.peaks, self.size
        while carry & 1:
            leaf = hashlib.sha256(b"\x01" + peaks.pop() + leaf).digest()
            carry >>= 1
        peaks.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """The Merkle tree hash of the leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = hash_node(peak, root)
        return root

    def copy(self) -> CompactRange:
        """The same range, to be continued apart."""
        return CompactRange(self.size, self.peaks)


def verify_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``leaf`` is the one at ``index`` of the tree with ``size`` leaves and this root (RFC 9162, 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    position, last, node = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            return False
        if position & 1 or position == last:
            node = hash_node(sibling, node)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            node = hash_node(node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and node == root


def verify_consistency(old_size: int, new_size: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether the tree of ``new_size`` leaves begins with the tree of ``old_size`` leaves (RFC 9162, 2.1.4.2)."""
    if not 0 <= old_size <= new_size:
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    path = list(proof) if old_size & (old_size - 1) else [old_root, *proof]
    if not path:
        return False
    position, last = old_size - 1, new_size - 1
    while position & 1:
        position >>= 1
        last >>= 1
    old_node = new_node = path[0]
    for sibling in path[1:]:
        if last == 0:
            return False
        if position & 1 or position == last:
            old_node = hash_node(sibling, old_node)
            new_node = hash_node(sibling, new_node)
            while not position & 1 and position:
                position >>= 1
                last >>= 1
        else:
            new_node = hash_node(new_node, sibling)
        position >>= 1
        last >>= 1
    return last == 0 and old_node == old_root and new_node == new_root


# Signed notes and checkpoints.


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A named Ed25519 public key; ``str`` gives the C2SP form ``<name>+<key id in hex>+<base64>``."""

    name: str
    public_bytes: bytes  # 32

    @property
    def key_id(self) -> bytes:
        """The first four bytes of SHA-256 over name, newline, type and key: what a signature line begins with."""
        return hashlib.sha256(self.name.encode() + b"\n" + _ED25519 + self.public_bytes).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(_ED25519 + self.public_bytes).decode()}"

    @classmethod
    def parse(cls, text: str) -> VerifierKey:
        """Read a verifier key. Raises ``Rejected``."""
        name, _, rest = text.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _base64(encoded)
        if not _NAME.fullmatch(name) or len(raw) != 33 or raw[:1] != _ED25519:
            raise Rejected("this is no Ed25519 verifier key of the form name+id+base64")
        key = cls(name, raw[1:])
        if key_id != key.key_id.hex():
            raise Rejected("the verifier key's id does not fit its name and key")
        return key


def verify_note(text: str, keys: Iterable[VerifierKey]) -> str:
    """The body of a note that at least one of ``keys`` signed, ending with a newline.

    Signatures by unknown keys are passed over; a wrong one by a known key, or none at all, raises ``Rejected``.
    """
    known = {(key.name, key.key_id): key for key in keys}
    body, signatures = _split_note(text)
    has_signature = False
    for name, raw in signatures:
        key = known.get((name, raw[:4]))
        if key is None:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.public_bytes).verify(raw[4:], body.encode())
        except InvalidSignature:
            raise Rejected(f"the signature of {name} does not fit the text") from None
        has_signature = True
    if not has_signature:
        raise Rejected("it is not signed by the pinned key")
    return body


def _split_note(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    if len(text) > _MAX_NOTE or any(ord(letter) < 32 and letter != "\n" for letter in text):
        raise Rejected("a note is short text without control characters")
    head, mark, tail = text.rpartition("\n\n")
    if not mark or not tail.endswith("\n"):
        raise Rejected("it has no signatures")
    signatures = []
    for line in tail[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, encoded = rest.partition(" ")
        raw = _base64(encoded)
        if dash != "—" or not _NAME.fullmatch(name) or len(raw) < 5:
            raise Rejected("one of its signature lines is malformed")
        signatures.append((name, raw))
    return head + "\n", signatures


class Checkpoint(NamedTuple):
    """What a log says of itself at one moment: its name, how many events it has, and their Merkle root."""

    origin: str
    size: int
    root: bytes

    def body(self) -> str:
        """The text that is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def open_checkpoint(text: str, keys: Iterable[VerifierKey]) -> Checkpoint:
    """Verify a checkpoint's signature and read it. Raises ``Rejected``; the log's name has to be that of the key."""
    pinned = list(keys)
    lines = verify_note(text, pinned).split("\n")
    if len(lines) < 4 or not _SIZE.fullmatch(lines[1]):
        raise Rejected("it is no checkpoint")
    root = _base64(lines[2])
    if len(root) != 32 or lines[0] not in {key.name for key in pinned}:
        raise Rejected("it is no checkpoint of this log")
    return Checkpoint(lines[0], int(lines[1]), root)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Rejected("its base64 is damaged") from None


# Anchors: what was put outside the database.


@dataclass(slots=True)
class Anchors:
    """What is known of the log from outside its database, each statement signed by the pinned key.

    ``leaves`` are the hashes of the first events, 32 bytes each, as far as they were anchored without a gap;
    ``roots`` are the checkpoints by their size. ``bad_seq`` is set where what lies outside contradicts itself.
    """

    roots: dict[int, bytes] = field(default_factory=dict)
    leaves: bytearray = field(default_factory=bytearray)
    warnings: list[str] = field(default_factory=list)
    bad_seq: int | None = None
    reason: str = ""
    doubt: tuple[int, str] | None = None  # a checkpoint that is not genuine: told if no event is found to be bad
    _range: CompactRange = field(default_factory=CompactRange)

    @property
    def size(self) -> int:
        """How many events the newest checkpoint covers."""
        return max(self.roots, default=0)

    def add(self, checkpoint: Checkpoint, where: str) -> None:
        """Take in a checkpoint. Two of one size with different roots are a fork."""
        known = self.roots.setdefault(checkpoint.size, checkpoint.root)
        if known != checkpoint.root:
            earlier = max((size for size in self.roots if size < checkpoint.size), default=0)
            self._fail(earlier + 1, f"{where} is signed, and so is another log of the same length: the log was forked")

    def add_note(self, note: str, keys: Sequence[VerifierKey], where: str, size: int = 1) -> None:
        """Take in a checkpoint as it was signed; ``size`` is what it is said to cover, should it not be genuine."""
        try:
            self.add(open_checkpoint(note, keys), where)
        except Rejected as error:
            self.doubt = self.doubt or (max(size, 1), f"{where} cannot be relied on: {error}")

    def add_record(self, record: Mapping[str, Any], keys: Iterable[VerifierKey], where: str) -> None:
        """Take in one record of an anchor: ``{"note", "from", "leaves"}`` with the leaf hashes since ``from``."""
        checkpoint = open_checkpoint(str(record["note"]), keys)
        begin, leaves = record["from"], _base64(str(record["leaves"]))
        if not isinstance(begin, int) or len(leaves) != 32 * (checkpoint.size - begin):
            raise Rejected("it does not hold a hash for each of its events")
        self.add(checkpoint, where)
        if begin > self._range.size:
            self.warnings.append(f"{where} begins at event {begin + 1}: what lies before it was not anchored here")
            return
        fresh = leaves[32 * (self._range.size - begin) :]
        extended = self._range.copy()
        for place in range(0, len(fresh), 32):
            extended.append(fresh[place : place + 32])
        if extended.size == checkpoint.size and extended.root() != checkpoint.root:
            raise Rejected("its hashes do not lead to its own checkpoint")
        self.leaves += fresh
        self._range = extended

    def read(self, path: Path, keys: Sequence[VerifierKey]) -> None:
        """Take in a signed note, a file of anchor records (JSON Lines), or a folder of such files in their order."""
        if path.is_dir():
            for file in sorted(path.rglob("*.jsonl")):
                self.read(file, keys)
        elif path.suffix == ".jsonl":
            self._read_records(path, keys)
        else:
            self.add_note(path.read_text(encoding="utf-8", errors="replace"), keys, path.name)

    def _read_records(self, path: Path, keys: Sequence[VerifierKey]) -> None:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                where = f"line {number} of {path.name}"
                if not line.strip():
                    continue
                if not line.endswith(b"\n"):
                    self.warnings.append(f"{where} was cut off while it was written")
                    continue
                try:
                    self.add_record(json.loads(line), keys, where)
                except (ValueError, KeyError, TypeError) as error:
                    self._fail(self._range.size + 1, f"{where} cannot be relied on: {error}")

    def _fail(self, seq: int, reason: str) -> None:
        if self.bad_seq is None or seq < self.bad_seq:
            self.bad_seq, self.reason = seq, reason


# The log itself.


class Link(NamedTuple):
    """One event as the chain sees it. ``at`` is RFC 3339 in UTC with microseconds; hashes are hex SHA-256.

    ``body`` is the canonical JSON text, None (or ``{}``) where retention took it.
    """

    seq: int
    at: str
    previous_hash: str
    leaf_hash: str
    body: str | None


def leaf_hash(seq: int, at: str, previous_hash: str, body: str) -> str:
    """Hash of one event: the hash of a Merkle leaf that holds number, time, predecessor and body."""
    return hash_leaf(f"{seq}\n{at}\n{previous_hash}\n{body}".encode("utf-8", "surrogatepass")).hex()


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of a check: how many events are sound, and where and why the first bad one fails.

    ``head`` is the hash of the last sound event, ``anchored`` how many events checkpoints from outside the database
    cover, ``gone`` the spans of events whose bodies retention took: only their hashes were checked.
    """

    checked: int
    head: str
    bad_seq: int | None = None
    reason: str = ""
    anchored: int = 0
    gone: tuple[tuple[int, int], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def is_ok(self) -> bool:
        """True if no event failed."""
        return self.bad_seq is None

    def __str__(self) -> str:
        if not self.is_ok:
            return f"broken at seq {self.bad_seq}: {self.reason}. The {self.checked} events before it are sound."
        covered = f", {min(self.anchored, self.checked)} of them anchored" if self.anchored else ""
        gone = "".join(f"; the bodies of {first} to {last} are gone" for first, last in self.gone)
        return f"OK: {self.checked} events{covered}, head {self.head}{gone}"


class LogCheck:
    """Checks events one by one, from the first: no gap, each linked to the one before, each hash right, each root met.

    Stops at the first bad one. ``copy`` keeps a state to go on from, because what was checked once stays checked.
    """

    def __init__(self, anchors: Anchors | None = None) -> None:
        self.anchors = anchors or Anchors()
        self.range = CompactRange()
        self.head = GENESIS
        self.last_root = 0
        self.bad_seq: int | None = None
        self.reason = ""
        self.warnings: list[str] = []
        self._at = ""
        self._gone: list[list[int]] = []
        self._explained: list[tuple[int, int]] = []

    @property
    def checked(self) -> int:
        """How many events were sound."""
        return self.range.size

    def copy(self) -> LogCheck:
        """The same state, to be continued apart."""
        twin = LogCheck(self.anchors)
        twin.range, twin.head, twin.last_root, twin._at = self.range.copy(), self.head, self.last_root, self._at
        twin.bad_seq, twin.reason, twin.warnings = self.bad_seq, self.reason, list(self.warnings)
        twin._gone, twin._explained = [list(span) for span in self._gone], list(self._explained)
        return twin

    def add(self, link: Link) -> bool:
        """Check the next event; False if it is bad, and then the check is over."""
        seq, at, previous_hash, hexadecimal, body = link
        expected = self.range.size + 1
        if seq != expected:
            return self._fail(min(seq, expected), _out_of_order(seq, expected))
        if previous_hash != self.head:
            return self._fail(seq, "it does not continue the event before it")
        if body is None or body == NO_BODY:
            self._note_gone(seq)
            if not _HEX.fullmatch(hexadecimal):
                return self._fail(seq, "it has neither a body nor a hash")
        elif leaf_hash(seq, at, previous_hash, body) != hexadecimal:
            return self._fail(seq, "its content does not fit its hash")
        leaf = bytes.fromhex(hexadecimal)
        known = self.anchors.leaves[32 * (seq - 1) : 32 * seq]
        if known and known != leaf:
            return self._fail(seq, "it is not the event that was anchored outside the database")
        self.range.append(leaf)
        self.head = hexadecimal
        return self._take_in(seq, at, body)

    def _take_in(self, seq: int, at: str, body: str | None) -> bool:
        if at < self._at and len(self.warnings) < 20:
            self.warnings.append(f"the clock went back at event {seq}")
        self._at = at
        if body and f'"action":"{PRUNED}"' in body:
            self._explain(body)
        root = self.anchors.roots.get(seq)
        if root is not None:
            if root != self.range.root():
                first, self.range.size = self.last_root + 1, self.last_root
                return self._fail(first, f"one of the events {first} to {seq} is not what the checkpoint covers")
            self.last_root = seq
        return True

    def verdict(self) -> Verdict:
        """The outcome after the last event: nothing may be missing at the end, and every missing body is explained."""
        anchors, checked = self.anchors, self.checked
        if self.bad_seq is None and checked < anchors.size:
            self._fail(checked + 1, f"event {checked + 1} is missing: a checkpoint covers {anchors.size} events")
        for first, last in self._gone:
            if not any(begin <= first and last <= end for begin, end in self._explained):
                self._fail(first, "its body is gone, and no event says that retention took it")
        # An event that is found to be bad says more than an anchor that is.
        if self.bad_seq is None and anchors.bad_seq is not None:
            self._fail(anchors.bad_seq, anchors.reason)
        if self.bad_seq is None and anchors.doubt:
            self._fail(*anchors.doubt)
        return Verdict(
            checked=checked if self.bad_seq is None else min(checked, self.bad_seq - 1),
            head=self.head,
            bad_seq=self.bad_seq,
            reason=self.reason,
            anchored=anchors.size,
            gone=tuple((first, last) for first, last in self._gone),
            warnings=(*anchors.warnings, *self.warnings),
        )

    def _note_gone(self, seq: int) -> None:
        if self._gone and self._gone[-1][1] == seq - 1:
            self._gone[-1][1] = seq
        else:
            self._gone.append([seq, seq])

    def _explain(self, body: str) -> None:
        event = json.loads(body)
        after = event.get("after") or {}
        if event.get("action") == PRUNED and isinstance(after.get("from_seq"), int) and "until_seq" in after:
            self._explained.append((after["from_seq"], int(after["until_seq"])))

    def _fail(self, seq: int, reason: str) -> bool:
        if self.bad_seq is None or seq < self.bad_seq:
            self.bad_seq, self.reason = max(seq, 1), reason
        return False


def _out_of_order(seq: int, expected: int) -> str:
    if seq > expected:
        return f"event {expected} is missing: the next one found is {seq}"
    return f"an event {seq} comes after event {expected - 1}"


def verify_log(links: Iterable[Link], anchors: Anchors | None = None) -> Verdict:
    """Check a whole log in the order of ``seq``, against what is known from outside if that is given."""
    check = LogCheck(anchors)
    for link in links:
        if not check.add(link):
            break
    return check.verdict()


# Exports and evidence packs.


def read_link(event: Mapping[str, Any]) -> Link:
    """An event of an export. Raises ``Rejected``."""
    seq, body = event.get("seq"), event.get("body")
    texts = [event.get(name) for name in ("at", "previous_hash", "leaf_hash")]
    if not isinstance(seq, int) or seq < 1 or not all(isinstance(text, str) for text in texts):
        raise Rejected("it is no event")
    if body is not None and not isinstance(body, str):
        raise Rejected("its body is no text")
    at, previous_hash, hexadecimal = map(str, texts)
    return Link(seq, at, previous_hash, hexadecimal, body)


class ProofCheck:
    """Checks chosen events, each with its proof that the checkpoint's tree holds it, in growing order of ``seq``."""

    def __init__(self, checkpoint: Checkpoint, anchors: Anchors) -> None:
        self._checkpoint, self._anchors = checkpoint, anchors
        self._last: Link | None = None
        self.checked = 0
        self.gone: list[tuple[int, int]] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Check one line ``{"event", "index", "proof"}``. Raises ``BadEvent``."""
        event = line.get("event")
        link = read_link(event if isinstance(event, Mapping) else {})
        try:
            self._check(link, line)
        except Rejected as error:
            raise BadEvent(link.seq, str(error)) from None
        self._last = link
        self.checked += 1

    def _check(self, link: Link, line: Mapping[str, Any]) -> None:
        last = self._last
        if last is not None and link.seq <= last.seq:
            raise Rejected(f"it comes after event {last.seq}")
        if last is not None and link.seq == last.seq + 1 and link.previous_hash != last.leaf_hash:
            raise Rejected("it does not continue the event before it")
        if link.body is None:
            self.gone.append((link.seq, link.seq))
        elif leaf_hash(link.seq, link.at, link.previous_hash, link.body) != link.leaf_hash:
            raise Rejected("its content does not fit its hash")
        try:
            leaf, proof = bytes.fromhex(link.leaf_hash), [bytes.fromhex(node) for node in line["proof"]]
        except (ValueError, KeyError, TypeError):
            raise Rejected("its proof is malformed") from None
        size, root = self._checkpoint.size, self._checkpoint.root
        if line.get("index") != link.seq - 1 or not verify_inclusion(leaf, link.seq - 1, size, proof, root):
            raise Rejected("the checkpoint's tree does not hold it")
        known = self._anchors.leaves[32 * (link.seq - 1) : 32 * link.seq]
        if known and known != leaf:
            raise Rejected("it is not the event that was anchored outside the database")


class BadEvent(Rejected):
    """The event that failed, and why."""

    def __init__(self, seq: int, reason: str) -> None:
        super().__init__(reason)
        self.seq = seq


def verify_export(file: IO[bytes], keys: Sequence[VerifierKey], anchors: Anchors) -> Verdict:
    """Check an export: a header with the checkpoint, the events, and a signed trailer over every byte before it.

    An export of the whole log is checked as a chain from the first event; a selection by its inclusion proofs. Raises
    ``Rejected`` where no event can be named.
    """
    digest = hashlib.sha256()
    lines = _lines(file)
    first = next(lines, b"")
    header = _document(first)
    if header.get("format") != EXPORT_FORMAT:
        raise Rejected("it is no audit export: its first line does not say so")
    digest.update(first)
    checkpoint = open_checkpoint(str(header.get("checkpoint")), keys)
    _check_history(checkpoint, header.get("consistency"), anchors)
    body = _Selection(checkpoint, anchors) if header.get("has_proofs") else _Whole(checkpoint, anchors)
    trailer = None
    for line in lines:
        document = _document(line)
        if "trailer" in document:
            trailer = str(document["trailer"])
            break
        digest.update(line)
        if not body.add(document):
            return body.verdict()
    verdict = body.verdict()
    if verdict.is_ok:
        _check_trailer(trailer, keys, digest.hexdigest(), body.count)
        if next(lines, b"").strip():
            raise Rejected("something follows its last line")
    return verdict


class _Whole:
    """The events of an export that holds the log from its first event."""

    def __init__(self, checkpoint: Checkpoint, anchors: Anchors) -> None:
        anchors.add(checkpoint, "the export's own checkpoint")
        self._check = LogCheck(anchors)
        self.count = 0

    def add(self, document: Mapping[str, Any]) -> bool:
        """Check the next line."""
        self.count += 1
        try:
            link = read_link(document)
        except Rejected as error:
            return self._check._fail(self._check.checked + 1, str(error))
        return self._check.add(link)

    def verdict(self) -> Verdict:
        """The outcome."""
        return self._check.verdict()


class _Selection:
    """The events of an export that holds some of the log."""

    def __init__(self, checkpoint: Checkpoint, anchors: Anchors) -> None:
        self._anchors = anchors
        self._check = ProofCheck(checkpoint, anchors)
        self._bad: BadEvent | None = None
        self.count = 0

    def add(self, document: Mapping[str, Any]) -> bool:
        """Check the next line."""
        self.count += 1
        try:
            self._check.add(document)
        except BadEvent as error:
            self._bad = error
        return self._bad is None

    def verdict(self) -> Verdict:
        """The outcome."""
        return _proof_verdict(self._check, self._anchors, self._bad)


def _proof_verdict(check: ProofCheck, anchors: Anchors, bad: BadEvent | None) -> Verdict:
    head = check._last.leaf_hash if check._last else GENESIS
    bad_seq, reason = (anchors.bad_seq, anchors.reason) if bad is None else (bad.seq, str(bad))
    if bad_seq is None and anchors.doubt:
        bad_seq, reason = anchors.doubt
    return Verdict(check.checked, head, bad_seq, reason, anchors.size, tuple(check.gone), tuple(anchors.warnings))


def _check_history(checkpoint: Checkpoint, consistency: Any, anchors: Anchors) -> None:
    """Compare a checkpoint with the older ones that are known; what cannot be compared becomes a warning."""
    known = anchors.roots.get(checkpoint.size)
    if known is None and len(anchors.leaves) >= 32 * checkpoint.size:
        leaves = CompactRange()
        for place in range(0, 32 * checkpoint.size, 32):
            leaves.append(bytes(anchors.leaves[place : place + 32]))
        known = leaves.root()
    if known is not None:
        if known != checkpoint.root:
            raise Rejected("its checkpoint and the anchored one of the same length differ: the log was forked")
        return
    proofs = {entry["from"]: [bytes.fromhex(node) for node in entry["proof"]] for entry in consistency or ()}
    for size, root in sorted(anchors.roots.items()):
        if size > checkpoint.size:
            continue
        proof = proofs.get(size)
        if proof is None:
            anchors.warnings.append(
                f"nothing here links the checkpoint of {size} events with that of {checkpoint.size}"
            )
        elif not verify_consistency(size, checkpoint.size, root, checkpoint.root, proof):
            raise Rejected(f"its log does not begin with the {size} events of the older checkpoint")


def _check_trailer(trailer: str | None, keys: Sequence[VerifierKey], digest: str, count: int) -> None:
    if trailer is None:
        raise Rejected("its end is missing")
    if verify_note(trailer, keys) != trailer_body(digest, count):
        raise Rejected("lines were added, taken away or changed since it was signed")


def trailer_body(digest: str, count: int) -> str:
    """What an export's trailer signs: the SHA-256 of every line before it, and the number of events."""
    return f"{EXPORT_FORMAT}\n{digest}\n{count}\n"


def verify_pack(file: IO[bytes], keys: Sequence[VerifierKey], anchors: Anchors) -> Verdict:
    """Check an evidence pack: the signed list of files, each file's digest, and the audit events by their proofs.

    Raises ``Rejected`` where no event can be named.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_files(archive, keys)
            checkpoint = open_checkpoint(archive.read("audit/checkpoint.note").decode(), keys)
            names = archive.namelist()
            extra = json.loads(archive.read("audit/consistency.json")) if "audit/consistency.json" in names else None
            _check_history(checkpoint, extra, anchors)
            check, bad = ProofCheck(checkpoint, anchors), None
            with archive.open("audit/events.jsonl") as events:
                try:
                    for line in _lines(events):
                        check.add(_document(line))
                except BadEvent as error:
                    bad = error
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise Rejected(f"it is no whole evidence pack: {error}") from None
    return _proof_verdict(check, anchors, bad)


def _check_files(archive: zipfile.ZipFile, keys: Sequence[VerifierKey]) -> None:
    """Every file is in the signed list with its digest, and the list names no other."""
    lines = verify_note(archive.read("manifest.note").decode(), keys).split("\n")
    if lines[0] != PACK_FORMAT or len(lines) < 3:
        raise Rejected("its manifest is not that of an evidence pack")
    listed = {path: digest for digest, _, path in (line.partition("  ") for line in lines[2:-1])}
    present = [name for name in archive.namelist() if name != "manifest.note"]
    if len(present) > _MAX_MANIFEST_FILES or sorted(present) != sorted(listed):
        odd = sorted(set(present).symmetric_difference(listed))
        raise Rejected(f"its files are not those of its manifest: {', '.join(odd[:5]) or 'a name appears twice'}")
    for name in present:
        digest = hashlib.sha256()
        with archive.open(name) as content:
            while piece := content.read(2**20):
                digest.update(piece)
        if digest.hexdigest() != listed[name]:
            raise Rejected(f"{name} is not the file that was signed")


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE):
        if not line.endswith(b"\n"):
            raise Rejected("its last line is cut off" if len(line) < _MAX_LINE else "one of its lines is too long")
        yield line


def _document(line: bytes) -> dict[str, Any]:
    try:
        document = json.loads(line)
    except ValueError:
        raise Rejected("one of its lines is no JSON") from None
    if not isinstance(document, dict):
        raise Rejected("one of its lines is no JSON object")
    return document


def main(arguments: Sequence[str] | None = None) -> int:
    """Check what the command line names; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="an export (.jsonl) or an evidence pack (.zip)")
    parser.add_argument("--key", action="append", required=True, help="pinned verifier key, or a file that holds it")
    parser.add_argument(
        "--checkpoint", action="append", type=Path, default=[], help="an older checkpoint (signed note)"
    )
    parser.add_argument("--anchor", action="append", type=Path, default=[], help="anchor records: a file or a folder")
    options = parser.parse_args(arguments)
    anchors = Anchors()
    try:
        keys = [_key(text) for text in options.key]
        for path in (*options.checkpoint, *options.anchor):
            anchors.read(path, keys)
        check = verify_pack if zipfile.is_zipfile(options.file) else verify_export
        with open(options.file, "rb") as file:
            verdict = check(file, keys, anchors)
    except Rejected as error:
        print(f"broken: {error}.")
        return 1
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    for warning in verdict.warnings:
        print(f"Note: {warning}.")
    print(verdict)
    return 0 if verdict.is_ok else 1


def _key(text: str) -> VerifierKey:
    path = Path(text)
    return VerifierKey.parse(path.read_text(encoding="utf-8") if path.is_file() else text)


if __name__ == "__main__":
    sys.exit(main())
