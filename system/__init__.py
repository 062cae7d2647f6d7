"""The operating system: files that are whole or absent, one writer a run, the machine, text from outside."""
