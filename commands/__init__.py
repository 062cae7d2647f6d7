"""The actions of the command line, one file each."""
