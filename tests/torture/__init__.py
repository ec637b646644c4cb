"""The long versions of tests of whole processes, run by `make torture`."""
