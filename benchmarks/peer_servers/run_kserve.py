"""KServe's model server with one worker and without its logs of requests. Arguments: MODEL.onnx NAME PORT."""

import logging
import sys
from typing import Any

import kserve.protocol.rest.server
import uvicorn
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from session import load_session

TYPES = {"int64": "INT64", "float32": "FP32"}


class OnnxModel(Model):
    """Runs each request alone, on the event loop."""

    def __init__(self, path: str, name: str) -> None:
        super().__init__(name)
        self._session = load_session(path)
        self._names = [output.name for output in self._session.get_outputs()]
        self.ready = True

    async def predict(
        self,
        payload: InferRequest,
        headers: dict[str, str] | None = None,
        response_headers: dict[str, str] | None = None,
    ) -> InferResponse:
        """One input, all outputs."""
        given = payload.inputs[0]
        arrays = self._session.run(self._names, {given.name: given.as_numpy()})
        outputs = []
        for name, array in zip(self._names, arrays, strict=True):
            output = InferOutput(name, list(array.shape), TYPES[array.dtype.name])
            output.set_data_from_numpy(array, binary_data=False)
            outputs.append(output)
        return InferResponse(response_id=payload.id, model_name=self.name, infer_outputs=outputs)


class Config(uvicorn.Config):
    """KServe listens on every address and keeps an access log, and has no setting for either."""

    def __init__(self, app: str, **options: Any) -> None:
        super().__init__(app, **{**options, "host": "127.0.0.1", "access_log": False})


if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    logging.basicConfig(level=logging.ERROR)  # it leaves logging alone that is set up already
    kserve.protocol.rest.server.uvicorn.Config = Config
    server = ModelServer(http_port=int(port), enable_grpc=False, workers=1, enable_latency_logging=False)
    server.start([OnnxModel(path, name)])
