"""Twenty-four ways to tamper with an audit log, at random places: does the verifier name the first bad event?

The log, its checkpoints and its anchors are made in memory, and checked with the code that auditors run. A check goes
on from the state that it has after the thousand events before the change: up to there nothing differs, so it is what a
check from the first event comes to; for one place of each kind both are compared.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from apps.audit.anchors import record_of
from apps.audit.chain import canonical_json, timestamp
from apps.audit.notes import Checkpoint, Signer, sign_note
from apps.audit.verify import GENESIS, NO_BODY, Anchors, CompactRange, Link, LogCheck, Verdict, leaf_hash
from benchmarks.product import report

EVENTS: Final = 100_000
PLACES: Final = 100
CLEAN_LOGS: Final = 50
_STATE_EVERY: Final = 1_000
_START: Final = datetime(2026, 11, 23, 8, tzinfo=UTC)
_ACTIONS: Final = ("promotion.approved", "member.added", "endpoint.settings_changed", "model_version.uploaded")

Attack = Callable[["Log", int], tuple[int, Iterable[Link]]]
"""Takes the log and a place (a seq); returns how many events stay as they are, and what follows them."""


@dataclass
class Log:
    """A log of its own with its anchors."""

    rng: random.Random
    signer: Signer
    links: list[Link]
    anchors: Anchors
    checkpoints: list[Checkpoint]

    @classmethod
    def make(cls, events: int, seed: int) -> Log:
        """``events`` chained events, a checkpoint after every few hundred, the newest events not anchored yet."""
        rng = random.Random(seed)
        signer = Signer("countersign/storm", Ed25519PrivateKey.from_private_bytes(rng.randbytes(32)))
        log = cls(rng, signer, list(rechained(_events(rng, events), 1, GENESIS)), Anchors(), [])
        tree, leaves = CompactRange(), bytearray()
        due, begin = rng.randint(1, 400), 0
        for link in log.links:
            leaf = bytes.fromhex(link.leaf_hash)
            tree.append(leaf)
            leaves += leaf
            if tree.size == due:
                checkpoint = Checkpoint(signer.name, due, tree.root())
                record = record_of(sign_note(checkpoint.body(), signer), begin, bytes(leaves))
                log.anchors.add_record(record, [signer.verifier_key], f"checkpoint {due}")
                log.checkpoints.append(checkpoint)
                begin, leaves, due = due, bytearray(), due + rng.randint(1, 400)
        return log

    @property
    def anchored(self) -> int:
        """How many events the newest checkpoint covers."""
        return self.anchors.size

    def known(self) -> Anchors:
        """What is anchored, to be added to."""
        twin = copy(self.anchors)
        twin.roots, twin.warnings = dict(self.anchors.roots), []
        return twin

    def forged(self, link: Link) -> Link:
        """The same event with another content."""
        body = (link.body or "").replace('"reason":"', f'"reason":"{self.rng.randint(0, 9)}', 1)
        return link._replace(body=body)


def rechained(events: Iterable[Link], seq: int, head: str) -> Iterator[Link]:
    """Events numbered, linked and hashed anew, as somebody does who knows how."""
    for number, event in enumerate(events, seq):
        body = event.body or ""
        digest = leaf_hash(number, event.at, head, body)
        yield Link(number, event.at, head, digest, body)
        head = digest


def _events(rng: random.Random, count: int) -> Iterator[Link]:
    for number in range(count):
        body = {
            "action": rng.choice(_ACTIONS),
            "actor_name": f"person {rng.randint(1, 40)}",
            "after": {"value": rng.random()},
            "before": None,
            "object_id": str(rng.randint(1, 500)),
            "reason": f"storm {number}",
        }
        yield Link(0, timestamp(_START + timedelta(seconds=number)), "", "", canonical_json(body))


# The attacks. ``i`` is the index of the event at the place, so that many events before it stay.


def _in_place(change: Callable[[Log, Link], Link]) -> Attack:
    return lambda log, place: (place - 1, chain([change(log, log.links[place - 1])], islice(log.links, place, None)))


def _again(change: Callable[[Log, int], Iterable[Link]]) -> Attack:
    """What ``change`` makes of the events from the place on, numbered and chained anew to the end of the log."""

    def attack(log: Log, place: int) -> tuple[int, Iterable[Link]]:
        return place - 1, rechained(change(log, place), place, log.links[place - 2].leaf_hash)

    return attack


def _rest(log: Log, place: int) -> Iterator[Link]:
    """The events after the one at the place."""
    return islice(log.links, place, None)


def _edited(log: Log, place: int) -> Iterable[Link]:
    return chain([log.forged(log.links[place - 1])], _rest(log, place))


def _redated(link: Link) -> Link:
    at = datetime.fromisoformat(link.at) - timedelta(days=1)
    return link._replace(at=timestamp(at))


def _rehashed(log: Log, link: Link) -> Link:
    forged = log.forged(link)
    return forged._replace(leaf_hash=leaf_hash(forged.seq, forged.at, forged.previous_hash, forged.body or ""))


def _swapped_bodies(log: Log, place: int) -> tuple[int, Iterable[Link]]:
    one, other = log.links[place - 1], log.links[place]
    return place - 1, chain([one._replace(body=other.body), other._replace(body=one.body)], _rest(log, place + 1))


def _neighbours(log: Log, place: int) -> Iterable[Link]:
    return chain([log.links[place], log.links[place - 1]], _rest(log, place + 1))


def _inserted(log: Log, place: int) -> Iterable[Link]:
    return chain([log.forged(log.links[place - 1])], islice(log.links, place - 1, None))


def _grown_anew(log: Log, place: int) -> Iterable[Link]:
    return _events(log.rng, log.anchored - place + 10)


def _old_copy(log: Log, place: int) -> tuple[int, Iterable[Link]]:
    """The log as it was at the checkpoint before the place."""
    size = max((one.size for one in log.checkpoints if one.size < place), default=0)
    return size, ()


def _repeated(log: Log, place: int) -> tuple[int, Iterable[Link]]:
    return place, chain([log.links[place - 1]], _rest(log, place))


ATTACKS: Final[dict[str, Attack]] = {
    "edit a body": _in_place(lambda log, link: log.forged(link)),
    "edit a body and its hash": _in_place(_rehashed),
    "edit a body and all that follows": _again(_edited),
    "change a time": _in_place(lambda log, link: _redated(link)),
    "change a time and all that follows": _again(
        lambda log, place: chain([_redated(log.links[place - 1])], _rest(log, place))
    ),
    "change a number": _in_place(lambda log, link: link._replace(seq=link.seq + log.rng.randint(1, 50))),
    "change a link": _in_place(lambda log, link: link._replace(previous_hash=log.rng.randbytes(32).hex())),
    "change a hash": _in_place(lambda log, link: link._replace(leaf_hash=log.rng.randbytes(32).hex())),
    "empty a body": _in_place(lambda log, link: link._replace(body=NO_BODY)),
    "empty a body and change its hash": _in_place(
        lambda log, link: link._replace(body=None, leaf_hash=log.rng.randbytes(32).hex())
    ),
    "exchange two bodies": _swapped_bodies,
    "delete an event": lambda log, place: (place - 1, _rest(log, place)),
    "delete an event and renumber": _again(_rest),
    "delete a hundred and renumber": _again(lambda log, place: _rest(log, place + 99)),
    "cut off the end": lambda log, place: (place - 1, ()),
    "cut off the end and write another": _again(_grown_anew),
    "bring back an old copy": _old_copy,
    "insert an event": lambda log, place: (place - 1, _inserted(log, place)),
    "insert an event and renumber": _again(_inserted),
    "repeat an event": _repeated,
    "exchange neighbours": lambda log, place: (place - 1, _neighbours(log, place)),
    "exchange neighbours and renumber": _again(_neighbours),
}
"""Those on events alone; two more are on checkpoints."""


def run(events: int = EVENTS, places: int = PLACES, clean_logs: int = CLEAN_LOGS) -> bool:
    """Try everything; prints a line for each kind."""
    began = time.monotonic()
    log = Log.make(events, seed=4)
    states = _states(log)
    results = [_try_events(log, states, name, attack, places) for name, attack in ATTACKS.items()]
    results.append(_try_checkpoints(log, states, "sign a rewritten log with another key", places, _foreign))
    results.append(_try_checkpoints(log, states, "sign a rewritten log with the stolen key", places, _stolen))
    results.append(_try_clean(clean_logs))
    report("storm_audit_tampering", kinds=len(results) - 1, seconds=round(time.monotonic() - began, 1))
    return all(results)


def _states(log: Log) -> list[LogCheck]:
    """The check's state after every thousand events of the untouched log."""
    check, states = LogCheck(log.anchors), []
    for number, link in enumerate(log.links):
        if number % _STATE_EVERY == 0:
            states.append(check.copy())
        check.add(link)
    assert check.verdict().is_ok, "the untouched log is sound"
    return states


def _judge(log: Log, state: LogCheck, kept: int, tail: Iterable[Link], anchors: Anchors) -> Verdict:
    check = state.copy()
    check.anchors = anchors
    for link in chain(islice(log.links, check.checked, kept), tail):
        if not check.add(link):
            break
    return check.verdict()


def _try_events(log: Log, states: list[LogCheck], name: str, attack: Attack, places: int) -> bool:
    found = named = 0
    for turn in range(places):
        place = log.rng.randint(2, log.anchored - 101)
        seed = log.rng.random()
        kept, tail = _attacked(log, attack, place, seed)
        verdict = _judge(log, states[kept // _STATE_EVERY], kept, tail, log.anchors)
        found += not verdict.is_ok
        expected = place if attack is not _old_copy else kept + 1
        named += verdict.bad_seq == expected
        if turn == 0:
            kept, tail = _attacked(log, attack, place, seed)
            assert _judge(log, states[0], kept, tail, log.anchors) == verdict, f"{name}: both checks come to the same"
    return _report(name, places, found, named)


def _attacked(log: Log, attack: Attack, place: int, seed: float) -> tuple[int, Iterable[Link]]:
    log.rng.seed(seed)
    return attack(log, place)


def _try_checkpoints(log: Log, states: list[LogCheck], name: str, places: int, sign: Callable[[Log, str], str]) -> bool:
    """A rewritten log whose checkpoint, too, was replaced in the database; the anchors are out of reach."""
    found = named = 0
    for _ in range(places):
        place = log.rng.randint(2, log.anchored - 101)
        kept, tail = ATTACKS["edit a body and all that follows"](log, place)
        covering = next(one for one in log.checkpoints if one.size >= place)
        rewritten = Checkpoint(covering.origin, covering.size, log.rng.randbytes(32))
        anchors = log.known()
        anchors.add_note(
            sign(log, rewritten.body()), [log.signer.verifier_key], "the replaced checkpoint", covering.size
        )
        verdict = _judge(log, states[kept // _STATE_EVERY], kept, tail, anchors)
        # Without the rewriting, the checkpoint alone has to be noticed, too.
        untouched = _judge(log, states[kept // _STATE_EVERY], kept, islice(log.links, kept, None), anchors)
        found += not verdict.is_ok and not untouched.is_ok
        named += verdict.bad_seq == place
    return _report(name, places, found, named)


def _foreign(log: Log, body: str) -> str:
    key = Ed25519PrivateKey.from_private_bytes(log.rng.randbytes(32))
    return sign_note(body, Signer(log.signer.name, key))


def _stolen(log: Log, body: str) -> str:
    return sign_note(body, log.signer)


def _try_clean(count: int) -> bool:
    alarms = 0
    for seed in range(count):
        log = Log.make(random.Random(seed).randint(1, 4_000), seed)
        check = LogCheck(log.anchors)
        alarms += not (all(map(check.add, log.links)) and check.verdict().is_ok)
    report("storm_audit_clean_logs", logs=count, false_alarms=alarms)
    return alarms == 0


def _report(name: str, places: int, found: int, named: int) -> bool:
    report("storm_audit_tampering", kind=name, places=places, found=found, first_bad_seq_named=named)
    return found == named == places


if __name__ == "__main__":
    raise SystemExit(0 if run() else 1)
