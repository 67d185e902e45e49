"""The command line: table of commands, parsing, help, output."""
