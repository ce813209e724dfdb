"""The last release beside this checkout: upgrades, mixed clusters, recorded logs."""
