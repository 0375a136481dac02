"""The decoding child: it answers requests until its standard input ends. Nothing imports this module.

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

_MAX_STDERR_BYTES = 64 << 20  # a decoder complains of every block of every frame


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent is gone (elsewhere the end of stdin ends it)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)


def _serve(out: BinaryIO) -> None:
    # Imported here, when memory is limited and standard output is safe from what a library prints.
    import av
    import cv2

    from curation.decode import cut, measure, probe, rescore, segments

    # Complaints go to standard error: from there the parent takes a decoder's last words. (The encoder is
    # chatty below this level.) Python's warnings name places in files, and come once per process.
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
            av.error.err_check(0)  # raises what a reader of the last source raised when nobody looked
        try:
            for message in operations[request["op"]](request):
                write_message(out, message)
            write_message(out, Message({"kind": "done"}))
        except SourceFailed as error:
            write_message(out, _error(error.error, error.message, error.transient, stage=error.stage))
        except Exception as error:
            # A decoder can raise anything; whatever it is, it is this source's row.
            name = type(error).__name__
            if isinstance(error, cv2.error):
                name = "MemoryError" if error.code == cv2.Error.StsNoMem else "OpenCVError"
            text = getattr(error, "strerror", None) or str(error) or name
            # Errors of reading are Python's own, as reading is; ffmpeg gives such numbers (EIO, EAGAIN) to
            # damage, which stays.
            transient = is_transient(error) and not isinstance(error, av.error.FFmpegError)
            write_message(out, _error(name, text, transient))


def _error(error: str, message: str, transient: bool, **head: str) -> Message:
    text = message[:MAX_MESSAGE_CHARS]
    return Message({"kind": "error", "error": error, "message": text, "transient": transient, **head})


def main() -> None:
    memory_mb, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    out = cast(BinaryIO, os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # whatever a library prints must not get between the messages
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Nothing here writes files but standard error. (Python ignores SIGXFSZ: a write just fails.)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_MAX_STDERR_BYTES, _MAX_STDERR_BYTES))
    _serve(out)


if __name__ == "__main__":
    main()
