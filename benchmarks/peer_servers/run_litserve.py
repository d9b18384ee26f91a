"""LitServe with one worker, batching what waits. Arguments: MODEL.onnx NAME PORT."""

import sys
from typing import Any

import litserve
import numpy as np
from session import load_session

BATCH_ROWS = 32


class OnnxApi(litserve.LitAPI):
    """Takes and gives the JSON of the Open Inference Protocol V2.

    Requests and answers have no type hints: LitServe would validate and copy them by these, number by number.
    """

    def __init__(self, path: str, name: str, **options: Any) -> None:
        super().__init__(api_path=f"/v2/models/{name}/infer", **options)
        self._path = path
        self._name = name

    def setup(self, device: str) -> None:
        """Open the session, in the worker."""
        self._session = load_session(self._path)

    def decode_request(self, request):
        """One row."""
        given = request["inputs"][0]
        return np.array(given["data"], np.float32).reshape(given["shape"])[0]

    def batch(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Rows to a batch."""
        return np.stack(inputs)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """The probabilities, which are the last output of every model here."""
        return self._session.run(None, {"X": batch})[-1]

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        """A batch to rows."""
        return list(output)

    def encode_response(self, output):
        """One row's answer."""
        tensor = {"name": "probabilities", "datatype": "FP32", "shape": [1, *output.shape], "data": output.tolist()}
        return {"model_name": self._name, "outputs": [tensor]}


if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    api = OnnxApi(path, name, max_batch_size=BATCH_ROWS, batch_timeout=0.001)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=int(port),
        num_api_servers=1,
        log_level="error",
        generate_client_file=False,
        access_log=False,
    )
