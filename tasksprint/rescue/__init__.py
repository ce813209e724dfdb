"""Commands on the files of a coordinator, for when something went wrong, or before it does.

backup.py     `backup`: the state of a running cluster, in one file
restore.py    `restore`: a new cluster of one out of a backup
recover.py    `recover`: a new cluster of one out of what one survivor holds
log_skip.py   `log skip`: leave out a command that no replica can apply
"""
