"""Which configuration comes next and which trial stops: sampler, rungs, budgets, points to begin with. No Ray."""
