"""Loaded as the first plugin, before Django's settings are read: an installation of the suite's own."""

import atexit
import os
import shutil
import tempfile

VAR = tempfile.mkdtemp(prefix="countersign-test-")
os.chmod(VAR, 0o711)  # noqa: S103 - the embedded database's account has to pass through
os.mkdir(os.path.join(VAR, "static"), 0o755)  # WhiteNoise wants it; pages take their files from the finders
atexit.register(shutil.rmtree, VAR, ignore_errors=True)

os.environ["COUNTERSIGN_VAR"] = VAR
os.environ["COUNTERSIGN_DATABASE_ROLE"] = "owner"
os.environ.setdefault("LOG_LEVEL", "ERROR")
os.environ.pop("INFERENCE_URL", None)
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
