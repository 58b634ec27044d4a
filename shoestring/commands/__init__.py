"""What each command does; `cli.COMMANDS` names the functions, and calls them by name of parameter."""
