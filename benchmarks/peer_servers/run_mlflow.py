"""MLflow's scoring server: `mlflow models serve` with one worker, no access log. Arguments: MODEL.onnx NAME PORT."""

import os
import shutil
import sys

import mlflow.onnx
import onnx

if __name__ == "__main__":
    path, name, port = sys.argv[1:]
    folder = os.path.abspath(name)
    shutil.rmtree(folder, ignore_errors=True)
    mlflow.onnx.save_model(
        onnx.load(path),
        folder,
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": 1, "inter_op_num_threads": 1},
    )
    os.environ["UVICORN_ACCESS_LOG"] = "0"
    serve = ["models", "serve", "-m", folder, "-h", "127.0.0.1", "-p", port, "-w", "1", "--env-manager", "local"]
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", *serve])  # noqa: S606
