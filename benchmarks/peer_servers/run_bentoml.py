"""BentoML with one worker, without metrics and access log. Arguments: MODEL.onnx NAME PORT."""

import os
import sys
from pathlib import Path

import bentoml
import numpy as np
from session import load_session

MODEL = "BENCH_MODEL"


@bentoml.service(workers=1, metrics={"enabled": False}, logging={"access": {"enabled": False}})
class OnnxService:
    """Answers the probabilities, which are the last output of every model here."""

    def __init__(self) -> None:
        self._session = load_session(os.environ[MODEL])

    @bentoml.api(route="/predict")
    def predict(self, X: np.ndarray) -> np.ndarray:
        """One input, called as the models call it."""
        return self._session.run(None, {"X": np.asarray(X, np.float32)})[-1]


if __name__ == "__main__":
    path, _, port = sys.argv[1:]
    os.environ[MODEL] = path
    folder = Path(__file__).resolve().parent
    serve = ["serve", "run_bentoml:OnnxService", "--host", "127.0.0.1", "--port", port, "--working-dir", str(folder)]
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *serve])  # noqa: S606
