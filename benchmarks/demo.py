"""The demo's figures: four minutes, two workers, one killed half-way."""

from benchmarks.recipes import measure

if __name__ == "__main__":
    measure("demo", "demo", ("fleet.pace.budget_s=10", "evaluate.max_bytes=20000"))
