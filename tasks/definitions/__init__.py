"""One file per data set, each defining `TASK`; the registry finds every file of this folder."""
