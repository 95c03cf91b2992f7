"""One module a command. A command reads options, calls the library, and shows the result: no more than that."""
