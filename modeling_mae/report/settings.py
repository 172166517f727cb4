"""Which settings of a run are shown to people, and how."""

import json
from pathlib import Path
from typing import Any


# Folders of one machine, how a run was started, where its files went, and the licence, which has a place of its own.
HIDDEN_ARGUMENTS = (
    *("output_dir", "cache_dir", "overwrite_output_dir", "resume_from_checkpoint", "allow_changes", "report_to"),
    *("push_to_hub", "hub_model_id", "hub_private_repo", "license"),
)
# Only the last part of these is shown. It says which images or weights they were. What stands before it says how
# somebody's machine is arranged, and often who that is; and cards and pages are made to be passed on.
NAMED_FOLDERS = ("train_dir", "validation_dir", "model_name_or_path", "config_name")
MERGED = "config_overrides"


def shown_settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """The settings that a reader can use, one value each. `config_overrides` are merged: the later value of a field
    wins, and each field is a setting of its own. `linear_overrides` are in the other settings already."""
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
    """`folder_name` of one place or of several."""
    return list(map(folder_name, places)) if isinstance(places, list) else folder_name(places)


def folder_name(place: str) -> str:
    """The last part of a path or a URL. An id on the Hub, owner/name, stays whole."""
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
    """A value as it is typed."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(setting_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
