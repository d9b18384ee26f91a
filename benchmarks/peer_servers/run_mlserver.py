"""MLServer without its worker pool, its metrics and its access log, on uvloop. Arguments: MODEL.onnx NAME PORT."""

import sys

import uvloop
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse
from session import load_session


class OnnxModel(MLModel):
    """Runs each request alone, on the event loop."""

    async def load(self) -> bool:
        """Open the session."""
        self._session = load_session(self.settings.parameters.uri)
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One input, all outputs."""
        array = NumpyCodec.decode_input(payload.inputs[0])
        arrays = self._session.run(self._names, {payload.inputs[0].name: array})
        outputs = [NumpyCodec.encode_output(name, one) for name, one in zip(self._names, arrays, strict=True)]
        return InferenceResponse(model_name=self.name, outputs=outputs)


async def main(path: str, name: str, port: str) -> None:
    """Serve until stopped."""
    settings = Settings(
        host="127.0.0.1",
        http_port=int(port),
        grpc_port=0,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
        logging_settings={
            "version": 1,
            "disable_existing_loggers": True,
            "root": {"level": "ERROR"},
        },
    )
    model = ModelSettings(name=name, implementation=OnnxModel, parameters=ModelParameters(uri=path, version="1"))
    await MLServer(settings).start([model])


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:]))
