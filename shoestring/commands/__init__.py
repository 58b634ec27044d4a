"""What each command does; `cli` parses and comes here."""
