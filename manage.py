#!/usr/bin/env python
"""Django's command line for this project."""

import os
import sys

if __name__ == "__main__":
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "console.settings")
    try:
        from django.core.management import execute_from_command_line

        from console.installation import StartupProblem
    except ImportError as error:
        sys.exit(f"Cannot start, a package or system library is missing ({error}): run make up, it installs packages.")
    try:
        execute_from_command_line(sys.argv)
    except StartupProblem as problem:
        sys.exit(f"Cannot start. {problem}")
