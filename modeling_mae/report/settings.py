"""Chooses the settings that a report shows, and formats them."""

import json
from pathlib import Path
from typing import Any


# Local folders, how a run was started, where its files went, and the licence, which is shown elsewhere.
HIDDEN_ARGUMENTS = (
    *("output_dir", "cache_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_changes", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "license"),
)
# Only the last part of these paths is shown: it names the images or weights. The rest shows how somebody's machine is
# arranged, and often who that is, but cards and pages are made to be shared.
NAMED_FOLDERS = ("train_dir", "validation_dir", "mask_dir", "model_name_or_path", "config_name", "exclude")
MERGED = "config_overrides"


def shown_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings that a reader can use, one value each. Each field of `config_overrides` becomes a setting; the last
    value wins. `linear_overrides` are in the other settings already."""
    fields = dict(text.partition("=")[::2] for text in arguments.get(MERGED) or [])
    settings: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in (*HIDDEN_ARGUMENTS, "linear_overrides") or value in (None, [], ""):
            continue
        if name == MERGED:
            settings |= {field: _value(text) for field, text in fields.items()}
        else:
            settings[name] = folder_names(value) if name in NAMED_FOLDERS else value
    return settings


def folder_names(places: str | list[str]) -> str | list[str]:
    """`folder_name` of one or several places."""
    return list(map(folder_name, places)) if isinstance(places, list) else folder_name(places)


def folder_name(place: str) -> str:
    """The last part of a path or a URL. A Hub id, owner/name, stays as it is."""
    if place.count("/") == 1 and not place.startswith(("/", ".", "~")) and not Path(place).exists():
        return place
    path = Path(place)
    return path.resolve().name if path.name in ("", "..") else path.name


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def setting_text(value: Any) -> str:
    """A value as a user types it."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(setting_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
