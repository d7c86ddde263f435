"""A disk that has become full, for this process alone."""

import contextlib
import resource


@contextlib.contextmanager
def full_disk(room=0):
    """No file grows beyond `room` bytes in the block: the system refuses to write more, with EFBIG as with a full disk's ENOSPC."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
