"""What a replica is doing, in memory that it shares with its parent, and the parent's judgement of it.

A replica only counts: ticks of its event loop, and runs per lane (the loop itself, each slow-run thread, each loader
thread). The parent measures with its own clock how long a count has stood still, so neither clocks that jump nor a
machine that was suspended can make a healthy replica look hung. A run that takes too long is first asked to stop, which
ONNX Runtime does between two nodes of the graph; a replica is killed only for what does not obey.
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import re
import signal
import struct
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Final, NamedTuple, Protocol

LOOP_LANE: Final = 0
LOAD_LANES: Final = (1, 2)
SLOW_LANES: Final = range(3, 64)
TICK_S: Final = 0.2
"""How often the loop of a replica ticks."""
MAX_STEP_S: Final = 1.0
"""A longer pause between two looks says nothing about the replica: the parent was not running either."""
MAX_INLINE_S: Final = 2.0
"""A run on the loop's thread, where everything waits for it, is asked to stop after this time."""
GRACE_S: Final = 5.0
"""What a run on another thread has left from being asked to stop to being killed with its process."""
CRASHES: Final = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}

_LANE: Final = struct.Struct("=qqqq")  # deployment id or 0, number of the run, the thread's identifier, milliseconds
_WORD: Final = struct.Struct("=q")
_STOPS_AT: Final = 3072  # per lane, the number of the run that is to stop
_DUMP_AT: Final = 4096  # where a crash writes its traceback
_MAX_DUMP: Final = 64 * 1024
_CRASHED_THREAD: Final = re.compile(rb"Current thread 0x([0-9a-f]+)")


class Run(NamedTuple):
    """What a lane does: run ``number`` of a deployment, or nothing when ``deployment_id`` is 0."""

    deployment_id: int
    number: int
    thread: int
    allowed_ms: int


class Stoppable(Protocol):
    """What a run looks at between two nodes: ``onnxruntime.RunOptions``."""

    terminate: bool


class Lane:
    """The place of one thread on the board. ``begin`` and ``end`` cost a quarter of a microsecond each."""

    __slots__ = ("_memory", "_number", "_offset", "_position", "options")

    def __init__(self, memory: mmap.mmap, position: int, options: Stoppable | None = None) -> None:
        self.options = options
        self._memory = memory
        self._position = position
        self._offset = _WORD.size + position * _LANE.size
        self._number = 0

    def begin(self, deployment_id: int, allowed_ms: int = 0) -> None:
        """A model of this deployment is about to be run or loaded by the calling thread.

        ``allowed_ms``: how long it may take, if that is more than what is usual.
        """
        if self.options is not None and self.options.terminate:
            self.options.terminate = False  # that was for the run before
        self._number += 1
        _LANE.pack_into(self._memory, self._offset, deployment_id, self._number, get_ident(), allowed_ms)

    def end(self) -> None:
        """It is done."""
        _WORD.pack_into(self._memory, self._offset, 0)

    def stop_if_asked(self) -> None:
        """Pass on the parent's wish that the present run stop. Called by another thread than the lane's."""
        asked = _WORD.unpack_from(self._memory, _STOPS_AT + self._position * _WORD.size)[0]
        if self.options is not None and asked == self._number != 0:
            is_running = _WORD.unpack_from(self._memory, self._offset)[0] != 0
            self.options.terminate = is_running


class Board:
    """A few hundred shared bytes: the loop's tick count and the lanes; behind them, what a crash left to read."""

    def __init__(self, descriptor: int) -> None:
        """Map the memory behind ``descriptor``, which ``Board.create`` made, perhaps in another process."""
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, _DUMP_AT)
        self._ticks = 0

    @classmethod
    def create(cls) -> Board:
        """An empty board that a child process can inherit."""
        if sys.platform == "linux":
            descriptor = os.memfd_create("inference-board")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, _DUMP_AT)
        return cls(descriptor)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()
        os.close(self.descriptor)

    def tick(self) -> None:
        """The event loop lives. Called every ``TICK_S``."""
        self._ticks += 1
        _WORD.pack_into(self._memory, 0, self._ticks)

    def lane(self, position: int, options: Stoppable | None = None) -> Lane:
        """A lane to write to; ``position`` is one of ``LOOP_LANE``, ``LOAD_LANES``, ``SLOW_LANES``.

        ``options`` are those that the lane's runs are started with, if they can be stopped.
        """
        return Lane(self._memory, position, options)

    def ask_to_stop(self, position: int, number: int) -> None:
        """Have run ``number`` of a lane stop."""
        _WORD.pack_into(self._memory, _STOPS_AT + position * _WORD.size, number)

    def keep_crashes(self) -> None:
        """Let a crash of this process leave its traceback, which names the thread, behind the lanes."""
        os.lseek(self.descriptor, _DUMP_AT, os.SEEK_SET)
        faulthandler.enable(self.descriptor)

    def ticks(self) -> int:
        """How often the loop has ticked."""
        return int(_WORD.unpack_from(self._memory)[0])

    def runs(self) -> list[Run]:
        """What every lane does, by position."""
        end = _WORD.size + SLOW_LANES.stop * _LANE.size
        return [Run(*values) for values in _LANE.iter_unpack(self._memory[_WORD.size : end])]

    def crash(self) -> bytes:
        """The traceback that a crash left; empty without one."""
        return os.pread(self.descriptor, _MAX_DUMP, _DUMP_AT)


@dataclass(frozen=True, slots=True)
class Finding:
    """What was wrong with a replica, and the deployments that were the cause as far as one can tell."""

    reason: str
    deployment_ids: tuple[int, ...] = ()
    is_fatal: bool = True  # the replica has to end; else the run was asked to stop


class Watchdog:
    """Judges one life of a replica by its board. ``look`` is to be called several times a second."""

    def __init__(self, board: Board, *, hang: float, run: float, load: float) -> None:
        """Bounds in seconds: without a tick of the loop; for a run on a thread; for loading a model."""
        self._board = board
        self._hang, self._run, self._load = hang, run, load
        self._looked_at: float | None = None
        self._ticks = 0
        self._silent = 0.0
        self._runs: list[Run] = []
        self._lasted = [0.0] * SLOW_LANES.stop
        self._stopped: set[tuple[int, int]] = set()  # lane and number of the runs that were asked to stop

    def look(self, now: float) -> Finding | None:
        """What is wrong, once for each thing. ``now`` is a monotonic time in seconds."""
        step = 0.0 if self._looked_at is None else min(now - self._looked_at, MAX_STEP_S)
        self._looked_at = now
        ticks, runs = self._board.ticks(), self._board.runs()
        # A replica that has not ticked yet is starting; how long imports take is no sign of a hang.
        self._silent = self._silent + step if ticks and ticks == self._ticks else 0.0
        self._ticks = ticks
        for lane, run in enumerate(runs):
            is_same = bool(self._runs) and run == self._runs[lane] and run.deployment_id != 0
            self._lasted[lane] = self._lasted[lane] + step if is_same else 0.0
        self._runs = runs
        self._stopped = {(lane, number) for lane, number in self._stopped if runs[lane].number == number}
        return self._silence() or self._endless_load() or self._endless_run()

    def _silence(self) -> Finding | None:
        culprit = self._runs[LOOP_LANE].deployment_id
        is_loading = any(self._runs[lane].deployment_id for lane in LOAD_LANES)
        bound = self._load if is_loading and not culprit else self._hang
        if self._silent > bound and culprit:
            return Finding(f"its run held up the whole process for more than {bound:g} s", (culprit,))
        if self._silent > bound:
            return Finding(f"the event loop stood still for more than {bound:g} s")
        if culprit and self._lasted[LOOP_LANE] > MAX_INLINE_S and self._ask_to_stop(LOOP_LANE):
            # No strike: from now on this version runs on threads, where it may turn out to be only slow.
            return Finding(f"deployment {culprit} is stopped, it has run for {MAX_INLINE_S:g} s", is_fatal=False)
        return None

    def _endless_load(self) -> Finding | None:
        late = tuple(self._runs[lane].deployment_id for lane in LOAD_LANES if self._lasted[lane] > self._load)
        return Finding(f"it was not loaded within {self._load:g} s", late) if late else None

    def _endless_run(self) -> Finding | None:
        for lane in SLOW_LANES:
            lasted, run = self._lasted[lane], self._runs[lane]
            bound = max(self._run, run.allowed_ms / 1e3)
            if lasted > bound and self._ask_to_stop(lane):
                return Finding(f"its run did not end within {bound:g} s", (run.deployment_id,), is_fatal=False)
            if lasted > bound + GRACE_S:
                return Finding(f"the run of deployment {run.deployment_id} did not stop when it was asked to")
        return None

    def _ask_to_stop(self, lane: int) -> bool:
        """Ask for it; False if that was done before."""
        run = (lane, self._runs[lane].number)
        if run in self._stopped:
            return False
        self._stopped.add(run)
        self._board.ask_to_stop(*run)
        return True


def explain_death(board: Board, status: int, *, was_out_of_memory: bool) -> Finding | None:
    """The part that deployments had in a death of a replica that nobody asked for; None if there is no sign of one.

    ``status`` is the exit status as ``subprocess`` gives it. A crash names its thread. Who is to blame for a kill for
    want of memory is known only if a single model was running; any other kill is somebody's decision.
    """
    busy = [run for run in board.runs() if run.deployment_id]
    if -status in CRASHES:
        thread = _CRASHED_THREAD.search(board.crash())
        suspects = [run for run in busy if run.thread == int(thread[1], 16)] if thread else busy
        reason = f"the process crashed while it ran ({signal.Signals(-status).name})"
        return _blame(reason, suspects)
    if status == -signal.SIGKILL and was_out_of_memory:
        return _blame("the system ran out of memory while it ran", busy)
    return None


def _blame(reason: str, suspects: list[Run]) -> Finding:
    return Finding(reason, (suspects[0].deployment_id,) if len(suspects) == 1 else ())


def count_oom_kills(vmstat: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not say."""
    try:
        lines = vmstat.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
