"""Policies: who decides which layers run. Gates, the planner, the rule from budget to plan."""
