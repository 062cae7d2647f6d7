"""Time and memory of training; speed.py and scaling.py are the commands."""
