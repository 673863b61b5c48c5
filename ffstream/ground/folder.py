"""Folders that belong to ffstream: nothing in them is written, renamed or removed through a symbolic link."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from ffstream.errors import StorageError
from ffstream.ground.files import (
    MANIFEST_BYTES,
    describe_kind,
    open_regular,
    read_regular,
    storage_error,
    suppress_each,
    sync_file,
    sync_folder,
    write_all,
)

TEMPORARY = ".tmp-"  # begins the name of a file or a folder until it is complete and durable

# Whether files can be named relative to an open folder, so that no folder on the way can be swapped meanwhile.
_HAS_DESCRIPTORS = {os.open, os.mkdir, os.rename, os.rmdir, os.stat, os.unlink} <= os.supports_dir_fd
_FOLDER_FLAGS = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_FILE_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class Folder:
    """One folder and everything below it, addressed by relative names such as "layers/000/weights.safetensors".

    `path` itself may lead through links, as its owner chose. Below it, whatever is changed is reached by opening each
    folder on the way relative to its parent, and links are refused. On Windows, which lacks such calls, each folder is
    checked first instead. Reading may follow links. `identity` says whose folder it is: it is a part of the names of
    temporary files, so that those that a killed process left can be recognised. `before_commit` is called before
    anything gets its final name, and raises an error to forbid that.
    """

    def __init__(self, path: Path, identity: str = "", before_commit: Callable[[], None] = lambda: None) -> None:
        self.path = path
        self.identity = identity
        self.before_commit = before_commit
        self._descriptor: int | None = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep the folder open, so that all work is done in this folder even if its path leads elsewhere by then."""
        if not _HAS_DESCRIPTORS:
            yield
            return
        self._descriptor = os.open(self.path, _FOLDER_FLAGS)
        try:
            yield
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    # --- reading

    def names(self, name: str = "") -> list[str]:
        """The names in a folder, sorted; none if it is missing. Raises StorageError when it cannot be listed."""
        try:
            with self._opened("") as top:
                if top is None:
                    return sorted(os.listdir(self.path / name))  # noqa: PTH208 - as below
                descriptor = os.open(name or ".", _FOLDER_FLAGS, dir_fd=top)
                try:
                    return sorted(os.listdir(descriptor))  # noqa: PTH208 - pathlib cannot list a descriptor
                finally:
                    os.close(descriptor)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise storage_error(error, self.path / name, "read") from error

    def find_kind(self, name: str) -> str | None:
        """The kind of what has a name, without following a link: "a regular file", "a folder" ...; None for nothing.

        Raises StorageError when that cannot be determined.
        """
        found = self._stat(name)
        return None if found is None else describe_kind(found.st_mode)

    def size(self, name: str) -> int:
        """Bytes of the file, or of the link itself, that has a name; 0 if nothing has it. Raises StorageError."""
        found = self._stat(name)
        return 0 if found is None else found.st_size

    def is_same(self, name: str, descriptor: int) -> bool:
        """Whether a name leads to the file that is open as `descriptor`. Raises StorageError."""
        found = self._stat(name)
        return found is not None and os.path.samestat(found, os.fstat(descriptor))

    def _stat(self, name: str) -> os.stat_result | None:
        try:
            with self._opened("") as top:
                place = name if top is not None else str(self.path / name)
                return os.stat(place, dir_fd=top, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise storage_error(error, self.path / name, "read") from error

    def open(self, name: str) -> io.FileIO:
        """Open a regular file for reading, unbuffered. Raises FileNotFoundError if it is missing, else StorageError."""
        try:
            with self._opened("") as top:
                return open_regular(name if top is not None else self.path / name, top)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name)) from error
        except OSError as error:
            raise storage_error(error, self.path / name, "read") from error

    def read(self, name: str, most_bytes: int = MANIFEST_BYTES) -> bytes:
        """The content of a regular file of at most `most_bytes`.

        Raises FileNotFoundError if it is missing, else StorageError.
        """
        try:
            with self._opened("") as top:
                return read_regular(name if top is not None else self.path / name, most_bytes, top)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name)) from error
        except OSError as error:
            raise storage_error(error, self.path / name, "read") from error

    # --- writing

    def make_folder(self, name: str) -> None:
        """Make a folder and its missing parents, durably. Raises StorageError for a link."""
        parts = name.split("/")
        for number in range(1, len(parts) + 1):
            with self._reached("/".join(parts[:number])) as (above, last):
                try:
                    os.mkdir(last, dir_fd=above)
                except FileExistsError:
                    self._check_folder("/".join(parts[:number]))
                    continue
                self._sync(above, "/".join(parts[: number - 1]))

    def create(self, name: str) -> io.FileIO:
        """Create an empty file, unbuffered, replacing a regular file of that name. Raises StorageError for a link."""
        file = self.create_new(name)
        if file is None:
            self.remove(name)
            file = self.create_new(name)
        if file is None:  # it has appeared again: another process is at work here
            raise self._refuse(name, self.find_kind(name))
        return file

    def create_new(self, name: str) -> io.FileIO | None:
        """Create an empty file, unbuffered. Returns None if something has that name already."""
        with self._reached(name) as (above, last), contextlib.suppress(FileExistsError):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE_FLAGS
            return io.FileIO(os.open(last, flags, 0o666, dir_fd=above), "r+b")
        return None

    def append(self, name: str) -> io.FileIO:
        """Open a file for appending; it is made if it is missing. Raises StorageError for a link."""
        kind = self.find_kind(name)
        if kind not in (None, "a regular file"):
            raise self._refuse(name, kind)
        with self._reached(name) as (above, last):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | _FILE_FLAGS
            file = io.FileIO(os.open(last, flags, 0o666, dir_fd=above), "ab+")
        kind = describe_kind(os.fstat(file.fileno()).st_mode)  # of the open file, as the name may lead elsewhere by now
        if kind != "a regular file":
            file.close()
            raise self._refuse(name, kind)
        return file

    def name_temporary(self, name: str) -> str:
        """A temporary name in the same folder, for what is to be renamed to `name` when it is complete."""
        above, _, _ = name.rpartition("/")
        return f"{above}{'/' if above else ''}{TEMPORARY}{self.identity}-{secrets.token_hex(4)}"

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[io.FileIO]:
        """Yield a temporary file beside `name`; on success it is durably renamed to `name`, on any failure removed."""
        temporary = self.name_temporary(name)
        file = self.create(temporary)
        with self.removed_on_error(temporary), file:
            yield file
            self.publish(file, temporary, name)

    def write(self, name: str, data: bytes) -> None:
        """Write a file durably, whole or not at all, replacing any earlier one. Its folder must exist."""
        with self.writing(name) as file:
            write_all(file, data)

    def publish(self, file: io.FileIO, temporary: str, name: str) -> None:
        """Write a complete file through to the disk, then durably rename it to `name`, in the same folder."""
        sync_file(file)
        self.rename(temporary, name)

    def rename(self, name: str, to: str) -> None:
        """Durably rename a file or a folder within its parent folder, once `before_commit` allows it."""
        self.before_commit()
        with self._reached(name) as (above, last):
            target = to.rpartition("/")[2] if above is not None else str(self.path / to)
            try:
                os.rename(last, target, src_dir_fd=above, dst_dir_fd=above)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                    raise
                raise StorageError(
                    f"cannot write {self.path / to}: something of that name is there that this run did not write; "
                    "move it away, then resume"
                ) from error
            self._sync(above, name.rpartition("/")[0])

    def move(self, name: str, to: str) -> None:
        """Durably move a file or a folder to another folder, where nothing may have that name yet. Raises OSError."""
        self.before_commit()
        with self._reached(name) as (above, last), self._reached(to) as (target_above, target):
            os.rename(last, target, src_dir_fd=above, dst_dir_fd=target_above)
            self._sync(target_above, to.rpartition("/")[0])
            self._sync(above, name.rpartition("/")[0])

    def sync(self, name: str) -> None:
        """Write a file or a folder through to the disk."""
        with self._reached(name) as (above, last):
            if self.find_kind(name) == "a folder":
                with self._opened(name) as descriptor:
                    self._sync(descriptor, name)
            else:
                with io.FileIO(os.open(last, os.O_RDWR | _FILE_FLAGS, dir_fd=above), "r+b") as file:
                    sync_file(file)

    def sync_name(self, name: str) -> None:
        """Make it durable that something has this name: write the folder that holds it through to the disk."""
        with self._reached(name) as (above, _):
            self._sync(above, name.rpartition("/")[0])

    @contextlib.contextmanager
    def removed_on_error(self, name: str) -> Iterator[None]:
        """Remove a half-written file if the block fails. Errors of the removal itself are ignored."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, StorageError):
                self.remove(name)
            raise

    # --- removing

    def remove(self, name: str) -> int:
        """Remove a regular file. Returns its bytes, 0 if it is missing. Raises StorageError for anything else."""
        try:
            with self._reached(name) as (above, last):
                num_bytes = self.size(name)
                self._unlink_regular(above, last, name)
                return num_bytes
        except FileNotFoundError:
            return 0

    def remove_matching(self, folder: str, *patterns: str) -> int:
        """Remove the regular files of a folder whose whole names match a pattern, then the folder if it is empty.

        A file that cannot be removed does not keep the rest. Returns the bytes removed. Never follows a link.
        """
        removed = [0]

        def remove(name: str) -> None:
            removed[0] += self.remove(f"{folder}/{name}" if folder else name)

        if self._is_own_folder(folder):
            found = [name for name in self.names(folder) if any(re.fullmatch(each, name) for each in patterns)]
            suppress_each(lambda name=name: remove(name) for name in found)  # type: ignore[misc]
            if folder:
                self.remove_if_empty(folder)
        return removed[0]

    def remove_if_empty(self, name: str) -> None:
        """Remove a folder unless something is in it."""
        with contextlib.suppress(OSError, StorageError), self._reached(name) as (above, last):
            os.rmdir(last, dir_fd=above)

    def _is_own_folder(self, name: str) -> bool:
        """Whether a folder exists and is reached without a link."""
        parts = name.split("/") if name else []
        kinds = (self.find_kind("/".join(parts[: number + 1])) for number in range(len(parts)))
        return all(kind == "a folder" for kind in kinds)

    # --- on the way

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[int | None]:
        """Yield a descriptor of a folder below this one, reached without a link; None if there are no descriptors."""
        if not _HAS_DESCRIPTORS:
            for number in range(name.count("/") + 1 if name else 0):
                self._check_folder("/".join(name.split("/")[: number + 1]))
            yield None
            return
        is_held = self._descriptor is not None
        current = self._descriptor if self._descriptor is not None else os.open(self.path, _FOLDER_FLAGS)
        try:
            for part in name.split("/") if name else ():
                try:
                    below = os.open(part, _FOLDER_FLAGS | getattr(os, "O_NOFOLLOW", 0), dir_fd=current)
                except OSError as error:
                    raise self._explain_link(name, error) from error
                if not is_held:
                    os.close(current)
                current, is_held = below, False
            yield current
        finally:
            if not is_held:
                os.close(current)

    @contextlib.contextmanager
    def _reached(self, name: str) -> Iterator[tuple[int | None, str]]:
        """Yield a descriptor of the folder that holds `name`, and its name there; or None and the whole path."""
        above, _, last = name.rpartition("/")
        with self._opened(above) as descriptor:
            yield descriptor, last if descriptor is not None else str(self.path / name)

    def _sync(self, above: int | None, name: str) -> None:
        sync_folder(above if above is not None else self.path / name)

    def _unlink_regular(self, above: int | None, last: str, name: str) -> None:
        kind = describe_kind(os.stat(last, dir_fd=above, follow_symlinks=False).st_mode)
        if kind != "a regular file":
            raise self._refuse(name, kind)
        os.unlink(last, dir_fd=above)

    def _check_folder(self, name: str) -> None:
        kind = self.find_kind(name)
        if kind is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path / name))
        if kind != "a folder":
            raise self._refuse(name, kind)

    def _explain_link(self, name: str, error: OSError) -> Exception:
        """A StorageError if a link, or another wrong kind of file, caused the error; else the error itself."""
        if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.EMLINK, errno.EISDIR, errno.ENXIO):
            return error
        parts = name.split("/")
        for number in range(1, len(parts) + 1):
            kind = self.find_kind("/".join(parts[:number]))
            wanted = "a folder" if number < len(parts) or error.errno == errno.ENOTDIR else "a regular file"
            if kind is not None and kind != wanted:
                return self._refuse("/".join(parts[:number]), kind)
        return error

    def _refuse(self, name: str, kind: str | None) -> StorageError:
        return StorageError(
            f"cannot write {self.path / name}: it is {kind}; ffstream writes and removes regular files and folders "
            "only, "
            "and follows no link here; move it away"
        )
