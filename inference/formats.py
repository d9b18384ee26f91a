"""What a file is, judged by its first bytes. Standard library only: the web process asks this during an upload."""

from __future__ import annotations

from typing import Final

HEAD_BYTES: Final = 16
"""How much of a file ``why_not_onnx`` wants to see."""

_TEXT: Final = bytes(range(0x20, 0x7F)) + b"\t\r\n"


def why_not_onnx(head: bytes) -> str:
    """Why a file that begins with ``head`` surely is no ONNX model, and what to do; empty if it may be one."""
    if not head:
        return "The file is empty. Choose the .onnx file that your converter wrote."
    if head[4:8] == b"ORTM":
        return (
            "This is ONNX Runtime's own format, which skips the checks of ONNX. Upload the .onnx file it was made from."
        )
    if head.startswith(b"PK"):
        return "This is a ZIP archive, perhaps a PyTorch file. Export the model with torch.onnx.export and upload that."
    if head[0] == 0x80 and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "This is a pickle, which is never opened here. Convert the model to ONNX, for instance with skl2onnx."
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return "This is an HDF5 file, perhaps from Keras. Convert the model to ONNX, for instance with tf2onnx."
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "The file is compressed. Unpack it and upload the .onnx file."
    # The first byte of a model is a protobuf tag, never a printable text of this length.
    if len(head) >= HEAD_BYTES and not head.strip(_TEXT):
        return "This is a text file. Upload the binary .onnx file that your converter wrote."
    return ""
