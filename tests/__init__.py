"""The suite: real PostgreSQL, real ONNX models, real processes, a real browser."""
