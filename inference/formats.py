"""What a file is by its first bytes; cheap enough for a web process, which never imports onnx."""


def why_not_onnx(head: bytes) -> str:
    """What a file is, judged by its first bytes, if it surely is no ONNX model; empty if it may be one."""
    if head[4:8] == b"ORTM":
        return "This is ONNX Runtime's own format. Upload the .onnx file that it was made from."
    if head[:2] == b"PK":
        return "This is a ZIP archive, perhaps a PyTorch file. Export the model to ONNX and upload that file."
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "This is a pickle, which is never opened here. Convert the model to ONNX, e.g. with skl2onnx."
    if head[:8] == b"\x89HDF\r\n\x1a\n":
        return "This is an HDF5 file, perhaps from Keras. Convert the model to ONNX, e.g. with tf2onnx."
    return "" if head else "The file is empty."
