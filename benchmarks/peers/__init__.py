"""The sharded training of other projects, each run as its users would run it, beside ours."""
