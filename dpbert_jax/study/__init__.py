"""Study: what a learned plan is worth, beside controls and baselines, over budgets and seeds."""
