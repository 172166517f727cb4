"""The subcommands of `mae`: a file for each, with its arguments and its calls into the rooms."""
