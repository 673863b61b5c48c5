"""Outputs: files that a user asks a command to write. Files of other origin are not overwritten unless forced."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ffstream.errors import OutputError, StorageError
from ffstream.ground.files import (
    copy_mode,
    describe_kind,
    expand_home,
    make_folder,
    open_regular,
    read_up_to,
    suppress_each,
    sync_file,
    sync_folder,
    write_all,
)
from ffstream.ground.processes import is_of_dead_process, make_tag
from ffstream.storage.identity import CACHE
from ffstream.storage.run_names import find_run, is_name_of_run, is_run

_PREFIX = ".ffstream-"
_LEFT_OVER = re.compile(re.escape(_PREFIX) + r"(\d+-\d+-[0-9a-f]{8})-[0-9a-f]{8}")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_CHUNK_BYTES = 1 << 20

# Says whether an existing file, open for reading, was written by the same command before.
IsOwn = Callable[[io.FileIO], bool]


class Output:
    """One output file, written whole or not at all. It keeps the permissions of a file that it replaces.

    It never replaces an input, a file of a run, a folder, a device or a FIFO. `inputs` are files, or folders with all
    that is below them; missing ones are ignored. It replaces another file only with `force`, or where `is_own` says
    that the same command wrote that file before; of a file that is not replaced, `name_owner` may say what it is. Links
    are followed first. Raises OutputError: on construction, so that nobody waits for a refusal, and again before the
    file gets its name.
    """

    def __init__(
        self,
        path: str | Path,
        inputs: Iterable[str | Path] = (),
        *,
        force: bool = False,
        is_own: IsOwn = lambda _: False,
        name_owner: Callable[[io.FileIO], str | None] = lambda _: None,
    ) -> None:
        self.path = expand_home(path)
        self.is_own, self._name_owner = is_own, name_owner
        self._inputs = [Path(each) for each in inputs]
        self._force = force
        self.check()

    def check(self) -> Path:
        """The path of the file, links followed. Raises OutputError when it may not be written there."""
        try:
            target = Path(os.path.realpath(self.path))
            found = _find(self.path)
            self._check_folder(target.parent)
        except (OSError, ValueError) as error:  # ValueError: for a name that no file can have
            reason = error.strerror if isinstance(error, OSError) else error
            raise self._refuse(f"the path cannot be checked ({reason})", "choose another name") from error
        run = find_run(target)
        if run is not None:
            raise self._refuse(f"is a file of the run {run}", "choose a name that it does not use")
        if found is None:
            return target
        if not stat.S_ISREG(found.st_mode):
            raise self._refuse(f"is {describe_kind(found.st_mode)}", "allowed a file; choose another name")
        if any(os.path.samestat(found, own) for each in self._inputs if (own := _find_or_none(each)) is not None):
            raise self._refuse("is an input of the same command", "choose another name")
        if self._is_own(target):
            return target
        above = next((each for each in self._inputs if _holds(each, found)), None)
        if above is not None:
            raise self._refuse(f"is a file of the input {above}", "choose another name")
        if not self._force:
            raise self._refuse(
                f"is there already, and is {self._describe(target)}",
                "choose another name, or add --force to replace it",
            )
        return target

    @contextlib.contextmanager
    def writing(self) -> Iterator[io.FileIO]:
        """Yield a new file beside the output; on success it durably takes that name, on any failure it is removed."""
        target = self.check()
        with self._storage_errors():
            make_folder(target.parent)
            remove_left_over(target.parent)
            temporary = target.with_name(f"{_PREFIX}{make_tag()}-{secrets.token_hex(4)}")
            file = io.FileIO(os.open(temporary, _FLAGS, 0o666), "r+b")
            try:
                with file:
                    yield file
                    self._publish(file, temporary, target)
            finally:
                with contextlib.suppress(OSError):  # from a failing disk, which has been reported by now
                    temporary.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Write the whole file at once."""
        with self.writing() as file:
            write_all(file, data)

    def _publish(self, file: io.FileIO, temporary: Path, target: Path) -> None:
        """Give the complete file its name. A refusal by `check` is ignored if the file there has the same bytes."""
        try:
            if self.check() != target:
                raise self._refuse("leads to another file than when the command was started", "run the command again")
        except OutputError:
            if _has_same_bytes(file, target):
                return
            raise
        with contextlib.suppress(FileNotFoundError):
            copy_mode(file, target.stat().st_mode)
        sync_file(file)
        temporary.replace(target)
        sync_folder(target.parent)

    def _check_folder(self, folder: Path) -> None:
        """Raise OutputError unless files can be made in a folder, or in the nearest existing one above it."""
        above = next(each for each in (folder, *folder.parents) if _find(each) is not None)
        if not above.is_dir():
            raise self._refuse(f"{above} is {describe_kind(above.stat().st_mode)}, allowed a folder", "choose another")
        if not os.access(above, os.W_OK | os.X_OK):
            raise self._refuse(f"folder {above} cannot be written", "mend its permissions, or choose another")

    def _is_own(self, target: Path) -> bool:
        try:
            with open_regular(target) as file:
                return self.is_own(file)
        except OSError:  # a file that cannot be read does not count as an earlier output
            return False

    def _describe(self, target: Path) -> str:
        """What the file is that is there and is not replaced: another's output, if it says so."""
        try:
            with open_regular(target) as file:
                found = self._name_owner(file)
        except OSError:
            found = None
        return "not what the same command has written before" if found is None else found

    def _refuse(self, found: str, remedy: str) -> OutputError:
        return OutputError(f"output {self.path}: {found}; {remedy}")

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise StorageError(
                f"cannot write {self.path}: {reason}; free space or mend permissions there, then do it again; nothing "
                "that was there is changed"
            ) from error


def remove_left_over(folder: Path) -> None:
    """Remove the half-written regular files that dead processes left in a folder."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [entry for entry in entries if _is_left_over(entry)]
        suppress_each(lambda entry=entry: Path(entry.path).unlink() for entry in found)  # type: ignore[misc]


def holds(file: io.FileIO, content: bytes) -> bool:
    """Whether an open file holds exactly this. Raises OSError."""
    return os.fstat(file.fileno()).st_size == len(content) and read_up_to(file, len(content)) == content


def _find(path: Path) -> os.stat_result | None:
    """The status of the file that a path leads to; None where there is nothing. Raises OSError, ValueError."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _find_or_none(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError):
        return None


def _holds(folder: Path, wanted: os.stat_result) -> bool:
    """Whether a file is in a folder or below it, links followed. If the folder is a run, only its own files count.

    The caches of a run are left out: wherever they lie, their files are recognised by the names of their folders.
    """
    top, of_run = str(folder), is_run(folder)
    seen, waiting = set(), [top]
    while waiting:
        current = waiting.pop()
        with contextlib.suppress(OSError), os.scandir(current) as entries:
            for entry in entries:
                if current == top and of_run and (entry.name == CACHE or not is_name_of_run(entry.name)):
                    continue
                found = _find_or_none(Path(entry.path))
                if found is None:
                    continue
                if os.path.samestat(found, wanted):
                    return True
                if stat.S_ISDIR(found.st_mode) and (found.st_dev, found.st_ino) not in seen:
                    seen.add((found.st_dev, found.st_ino))
                    waiting.append(entry.path)
    return False


def _is_left_over(entry: os.DirEntry[str]) -> bool:
    name = _LEFT_OVER.fullmatch(entry.name)
    return name is not None and is_of_dead_process(name[1]) and entry.is_file(follow_symlinks=False)


def _has_same_bytes(file: io.FileIO, path: Path) -> bool:
    try:
        with open_regular(path) as other:
            if os.fstat(file.fileno()).st_size != os.fstat(other.fileno()).st_size:
                return False
            file.seek(0)
            while part := file.read(_CHUNK_BYTES):
                if part != read_up_to(other, len(part)):
                    return False
            return True
    except OSError:
        return False
