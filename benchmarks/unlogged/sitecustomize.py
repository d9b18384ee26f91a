"""Makes the inference service drop its log, to measure what the log costs. Never part of the product.

Python imports this file at the start of every process that has this folder on its PYTHONPATH: so the service, its
replicas and its shipper run by their own command and in their own processes, and only the spool forgets what it is
given. The product itself has no switch for that.
"""

from inference.inference_log import Context, Record, Spool


def _discard(self: Spool, context: Context, record: Record) -> None:
    """Instead of ``Spool.append``: no encoding, no writing, and nothing to ship."""


Spool.append = _discard  # type: ignore[method-assign]
