"""The JSON Schema of a stage's configuration, for editors and for checks without reelmill.

A file of a user is laid over a preset, so the schema requires no key. It is a little stricter than
`config.Config`, which also takes a number that is written as text. A schema cannot say what concerns two
values at once.
"""

from __future__ import annotations

from typing import Any

from generation.config import Config

DRAFT = "https://json-schema.org/draft/2020-12/schema"


def json_schema(stage: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a configuration file of `stage`."""
    schema = Config.model_json_schema()
    phase = schema["$defs"]["Phase"]["properties"]
    phase["data"] = {"$ref": "#/$defs/Data", "description": "changes to `data` in this phase"}
    phase["degradation"] = {
        "$ref": "#/$defs/Degradation",
        "description": "changes to `degradation` in this phase",
    }
    schema["properties"]["stage"] = {"const": stage}
    del schema["required"]
    return {"$schema": DRAFT, **schema, "title": f"The configuration of reelmill train {stage}"}
