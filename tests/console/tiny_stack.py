"""Run the real supervisor over tiny children.

``tiny_stack VAR '{"name": ["command", ...]}' [database] [port=N] [name=URL]``: the last gives a service's health URL.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from console.installation import Installation, StartupProblem
from console.postgres import EmbeddedPostgres
from console.supervisor import Service, StopRequested, Supervisor, check_port


def main(var_dir: str, services: str, *options: str) -> None:
    """Print ``ready`` when everything runs, ``stopped`` at the end, or the sentence of a ``StartupProblem``."""
    installation = Installation(Path(var_dir))
    supervisor = Supervisor(installation, lambda line: print(line, flush=True))
    try:
        with supervisor:
            for option in options:
                if option.startswith("port="):
                    check_port(int(option.removeprefix("port=")), "WEB_PORT")
            if "database" in options:
                supervisor.start_database(EmbeddedPostgres(installation))
            health = dict(option.split("=", 1) for option in options if "=http" in option)
            commands = json.loads(services).items()
            supervisor.start_services(
                [Service(name, command, {}, health.get(name, ""), settle_s=0.5) for name, command in commands]
            )
            supervisor.wait_ready(30.0)
            supervisor.say("ready")
            supervisor.watch()
    except StartupProblem as problem:
        sys.exit(str(problem))
    except StopRequested:
        print("stopped", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
