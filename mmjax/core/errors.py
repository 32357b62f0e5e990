"""The one exception that stands for a user's mistake, and the name that was probably meant."""

from __future__ import annotations

import contextlib
import difflib
import errno
from collections.abc import Iterable, Iterator

REFUSED = {  # by the machine, with the file's name: nothing of ours is wrong
    errno.ENOSPC: "the disk is full; what was saved before is untouched",
    errno.EDQUOT: "the quota is used up; what was saved before is untouched",
    errno.EROFS: "nothing can be written there",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ENOTDIR: "a part of this path is no folder",
    errno.EISDIR: "this is a folder, not a file",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "links that lead in a circle",
}


DEFECTS = (TypeError, AttributeError, NameError, AssertionError, NotImplementedError, ImportError)  # ours: never tried again


class UserError(ValueError):
    """A mistake in what the user gave us: a config, a flag, a file, a folder.

    The message is one line that names the field, the value found and what would be right. The command line prints it and
    exits with `exit_status`; every other exception is a defect of ours and keeps its traceback.
    """

    path = ""  # of the field that it is about, where its message begins with one: see `within`
    exit_status = 2


class UnreachableError(UserError):
    """Storage that does not answer, or answers with an error: what is there is neither known to be broken nor absent.

    Nothing was changed; the same command may succeed later. The command line exits with status 1, as for any failure that is
    not the user's mistake, so that whatever restarts jobs tries again.
    """

    exit_status = 1


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.5) -> str:
    """ " (did you mean 'x'?)" for the choice nearest to a misspelt name, or "" when none is near."""
    found = difflib.get_close_matches(name, list(choices), n=1, cutoff=cutoff)
    return f" (did you mean {found[0]!r}?)" if found else ""


@contextlib.contextmanager
def within(path: str, over: str = "") -> Iterator[None]:
    """Put the whole path of a field before every `UserError` of the block that has none yet; "" adds nothing.

    Args:
      over: fields that begin so take it too, whole as they are: `model.` of a teacher, which is not the student's.
    """
    try:
        yield
    except UserError as error:
        whole = error.path and not (over and error.path.startswith(over))
        if not path or whole or str(error).startswith(path):
            raise
        named = type(error)(f"{path}: {error}")
        named.path = path
        raise named from error


def said_of(error: BaseException) -> list[str]:
    """What was noted of an error on its way: not what JAX says of the traceback that it has shortened."""
    return [note for note in getattr(error, "__notes__", ()) if "JAX has removed its internal frames" not in note]
