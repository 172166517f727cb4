"""The subcommands of `mae`: for each a file with its arguments, and what it calls in the rooms."""
