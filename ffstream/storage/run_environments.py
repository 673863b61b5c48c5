"""The environments of a run: what decided its bits, in order since its start, as RUN/environment.json records it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ffstream.errors import CorruptFileError
from ffstream.storage.identity import CONFIG, ENVIRONMENT_FILE
from ffstream.storage.manifest import (
    ENVIRONMENT,
    PARTS,
    content_digest,
    find_misfit,
    read_manifest,
    write_manifest,
)
from ffstream.storage.run_root import RunRoot

_DIGEST_ONLY = "digest"  # the only key of an environment whose record was lost


class RunEnvironments(RunRoot):
    """Reads and writes the environments that one run was trained in."""

    _known_environments: frozenset[str] = frozenset()  # digests that were found in environment.json

    def read_environments(self, *, accepts_missing: bool = False) -> list[dict[str, Any]]:
        """What decided the bits of the run, in order since its start; empty if unknown, as in earlier versions' runs.

        Raises CorruptFileError, also for a missing record unless `accepts_missing`.
        """
        if self.marker is None:
            return []
        try:
            found = read_manifest(self.folder, ENVIRONMENT_FILE, ENVIRONMENT)
        except FileNotFoundError:
            if accepts_missing or self.folder.find_kind(CONFIG) is None:  # without that, the run was never started
                return []
            raise CorruptFileError(
                f"run {self.path}: has no {ENVIRONMENT_FILE}, which records torch, the processor and the parts that it "
                "was trained with; restore it from a copy, or go on unchecked with --accept-environment"
            ) from None
        self.check_names_this_run(found, ENVIRONMENT_FILE, "restore it from a copy")
        return list(found["environments"])

    def read_parts(self, *, accepts_missing: bool = False) -> dict[str, Any]:
        """The run's record of the parts that do not come with this package. Raises CorruptFileError."""
        environments = self.read_environments(accepts_missing=accepts_missing)
        found = environments[-1].get("parts", {}) if environments else {}
        misfit = find_misfit(found, PARTS, "parts")
        if misfit is not None:
            raise CorruptFileError(f"manifest {self.path / ENVIRONMENT_FILE}: {misfit}; restore it from a copy")
        return dict(found)

    def record_environment(self, environment: Mapping[str, Any], earlier: Sequence[str] = ()) -> None:
        """Record the environment in which the run is trained from here on.

        `earlier` are digests of environments in which it was trained so far, for those whose record was lost.
        """
        environments = self.read_environments(accepts_missing=True)
        lost = set(earlier) - {_name_environment(each) for each in environments}
        environments = [{_DIGEST_ONLY: each} for each in sorted(lost)] + environments + [dict(environment)]
        write_manifest(self.folder, ENVIRONMENT_FILE, {"run": self.run_digest, "environments": environments})

    def name_environment(self) -> dict[str, str]:
        """The digest of the run's environment, as manifests of layers and of the progress name it."""
        environments = self.read_environments(accepts_missing=True)
        return {"environment": _name_environment(environments[-1])} if environments else {}

    def check_names_environment(self, manifest: dict[str, Any], name: str, remedy: str) -> None:
        """Raise CorruptFileError for a manifest that names an environment which the run does not record.

        A record that is missing as a whole is reported elsewhere.
        """
        found = manifest.get("environment")
        if found is None or found in self._known_environments:  # earlier versions named none
            return
        environments = self.read_environments(accepts_missing=True)
        self._known_environments |= {_name_environment(each) for each in environments}
        if environments and found not in self._known_environments:
            raise CorruptFileError(
                f"manifest {self.path / name}: trained in an environment that {ENVIRONMENT_FILE} does not record, as "
                f"layers and records of two copies of a run are; restore both from one copy, or {remedy}"
            )


def _name_environment(environment: dict[str, Any]) -> str:
    """The digest by which layers name an environment."""
    return str(environment[_DIGEST_ONLY]) if environment.keys() == {_DIGEST_ONLY} else content_digest(environment)
