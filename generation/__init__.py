"""Training and sampling of the two-stage model. Imports none of the other packages, and no Ray: it knows the
schema of the shards only."""
