"""Where a run stands that has not ended: read from its run.json and the end of its metrics.jsonl only."""

from __future__ import annotations

from typing import Any

from anban.record.run import RunFolder


def standing(run: RunFolder) -> dict[str, Any]:
    """How far a run is, and how long it will still take.

    Returns:
        id, recipe, state, seed, host and job; `step` of `steps`; `best` (name, value and step of the best validation);
        `seconds_per_step`, over the latest lines of its record, validations among them counted in; `seconds_left` at that
        pace; `finding`, the gravest that holds. None for what is not known yet.
    """
    progress, latest = run.info.get("progress") or {}, run.latest()
    steps = progress.get("steps")
    step = max((line["step"] for line in latest), default=progress.get("step"))
    pace = _pace(latest) or (run.info.get("time") or {}).get("seconds_per_step")
    holding = [finding for finding in run.info.get("findings") or [] if finding.get("ended") is None]
    left = None if steps is None or step is None or pace is None else max(0, steps - step) * pace
    return {
        **{key: run.info.get(key) for key in ("id", "recipe", "seed", "host", "job")},
        "state": run.state,
        "step": step,
        "steps": steps,
        "best": progress.get("best"),
        "seconds_per_step": pace,
        "seconds_left": left,
        "finding": f"{holding[0]['kind']}: {holding[0]['what']}" if holding else None,
    }


def _pace(lines: list[dict[str, Any]]) -> float | None:
    """Seconds per step from the first to the last of these lines of metrics.jsonl."""
    timed = [line for line in lines if line.get("time") is not None]
    if not timed or timed[-1]["step"] <= timed[0]["step"]:
        return None
    return float(max(0.0, timed[-1]["time"] - timed[0]["time"]) / (timed[-1]["step"] - timed[0]["step"]))
