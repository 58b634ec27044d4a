"""What every part stands on: errors, units, clock, config base, the run record."""
