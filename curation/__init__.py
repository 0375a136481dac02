"""From sources to shards. `pipeline` is the only module here that imports Ray."""
