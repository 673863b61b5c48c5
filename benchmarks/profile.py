"""Peak memory against depth, as `ffstream profile` measures it: beside the rivals, and ours to 400 layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ffstream.studies.charts import draw_profile
from ffstream.studies.memory_profile import METHODS, Point, Profile, ProfileSettings, measure_profile

DEPTHS = (2, 7, 12, 22, 47)
DEEP = (4, 400)
DEEP_SIZES = {"width": 512, "batch": 1000, "micro_batch": 100}


def measure_depths(device: str, folder: Path, picture: Path) -> dict[str, Any]:
    """The points of every method, and by how much ours grow from the first depth to the last."""
    settings = ProfileSettings.here(device=device, precision="auto")
    profile = measure_profile(settings, list(METHODS), DEPTHS, folder / "beside")
    narrow = ProfileSettings.here(device=device, precision="auto", **DEEP_SIZES)
    deep = measure_profile(narrow, ["ffstream"], DEEP, folder / "deep")
    draw_profile(profile, picture, force=True)
    return {
        "config": "ffstream profile --depths " + ",".join(map(str, DEPTHS)),
        "picture": picture.name,
        "growth": {f"{DEPTHS[0]} to {DEPTHS[-1]}": _growth(profile), f"{DEEP[0]} to {DEEP[-1]}": _growth(deep)},
        "beside": profile.to_mapping(),
        "deep": deep.to_mapping(),
    }


def read_profile(found: dict[str, Any]) -> Profile:
    """What `to_mapping` wrote."""
    return Profile(
        ProfileSettings(**found["settings"]), found["machine"], [Point(**point) for point in found["points"]]
    )


def _growth(profile: Profile) -> float:
    sizes = [point.training_bytes for point in profile.curve("ffstream")]
    assert sizes[0] is not None, "ours fits"
    assert sizes[-1] is not None, "ours fits"
    return sizes[-1] / sizes[0] - 1
