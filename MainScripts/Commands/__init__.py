"""The commands of `ma_ddpm.py`, one file each, whose first line is what `ma-ddpm --help` says of it."""
