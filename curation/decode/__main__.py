"""The decoding child. It answers requests until its standard input ends. No other module imports this one.

The parent starts it as `python -m curation.decode` (`curation.sandbox.parent`).
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import warnings
from typing import BinaryIO, cast

from curation.sandbox.protocol import MAX_MESSAGE_CHARS, Message, SourceFailed, write_message
from curation.store.transient import is_transient

# Libraries reserve addresses that they never fill: PyTorch with its CUDA libraries some gigabytes.
_ADDRESSES_BYTES = 12 << 30
_MAX_STDERR_BYTES = 64 << 20  # a decoder may complain about every block of every frame


def _die_with(parent: int) -> None:
    """Let Linux kill this process when its parent dies. Elsewhere the end of stdin ends the process."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _serve(out: BinaryIO) -> None:
    # Imported here, because memory is now limited and libraries can no longer print to standard output.
    import av
    import cv2

    from curation.decode import cut, measure, probe, rescore, segments

    # Complaints are written to standard error, where the parent reads a decoder's last words. Below this
    # level the encoder prints too much. Python's warnings are ignored, because they name lines of code and
    # appear only once per process.
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.ERROR)
    warnings.simplefilter("ignore")

    operations = {
        "probe": probe.run,
        "measure": measure.run,
        "rescore": rescore.run,
        "look": segments.look,
        "score": segments.score,
        "cut": cut.run,
    }
    for line in sys.stdin.buffer:
        request = json.loads(line)
        with contextlib.suppress(Exception):
            av.error.err_check(0)  # clears an error that reading the last source has left in PyAV
        try:
            for message in operations[request["op"]](request):
                write_message(out, message)
            write_message(out, Message({"kind": "done"}))
        except SourceFailed as error:
            write_message(out, _error(error.error, error.message, error.transient, stage=error.stage))
        except Exception as error:
            # A decoder can raise any kind of error. Every error fails only this source.
            name = type(error).__name__
            if isinstance(error, cv2.error):
                name = "MemoryError" if error.code == cv2.Error.StsNoMem else "OpenCVError"
            text = getattr(error, "strerror", None) or str(error) or name
            # Python reads the files, so true read errors are Python's own. ffmpeg uses the same numbers (EIO,
            # EAGAIN) for damaged data, which will not be better the next time.
            transient = is_transient(error) and not isinstance(error, av.error.FFmpegError)
            write_message(out, _error(name, text, transient))


def _error(error: str, message: str, transient: bool, **head: str) -> Message:
    text = message[:MAX_MESSAGE_CHARS]
    return Message({"kind": "error", "error": error, "message": text, "transient": transient, **head})


def main() -> None:
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    out = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # text that a library prints must not mix with the messages
    # The parent watches the resident memory. This limit is for what grows faster than the parent looks.
    addresses = (memory_mb << 20) + _ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (addresses, addresses))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Standard error is the only file that the child writes. Python ignores SIGXFSZ, so a write just fails.
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_STDERR_BYTES, _MAX_STDERR_BYTES))
    _serve(out)


if __name__ == "__main__":
    main()
