"""``python -m inference``: supervises the serving processes and the shipper of the inference log."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from typing import Final

from inference.errors import ConfigurationError
from inference.settings import Settings
from inference.supervisor import supervise

PR_SET_PDEATHSIG: Final = 1
START_FAILED: Final = 2


def main(arguments: list[str]) -> int:
    """Run the command. A start that cannot succeed is one sentence on standard error and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = Settings.from_environment()
        match arguments:
            case []:
                return supervise(settings)
            case ["replica", replica_id, supervisor, listener, board]:
                _die_with(int(supervisor))
                return _run_replica(settings, replica_id, int(listener), int(board))
            case ["shipper", supervisor]:
                _die_with(int(supervisor))
                return _run_shipper(settings)
        raise ConfigurationError("Usage: python -m inference (settings come from the environment).")
    except ConfigurationError as error:
        print(f"inference: {error}", file=sys.stderr)
        return START_FAILED


def _run_replica(settings: Settings, replica_id: str, listener: int, board: int) -> int:
    from inference.replica import serve
    from inference.watchdog import Board

    serve(settings, replica_id, socket.socket(fileno=listener), Board(board))
    logging.shutdown()
    os._exit(0)  # a run that does not return would keep the interpreter from ending


def _run_shipper(settings: Settings) -> int:
    from inference.shipper import Shipper

    shipper = Shipper(settings)
    signal.signal(signal.SIGTERM, lambda *_: shipper.stop())
    shipper.run()
    return 0


def _die_with(supervisor: int) -> None:
    """Leave nothing behind if the supervisor is killed, and leave Ctrl-C to it: it stops its children in order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before this line
            os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
