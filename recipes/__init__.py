"""Recipes: functions that return one full, typed config each."""
