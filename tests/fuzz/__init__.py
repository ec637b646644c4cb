"""Bad input of every kind: a case ends in a correct result or in one line that says what is wrong.

A few cases of each kind run with the other tests, always the same ones; `make torture` runs the
profile "torture" with new ones each time, 10,000 and more, and prints how they ended.
"""
