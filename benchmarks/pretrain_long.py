"""The long recipe's figures: thirty minutes, two workers."""

from benchmarks.recipes import measure

if __name__ == "__main__":
    measure("pretrain-long", "pretrain_long", ("fleet.pace.budget_s=10", "evaluate.max_bytes=20000"))
