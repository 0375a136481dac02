"""The typed configuration of curation.

In: YAML files, dataset.json, `key=value` overrides. Out: a checked `schema.Config`, or a `ConfigError` that
names the key, the value and the correct form.

    schema.py       the sections, their defaults and their hashes
    load.py         files and overrides; errors in words
    named.py        configurations by name: those of `curation/configs`, and files over a base
    hdr.py          which sources `cut.hdr` concerns
    changes.py      the differences between two configurations
    mismatch.py     settings that do not fit each other
    json_schema.py  the JSON Schema of configuration files, for editors
    said.py         settings of a dataset's own configuration that need the permission of this user

May import store, filters and captioning.
"""
