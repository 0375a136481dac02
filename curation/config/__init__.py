"""The one typed configuration.

In: YAML files, dataset.json, `key=value` overrides. Out: a checked `schema.Config`, or a `ConfigError` that
names the key, the value and what would be right.

    schema.py    the sections, their defaults and their hashes
    load.py      files and overrides; errors in words
    changes.py   what differs between two configurations
    said.py      what of a dataset's own configuration counts only where this user said so

May import store, filters and captioning.
"""
